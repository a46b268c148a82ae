package switchover

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// Ten times to another release, under load: no request fails, on connections that
// stay as on new ones.
func TestASwitchFailsNoRequest(t *testing.T) {
	for _, class := range []string{"container", "gvisor"} {
		t.Run(class, func(t *testing.T) {
			p := newProject(t, "switched-"+class, class)
			releases := []string{p.release("v0"), p.release("v1")}
			p.promote(releases[0])
			p.must("up", "--release", p.name+"@testing")
			l := p.load(8)
			for n := 1; n <= 10; n++ {
				s := p.promote(releases[n%2])
				if s.Instance == "" || s.Instance == s.Before || s.Pause != 0 {
					t.Errorf("switch %d: %+v", n, s)
				}
				if got, want := p.says(), fmt.Sprintf("v%d", n%2); got != want {
					t.Errorf("after switch %d %s serves, not %s", n, got, want)
				}
				t.Logf("switch %d took %.0f ms", n, s.Took*1000)
			}
			if failed := l.end(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %v", len(failed), l.asked.Load(), failed[0])
			}
			if l.answers["v0"] == 0 || l.answers["v1"] == 0 {
				t.Errorf("answers came from %v", l.answers)
			}
			t.Logf("%d requests: %v", l.asked.Load(), l.answers)
		})
	}
}

// Ten rollbacks under load, and back again: no request fails, and while the other
// instance is kept it is the same one that goes on.
func TestARollbackFailsNoRequest(t *testing.T) {
	for _, class := range []string{"container", "gvisor"} {
		t.Run(class, func(t *testing.T) {
			p := newProject(t, "rolled-"+class, class)
			old, next := p.release("v0"), p.release("v1")
			p.promote(old)
			p.must("up", "--release", p.name+"@testing")
			l := p.load(8)
			for n := 1; n <= 10; n++ {
				there := p.promote(next)
				back := p.rollback()
				if !back.Kept || back.Instance != there.Before {
					t.Errorf("rollback %d: %+v, after %+v", n, back, there)
				}
				if got := p.says(); got != "v0" {
					t.Errorf("after rollback %d %s serves", n, got)
				}
				t.Logf("rollback %d took %.0f ms, the switch %.0f ms", n, back.Took*1000, there.Took*1000)
				if out, err := p.Isle("promote", p.name, "--to", "testing", "--release", next); err == nil || !strings.Contains(err.Error(), "was rolled back from release") {
					t.Errorf("promoted again: %v, %s", err, out)
				}
				p.must("release", "clear", p.name+"@testing", next)
			}
			if failed := l.end(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %v", len(failed), l.asked.Load(), failed[0])
			}
			t.Logf("%d requests: %v", l.asked.Load(), l.answers)
		})
	}
}

// A service that owns a volume: requests wait, one version writes at a time, and
// the data goes back with the release where the release before could not use it.
func TestVolumesAreHandedOverOneWriterAtATime(t *testing.T) {
	p := newProject(t, "handed", "container")
	p.more = "    volumes: {/data: {size: 64MiB}}\nschema: {version: 1}\n"
	one := p.release("v1")
	p.more = "    volumes: {/data: {size: 64MiB}}\nschema: {version: 2}\n"
	two := p.release("v2")
	p.promote(one)
	p.must("up", "--release", p.name+"@testing")
	if _, err := p.data(http.MethodPost); err != nil {
		t.Fatal(err)
	}
	stop, written := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			if _, err := p.data(http.MethodPost); err != nil {
				written <- err
				return
			}
		}
	}()
	s := p.promote(two)
	close(stop)
	if err := <-written; err != nil {
		t.Errorf("a request failed: %v", err)
	}
	if s.Pause <= 0 || s.Snapshot == "" || s.Kept {
		t.Errorf("%+v", s)
	}
	t.Logf("the pause was %.0f ms", s.Pause*1000)
	if _, err := p.data(http.MethodPost); err != nil {
		t.Fatal(err)
	}
	log, err := p.data(http.MethodGet)
	if err != nil {
		t.Fatal(err)
	}
	if before, after, _ := strings.Cut(log, "v2"); !strings.Contains(before, "v1") || strings.Contains(after, "v1") {
		t.Errorf("both have written at a time: %s", log)
	}
	// Without the data there is no way back, and with it there is.
	if out, err := p.Isle("rollback", p.name+"@testing"); err == nil || !strings.Contains(err.Error(), "only releases of schema 2") || !strings.Contains(err.Error(), "--restore") {
		t.Errorf("%v, %s", err, out)
	}
	if got := p.says(); got != "v2" {
		t.Errorf("%s serves", got)
	}
	p.must("rollback", p.name+"@testing", "--restore")
	if got := p.says(); got != "v1" {
		t.Errorf("%s serves", got)
	}
	if log, err = p.data(http.MethodGet); err != nil || strings.Contains(log, "v2") || !strings.Contains(log, "v1") {
		t.Errorf("the data is %q, %v", log, err)
	}
	if out := p.must("snapshot", "ls", p.name, "-o", "json"); !strings.Contains(out, "before the rollback to release") {
		t.Errorf("what was written since is nowhere: %s", out)
	}
}

// A release that does not come up changes nothing, and the error shows its words,
// or what was asked of it in vain.
func TestAReleaseThatDoesNotComeUpChangesNothing(t *testing.T) {
	for _, ill := range []struct{ name, version, more, why string }{
		{"ends", "bad", "", "this version does not start"},
		{"endsdata", "bad", "    volumes: {/data: {size: 64MiB}}\n", "this version does not start"},
		{"deaf", "deaf", "", "did not become healthy within 3s"},
	} {
		p := newProject(t, ill.name, "container")
		p.more = ill.more
		good, bad := p.release("v1"), p.release(ill.version)
		p.promote(good)
		p.must("up", "--release", p.name+"@testing")
		l := p.load(4)
		_, err := p.Isle("promote", p.name, "--to", "testing", "--release", bad)
		if err == nil || !strings.Contains(err.Error(), "is as it was") || !strings.Contains(err.Error(), ill.why) {
			t.Errorf("%s: %v", ill.name, err)
		}
		if got := p.says(); got != "v1" {
			t.Errorf("%s serves", got)
		}
		if failed := l.end(); len(failed) > 0 {
			t.Errorf("%d of %d requests failed, the first: %v", len(failed), l.asked.Load(), failed[0])
		}
		if out := p.must("release", "stages", p.name, "-o", "json"); !strings.Contains(out, good) || strings.Contains(out, bad) {
			t.Error(out)
		}
	}
}

// Of two people who promote to a stage that serves, at once, one is told who was
// first, and nothing of theirs is done: what the stage points at serves.
func TestOfTwoWhoPromoteAtOnceOneIsToldWhoWasFirst(t *testing.T) {
	p := newProject(t, "contested", "container")
	base := p.release("v0")
	digests := map[string]string{"slow1": p.release("slow1"), "slow2": p.release("slow2")}
	p.promote(base)
	p.must("up", "--release", p.name+"@testing")
	l := p.load(4)
	for round := 1; ; round++ {
		var told sync.Map
		var both sync.WaitGroup
		for version, digest := range digests {
			both.Go(func() {
				_, err := p.Isle("promote", p.name, "--to", "testing", "--release", digest)
				told.Store(version, err)
			})
		}
		both.Wait()
		won, lost := "", error(nil)
		for version := range digests {
			if err, _ := told.Load(version); err == nil {
				won = version
			} else {
				lost = errors.Join(lost, err.(error))
			}
		}
		if s := p.stage(); won == "" || s.Release != digests[p.says()] {
			t.Fatalf("round %d: stage %+v, %s serves, and they were told: %v", round, s, p.says(), lost)
		}
		if lost != nil {
			if !strings.Contains(lost.Error(), "by now, promoted by root: nothing was changed") || !strings.Contains(lost.Error(), "--dry-run") || p.says() != won {
				t.Errorf("%s won and %s serves; the other was told: %v", won, p.says(), lost)
			}
			break
		}
		if round == 20 {
			t.Fatal("in 20 rounds they never met")
		}
		p.promote(base) // one came after the other; again
	}
	if failed := l.end(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(failed), l.asked.Load(), failed[0])
	}
	p.must("audit", "verify")
}
