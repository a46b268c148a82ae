package switchover

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watched has the first stage of a project watched.
func (p *project) watched(watch string) {
	p.Helper()
	file := filepath.Join(p.dir, "gates.yaml")
	body := fmt.Sprintf("gates:\n  - {stages: [testing], projects: [%s], watch: %s}\n", p.name, watch)
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		p.Fatal(err)
	}
	p.must("apply", "-f", file, "--document", "gates-"+p.name)
	p.Cleanup(func() {
		if err := os.WriteFile(file, []byte("{}\n"), 0o600); err != nil {
			p.Error(err)
		}
		p.must("apply", "-f", file, "--document", "gates-"+p.name)
	})
}

// A stage is what one points at.
type stage struct {
	Release, Breach string
	Marks           []struct{ Release, By, Reason string }
	Watches         []struct{ Until time.Time }
}

func (p *project) stage() (out stage) {
	p.Helper()
	var stages []stage
	if err := json.Unmarshal([]byte(p.must("release", "stages", p.name, "-o", "json")), &stages); err != nil || len(stages) != 1 {
		p.Fatalf("%v, %d stages", err, len(stages))
	}
	return stages[0]
}

// rolledBack asks all the time until the stage points at a release again.
func (p *project) rolledBack(to string) stage {
	p.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		for range 10 {
			if c, err := net.DialTimeout("tcp", p.address(), patience); err == nil {
				fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				c.Read(make([]byte, 100))
				c.Close()
			}
		}
		if s := p.stage(); s.Release == to {
			return s
		}
	}
	p.Fatalf("the stage was not rolled back: %+v", p.stage())
	return stage{}
}

// A release whose answers fail is rolled back from by itself, to the instance that
// was kept, and marked.
func TestAReleaseThatFailsIsRolledBackByItself(t *testing.T) {
	p := newProject(t, "watched", "container")
	old, ill := p.release("v0"), p.release("ill")
	p.promote(old)
	p.must("up", "--release", p.name+"@testing")
	p.watched("{for: 2h, errors: 20%}")
	s := p.promote(ill)
	if text := p.must("status", p.name); !strings.Contains(text, "kept frozen until") || !strings.Contains(text, "for more than 20% of answers failing") {
		t.Errorf("status does not tell:\n%s", text)
	}
	var e struct {
		Asides []struct{ Until time.Time }
	}
	if err := json.Unmarshal([]byte(p.must("status", p.name, "-o", "json")), &e); err != nil {
		t.Fatal(err)
	}
	if len(e.Asides) != 1 || time.Until(e.Asides[0].Until) < 2*time.Hour {
		t.Errorf("what served before is not kept for as long as the stage is watched: %+v", e.Asides)
	}
	is := p.rolledBack(old)
	if len(is.Marks) != 1 || is.Marks[0].By != "system:watch" || !strings.Contains(is.Marks[0].Reason, "answers failed, more than 20%") || len(is.Watches) != 0 {
		t.Errorf("the stage is %+v", is)
	}
	if now, err := p.Status(p.name); err != nil || now.Instance != s.Before {
		t.Errorf("instance %s serves, and not %s that was kept: %v", now.Instance, s.Before, err)
	}
	log := p.must("audit", "search", "--action", "release:rollback", "--actor", "system:watch", "-o", "json")
	if !strings.Contains(log, "by watch: ") || !strings.Contains(log, "gate at gates-watched.yaml:2:5") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	if out, err := p.Isle("promote", p.name, "--to", "testing", "--release", ill); err == nil || !strings.Contains(err.Error(), "was rolled back from release") {
		t.Errorf("promoted again: %v, %s", err, out)
	}
}

// A service that ends is enough where health is watched, and a server that starts
// goes on watching.
func TestAServiceThatEndsIsRolledBackFromByTheNextServer(t *testing.T) {
	p := newProject(t, "mourned", "container")
	p.more = "    restart: always\n"
	old, mortal := p.release("v0"), p.release("mortal")
	p.promote(old)
	p.must("up", "--release", p.name+"@testing")
	p.watched("{for: 2h, health: true}")
	p.promote(mortal)
	if got := p.stage(); len(got.Watches) != 1 {
		t.Fatalf("the stage is not watched: %+v", got)
	}
	p.must("server", "stop") // the next command starts another
	if is := p.rolledBack(old); len(is.Marks) != 1 || !strings.Contains(is.Marks[0].Reason, "service web ") {
		t.Errorf("the stage is %+v", is)
	}
	if got := p.says(); got != "v0" {
		t.Errorf("%s serves", got)
	}
}

// What cannot be rolled back, since the release before could not use the data, is
// not, and says so.
func TestWhatAWatchCannotRollBackIsSaid(t *testing.T) {
	p := newProject(t, "stuck", "container")
	p.more = "schema: {version: 1}\n"
	old := p.release("v0")
	p.more = "schema: {version: 2}\n"
	ill := p.release("ill")
	p.promote(old)
	p.must("up", "--release", p.name+"@testing")
	p.watched("{for: 2h, errors: 0%}")
	p.promote(ill)
	for end := time.Now().Add(patience); p.stage().Breach == ""; {
		if time.Now().After(end) {
			t.Fatalf("nothing was said: %+v", p.stage())
		}
		if res, err := http.Post("http://"+p.address()+"/", "", nil); err == nil {
			res.Body.Close()
		}
	}
	if is := p.stage(); is.Release != ill || !strings.Contains(is.Breach, "could not be rolled back") || !strings.Contains(is.Breach, "could not use its data") {
		t.Errorf("the stage is %+v", is)
	}
	if text := p.must("status", p.name); !strings.Contains(text, "! breach") {
		t.Errorf("status does not tell:\n%s", text)
	}
}
