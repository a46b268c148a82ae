package switchover

import (
	"fmt"
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
