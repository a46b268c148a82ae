package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle"
)

// convert converts files of a folder, the first named of which is the Source.
func convert(t *testing.T, files map[string]string, change ...func(*Source)) (Conversion, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	src := Source{Dir: dir, Name: "compose.yaml"}
	for _, f := range change {
		f(&src)
	}
	return Convert(src)
}

// good is a conversion in which nothing is refused.
func good(t *testing.T, files map[string]string, change ...func(*Source)) Conversion {
	t.Helper()
	c, err := convert(t, files, change...)
	if err == nil {
		err = c.Err()
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, c.YAML)
	}
	return c
}

// wantNote fails unless there is a note of a kind, with a line, on a key, that
// has the words.
func wantNote(t *testing.T, c Conversion, kind Kind, line int, key, words string) {
	t.Helper()
	for _, n := range c.Notes {
		if n.Kind == kind && n.Line == line && n.Key == key && strings.Contains(n.String(), words) {
			return
		}
	}
	t.Errorf("no note says %s, line %d, %s, %q: %v", kind, line, key, words, c.Notes)
}

func TestMergeKeysExtendsAndOverridesAreLaidOverOneAnother(t *testing.T) {
	c := good(t, map[string]string{
		"compose.yaml": `
x-all: &all {image: "a:1", environment: {A: "1", B: "1"}, command: [one]}
services:
  web:
    <<: *all
    environment: {A: "2"}
  app:
    extends: {service: base, file: sub/base.yaml}
    command: [two, three]
    environment: [C=3]
    expose: [81]
`,
		"sub/base.yaml": "services: {base: {image: 'b:1', command: [base], env_file: base.env, environment: {C: '1', D: '4'}, volumes: ['./here:/here']}}\n",
		"sub/base.env":  "# said\nexport E=\"five # not a comment\"\nF='$E' # literal\nG=$E-$$\nD=file\n",
		"sub/here/x":    "",
		"over.yaml":     "services: {app: {image: 'c:2', environment: {D: !reset null}}, web: {command: !override [over]}}\n",
	}, func(s *Source) { s.Over = []string{"over.yaml"} })
	web, _ := c.File.Service("web")
	if web.Env["A"] != "2" || web.Env["B"] != "" || !slices.Equal(web.Args, []string{"over"}) {
		t.Errorf("web is %+v", web)
	}
	app, _ := c.File.Service("app")
	want := map[string]string{"C": "3", "D": "file", "E": "five # not a comment", "F": "$E", "G": "five # not a comment-$"}
	for k, v := range want {
		if app.Env[k] != v {
			t.Errorf("%s is %q, not %q", k, app.Env[k], v)
		}
	}
	if app.Image != "c:2" || !slices.Equal(app.Args, []string{"two", "three"}) || len(app.Copy) != 1 || app.Copy[0].From != "sub/here/" {
		t.Errorf("app is %+v", app)
	}
	if want := []string{"compose.yaml", "sub/base.yaml", "over.yaml", "sub/base.env"}; !slices.Equal(c.Reads, want) {
		t.Errorf("it has read %q, not %q", c.Reads, want)
	}
}

func TestNothingOutsideOfTheFolderIsRead(t *testing.T) {
	for _, service := range []string{
		"{image: a, env_file: ../secret}", "{image: a, env_file: /etc/passwd}", "{image: a, env_file: link}", "{extends: {service: x, file: ../secret}}",
		"{extends: {service: x, file: 'https://x.example/y'}}", "{image: a, volumes: ['../:/x']}", "{image: a, volumes: ['/etc:/x']}", "{image: a, volumes: ['~/.ssh:/x']}",
		"{build: ../}", "{build: 'https://github.com/x/y.git'}", "{build: {context: ., dockerfile: ../secret}}", "{image: a, configs: [out]}", "{image: a, env_file: folder/link}",
	} {
		c, err := convert(t, map[string]string{
			"compose.yaml": "services:\n  web: " + service + "\nconfigs: {out: {file: ../secret}}\n", "../secret": "SECRET=canary\nservices: {x: {image: canary}}\n", "folder/x": "",
		}, func(s *Source) {
			for _, link := range []string{"link", "folder/link"} {
				if err := os.Symlink(filepath.Join(s.Dir, "../secret"), filepath.Join(s.Dir, link)); err != nil {
					t.Fatal(err)
				}
			}
		})
		if err == nil && c.Err() == nil {
			t.Errorf("%s is taken:\n%s", service, c.YAML)
		}
		if strings.Contains(string(c.YAML), "canary") || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s reads it: %v\n%s", service, err, c.YAML)
		}
	}
	if _, err := convert(t, map[string]string{"compose.yaml": "include: [../x.yaml]\nservices: {}\n"}); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("include: %v", err)
	}
}

func TestWhatWouldGrowWithoutEndIsRefused(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+p+", ", 9) + "*" + p + "]\n"
	}
	deep := "services: {web: {image: a, x-a: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}}\n"
	twice := "services: {a: {extends: b}, b: {extends: a}}\n"
	self := "include: [compose.yaml]\nservices: {a: {image: b}}\n"
	wide := "services: {web: {image: '" + strings.Repeat("${A:-", 40) + "'}}\n"
	for name, text := range map[string]string{"bomb": bomb, "deep": deep, "circle": twice, "include": self, "defaults": wide} {
		if _, err := convert(t, map[string]string{"compose.yaml": text}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTwoServicesOnOnePortAreToldApart(t *testing.T) {
	for _, pair := range []string{
		"a: {image: x, ports: ['81:80']}\n  b: {image: y, ports: ['82:80']}",
		"a: {image: x, expose: [80]}\n  b: {image: 'nginx:1'}",
		"a: {image: 'postgres:15'}\n  b: {image: 'docker.io/library/postgres:16', environment: {PGPORT: 5432}}",
		"a: {image: redis}\n  b: {image: redis, command: redis-server --appendonly yes}",
	} {
		c, err := convert(t, map[string]string{"compose.yaml": "services:\n  " + pair + "\n"})
		if err != nil || c.Err() == nil || !strings.Contains(c.Err().Error(), "services a (") || !strings.Contains(c.Err().Error(), "both listen on port") {
			t.Errorf("%s: %v, %v", pair, err, c.Err())
		}
	}
	for _, pair := range []string{
		"a: {image: 'postgres:15'}\n  b: {image: 'postgres:16', environment: {PGPORT: 5433}}",
		"a: {image: redis}\n  b: {image: redis, command: redis-server --port 6380}",
		"a: {image: 'postgres:15'}\n  backup: {image: 'postgres:15', command: pg_dump -h a}",
		"a: {image: x, expose: [80], ports: ['80:80']}",
	} {
		good(t, map[string]string{"compose.yaml": "services:\n  " + pair + "\n"})
	}
}

func TestEachKeyWithoutAnEquivalentIsNamedWithItsLine(t *testing.T) {
	text := "services:\n  web:\n    image: a\n"
	line := 4
	lines := map[string]int{}
	for key := range others() {
		text += "    " + key + ": x\n"
		lines[key] = line
		line++
	}
	c, err := convert(t, map[string]string{"compose.yaml": text})
	if err != nil {
		t.Fatal(err)
	}
	for key, rule := range others() {
		wantNote(t, c, rule.kind, lines[key], key, "compose.yaml:")
	}
}

func TestAFileIsConvertedAsTheReadersOfItExpect(t *testing.T) {
	c := good(t, map[string]string{"compose.yaml": `
services:
  web:
    build: {context: web, args: [V=1], network: default}
    command: --port "80 80"
    depends_on: {db: {condition: service_healthy}, setup: {condition: service_completed_successfully}}
    ports: ["127.0.0.1:8080:80", "9000-9001:9000-9001", {target: 443, name: tls}]
    deploy: {resources: {limits: {cpus: "0.5", memory: 512M}}}
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE]
    read_only: true
    restart: unless-stopped
    configs: [{source: conf, target: /etc/conf}]
  setup: {image: a, entrypoint: [run], command: "it 'now then'", user: "5:6"}
  db:
    image: postgres:16
    command: -c fsync=off
    volumes: ["data:/var/lib/postgresql/data"]
    healthcheck: {test: pg_isready, interval: 1m30s, start_period: 5m}
    x-isle: {volumes: {/var/lib/postgresql/data: {size: 20GiB}}}
volumes: {data: {}}
configs: {conf: {content: "it's $$HOME"}}
x-isle: {isolation: gvisor, egress: ["api.example.com:443"]}
`, "web/Dockerfile": "FROM x AS a\nENTRYPOINT [\"no\"]\nFROM y\nRUN make\nENTRYPOINT [\"serve\"]\n"})
	web, _ := c.File.Service("web")
	if !slices.Equal(web.Args, []string{"--port", "80 80"}) || len(web.Ports) != 4 || web.Ports[3].Name != "tls" || web.Writable != 0 || web.Restart != "always" ||
		!slices.Equal(web.Caps, []string{"CAP_NET_BIND_SERVICE"}) || !slices.Equal(web.DependsOn, []string{"db", "setup"}) || web.Build.Args["V"] != "1" || web.Network != "record" ||
		!slices.Equal(web.Run, []string{`mkdir -p '/etc' && printf %s 'it'\''s $HOME' > '/etc/conf'`}) {
		t.Errorf("web is %+v, %+v", web, *web.Build)
	}
	setup, _ := c.File.Service("setup")
	if !slices.Equal(setup.Command[4:], []string{"run", "it", "now then"}) || setup.User != "5:6" || !slices.Equal(setup.Caps, []string{"CAP_NET_BIND_SERVICE"}) || setup.Healthcheck == nil {
		t.Errorf("setup is %+v", setup)
	}
	db, _ := c.File.Service("db")
	if !slices.Equal(db.Args, []string{"-c", "fsync=off"}) || db.Volumes[0].Size != 20<<30 || db.Healthcheck.Interval.String() != "1m30s" || db.Healthcheck.Start.String() != "11m0s" || db.Writable == 0 {
		t.Errorf("db is %+v, %+v", db, db.Healthcheck)
	}
	if f := c.File; f.Name != "shop" || f.Isolation != "gvisor" || len(f.Egress) != 1 || f.Limits.CPUs != 2.5 || f.Limits.Memory != 2<<30+512<<20 {
		t.Errorf("the file is %+v", f)
	}
	wantNote(t, c, Differs, 7, "ports", "isle port-forward ENV 8080:80 -s web")
}

// FuzzComposeFiles reads whatever may be sent to somebody: nothing of it may
// panic, or give an isle.yaml that is none.
func FuzzComposeFiles(f *testing.F) {
	f.Add("services: {a: {image: b, command: [c], ports: ['80:80'], volumes: ['x:/y', './z:/w']}}\nvolumes: {x: }\n", "A=1\nB=\"$A\n\"\n")
	f.Add("services:\n  a: {extends: b, depends_on: {b: {condition: service_completed_successfully}}}\n  b: {build: {context: ., args: {X: }}, healthcheck: {test: [CMD, x], interval: 1s}}\n", "")
	f.Add("x: &x {a: *x}\nservices: {a: {<<: [*x], image: '${A:-${B?no}}'}}", "'")
	f.Add("services: {a: [b], b: {environment: [[x]], ports: [{}], deploy: [], networks: {x: y}, configs: [{}], volumes: [{type: bind}], healthcheck: {test: {}}, tmpfs: {}, cap_add: {}, user: [], x-isle: []}}", "")
	f.Fuzz(func(t *testing.T, text, env string) {
		dir := t.TempDir()
		for name, content := range map[string]string{"compose.yaml": text, ".env": env, "a.env": env} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Convert(Source{Dir: dir, Name: "compose.yaml", Profiles: []string{"*"}})
		if err != nil && strings.Contains(err.Error(), "cannot be read: ") && strings.Contains(err.Error(), "runtime error") {
			t.Fatal(err)
		}
		if err == nil && c.Err() == nil {
			if err := c.File.Check(); err != nil {
				t.Fatalf("%v\n%s", err, c.YAML)
			}
		}
	})
}
