package spec

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"isle"
)

// whole is a file in which every key has a value, and none its default.
func whole() File {
	return File{
		Name: "shop", Isolation: "gvisor", Warm: true, Schema: &DataSchema{Version: 3, CompatibleWith: 2}, TTL: 26 * time.Hour, Limits: Limits{CPUs: 0.5, Memory: 3 << 30, PIDs: 99},
		Egress: []Egress{{Host: "api.example.com", Port: 443, Addresses: []string{"10.0.0.0/8"}, Inspect: true}}, Uses: []string{"orders-db"}, UsesAs: map[string]string{"orders-db": "far-db"},
		Stages: &Stages{Values: []string{"uses.orders-db", "env.db.A", "limits.memory"}, Checks: []Check{{Service: "web", Command: []string{"/app/smoke", "-v"}, Timeout: time.Minute}}},
		Services: []Service{{
			Name: "db", Suite: "trixie", Packages: []string{"postgresql-15"}, Copy: []Copy{{"app/", "/app"}}, Run: []string{"make\nall: \"x\""}, Network: NetworkRecord,
			User: "70:70", Workdir: "/app", Env: map[string]string{"A": "null", "B": "1", "C": "", "D": "two\nlines\t \u00e9 \x01"},
			Volumes: []Volume{{"/data", 2 << 30}, {"/a b", 9 << 20}}, Tmpfs: []string{"/run/x"}, Writable: 5 << 20, Setup: []string{"true"}, Command: []string{"/bin/sh", "-c", "~"},
			OnFork: []string{"reseed"}, Healthcheck: &Healthcheck{TCP: 5432, Interval: time.Second, Timeout: 1500 * time.Millisecond, Start: time.Hour, Retries: 7},
			DependsOn: []string{"web"}, Ports: []Port{{"pg", 5432}}, Restart: "always", Caps: []string{"CAP_CHOWN"},
		}, {
			Name: "web", Suite: "bookworm", Restart: "no", Healthcheck: &Healthcheck{HTTP: "http://localhost:80/", Interval: 5 * time.Second, Timeout: 5 * time.Second, Start: time.Minute, Retries: 3},
		}, {
			Name: "made", Build: &Build{Context: "made", Dockerfile: "docker/File", Target: "app", Args: map[string]string{"A": "1", "B": ""}, Secrets: map[string]string{"key": "kept"}}, Restart: "no", Args: []string{"--port", "80"},
		}, {
			Name: "other", Image: "./other.tar", Restart: "no", Healthcheck: &Healthcheck{Command: []string{"true"}, Interval: 5 * time.Second, Timeout: 5 * time.Second, Start: time.Minute, Retries: 3},
		}},
	}
}

func TestWhatIsRenderedIsParsedAsItWas(t *testing.T) {
	f := whole()
	for _, v := range []reflect.Value{reflect.ValueOf(f), reflect.ValueOf(f.Services[0]), reflect.ValueOf(f.Egress[0])} {
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if instead := name == "Image" || name == "Build" || name == "Args"; v.Field(i).IsZero() && !instead { // of packages, in services of their own
				t.Errorf("the test's file has no %s.%s: add it here, and to Render", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
	if err := f.Check(); err != nil {
		b, _ := f.Render()
		t.Fatalf("%v\n%s", err, b)
	}
	if err := (File{Name: "a", Isolation: "container", Limits: Limits{2, 2 << 30, 1024}, Services: []Service{{Name: "s", Suite: "bookworm", Restart: "no"}}}).Check(); err != nil {
		t.Error(err)
	}
}

func TestAFileThatNobodyCouldWriteIsRefused(t *testing.T) {
	for name, change := range map[string]func(*File){
		"a capability withheld":   func(f *File) { f.Services[0].Caps = []string{"CAP_SYS_ADMIN"} },
		"a path out":              func(f *File) { f.Services[0].Volumes[0].Path = "/data/../../etc" },
		"a path of the system":    func(f *File) { f.Services[0].Tmpfs = []string{"/proc"} },
		"a name that is a path":   func(f *File) { f.Services[1].Name = "../x" },
		"a service twice":         func(f *File) { f.Services[1].Name = "db" },
		"a service that is not":   func(f *File) { f.Services[0].DependsOn = []string{"gone"} },
		"an image and packages":   func(f *File) { f.Services[0].Image, f.Services[0].Suite = "a", "" },
		"an image elsewhere":      func(f *File) { f.Services[3].Image = "./../x" },
		"no suite":                func(f *File) { f.Services[0].Suite = "" },
		"another isolation":       func(f *File) { f.Isolation = "none" },
		"no isolation":            func(f *File) { f.Isolation = "" },
		"a negative size":         func(f *File) { f.Services[0].Volumes[0].Size = -1 },
		"endless memory":          func(f *File) { f.Limits.Memory = 1 << 62 },
		"a NUL in a variable":     func(f *File) { f.Services[0].Env["A"] = "a\x00b" },
		"what is not UTF-8":       func(f *File) { f.Services[0].Command = []string{"\xff"} },
		"a user over all":         func(f *File) { f.Services[0].User = "0:99999" },
		"a duration below the ms": func(f *File) { f.TTL = time.Second + 1 },
		"two healthchecks":        func(f *File) { f.Services[0].Healthcheck.HTTP = "http://localhost/" },
		"a host of many":          func(f *File) { f.Egress[0].Host = "*" },
		"no services":             func(f *File) { f.Services = nil },
	} {
		f := whole()
		change(&f)
		if err := f.Check(); isle.CodeOf(err) != isle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFileIsSandboxedWhereItsMemoryIsEnough(t *testing.T) {
	for text, want := range map[string]string{
		"services: {s: {}}":                                    "",
		"services: {s: {}}\nlimits: {memory: 48MiB}":           "",
		"services: {s: {}}\nlimits: {memory: 47MiB}":           "limits.memory: 47MiB is too little for isolation gvisor with one service",
		"services: {s: {}, t: {}}\nlimits: {memory: 48MiB}":    "limits.memory: 48MiB is too little for isolation gvisor with 2 services",
		"services: {s: {}, t: {}}\nlimits: {memory: 65536KiB}": "",
	} {
		f, err := Parse("isle.yaml", []byte("name: a\n"+text+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		boxed, err := f.Sandboxed()
		switch {
		case want == "" && (err != nil || boxed.Isolation != Gvisor || f.Isolation != Container):
			t.Errorf("%s: %+v, %v", text, boxed, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
			t.Errorf("%s: %v", text, err)
		}
	}
}
