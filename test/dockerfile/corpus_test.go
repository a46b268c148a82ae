// Package dockerfile_test builds Dockerfiles by Isle and by Debian's buildah, and
// compares what came out: every file's path, kind, mode, owner and content, and
// how the image is run.
//
// A case is a file in testdata, named for what it shows: the context's files,
// the Dockerfile among them. setup.sh is run in the context and is no part of it.
// Dockerfile.instead is what buildah builds where it does not know what the
// Dockerfile asks for. The lines before the first file say how the case is built,
// and where and why both may differ.
package dockerfile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"isle/test/lab"
)

var (
	server *lab.Server
	work   string      // a folder of the test's own
	stores chan string // buildah's, each used by one at a time: it locks them whole
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if server, err = lab.Bare("../../bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Close()
	memory, err := os.MkdirTemp("/dev/shm", "corpus-") // it copies every file for every stage
	if err == nil {
		defer os.RemoveAll(memory)
		work, err = os.MkdirTemp(server.State, "corpus-")
	}
	if err == nil {
		err = base(memory)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// base makes localhost/corpus/base, for both: busybox and a few accounts, and
// what buildah would make of its own when it runs something.
func base(memory string) error {
	for name, content := range map[string]string{
		"debian.yaml": "name: corpus\nservices: {debian: {packages: [busybox-static]}}\n",
		"base.yaml":   "name: corpus\nservices: {base: {build: base}}\n",
		"base/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
		"base/group":  "root:x:0:\napp:x:1001:\nstaff:x:50:app\nnogroup:x:65534:\n",
		"base/Dockerfile": `FROM localhost/corpus/debian AS debian
FROM scratch
COPY --from=debian /bin/busybox /bin/busybox
COPY passwd group /etc/
COPY --chmod=755 <<hosts <<hostname <<resolv.conf /etc/
hosts
hostname
resolv.conf
RUN ["/bin/busybox", "--install", "-s", "/bin"]
WORKDIR /proc
WORKDIR /dev
WORKDIR /sys
WORKDIR /
RUN mkdir -p -m 1777 /tmp && mkdir -p /root /run /var/tmp /home /usr/lib && ln -s usr/lib /lib && chmod 700 /root
ENV PATH=/bin
CMD ["sh"]
`,
	} {
		if err := write(filepath.Join(work, name), content); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"build", work + "/debian.yaml"}, {"build", work + "/base.yaml"}, {"image", "export", "corpus/base", work + "/base.tar"}} {
		if _, err := server.Isle(args...); err != nil {
			return err
		}
	}
	n := runtime.GOMAXPROCS(0)
	stores = make(chan string, n)
	for i := range n {
		stores <- filepath.Join(memory, strconv.Itoa(i))
	}
	for range n {
		if _, err := buildah("pull", "oci-archive:"+work+"/base.tar"); err != nil {
			return err
		}
	}
	return nil
}

func write(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(content), 0o644)
}

// buildah runs Debian's buildah on one of the test's own stores, the one that was
// not used for longest.
func buildah(args ...string) (string, error) {
	store := <-stores
	defer func() { stores <- store }()
	cmd := exec.Command("buildah", append([]string{"--root", store + "/root", "--runroot", store + "/run", "--storage-driver", "vfs"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("buildah %v: %w\n%s%s", args, err, out.String(), said.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// A testCase is one of testdata.
type testCase struct {
	name, dir string
	target    string
	args      []string
	instead   bool
	differs   map[string]string // reasons by path or field
}

func readCase(t *testing.T, file string) testCase {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := testCase{name: strings.TrimSuffix(filepath.Base(file), ".txtar"), differs: map[string]string{}}
	c.dir = filepath.Join(work, "cases", c.name)
	for line := range strings.Lines(string(archive.Comment)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "":
		case "target":
			c.target = value
		case "args":
			c.args = strings.Fields(value)
		case "instead":
			c.instead = true
		case "differs":
			where, why, ok := strings.Cut(value, ": ")
			if !ok {
				t.Fatalf("%s: %q gives no reason", file, line)
			}
			c.differs[where] = why
		default:
			t.Fatalf("%s: what is %q?", file, line)
		}
	}
	for _, f := range archive.Files {
		if err := write(filepath.Join(c.dir, f.Name), string(f.Data)); err != nil {
			t.Fatal(err)
		}
	}
	if setup := filepath.Join(c.dir, "setup.sh"); os.WriteFile(setup, nil, 0o600) == nil {
		for _, f := range archive.Files {
			if f.Name == "setup.sh" {
				cmd := exec.Command("/bin/sh", "-ec", string(f.Data))
				cmd.Dir = c.dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("setup.sh: %v: %s", err, out)
				}
			}
		}
		os.Remove(setup)
	}
	return c
}

// An outcome is what came out of a build.
type outcome struct {
	files  map[string]string // what is at each path
	config map[string]string
}

func TestDockerfilesMakeWhatBuildahMakesOfThem(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d cases (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			c := readCase(t, file)
			ours, theirs := c.byIsle(t), c.byBuildah(t)
			c.compare(t, "", ours.files, theirs.files)
			c.compare(t, "config.", ours.config, theirs.config)
			for where, why := range c.differs {
				if !strings.HasPrefix(where, "used ") {
					t.Errorf("%s does not differ (%s)", where, why)
				}
			}
		})
	}
}

// compare reports what differs and is not said to.
func (c testCase) compare(t *testing.T, kind string, ours, theirs map[string]string) {
	t.Helper()
	all := maps.Clone(ours)
	maps.Copy(all, theirs)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if ours[k] == theirs[k] {
			continue
		}
		if why, ok := c.differs[kind+k]; ok {
			delete(c.differs, kind+k)
			c.differs["used "+kind+k] = why
			continue
		}
		if _, ok := c.differs["used "+kind+k]; !ok {
			t.Errorf("%s%s: Isle has %q, and buildah %q", kind, k, ours[k], theirs[k])
		}
	}
}

// byIsle builds a case by Isle.
func (c testCase) byIsle(t *testing.T) outcome {
	t.Helper()
	name := "case-" + hexOf([]byte(c.name))[:12]
	context, err := filepath.Rel(work, c.dir)
	if err != nil {
		t.Fatal(err)
	}
	build := map[string]any{"context": context}
	if c.target != "" {
		build["target"] = c.target
	}
	if len(c.args) > 0 {
		args := map[string]string{}
		for _, a := range c.args {
			k, v, _ := strings.Cut(a, "=")
			args[k] = v
		}
		build["args"] = args
	}
	spec, err := json.Marshal(map[string]any{"name": name, "services": map[string]any{"it": map[string]any{"build": build}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(work, name+".yaml")
	if err := os.WriteFile(file, spec, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Isle("build", file); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(work, name+".tar")
	if _, err := server.Isle("image", "export", name+"/it", archive); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(archive)
	return c.flatten(t, archive)
}

// flatten reads an exported image: its layers on top of one another.
func (c testCase) flatten(t *testing.T, archive string) outcome {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobs := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if blobs[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var manifests []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(blobs["manifest.json"], &manifests); err != nil || len(manifests) != 1 {
		t.Fatalf("manifest.json: %v", err)
	}
	out := outcome{files: map[string]string{}}
	for _, l := range manifests[0].Layers {
		c.apply(t, out.files, blobs[l])
	}
	var image struct {
		Author string
		Config config
	}
	if err := json.Unmarshal(blobs[manifests[0].Config], &image); err != nil {
		t.Fatal(err)
	}
	out.config = image.Config.fields(image.Author)
	return out
}

// apply puts a layer on top of files (OCI image specification, layer.md).
func (c testCase) apply(t *testing.T, files map[string]string, layer []byte) {
	t.Helper()
	remove := func(at string, itself bool) {
		for k := range files {
			if itself && k == at || strings.HasPrefix(k, strings.TrimSuffix(at, "/")+"/") && k != "/" {
				delete(files, k)
			}
		}
	}
	type entry struct{ name, what string }
	var added []entry
	plain := io.Reader(bytes.NewReader(layer))
	if bytes.HasPrefix(layer, []byte{0x1f, 0x8b}) {
		var err error
		if plain, err = gzip.NewReader(plain); err != nil {
			t.Fatal(err)
		}
	}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := path.Clean("/" + h.Name)
		dir, base := path.Split(name)
		switch {
		case base == ".wh..wh..opq":
			remove(path.Clean(dir), false)
		case strings.HasPrefix(base, ".wh."):
			remove(path.Join(dir, strings.TrimPrefix(base, ".wh.")), true)
		case h.Typeflag == tar.TypeLink: // another name of a file before it
			to := path.Clean("/" + h.Linkname)
			i := slices.IndexFunc(added, func(e entry) bool { return e.name == to })
			if i < 0 {
				t.Fatalf("%s is a link to %s, which is not there", name, to)
			}
			added = append(added, entry{name, added[i].what})
		default:
			added = append(added, entry{name, describe(h.FileInfo().Mode(), h.Uid, h.Gid, h.Linkname, content)})
		}
	}
	for _, e := range added {
		if !strings.HasPrefix(e.what, "folder") {
			remove(e.name, false)
		}
		files[e.name] = e.what
	}
}

// describe is what is compared of a file.
func describe(mode fs.FileMode, uid, gid int, target string, content []byte) string {
	bits := mode.Perm()
	for bit, at := range map[fs.FileMode]fs.FileMode{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&bit != 0 {
			bits |= at
		}
	}
	who := fmt.Sprintf("%04o %d:%d", uint32(bits), uid, gid)
	switch {
	case mode.IsDir():
		return "folder " + who
	case mode&fs.ModeSymlink != 0:
		return fmt.Sprintf("link %d:%d to %s", uid, gid, target)
	case mode.IsRegular():
		if len(content) < 60 {
			return "file " + who + " " + string(content)
		}
		return "file " + who + " " + hexOf(content)
	}
	return mode.Type().String() + " " + who
}

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// byBuildah builds a case by buildah.
func (c testCase) byBuildah(t *testing.T) outcome {
	t.Helper()
	file := "Dockerfile"
	if c.instead {
		file = "Dockerfile.instead"
	}
	archive := filepath.Join(work, c.name+".theirs.tar")
	args := []string{"bud", "--isolation", "chroot", "--format", "docker", "--layers=false", "--pull-never", "-t", "docker-archive:" + archive + ":localhost/" + c.name + ":latest", "-f", filepath.Join(c.dir, file)}
	if c.target != "" {
		args = append(args, "--target", c.target)
	}
	for _, a := range c.args {
		args = append(args, "--build-arg", a)
	}
	if _, err := buildah(append(args, c.dir)...); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(archive)
	return c.flatten(t, archive)
}

// A config is how an image is run, as Docker writes it.
type config struct {
	User         string
	ExposedPorts map[string]struct{}
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{}
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	Shell        []string
	OnBuild      []string
	Healthcheck  *struct {
		Test                           []string
		Interval, Timeout, StartPeriod int64
		Retries                        int
	}
}

// fields are a configuration's, as texts. What buildah says of itself is none.
func (c config) fields(author string) map[string]string {
	env := map[string]string{}
	for _, e := range c.Env {
		k, v, _ := strings.Cut(e, "=")
		env[k] = v
	}
	labels := map[string]string{}
	maps.Copy(labels, c.Labels)
	delete(labels, "io.buildah.version")
	dir := c.WorkingDir
	if dir == "" {
		dir = "/"
	}
	out := map[string]string{"author": author, "user": c.User, "workdir": dir, "stopsignal": c.StopSignal}
	for k, v := range map[string]any{
		"ports": slices.Sorted(maps.Keys(c.ExposedPorts)), "volumes": slices.Sorted(maps.Keys(c.Volumes)), "env": env, "labels": labels,
		"entrypoint": append([]string{}, c.Entrypoint...), "cmd": append([]string{}, c.Cmd...), "shell": append([]string{}, c.Shell...), "onbuild": append([]string{}, c.OnBuild...),
		"health": c.Healthcheck,
	} {
		b, _ := json.Marshal(v)
		out[k] = string(b)
	}
	return out
}
