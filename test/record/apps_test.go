package record_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
	"isle/internal/build"
)

// An app is a project whose steps use a client of a package registry, as it is
// and with the host that it knows by itself.
type app struct {
	name, base string            // what is in the image that it begins with
	files      map[string]string // the Dockerfile among them
	runs       []string          // what the finished image says of itself: a command, and its output
}

func TestRealApplicationsAreTheSameWithTheNetworkGone(t *testing.T) {
	for _, a := range []app{nodeApp(), goApp(), debianApp(t)} {
		t.Run(a.name, func(t *testing.T) {
			newWorld(t).same(a)
		})
	}
}

// same builds an application, and from what was recorded twice again without a
// network, in two places: it is the same.
func (w *world) same(a app) {
	t := w.t
	t.Helper()
	w.mustBuild(w.project("name: base\nservices: {"+a.name+": {packages: ["+a.base+"]}}", nil), build.Options{})
	p := w.project("name: app\nservices: {app: {build: ., network: record}}", a.files)
	first := w.mustBuild(p, build.Options{})
	log := w.said()
	if !strings.Contains(log, a.runs[1]) {
		t.Fatalf("it said:\n%s", log)
	}
	steps := p.lock.Services["app"].Network
	if len(steps) == 0 {
		t.Fatalf("nothing was recorded:\n%s", log)
	}
	w.leave()
	digests := []isle.Digest{w.mustBuild(p, build.Options{}).Images["app"].Digest()}
	w.another() // it makes every step again
	digests = append(digests, w.mustBuild(p, build.Options{Frozen: true}).Images["app"].Digest())
	for _, d := range digests {
		if d != first.Images["app"].Digest() {
			_, err := w.Verify(t.Context(), p.file, p.lock, build.Options{Frozen: true}, w.say)
			t.Errorf("%s, and with the network gone %s: %v", first.Images["app"].Digest(), d, err)
		}
	}
	if len(w.dialed) != 0 {
		t.Errorf("without a network it asked %v", w.dialed)
	}
	t.Logf("%d answers", len(steps[0].Materials))
}

// sources are the machine's own, by name: they tell apt of a mirror.
func sources(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	names, err := filepath.Glob("/etc/apt/sources.list*")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, more...)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if info, serr := os.Stat(name); serr == nil && info.Mode().IsRegular() {
			if err != nil {
				t.Fatal(err)
			}
			out["sources/"+strings.TrimSuffix(filepath.Base(name), ".list")+filepath.Ext(name)] = string(b)
		}
	}
	return out
}

func debianApp(t *testing.T) app {
	a := app{
		name: "debian", base: "apt, debian-archive-keyring, ca-certificates",
		files: map[string]string{
			"hello.c": "#include <zlib.h>\n#include <stdio.h>\nint main(void) { printf(\"zlib %c\\n\", zlibVersion()[0]); return 0; }\n",
			"Dockerfile": `FROM localhost/base/debian
COPY sources /etc/apt/sources.list.d/
RUN apt-get update && apt-get install -y --no-install-recommends tcc zlib1g-dev libc6-dev && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/apt/*.bin /var/cache/ldconfig
COPY hello.c /src/
RUN tcc -o /hello /src/hello.c -lz && /hello
`,
		},
		runs: []string{"/hello", "zlib 1"},
	}
	maps.Copy(a.files, sources(t))
	return a
}

func nodeApp() app {
	return app{
		name: "node", base: "npm",
		files: map[string]string{
			"package.json": `{"name": "app", "version": "1.0.0", "dependencies": {"is-odd": "3.0.1"}}`,
			"main.js":      "console.log('odd', require('is-odd')(3))\n",
			"package-lock.json": `{
  "name": "app", "version": "1.0.0", "lockfileVersion": 3, "requires": true,
  "packages": {
    "": {"name": "app", "version": "1.0.0", "dependencies": {"is-odd": "3.0.1"}},
    "node_modules/is-number": {"version": "6.0.0", "integrity": "sha512-Wu1VHeILBK8KAWJUAiSZQX94GmOE45Rg6/538fKwiloUu21KncEkYGPqob2oSZ5mUT73vLGrHQjKw3KMPwfDzg=="},
    "node_modules/is-odd": {"version": "3.0.1", "integrity": "sha512-CQpnWPrDwmP1+SMHXZhtLtJv90yiyVfluGsX5iNCVkrhQtU3TQHsUWPG9wkdk9Lgd5yNpAg9jQEo90CBaXgWMA==", "dependencies": {"is-number": "^6.0.0"}}
  }
}
`,
			"Dockerfile": `FROM localhost/base/node
WORKDIR /app
COPY package*.json ./
RUN --mount=type=cache,target=/root/.npm npm ci
COPY main.js ./
RUN node main.js
`,
		},
		runs: []string{"node /app/main.js", "odd true"},
	}
}

func goApp() app {
	return app{
		name: "go", base: "golang-go, ca-certificates",
		files: map[string]string{
			"go.mod": "module app\n\ngo 1.19\n\nrequire rsc.io/quote v1.5.2\n\nrequire (\n\tgolang.org/x/text v0.0.0-20170915032832-14c0d48ead0c // indirect\n\trsc.io/sampler v1.3.0 // indirect\n)\n",
			"go.sum": `golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c h1:qgOY6WgZOaTkIIMiVjBQcw93ERBE4m30iBm00nkL0i8=
golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c/go.mod h1:NqM8EUOU14njkJ3fqMW+pc6Ldnwhi/IjpwHt7yyuwOQ=
rsc.io/quote v1.5.2 h1:w5fcysjrx7yqtD/aO+QwRjYZOKnaM9Uh2b40tElTs3Y=
rsc.io/quote v1.5.2/go.mod h1:LzX7hefJvL54yjefDEDHNONDjII0t9xZLPXsUe+TKr0=
rsc.io/sampler v1.3.0 h1:7uVkIFmeBqHfdjD+gZwtXXI+RODJ2Wc4O7MPEh/QiW4=
rsc.io/sampler v1.3.0/go.mod h1:T1hPZKmBbMNahiBKFy5HrXp6adAjACjK9JXDnKaTXpA=
`,
			"main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"rsc.io/quote\"\n)\n\nfunc main() { fmt.Println(quote.Go()) }\n",
			"Dockerfile": `FROM localhost/base/go
WORKDIR /app
COPY . .
RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/root/go go build -trimpath -o /usr/bin/app . && app
`,
		},
		runs: []string{"app", "Don't communicate by sharing memory"},
	}
}
