package record_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The clients of registries that cannot be reached from everywhere are shown with
// registries of the test's own, which speak as those do.
func TestClientsOfRegistriesAreTheSameWithTheNetworkGone(t *testing.T) {
	for _, a := range []struct {
		app
		serve func(t *testing.T, w *world)
	}{{pipApp(), servePython}, {gitApp(), serveGit}, {cargoApp(), serveCrates}} {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t)
			a.serve(t, w)
			w.same(a.app)
		})
	}
}

func pipApp() app {
	return app{
		name: "python", base: "python3-pip",
		files: map[string]string{"Dockerfile": `FROM localhost/base/python
ENV PIP_INDEX_URL=https://pypi.example.com/simple PIP_BREAK_SYSTEM_PACKAGES=1
RUN --mount=type=cache,target=/root/.cache pip install greeting
RUN python3 -c 'import greeting; print(greeting.text())'
`},
		runs: []string{"", "hello from a wheel"},
	}
}

// wheel is a package as pip installs it (PEP 427).
func wheel(t *testing.T, name, requires string, modules map[string]string) []byte {
	t.Helper()
	info := name + "-1.0.dist-info/"
	metadata := "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0\n"
	if requires != "" {
		metadata += "Requires-Dist: " + requires + "\n"
	}
	files := map[string]string{info + "METADATA": metadata, info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
	for path, text := range modules {
		files[path] = text
	}
	var record strings.Builder
	var names []string
	for path, text := range files {
		sum := sha256.Sum256([]byte(text))
		names = append(names, fmt.Sprintf("%s,sha256=%s,%d\n", path, base64.RawURLEncoding.EncodeToString(sum[:]), len(text)))
	}
	slices.Sort(names)
	record.WriteString(strings.Join(names, "") + info + "RECORD,,\n")
	files[info+"RECORD"] = record.String()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for path, text := range files {
		f, err := z.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		f.Write([]byte(text))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// servePython is an index of packages: JSON where it is asked for (PEP 691), else
// HTML (PEP 503), and the files at another host.
func servePython(t *testing.T, w *world) {
	wheels := map[string][]byte{
		"greeting": wheel(t, "greeting", "saying>=1", map[string]string{"greeting/__init__.py": "import saying\n\ndef text():\n    return saying.word + ' from a wheel'\n"}),
		"saying":   wheel(t, "saying", "", map[string]string{"saying.py": "word = 'hello'\n"}),
	}
	index := http.NewServeMux()
	index.HandleFunc("GET /simple/{name}/", func(rw http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		file, ok := wheels[name]
		if !ok {
			http.NotFound(rw, r)
			return
		}
		sum := sha256.Sum256(file)
		at := "https://files.example.com/" + name + "-1.0-py3-none-any.whl"
		if !strings.Contains(r.Header.Get("Accept"), "application/vnd.pypi.simple.v1+json") {
			rw.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(rw, "<!DOCTYPE html><a href=\"%s#sha256=%x\">%s-1.0-py3-none-any.whl</a>", at, sum, name)
			return
		}
		rw.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		json.NewEncoder(rw).Encode(map[string]any{"meta": map[string]any{"api-version": "1.0"}, "name": name, "files": []any{
			map[string]any{"filename": name + "-1.0-py3-none-any.whl", "url": at, "hashes": map[string]string{"sha256": hex.EncodeToString(sum[:])}},
		}})
	})
	files := http.NewServeMux()
	files.HandleFunc("GET /{file}", func(rw http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(r.PathValue("file"), "-")
		rw.Header().Set("Content-Type", "application/zip")
		rw.Write(wheels[name])
	})
	w.serve("pypi.example.com", index)
	w.serve("files.example.com", files)
}

func gitApp() app {
	return app{
		name: "git", base: "git",
		files: map[string]string{"Dockerfile": `FROM localhost/base/git
RUN git clone https://git.example.com/tool /src && git -C /src fetch origin side && rm -rf /src/.git
RUN cat /src/main.txt
`},
		runs: []string{"", "what a repository has"},
	}
}

// repository makes one below a folder, with a branch beside the first, and one file
// of some size, so that git compresses what it asks for.
func repository(t *testing.T, root, name string, files map[string]string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "HOME="+root, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q", "-b", "main", dir)
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git("-C", dir, "add", ".")
	git("-C", dir, "commit", "-q", "-m", "the first")
	for i := range 40 { // as many tags are a request of some KiB
		git("-C", dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprintf("number %d", i))
		git("-C", dir, "tag", fmt.Sprintf("v%d", i))
	}
	git("-C", dir, "branch", "side")
	git("clone", "-q", "--bare", dir, filepath.Join(root, name))
}

// gitServer is git's own, over HTTP.
func gitServer(t *testing.T, root string) http.Handler {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"},
	}
}

func serveGit(t *testing.T, w *world) {
	root := t.TempDir()
	repository(t, root, "tool", map[string]string{"main.txt": "what a repository has\n"})
	w.serve("git.example.com", gitServer(t, root))
}

func cargoApp() app {
	return app{
		name: "rust", base: "cargo",
		files: map[string]string{
			"Cargo.toml":         "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\ngreeting = \"1\"\n",
			"src/main.rs":        "fn main() { println!(\"{}\", greeting::text()); }\n",
			".cargo/config.toml": "[source.crates-io]\nreplace-with = \"mine\"\n\n[source.mine]\nregistry = \"https://crates.example.com/index\"\n",
			"sparse/config.toml": "[source.crates-io]\nreplace-with = \"mine\"\n\n[source.mine]\nregistry = \"sparse+https://crates.example.com/sparse/\"\n",
			"Dockerfile": `FROM localhost/base/rust
WORKDIR /app
COPY . .
RUN --mount=type=cache,target=/root/.cargo --mount=type=cache,target=/app/target cargo build --release && cp target/release/app /usr/bin/app
RUN app
# The registry's other protocol, which cargo 1.68 has by itself.
RUN --mount=type=cache,target=/root/.cargo --mount=type=cache,target=/app/target cp sparse/config.toml .cargo/ && RUSTC_BOOTSTRAP=1 cargo -Z sparse-registry build --release && cp target/release/app /usr/bin/sparse
RUN cmp /usr/bin/app /usr/bin/sparse
`,
		},
		runs: []string{"", "hello from a crate"},
	}
}

// crate is a package as cargo fetches it.
func crate(t *testing.T, name string, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for path, text := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name + "-1.0.0/" + path, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		tw.Write([]byte(text))
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// serveCrates is a registry of cargo's, with its index as a git repository and as
// files (the sparse protocol).
func serveCrates(t *testing.T, w *world) {
	file := crate(t, "greeting", map[string]string{
		"Cargo.toml": "[package]\nname = \"greeting\"\nversion = \"1.0.0\"\nedition = \"2021\"\n", "src/lib.rs": "pub fn text() -> &'static str { \"hello from a crate\" }\n",
	})
	sum := sha256.Sum256(file)
	entry := fmt.Sprintf(`{"name":"greeting","vers":"1.0.0","deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", sum)
	config := `{"dl": "https://crates.example.com/dl"}`
	root := t.TempDir()
	repository(t, root, "index", map[string]string{"config.json": config, "gr/ee/greeting": entry})
	mux := http.NewServeMux()
	mux.Handle("/index/", gitServer(t, root))
	mux.HandleFunc("GET /sparse/config.json", func(rw http.ResponseWriter, _ *http.Request) { rw.Write([]byte(config)) })
	mux.HandleFunc("GET /sparse/gr/ee/greeting", func(rw http.ResponseWriter, _ *http.Request) { rw.Write([]byte(entry)) })
	mux.HandleFunc("GET /dl/greeting/1.0.0/download", func(rw http.ResponseWriter, _ *http.Request) { rw.Write(file) })
	w.serve("crates.example.com", mux)
}
