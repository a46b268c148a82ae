package spec

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"isle"
)

func TestTheDesignsExampleMeansWhatItSays(t *testing.T) {
	b, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("isle.yaml", b)
	if err != nil {
		t.Fatal(err)
	}
	want := File{
		Name: "shop", Isolation: "container",
		Services: []Service{{
			Name: "db", Suite: "bookworm", Packages: []string{"postgresql-15"}, User: "postgres",
			Volumes: []Volume{{"/data", 2 << 30}}, Tmpfs: []string{"/run/postgresql"},
			Setup: []string{"initdb", "-D", "/data", "--auth=trust"}, Command: []string{"postgres", "-D", "/data"},
			Healthcheck: &Healthcheck{TCP: 5432, Interval: 5 * time.Second, Timeout: 5 * time.Second, Start: time.Minute, Retries: 3},
			Restart:     "no",
		}, {
			Name: "web", Suite: "bookworm", Packages: []string{"python3", "python3-psycopg2"},
			Copy: []Copy{{"app/", "/app"}}, Run: []string{"python3 -m compileall /app"}, Workdir: "/app",
			Command: []string{"python3", "shop.py"}, DependsOn: []string{"db"},
			Env:         map[string]string{"DATABASE_URL": "postgres://postgres@localhost/postgres"},
			Healthcheck: &Healthcheck{HTTP: "http://localhost:8080/healthz", Interval: 5 * time.Second, Timeout: 5 * time.Second, Start: time.Minute, Retries: 3},
			Ports:       []Port{{"web", 8080}}, Restart: "on-failure", Caps: []string{},
		}},
		Egress: []Egress{{Host: "api.example.com", Port: 443}},
		Limits: Limits{CPUs: 1, Memory: 512 << 20, PIDs: 256},
		TTL:    8 * time.Hour,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if order := StartOrder(got); !reflect.DeepEqual(order, []string{"db", "web"}) {
		t.Errorf("start order %v", order)
	}
}

func TestWhatIsLeftOutHasItsDefault(t *testing.T) {
	f, err := Parse("isle.yaml", []byte("name: a\nservices: {s: {volumes: {/d: {}}, command: sleep 1 && true, run: make}}\negress: [{host: DB.internal, port: 5432, addresses: [10.1.2.3, 10.0.0.0/8]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := File{Name: "a", Isolation: "container", Limits: Limits{2, 2 << 30, 1024},
		Services: []Service{{Name: "s", Suite: "bookworm", Restart: "no", Volumes: []Volume{{"/d", 1 << 30}},
			Command: []string{"/bin/sh", "-c", "sleep 1 && true"}, Run: []string{"make"}}},
		Egress: []Egress{{"db.internal", 5432, []string{"10.1.2.3/32", "10.0.0.0/8"}, false}}}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
}

// service is a file whose one service has the body.
func service(body string) string { return "name: a\nservices:\n  s:\n    " + body + "\n" }

func TestAnErrorSaysWhereAndWhatToDo(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "isle.yaml:1:1: is empty; `isle init` writes one to start from"},
		{"comments only", "# nothing\n", "isle.yaml:1:1: is empty; `isle init` writes one to start from"},
		{"a list", "- a\n", "isle.yaml:1:1: is a list; want an environment file with the keys name, isolation, services, egress, uses, uses_as, limits, ttl, warm, schema, stages"},
		{"tab", "name: a\nservices:\n\tweb: {}\n", "isle.yaml:3:2: this is not YAML: found character that cannot start any token; indent with spaces, not tabs, and quote values that begin with @, ` or %"},
		{"bracket further down", "name: a\nservices:\n  web: {command: [a, b}\n", "isle.yaml:3:3: this is not YAML: did not find expected ',' or ']'; check the indentation, brackets and quotes here and on the line before"},
		{"bracket", "name: [a\n", "isle.yaml:1:1: this is not YAML: did not find expected ',' or ']'; check the indentation, brackets and quotes here and on the line before"},
		{"two documents", "name: a\nservices: {s: {}}\n---\nname: b\n", "isle.yaml:3:1: a second document begins here; one file describes one project, remove the `---`"},
		{"nothing in it", "{}", "isle.yaml:1:1: name is missing: The project. Environments are named after it.\nisle.yaml:1:1: services is missing: The services, by name. They share one network, as in a pod: each reaches the others on localhost."},
		{"no service", "name: a\nservices: {}\n", "isle.yaml:2:11: services: names no service; want at least one"},
		{"name", "name: My Shop\nservices: {s: {}}\n", `isle.yaml:1:7: name: "My Shop" is no name; want lower-case letters, digits and dashes, at most 40, beginning with a letter, for example "my-shop"`},
		{"isolation", "name: a\nisolation: gvisr\nservices: {s: {}}\n", `isle.yaml:2:12: isolation: "gvisr" is not one of container, gvisor; did you mean "gvisor"?`},
		{"little memory for a sandbox", "name: a\nisolation: gvisor\nservices: {s: {}, t: {}}\nlimits: {memory: 40MiB}\n",
			"isle.yaml:4:18: limits.memory: 40MiB is too little for isolation gvisor with 2 services: its kernel takes 32MiB, and 16MiB more for each service, before a program has any; want 64MiB at least"},
		{"near key", service("comand: [true]"), `isle.yaml:4:5: services.s: unknown key "comand"; did you mean "command"?`},
		{"warm without memory", "name: a\nservices: {s: {}}\nwarm: true\n",
			"isle.yaml:3:7: warm: needs memory that can be captured, which isolation container has not; add `isolation: gvisor`, or remove it"},
		{"far key", "name: a\nvarious: [x]\nservices: {s: {}}\n", `isle.yaml:2:1: unknown key "various"; the nearest known one is "services", of name, isolation, services, egress, uses, uses_as, limits, ttl, warm, schema, stages`},
		{"misplaced key", "name: a\nports: {web: 80}\nservices: {s: {}}\n", `isle.yaml:2:1: unknown key "ports" here; it belongs in services.NAME`},
		{"misplaced limit", service("memory: 1GiB"), `isle.yaml:4:5: services.s: unknown key "memory" here; it belongs in limits`},
		{"key twice", "name: a\nname: b\nservices: {s: {}}\n", `isle.yaml:2:1: key "name" is here a second time, first on line 1; remove one`},
		{"merge key", service("<<: {user: root}"), "isle.yaml:4:5: services.s: merge keys (<<) do not work here; write the keys out, or alias single values"},
		{"null", service("user:"), "isle.yaml:4:10: services.s.user: has no value; want a user, or remove the key"},
		{"size unit", service("volumes: {/d: {size: 2G}}"), `isle.yaml:4:26: services.s.volumes["/d"].size: "2G" has no unit that is understood; did you mean 2GiB?`},
		{"size bound", service("volumes: {/d: {size: 1KiB}}"), `isle.yaml:4:26: services.s.volumes["/d"].size: "1KiB" is out of bounds; want 8MiB to 16TiB`},
		{"duration", "name: a\nttl: 30\nservices: {s: {}}\n", `isle.yaml:2:6: ttl: "30" has no unit; did you mean 30s or 30m?`},
		{"package", service("packages: [Python 3]"), `isle.yaml:4:16: services.s.packages[0]: "Python 3" is no Debian package; want its name, such as python3, or name=version`},
		{"package twice", service("packages: [a1, a1=2]"), `isle.yaml:4:20: services.s.packages[1]: package "a1" is here a second time; remove one`},
		{"out of the folder", service("copy: [{from: app/../../x, to: /x}]"), `isle.yaml:4:19: services.s.copy[0].from: "app/../../x" leads out with ..; only what is in isle.yaml's folder can be copied`},
		{"absolute from", service("copy: [{from: /etc, to: /x}]"), `isle.yaml:4:19: services.s.copy[0].from: "/etc" is absolute; want a path relative to isle.yaml's folder`},
		{"to proc", service("copy: [{from: a, to: /proc/1}]"), `isle.yaml:4:26: services.s.copy[0].to: "/proc/1" is in /proc, which belongs to the system; choose another path`},
		{"to the Workload API's folder", service("copy: [{from: a, to: /run/isle/workload.sock}]"), `isle.yaml:4:26: services.s.copy[0].to: "/run/isle/workload.sock" is in /run/isle, which belongs to the system; choose another path`},
		{"volume over the Workload API", service("volumes: {/run/isle: {}}"), `isle.yaml:4:15: services.s.volumes["/run/isle"]: "/run/isle" is in /run/isle, which belongs to the system; choose another path`},
		{"tmpfs below the Workload API's folder", service("tmpfs: [/run/isle/x]"), `isle.yaml:4:13: services.s.tmpfs[0]: "/run/isle/x" is in /run/isle, which belongs to the system; choose another path`},
		{"tmpfs above it", service("tmpfs: [/run]"), "isle.yaml:4:13: services.s.tmpfs[0]: /run is there already, as a tmpfs; name a folder below it, or leave it out"},
		{"copy without to", service("copy: [{from: a}]"), "isle.yaml:4:12: services.s.copy[0]: to is missing: Where it goes: the file, or the folder whose content is added, gets this absolute path."},
		{"hidden copy", service("{tmpfs: [/w], copy: [{from: a, to: /w/x}]}"), `isle.yaml:4:40: services.s.copy[0].to: /w/x would be hidden by the volume or tmpfs at /w; copy to another path`},
		{"unclean volume", service("volumes: {/a/../b: {}}"), `isle.yaml:4:15: services.s.volumes["/a/../b"]: "/a/../b" is not clean; write "/b"`},
		{"nested mounts", service("{volumes: {/d: {}}, tmpfs: [/d/x]}"), "isle.yaml:4:33: services.s.tmpfs[0]: /d/x lies in /d, which is a mount too; put them side by side"},
		{"tmp", service("tmpfs: [/tmp]"), "isle.yaml:4:13: services.s.tmpfs[0]: /tmp is there already, as a tmpfs; name a folder below it, or leave it out"},
		{"variable", service("env: {1A: x}"), `isle.yaml:4:11: services.s.env["1A"]: "1A" cannot name a variable; want letters, digits and _, beginning with no digit`},
		{"capability that would unseal", service("caps: [CAP_SYS_PTRACE]"), `isle.yaml:4:12: services.s.caps[0]: no service may keep SYS_PTRACE: a sealed environment has no use for it, or it would unseal it`},
		{"capability", service("caps: [net_bind_servce]"), `isle.yaml:4:12: services.s.caps[0]: "net_bind_servce" is no capability; the nearest is NET_BIND_SERVICE`},
		{"user", service("user: 70000"), `isle.yaml:4:11: services.s.user: "70000" is no user; want a name, uid or uid:gid, numbers up to 65535`},
		{"restart", service("restart: on_failure"), `isle.yaml:4:14: services.s.restart: "on_failure" is not one of no, on-failure, always; did you mean "on-failure"?`},
		{"empty command", service("command: []"), "isle.yaml:4:14: services.s.command: names no command; want a program and its arguments, as in [python3, app.py], or remove the key"},
		{"port", service("ports: {web: 0}"), `isle.yaml:4:18: services.s.ports.web: "0" is no port; want a whole number from 1 to 65535`},
		{"two checks", service("healthcheck: {tcp: 1, http: 'http://localhost/'}"), "isle.yaml:4:18: services.s.healthcheck: names 2 ways to ask; want exactly one of tcp, http and command"},
		{"no check", service("healthcheck: {interval: 1s}"), "isle.yaml:4:18: services.s.healthcheck: names 0 ways to ask; want exactly one of tcp, http and command"},
		{"check elsewhere", service("healthcheck: {http: 'http://example.com/'}"), `isle.yaml:4:25: services.s.healthcheck.http: "http://example.com/" asks "example.com"; health is asked inside the environment, so want http://localhost:PORT/PATH`},
		{"setup without volume", service("setup: [true]"), "isle.yaml:4:12: services.s.setup: runs once while the volumes are empty, and there are no volumes; add one, or do it in `run` or `command`"},
		{"unknown dependency", "name: a\nservices:\n  web: {depends_on: [bd]}\n  db: {}\n", `isle.yaml:3:22: services.web.depends_on[0]: there is no service "bd"; did you mean "db"?`},
		{"self", "name: a\nservices:\n  web: {depends_on: [web]}\n", `isle.yaml:3:22: services.web.depends_on[0]: service "web" depends on itself; remove it`},
		{"circle", "name: a\nservices:\n  x: {depends_on: [a]}\n  a: {depends_on: [b]}\n  b: {depends_on: [c]}\n  c: {depends_on: [a]}\n", "isle.yaml:4:19: services.a.depends_on: services wait for each other in a circle: a -> b -> c -> a; remove one of these dependencies"},
		{"one port twice", "name: a\nservices:\n  web: {ports: {http: 80}}\n  api: {ports: {http: 80}}\n", `isle.yaml:4:23: services.api.ports.http: services "web" and "api" both listen on port 80 (services.web.ports.http), and they share one network; give one of them another port`},
		{"wildcard", "name: a\nservices: {s: {}}\negress: ['*.example.com:443']\n", `isle.yaml:3:10: egress[0]: "*.example.com" is a wildcard; name each host that is needed`},
		{"URL", "name: a\nservices: {s: {}}\negress: ['https://example.com']\n", `isle.yaml:3:10: egress[0]: "https://example.com" is a URL; want host:port, as in api.example.com:443`},
		{"no port", "name: a\nservices: {s: {}}\negress: [example.com]\n", `isle.yaml:3:10: egress[0]: "example.com" has no port; want host:port, as in example.com:443`},
		{"a connection twice", "name: a\nservices: {s: {}}\nuses: [db, db]\n", `isle.yaml:3:12: uses[1]: db is here a second time; remove one`},
		{"a connection with a service's name", "name: a\nservices: {db: {}}\nuses: [db]\n", `isle.yaml:3:8: uses[0]: db is a service of this file, and a name means one thing inside; give the service another name`},
		{"a connection with an egress host's name", "name: a\nservices: {s: {}}\negress: ['db:1']\nuses: [db]\n", `isle.yaml:4:8: uses[0]: db is a host under egress, and a name means one thing inside; remove one`},
		{"a connection by a service's name", "name: a\nservices: {db: {}}\nuses: [far-db]\nuses_as: {far-db: db}\n", `isle.yaml:4:19: uses_as.far-db: db is a service of this file, and a name means one thing inside; give the service another name`},
		{"two connections by one name", "name: a\nservices: {s: {}}\nuses: [db, far-db]\nuses_as: {far-db: db}\n", `isle.yaml:4:19: uses_as.far-db: db is another connection's name inside, and a name means one thing there`},
		{"a name of no connection", "name: a\nservices: {s: {}}\nuses: [db]\nuses_as: {far-db: db}\n", `isle.yaml:4:19: uses_as.far-db: far-db is no connection under uses`},
		{"a connection named localhost", "name: a\nservices: {s: {}}\nuses: [localhost]\n", `isle.yaml:3:8: uses[0]: "localhost" is the environment itself; want the name of a connection of the policy`},
		{"CIDR", "name: a\nservices: {s: {}}\negress: [{host: db, port: 1, addresses: [10.0.0.1/8]}]\n", `isle.yaml:3:42: egress[0].addresses[0]: "10.0.0.1/8" has bits beyond its length; did you mean 10.0.0.0/8?`},
		{"memory", "name: a\nservices: {s: {}}\nlimits: {memory: 1GB, cpus: many, pids: 1}\n", "isle.yaml:3:29: limits.cpus: \"many\" is no number of CPUs; want 0.05 to 1024, as in 1 or 0.5\nisle.yaml:3:41: limits.pids: \"1\" is no number of processes; want a whole number from 32 to 1048576"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("isle.yaml", []byte(c.in))
			if err == nil {
				t.Fatalf("accepted:\n%s", c.in)
			}
			if err.Error() != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", err, c.want)
			}
			var e *isle.Error
			if !errors.As(err, &e) || e.Code != isle.Invalid || e.Error() != err.Error() || isle.CodeOf(err) != isle.Invalid {
				t.Errorf("it unwraps to %v", e)
			}
		})
	}
}

func TestEveryProblemOfAFileIsTold(t *testing.T) {
	_, err := Parse("isle.yaml", []byte("name: A\nservices:\n  web:\n    comand: x\n    ports: {http: 99999}\n    depends_on: [nobody]\nttl: soon\n"))
	var fe *FileError
	if !errors.As(err, &fe) || len(fe.Problems) != 5 {
		t.Fatalf("%v", err)
	}
	if p := fe.Problems[2]; p.Line != 5 || p.Column != 19 || p.Path != "services.web.ports.http" {
		t.Errorf("%+v", p)
	}
}

func TestAHostileFileEndsSoonAndSmall(t *testing.T) {
	bomb := "name: a\nservices:\n  s:\n    env: &e {"
	for i := range 200 {
		bomb += fmt.Sprintf("K%d: &k%d v, ", i, i)
	}
	bomb += "}\n"
	for i := range 63 {
		bomb += fmt.Sprintf("  s%d: {env: *e, packages: &p%d [x1]}\n", i, i)
	}
	if _, err := Parse("isle.yaml", []byte(bomb)); err != nil {
		t.Errorf("a moderate number of aliases: %v", err)
	}
	args := strings.Repeat("x, ", 1000)
	bomb = "name: a\nservices:\n  s: {command: &c [" + args + "]}\n"
	for i := range 63 {
		bomb += fmt.Sprintf("  s%d: {command: *c, setup: *c, healthcheck: {command: *c}}\n", i)
	}
	if _, err := Parse("isle.yaml", []byte(bomb)); err == nil || !strings.Contains(err.Error(), "aliases followed") {
		t.Errorf("alias bomb: %v", err)
	}
	for name, in := range map[string]string{
		"itself":   "name: a\nservices: &s {s: *s}\n",
		"deep":     strings.Repeat("[", 100_000),
		"deeper":   strings.Repeat("a: {", 50_000),
		"too big":  "name: a\n#" + strings.Repeat("x", MaxFileSize),
		"problems": "name: a\nservices:\n" + strings.Repeat("  _: {}\n", 30_000),
	} {
		_, err := Parse("isle.yaml", []byte(in))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 32<<10 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestSizesAndDurationsSurviveBeingWritten(t *testing.T) {
	for _, n := range []int64{1, 1000, 1 << 10, 512 << 20, 3 << 30, 1<<30 + 1, 2 << 40} {
		if got, err := parseSize(0, 1<<50)(FormatSize(n)); err != nil || got != n {
			t.Errorf("%d -> %s -> %d, %v", n, FormatSize(n), got, err)
		}
	}
	for _, d := range []time.Duration{time.Millisecond, 90 * time.Minute, 7 * 24 * time.Hour, 36*time.Hour + 5*time.Second} {
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Errorf("%v -> %s -> %v, %v", d, FormatDuration(d), got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("name: a\nservices: {s: {command: &x [a], setup: *x}}"))
	f.Add([]byte(service("copy: [{from: ., to: /}]")))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse("isle.yaml", b)
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid || len(err.Error()) > 64<<10 {
				t.Errorf("%d bytes, code %s", len(err.Error()), isle.CodeOf(err))
			}
			return
		}
		if len(StartOrder(file)) != len(file.Services) || !isle.ValidName(file.Name) {
			t.Errorf("accepted %+v", file)
		}
		for _, s := range file.Services {
			for _, c := range s.Copy {
				if strings.Contains("/"+c.From+"/", "/../") || strings.HasPrefix(c.From, "/") || !strings.HasPrefix(c.To, "/") {
					t.Errorf("accepted copy %+v", c)
				}
			}
		}
	})
}
