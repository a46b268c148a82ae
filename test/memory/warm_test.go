package memory

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/test/lab"
)

// An upSaid is what isle up says of a warm start.
type upSaid struct {
	Environment struct {
		Name, Origin, Phase, Owner string
		Generation                 int64
		Warm                       bool
	}
	WarmStart *struct {
		Snapshot string
		Took     float64
	} `json:"warm_start"`
	NotWarm string `json:"not_warm"`
}

// bring brings up what is in a folder.
func (w world) bring(dir, name string, more ...string) (said upSaid) {
	w.t.Helper()
	w.decode(&said, append([]string{"up", dir, "--name", name, "-o", "json"}, more...)...)
	if said.Environment.Phase != "running" {
		w.t.Errorf("%s: %+v", name, said)
	}
	return said
}

// kept waits until it is known what became of the ready state of an environment.
func (w world) kept(name string) (note string) {
	w.t.Helper()
	w.eventually("the ready state of "+name+" is kept, or not", func() error {
		var e struct{ Kept string }
		w.decode(&e, "status", name, "-o", "json")
		if note = e.Kept; note == "" {
			return fmt.Errorf("nothing is known")
		}
		return nil
	})
	return note
}

// hot is up, and the folder of the file.
func (w world) hot(name, file string) (dir string) {
	w.t.Helper()
	w.t.Cleanup(func() { w.down(name) })
	dir = filepath.Join(w.t.TempDir(), name)
	if _, err := w.Up(dir, strings.ReplaceAll(file, "NAME", name), inside); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// write makes a folder of files.
func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWarmStartsArePairwiseDifferentAndHoldNothingOfEachOther(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	file := strings.ReplaceAll(strings.ReplaceAll(random, "name: kin", "name: hot"), "isolation: gvisor", "isolation: gvisor\nwarm: true")
	dir := write(t, map[string]string{"isle.yaml": file, "app.py": app})
	t.Cleanup(func() { w.down("hot") })
	if first := w.bring(dir, "hot-0"); first.WarmStart != nil || first.Environment.Generation != 0 {
		t.Errorf("%+v", first)
	}
	// What comes in as soon as it is up is in no ready state.
	w.must("exec", "hot-0", "-s", "db", "--", "psql", "-h", "localhost", "-U", "postgres", "-c", "create table mine as select 1 as a")
	if note := w.kept("hot-0"); !strings.HasPrefix(note, "kept in snapshot") {
		t.Fatal(note)
	}
	names := []string{"hot-0"}
	for i := 1; i <= 4; i++ {
		name := fmt.Sprintf("hot-%d", i)
		names = append(names, name)
		said := w.bring(dir, name)
		if said.WarmStart == nil || said.Environment.Origin != said.WarmStart.Snapshot || !said.Environment.Warm || said.WarmStart.Took <= 0 {
			t.Errorf("%+v", said)
		}
		if got := w.must("exec", name, "-s", "db", "--", "psql", "-h", "localhost", "-U", "postgres", "-Atc", "select count(*) from pg_tables where tablename='mine'"); got != "0" {
			t.Errorf("%s has a table of another", name)
		}
		w.must("exec", name, "-s", "db", "--", "psql", "-h", "localhost", "-U", "postgres", "-c", "create table mine as select 1 as a")
	}
	w.noMemory()
	w.must("exec", "hot-4", "-s", "db", "--", "/usr/lib/postgresql/15/bin/pg_amcheck", "-h", "localhost", "-U", "postgres", "--install-missing", "-a")
	had := map[string]string{} // kind and value -> whose
	for _, name := range names {
		var got map[string]string
		w.decode(&got, "exec", name, "-s", "web", "--", "python3", "-c", "import urllib.request as u; print(u.urlopen('http://localhost:8080/').read().decode())")
		if len(got) != 10 || got["hostname"] != "web-"+name {
			t.Errorf("%s says %v", name, got)
		}
		for kind, value := range got {
			key := strings.TrimRight(kind, " 01") + " " + value
			if other := had[key]; other != "" {
				t.Errorf("%s and %s have the same %s: %s", other, name, kind, value)
			}
			had[key] = name
		}
	}
	// A port that is published answers, and a change begins cold.
	var list []struct {
		Digest string
		Warm   *struct{ Owner string }
	}
	w.decode(&list, "snapshot", "ls", "hot-0", "-o", "json")
	if len(list) != 1 || list[0].Warm == nil || list[0].Warm.Owner != "root" {
		t.Errorf("%+v", list)
	}
	w.must("down", "hot-1", "--volumes")
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(strings.Replace(file, "shared_buffers=16MB", "shared_buffers=17MB", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if said := w.bring(dir, "hot-1"); said.WarmStart != nil || said.NotWarm != "" || said.Environment.Generation != 0 {
		t.Errorf("%+v", said)
	}
	w.kept("hot-1")
}

// warmShop counts, in two services, and its ready state is kept.
var warmShop = strings.ReplaceAll(shop, "isolation: gvisor", "isolation: gvisor\nwarm: true")

func TestAWarmStartIsWhoItsNameSays(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	dir := w.hot("heat", strings.Replace(warmShop, "  web:\n", "  web:\n    ports: {http: 8080}\n    on_fork: [/inside, ask, \"8080\", state]\n", 1))
	if note := w.kept("heat"); !strings.HasPrefix(note, "kept in snapshot") {
		t.Fatal(note)
	}
	if said := w.bring(dir, "heat-2", "--ttl", "1h"); said.WarmStart == nil || said.Environment.Owner != "root" {
		t.Fatalf("%+v", said)
	}
	s := w.goesOn("heat-2", 0)
	if s.Hostname != "web-heat-2" || !strings.HasSuffix(s.Environment, "/testing/heat-2/web") {
		t.Errorf("it takes itself for %+v", s)
	}
	if log := w.must("logs", "heat-2", "-s", "web"); !strings.Contains(log, "heat-2") {
		t.Errorf("on_fork has not run: %s", log)
	}
	// Its own has been handed out by now, and is nobody else's to begin with.
	if said := w.bring(dir, "heat-3"); said.WarmStart == nil {
		t.Errorf("%+v", said)
	}
	w.goesOn("heat-3", 0)
	// Cold is cold, and what is up is not touched.
	if said := w.bring(dir, "heat-4", "--cold"); said.WarmStart != nil || said.Environment.Generation != 0 {
		t.Errorf("%+v", said)
	}
	w.must("down", "heat-3") // its volumes are kept, and taken up again
	if said := w.bring(dir, "heat-3"); said.WarmStart != nil {
		t.Errorf("%+v", said)
	}
	var e struct {
		Services []struct{ Ports []struct{ Host int } }
	}
	w.decode(&e, "status", "heat-2", "-o", "json")
	w.eventually("the published port answers", func() error {
		for _, s := range e.Services {
			for _, p := range s.Ports {
				res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", p.Host))
				if err == nil {
					res.Body.Close()
				} else if !strings.Contains(err.Error(), "malformed") { // it speaks lines
					return err
				}
			}
		}
		return nil
	})
	if out := w.must("audit", "tail", "-n", "1000", "-o", "json"); !strings.Contains(out, "warm start") {
		t.Error("no entry tells of a warm start")
	}
}

func TestAReadyStateOfAnotherBuildIsDroppedWithTheReason(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"isle", "isle-init", "isle-runsc"} {
		if err := lab.CopyFile(filepath.Join(server.Bin, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("ISLE_BIN", "")
	s, err := lab.New(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := on(t, s)
	dir := w.hot("past", warmShop)
	w.kept("past")
	w.must("server", "stop")
	runsc := filepath.Join(bin, "isle-runsc")
	b, err := os.ReadFile(runsc)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(runsc) // the one that runs stays as it is
	if err := os.WriteFile(runsc, append(b, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	if said := w.bring(dir, "past-2"); said.WarmStart != nil || !strings.Contains(said.NotWarm, "another build of isle-runsc") {
		t.Errorf("%+v", said)
	}
	if note := w.kept("past-2"); !strings.HasPrefix(note, "kept in snapshot") {
		t.Fatal(note)
	}
	if said := w.bring(dir, "past-3"); said.WarmStart == nil {
		t.Errorf("%+v", said)
	}
	w.goesOn("past-3", 0)
	// A byte of its memory is another: it is not gone on from.
	var list []struct{ Digest string }
	w.decode(&list, "snapshot", "ls", "-o", "json")
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	pages, err := filepath.Glob(filepath.Join(w.State, "snapshots", strings.TrimPrefix(list[0].Digest, "sha256:"), "memory", "pages*"))
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	f, err := os.OpenFile(pages[0], os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("tampered"), 4096)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if said := w.bring(dir, "past-4"); said.WarmStart != nil || !strings.Contains(said.NotWarm, "not what was sealed") {
		t.Errorf("%+v", said)
	}
	w.goesOn("past-4", 0)
}

// Who has an identity, or was reached, is no other's beginning.
func TestAReadyStateHoldsNothingThatCameFromOutside(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	file := strings.Replace(warmShop, "    healthcheck: {tcp: 8080}\n", "    healthcheck: {command: [/inside, ask, \"8080\", state]}\n", 1) // which asks for its identity
	w.hot("taken", file)
	if note := w.kept("taken"); !strings.Contains(note, "not kept: an identity") {
		t.Error(note)
	}
	if list := w.snapshots("taken"); len(list) != 0 {
		t.Errorf("%v", list)
	}
}
