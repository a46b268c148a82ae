package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"isle/test/lab"
)

func TestForksGoOnFromOneInstantWithTheirConnections(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("one", shop)
	before := w.goesOn("one", 10)
	w.must("fork", "one", "-n", "3")
	for n := 1; n <= 3; n++ {
		name := fmt.Sprintf("one-f%d", n)
		s := w.goesOn(name, before.Number)
		if s.Hostname != "web-"+name || !strings.HasSuffix(s.Environment, "/testing/"+name+"/web") {
			t.Errorf("%s takes itself for %+v", name, s)
		}
	}
	w.goesOn("one", before.Number)
	// What is written in one of them is in no other.
	changed := w.ask("one-f2", "db", "change")
	for _, name := range []string{"one", "one-f1", "one-f3"} {
		if got := w.ask(name, "db", "sum"); got == changed {
			t.Errorf("%s has what was written in one-f2", name)
		}
	}
	// A service that is ended in a fork is started there, on the fork's volume.
	w.must("exec", "one-f1", "-s", "db", "--", "/inside", "end")
	w.eventually("db of one-f1 is back", func() error {
		out, err := w.Isle("status", "one-f1", "-o", "json")
		if err == nil && !strings.Contains(out, `"restarts": 1`) {
			err = fmt.Errorf("%s", out)
		}
		if err == nil {
			_, err = w.Isle("exec", "one-f1", "-s", "db", "--", "/inside", "ask", "5432", "sum")
		}
		return err
	})
	w.goesOn("one-f2", w.state("one-f2").Number)
}

func TestAForkOfAForkOfAForkGoesOnToo(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("kin", shop)
	name, number := "kin", w.goesOn("kin", 10).Number
	for range 3 {
		w.must("fork", name)
		name += "-f1"
		s := w.goesOn(name, number)
		if s.Hostname != "web-"+name {
			t.Errorf("%s is called %s", name, s.Hostname)
		}
		number = s.Number
	}
}

// The server dies at any moment: what it had begun is finished or undone, and
// what runs runs on.
func TestCopiesOutliveTheServer(t *testing.T) {
	t.Parallel()
	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := on(t, s)
	w.up("old", shop)
	w.must("fork", "old")
	before := w.goesOn("old-f1", 10)
	w.must("server", "stop")
	w.goesOn("old-f1", before.Number)
	w.goesOn("old", before.Number)
	w.must("fork", "old-f1")
	w.goesOn("old-f1-f1", before.Number)
	w.noMemory()
}

func TestAHundredTimesASnapshotBringsBackWhatWas(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("back", shop)
	cycles := 100
	if testing.Short() {
		cycles = 5
	}
	for i := range cycles {
		want := w.ask("back", "db", "change")
		if sums := strings.Fields(want); len(sums) != 2 || sums[0] != sums[1] {
			t.Fatalf("cycle %d: memory and file differ: %s", i, want)
		}
		w.must("snapshot", "back", "--tag", "was")
		if got := w.ask("back", "db", "change"); got == want {
			t.Fatalf("cycle %d: nothing changed", i)
		}
		w.must("restore", "back", "--at", "was")
		if got := w.ask("back", "db", "sum"); got != want {
			t.Fatalf("cycle %d: it holds %s, not %s", i, got, want)
		}
		w.must("snapshot", "rm", "--force", "was")
	}
	s := w.goesOn("back", w.state("back").Number)
	if s.Hostname != "web" || !strings.HasSuffix(s.Environment, "/testing/back/web") {
		t.Errorf("it takes itself for %+v", s)
	}
}

func TestASnapshotIsGoneOnFromOrStartedAnew(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("past", shop)
	w.goesOn("past", 10)
	w.must("snapshot", "past", "--tag", "warm")
	w.must("snapshot", "past", "--tag", "dry", "--no-memory")
	var warm, dry struct {
		Memory *struct {
			Runtime string
			Size    int64
		}
	}
	w.decode(&warm, "snapshot", "show", "warm", "-o", "json")
	w.decode(&dry, "snapshot", "show", "dry", "-o", "json")
	if warm.Memory == nil || warm.Memory.Size < 4<<20 || !strings.HasPrefix(warm.Memory.Runtime, "sha256:") || dry.Memory != nil {
		t.Errorf("%+v, %+v", warm.Memory, dry.Memory)
	}
	sum := w.ask("past", "db", "change")
	w.must("down", "past", "--volumes") // a snapshot outlives it
	w.must("fork", "past", "--at", "warm", "--name", "past-warm")
	w.goesOn("past-warm", 10)
	if got := w.ask("past-warm", "db", "sum"); got == sum {
		t.Error("it holds what was written later")
	}
	for name, args := range map[string][]string{
		"past-cold": {"--at", "warm", "--cold"},
		"past-dry":  {"--at", "dry"},
	} {
		w.must(append([]string{"fork", "past", "--name", name}, args...)...)
		if got := w.ask(name, "db", "log"); got == "gapless" { // it counts from 1 again, in the same file
			t.Errorf("%s goes on from memory", name)
		}
	}
	out := w.must("run", "--from", "warm", "-s", "db", "--", "/inside", "ask", "5432", "log")
	if out != "gapless" {
		t.Errorf("run --from: %s", out)
	}
	w.must("restore", "past", "--at", "warm")
	w.goesOn("past", 10)
	w.must("restore", "past", "--at", "warm", "--cold")
	if got := w.ask("past", "db", "log"); got == "gapless" {
		t.Error("restore --cold goes on from memory")
	}
}

func TestMemoryOfAnotherBuildIsRefusedWithTheReason(t *testing.T) {
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
	w.up("past", shop)
	number := w.goesOn("past", 10).Number
	w.must("snapshot", "past", "--tag", "old")
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
	words := []string{"another build of isle-runsc", "--cold"}
	w.refused(words, "fork", "past", "--at", "old")
	w.refused(words, "restore", "past", "--at", "old")
	w.refused(words, "fork", "past") // its sandbox is of the build of before
	if got := w.list(); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
	w.goesOn("past", number)
	w.must("fork", "past", "--at", "old", "--cold")
	w.must("fork", "past", "--cold")
	w.must("restore", "past", "--at", "old", "--cold")
	w.must("fork", "past") // of the new build now
}

func TestNoSpaceForMemoryFailsOneCopyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := on(t, s)
	w.up("big", shop)
	number := w.goesOn("big", 10).Number
	for _, folder := range []string{"forks", "snapshots"} {
		at := filepath.Join(s.State, folder)
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=2m"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
	}
	w.refused([]string{"no space left"}, "fork", "big", "-n", "2")
	w.refused([]string{"no space left"}, "snapshot", "big")
	if got := w.list(); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
	if got := w.snapshots("big"); len(got) > 0 {
		t.Errorf("there are snapshots %v", got)
	}
	for _, folder := range []string{"forks", "snapshots"} {
		at := filepath.Join(s.State, folder)
		if left, err := os.ReadDir(at); err != nil || len(left) > 0 {
			t.Errorf("in %s: %v, %v", folder, left, err)
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(s.State, "volumes", "*.ext4*")); err != nil || len(left) > 1 {
		t.Errorf("volumes are left: %v, %v", left, err)
	}
	w.goesOn("big", number)
	w.must("fork", "big")
	w.goesOn("big-f1", number)
}

func TestAForkOfMemoryIsShutUntilOnForkHasSucceeded(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	onFork := strings.Replace(shop, "    healthcheck: {tcp: 8080}", "    healthcheck: {tcp: 8080}\n    on_fork: [/inside, ask, \"8080\", WHAT]", 1)
	w.up("fails", strings.Replace(onFork, "WHAT", "end", 1))
	w.refused([]string{"fork fails-f1 stays shut", "on_fork of service web"}, "fork", "fails")
	if out := w.must("status", "fails-f1", "-o", "json"); !strings.Contains(out, `"phase": "failed"`) {
		t.Error(out)
	}
	w.up("hangs", strings.Replace(onFork, "WHAT", "hang", 1))
	w.refused([]string{"did not end within 2s"}, "fork", "hangs", "--timeout", "2s")
	w.up("works", strings.Replace(onFork, "WHAT", "state", 1))
	w.must("fork", "works")
	w.goesOn("works-f1", 10)
}

// Two forks and a snapshot at the same time are made of instants of their own.
func TestCopiesThatAreMadeAtOnceDisturbNobody(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("busy", shop)
	number := w.goesOn("busy", 10).Number
	var all sync.WaitGroup
	for _, args := range [][]string{{"fork", "busy", "--name", "busy-a"}, {"fork", "busy", "--name", "busy-b"}, {"snapshot", "busy"}} {
		all.Go(func() {
			if _, err := w.Isle(args...); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, name := range []string{"busy", "busy-a", "busy-b"} {
		w.goesOn(name, number)
	}
}
