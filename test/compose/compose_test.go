// Package compose_test brings up Compose files of the shapes that people have,
// with images that begin as those of public registries do: as root, by an
// entrypoint that owns the data and goes on as somebody else.
package compose_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/test/lab"
)

var server *lab.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if server, err = lab.New("../../bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Close()
	for _, dir := range []string{"images", "images/hub"} {
		if _, err := server.Isle("build", copied("testdata/"+dir, filepath.Join(server.State, "compose-test", dir))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// copied is a copy of a folder: what is brought up writes its lock beside it.
func copied(from, to string) string {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil && !os.IsExist(err) {
		panic(err)
	}
	return to
}

// A shape is a folder of testdata, how it is brought up, and what then holds.
type shape struct {
	folder string
	up     []string // what follows `isle up`, in the folder's parent
	name   string   // of the environment
	holds  []check
	says   string // on standard error
}

// A check is a command in a service and a part of what it prints.
type check struct {
	service string
	command []string
	want    string
}

// get asks for a URL from inside.
func get(service, url, want string) check {
	return check{service, []string{"python3", "/app/get.py", url}, want}
}

func shapes() []shape {
	return []shape{
		{"shop", []string{"shop/compose.yaml"}, "shop", []check{
			get("worker", "http://web:8000/", "welcome, items 2, done job by the worker"),
			{"db", []string{"psql", "-U", "shop", "-h", "/var/run/postgresql", "-Atc", "select count(*) from items", "shop"}, "2"},
			{"db", []string{"sh", "-c", "stat -c %U /var/lib/postgresql/data"}, "postgres"},
		}, "differs: shop/compose.yaml:"},
		{"proxy", []string{"proxy"}, "proxy", []check{get("one", "http://proxy/", "static"), get("one", "http://proxy/one", "one"), get("two", "http://proxy/two", "two")}, "dropped: proxy/docker-compose.yml:1: version: "},
		{"single", []string{"single/compose.yml"}, "single", []check{get("app", "http://app:5000/", "built")}, "is copied into the image, not mounted"},
		{"monorepo", []string{"monorepo"}, "monorepo", []check{get("api", "http://api:8000/", "several files, items 3")}, ""},
		{"two", []string{"two", "--profile", "admin"}, "two", []check{
			{"admin", []string{"psql", "-U", "postgres", "-h", "orders", "-Atc", "show port"}, "5432"},
			{"admin", []string{"psql", "-U", "postgres", "-h", "stock", "-p", "5433", "-Atc", "show port"}, "5433"},
		}, ""},
		{"replica", []string{"replica/compose.yaml"}, "replica", []check{
			{"primary", []string{"redis-cli", "set", "word", "replicated"}, "OK"},
			{"primary", []string{"sh", "-c", "redis-cli wait 1 60000 && redis-cli -h replica -p 6380 get word"}, "replicated"},
		}, ""},
		{"old", []string{"old/docker-compose.yaml"}, "old", []check{get("worker", "http://web:8000/", "hello, done job by old")}, "limits: hold for the environment as a whole: cpus 1.5, memory 448MiB, pids 248"},
		{"over", []string{"over"}, "over", []check{get("web", "http://web:8000/", "development")}, ""},
		{"hardened", []string{"hardened/compose.yaml"}, "hardened", []check{
			get("web", "http://web:8000/", "hello"),
			{"web", []string{"sh", "-c", "id -u; cat /etc/app/motd /etc/app/extra.txt; touch /var/x || echo sealed; touch /var/cache/app/x && echo written; grep CapEff /proc/self/status"}, "1000\nwelcome to 'this'extra\nsealed\nwritten\nCapEff:\t0000000000000000"},
		}, ""},
		{"queue", []string{"queue", "--profile", "many"}, "queue", []check{get("web", "http://web:8000/", "done job by ")}, ""},
		{"desk", []string{"desk/.devcontainer/devcontainer.json"}, "desk", []check{
			{"app", []string{"sh", "-c", "pwd; cat copied.txt; echo more >> notes.txt; ls -a"}, "/workspace\nnotes\n"},
			{"db", []string{"psql", "-U", "postgres", "-h", "localhost", "-Atc", "select count(*) from items"}, "2"},
		}, "devcontainer.json:8: app: forwardPorts: \"db:5432\" is another service's"},
	}
}

func TestComposeFilesOfRealShapesComeUp(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.folder, func(t *testing.T) {
			dir := t.TempDir()
			copied(filepath.Join("testdata", s.folder), filepath.Join(dir, s.folder))
			up := func() string {
				t.Helper()
				cmd := server.Command(append([]string{"up"}, s.up...)...)
				cmd.Dir = dir
				said, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("isle up %v: %v\n%s", s.up, err, said)
				}
				return string(said)
			}
			t.Cleanup(func() { server.Isle("down", s.name, "--volumes") })
			if said := up(); !strings.Contains(said, s.says) {
				t.Errorf("it does not say %q: %s", s.says, said)
			}
			for _, c := range s.holds {
				out, err := server.Isle(append([]string{"exec", s.name, "-s", c.service, "--"}, c.command...)...)
				if err != nil || !strings.Contains(out, c.want) {
					logs, _ := server.Isle("logs", s.name)
					t.Errorf("%s: %v prints %q, not %q: %v\n%s", c.service, c.command, out, c.want, err, logs)
				}
			}
			if said := up(); !strings.Contains(said, "nothing to do") {
				t.Errorf("again it does something: %s", said)
			}
		})
	}
}
