package spec

import (
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func TestInitWritesWhatParseAccepts(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, c := range []struct {
		name     string
		dir      fstest.MapFS
		packages []string
		command  []string
		from     string
		says     string
	}{
		{"My Folder!", fstest.MapFS{}, []string{"python3"}, []string{"python3", "-m", "http.server", "8080", "--directory", "/app"}, ".", "a folder"},
		{"site", fstest.MapFS{"index.html": file("<p>")}, []string{"python3"}, []string{"python3", "-m", "http.server", "8080", "--directory", "/app"}, ".", "a page"},
		{"1-node", fstest.MapFS{"package.json": file(`{"scripts":{"start":"node src/app.js --port 8080"},"dependencies":{"express":"4"}}`)},
			[]string{"nodejs"}, []string{"node", "src/app.js", "--port", "8080"}, ".", "npm install"},
		{"node", fstest.MapFS{"package.json": file(`{"main":"lib/x.js","scripts":{"start":"node a.js && rm -rf /"}}`), "lib/x.js": file("")},
			[]string{"nodejs"}, []string{"node", "lib/x.js"}, ".", "$PORT"},
		{"node", fstest.MapFS{"package.json": file(`{"main": "\"]\nname: evil"}`)}, []string{"nodejs"}, []string{"node", "index.js"}, ".", "No start script"},
		{"broken", fstest.MapFS{"package.json": file(`{`), "server.js": file("")}, []string{"nodejs"}, []string{"node", "server.js"}, ".", "could not be read"},
		{"flask", fstest.MapFS{"requirements.txt": file("Flask>=2 # web\npsycopg2-binary==2.9\n-r other.txt\nweird_thing\n"), "app.py": file("")},
			[]string{"python3", "python3-flask", "python3-psycopg2"}, []string{"python3", "-m", "flask", "--app", "app", "run", "--host", "0.0.0.0", "--port", "8080"}, ".", "weird-thing"},
		{"plain", fstest.MapFS{"main.py": file("")}, []string{"python3"}, []string{"python3", "main.py"}, ".", "a Python project"},
		{"django", fstest.MapFS{"manage.py": file(""), "pyproject.toml": file("")}, []string{"python3", "python3-django"},
			[]string{"python3", "manage.py", "runserver", "--noreload", "0.0.0.0:8080"}, ".", "pyproject.toml"},
		{"old-go", fstest.MapFS{"go.mod": file("module x\n\ngo 1.19\n"), "main.go": file("package main")}, []string{"golang-go"}, []string{"/usr/local/bin/app"}, ".", "go build"},
		{"cmd-go", fstest.MapFS{"go.mod": file("module x\n\ngo 1.18\n"), "cmd/x/main.go": file("// Doc.\npackage main")}, []string{"golang-go"}, []string{"/usr/local/bin/app"}, ".", "/app ./cmd/x"},
		{"library-go", fstest.MapFS{"go.mod": file("module x\n\ngo 1.18\n"), "x.go": file("package x")}, nil, []string{"/app/app"}, "bin/", "go build -o bin/app ."},
		{"new-go", fstest.MapFS{"go.mod": file("module x\n\ngo 1.24\n")}, nil, []string{"/app/app"}, "bin/", "CGO_ENABLED=0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := Init(c.dir, c.name)
			f, err := Parse("isle.yaml", b)
			if err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			s := f.Services[0]
			if len(f.Services) != 1 || !reflect.DeepEqual(s.Packages, c.packages) || !reflect.DeepEqual(s.Command, c.command) || s.Copy[0].From != c.from {
				t.Errorf("%+v", s)
			}
			if !strings.Contains(string(b), c.says) {
				t.Errorf("does not say %q:\n%s", c.says, b)
			}
		})
	}
}
