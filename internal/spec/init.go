package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"isle"
)

// Init writes a commented isle.yaml for the folder dir, which is called name:
// for what it recognises (Node, Python, Go, a page) a service that runs it, for
// any other folder one that serves its files. Parse accepts what it returns.
// It does not open anything but a few small files at dir's top.
func Init(dir fs.FS, name string) []byte {
	t := recognise(look{dir})
	t.Name = isle.Slug(name)
	return t.write()
}

// A template is what Init writes.
type template struct {
	Name     string
	About    string   // what was recognised
	Service  string   // its name
	Notes    []string // comments above the service
	Packages []string
	From     string
	Run      []string
	Command  []string
	Env      [][2]string
	Health   string
	Port     int
}

func recognise(l look) template {
	switch {
	case l.has("package.json"):
		return l.node()
	case l.has("requirements.txt") || l.has("pyproject.toml") || l.has("manage.py") || l.first("app.py", "main.py", "server.py") != "":
		return l.python()
	case l.has("go.mod"):
		return l.golang()
	}
	t := template{About: "a folder: its files are served over HTTP", Packages: []string{"python3"}, From: "."}
	if l.has("index.html") {
		t.About = "a page: it is served over HTTP"
	}
	t.Service, t.Port, t.Health = "web", 8080, `{http: "http://localhost:8080/"}`
	t.Command = []string{"python3", "-m", "http.server", "8080", "--directory", "/app"}
	return t
}

// look reads small files of a folder.
type look struct{ dir fs.FS }

func (l look) has(name string) bool {
	info, err := fs.Stat(l.dir, name)
	return err == nil && info.Mode().IsRegular()
}

func (l look) hasDir(name string) bool {
	info, err := fs.Stat(l.dir, name)
	return err == nil && info.IsDir()
}

func (l look) first(names ...string) string {
	for _, n := range names {
		if l.has(n) {
			return n
		}
	}
	return ""
}

func (l look) read(name string) string {
	f, err := l.dir.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 256<<10))
	if err != nil {
		return ""
	}
	return string(b)
}

// node runs what package.json starts.
func (l look) node() template {
	t := template{About: "a Node project", Service: "web", Packages: []string{"nodejs"}, From: ".", Port: 8080,
		Env: [][2]string{{"PORT", "8080"}, {"NODE_ENV", "production"}}, Health: "{tcp: 8080}"}
	var p struct {
		Main         string            `json:"main"`
		Scripts      map[string]string `json:"scripts"`
		Dependencies map[string]any    `json:"dependencies"`
	}
	// A package.json that cannot be read still makes it a Node project.
	if err := json.Unmarshal([]byte(l.read("package.json")), &p); err != nil {
		t.Notes = append(t.Notes, "package.json could not be read; see whether `command` is right.")
	}
	if words := strings.Fields(p.Scripts["start"]); len(words) > 1 && words[0] == "node" && plainWords(words) {
		t.Command = words
	} else if main := cmp.Or(l.first(p.Main), l.first("server.js", "index.js", "app.js", "src/index.js")); main != "" {
		t.Command = []string{"node", main}
	} else {
		t.Command = []string{"node", "index.js"}
		t.Notes = append(t.Notes, "No start script of the form `node FILE` was found; see whether `command` is right.")
	}
	if len(p.Dependencies) > 0 {
		t.Notes = append(t.Notes, "Builds have no network: run `npm install` in this folder first, node_modules is copied. Or see `network: record` (docs/dockerfile.md).")
	}
	t.Notes = append(t.Notes, "The program has to listen on $PORT.")
	return t
}

// debianPython says which Debian package holds what PyPI calls so. What is not
// here is left to the reader: a wrong guess would not build.
var debianPython = map[string]string{
	"aiohttp": "python3-aiohttp", "beautifulsoup4": "python3-bs4", "celery": "python3-celery", "click": "python3-click",
	"cryptography": "python3-cryptography", "django": "python3-django", "fastapi": "python3-fastapi", "flask": "python3-flask",
	"gunicorn": "python3-gunicorn", "httpx": "python3-httpx", "jinja2": "python3-jinja2", "lxml": "python3-lxml",
	"matplotlib": "python3-matplotlib", "numpy": "python3-numpy", "pandas": "python3-pandas", "pillow": "python3-pil",
	"psycopg": "python3-psycopg", "psycopg2": "python3-psycopg2", "psycopg2-binary": "python3-psycopg2",
	"pydantic": "python3-pydantic", "pymysql": "python3-pymysql", "pytest": "python3-pytest", "python-dateutil": "python3-dateutil",
	"pyyaml": "python3-yaml", "redis": "python3-redis", "requests": "python3-requests", "rich": "python3-rich", "scipy": "python3-scipy",
	"sqlalchemy": "python3-sqlalchemy", "starlette": "python3-starlette", "tornado": "python3-tornado", "uvicorn": "python3-uvicorn",
	"werkzeug": "python3-werkzeug",
}

var requirement = pattern{text: `^[A-Za-z0-9][A-Za-z0-9._-]*`}

// python runs the file that looks like the start, with what Debian has of the
// requirements.
func (l look) python() template {
	t := template{About: "a Python project", Service: "web", From: ".", Port: 8080, Health: "{tcp: 8080}",
		Packages: []string{"python3"}, Env: [][2]string{{"PORT", "8080"}, {"PYTHONUNBUFFERED", "1"}}}
	var missing []string
	for line := range strings.SplitSeq(l.read("requirements.txt"), "\n") {
		name := strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(requirement.regexp().FindString(strings.TrimSpace(line))))
		deb, known := debianPython[name]
		switch {
		case name == "" || len(missing) > 20:
		case !known:
			missing = append(missing, name)
		case !slices.Contains(t.Packages, deb):
			t.Packages = append(t.Packages, deb)
		}
	}
	switch main := l.first("main.py", "app.py", "server.py", "wsgi.py"); {
	case l.has("manage.py"):
		t.Command = []string{"python3", "manage.py", "runserver", "--noreload", "0.0.0.0:8080"}
		if !slices.Contains(t.Packages, "python3-django") {
			t.Packages = append(t.Packages, "python3-django")
		}
	case main != "" && slices.Contains(t.Packages, "python3-flask"):
		t.Command = []string{"python3", "-m", "flask", "--app", strings.TrimSuffix(main, ".py"), "run", "--host", "0.0.0.0", "--port", "8080"}
	case main != "" && slices.Contains(t.Packages, "python3-uvicorn"):
		t.Command = []string{"python3", "-m", "uvicorn", strings.TrimSuffix(main, ".py") + ":app", "--host", "0.0.0.0", "--port", "8080"}
	case main != "":
		t.Command = []string{"python3", main}
		t.Notes = append(t.Notes, "The program has to listen on $PORT.")
	default:
		t.Command = []string{"python3", "-m", "http.server", "8080", "--directory", "/app"}
		t.Notes = append(t.Notes, "No main.py, app.py or server.py was found, so the files are served; put your own `command` in place.")
	}
	switch {
	case len(missing) > 0 || l.has("pyproject.toml"):
		what := "What pyproject.toml needs"
		if len(missing) > 0 {
			what = "Not known among Debian's packages: " + strings.Join(missing, ", ") + ". What they are"
		}
		t.Notes = append(t.Notes, what+" has to be named in `packages` (try `apt-cache search`), or put here first with",
			"`pip install --target vendor …`, and PYTHONPATH=/app/vendor in `env`: builds have no network.")
	}
	return t
}

var (
	goVersion = pattern{text: `(?m)^go 1\.([0-9]+)`}
	goRequire = pattern{text: `(?m)^require\b`}
)

// golang builds in the image where bookworm's Go 1.19 can, and otherwise copies
// a binary that was built outside.
func (l look) golang() template {
	t := template{About: "a Go module", Service: "web", Port: 8080, Env: [][2]string{{"PORT", "8080"}}, Health: "{tcp: 8080}",
		Command: []string{"/usr/local/bin/app"}}
	mod := l.read("go.mod")
	minor := 99
	if m := goVersion.regexp().FindStringSubmatch(mod); m != nil {
		minor, _ = strconv.Atoi(m[1])
	}
	vendored, main := l.hasDir("vendor"), l.goMain()
	if main != "" && minor <= 19 && (vendored || !goRequire.matches(mod)) {
		t.Packages, t.From = []string{"golang-go"}, "."
		flags := ""
		if vendored {
			flags = "-mod=vendor "
		}
		t.Run = []string{"cd /app && HOME=/tmp GOCACHE=/tmp/go-build CGO_ENABLED=0 go build " + flags + "-buildvcs=false -trimpath -o /usr/local/bin/app " + main + " && rm -rf /tmp/go-build"}
	} else {
		t.From = "bin/"
		t.Command = []string{"/app/app"}
		t.Notes = append(t.Notes, "Builds have no network, and bookworm's Go is 1.19: build here first, with", "  CGO_ENABLED=0 go build -o bin/app "+cmp.Or(main, "."))
	}
	t.Notes = append(t.Notes, "The program has to listen on $PORT.")
	return t
}

var mainPackage = pattern{text: `(?m)^package main\b`}

// goMain is the package to build: the folder itself, or the first in cmd.
func (l look) goMain() string {
	for _, pattern := range []string{"*.go", "cmd/*/*.go"} {
		names, err := fs.Glob(l.dir, pattern)
		if err != nil {
			continue
		}
		for i, n := range names {
			if d := path.Dir(n); i < 100 && bareYAML.matches(d) && !strings.HasSuffix(n, "_test.go") && mainPackage.matches(l.read(n)) {
				return strings.TrimSuffix("./"+d, "/.")
			}
		}
	}
	return ""
}

// plainWords reports whether a start script is words and no shell language.
func plainWords(words []string) bool {
	return !strings.ContainsAny(strings.Join(words, ""), "&|;<>$`\"'\\*?(){}[]#~=")
}

// write gives the file. Values from the folder are quoted where YAML could take
// them for something else.
func (t template) write() []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	list := func(in []string) string {
		out := make([]string, len(in))
		for i, s := range in {
			out[i] = quoteYAML(s)
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	line("# Written by `isle init` for %s.", t.About)
	line("# `isle up` makes it so; `isle schema` prints a schema for editors.")
	line("name: %s", t.Name)
	line("")
	line("services:")
	line("  %s:", t.Service)
	for _, n := range t.Notes {
		line("    # %s", n)
	}
	if len(t.Packages) > 0 {
		line("    packages: %s          # Debian packages, locked by hash in isle.lock", list(t.Packages))
	}
	line("    copy: [{from: %s, to: /app}]      # what .isleignore names stays out", quoteYAML(t.From))
	if len(t.Run) > 0 {
		line("    run:                              # at build time, sealed, without network")
		for _, r := range t.Run {
			line("      - %s", quoteYAML(r))
		}
	} else {
		line("    # run: [make]                     # at build time, sealed, without network")
	}
	line("    workdir: /app")
	line("    command: %s", list(t.Command))
	if len(t.Env) > 0 {
		line("    env:")
		for _, kv := range t.Env {
			line("      %s: %s", kv[0], quoteYAML(kv[1]))
		}
	}
	line("    healthcheck: %s", t.Health)
	line("    ports: {web: %d}                # reached on a stable 127.0.0.1:PORT", t.Port)
	line("    restart: on-failure")
	line("    # volumes: {/data: {size: 1GiB}}  # the only folders that can be written and stay; /tmp is in memory")
	line("    # depends_on: [db]                # a second service, reached on localhost")
	line("")
	line("# egress: [api.example.com:443]       # what it may reach outside, by name; without it, nothing")
	line("limits: {cpus: 1, memory: 512MiB, pids: 256}")
	line("ttl: 8h                               # then it is torn down; volumes stay seven days")
	return b.Bytes()
}

var bareYAML = pattern{text: `^-{0,2}[A-Za-z/.][A-Za-z0-9_./-]*$`}

// quoteYAML writes a scalar so that it reads as that text: bare, or as a JSON
// string, which is a double-quoted YAML one.
func quoteYAML(s string) string {
	if bareYAML.matches(s) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}, strings.ToLower(s)) {
		return s
	}
	return strconv.Quote(s)
}
