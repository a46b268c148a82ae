package switchover

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkSwitch says how long a launch, a switch, a rollback to the instance that
// was kept, and the pause of a hand-over take, as medians: of whole commands, and
// of the server's part until the other release served.
func BenchmarkSwitch(b *testing.B) {
	for _, class := range []string{"container", "gvisor"} {
		b.Run(class, func(b *testing.B) {
			p := &project{T: &testing.T{}, Server: server, name: "bench-" + class, dir: b.TempDir(), class: class}
			b.Cleanup(func() { p.Isle("down", p.name, "--volumes") })
			old, next := p.release("v0"), p.release("v1")
			p.promote(old)
			times := map[string][]float64{}
			note := func(what string, d time.Duration) { times[what] = append(times[what], d.Seconds()*1000) }
			for b.Loop() {
				began := time.Now()
				p.must("up", "--release", p.name+"@testing")
				note("launch-ms", time.Since(began))
				began = time.Now()
				s := p.promote(next)
				note("switch-command-ms", time.Since(began))
				note("switch-ms", time.Duration(s.Took*float64(time.Second)))
				time.Sleep(time.Second) // until it is frozen
				began = time.Now()
				var back struct{ Switch switched }
				if err := json.Unmarshal([]byte(p.must("rollback", p.name+"@testing", "-o", "json")), &back); err != nil || !back.Switch.Kept {
					b.Fatal(back, err)
				}
				note("rollback-command-ms", time.Since(began))
				note("rollback-ms", time.Duration(back.Switch.Took*float64(time.Second)))
				p.must("release", "clear", p.name+"@testing", next)
				p.must("down", p.name)
			}
			for what, all := range times {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2], what)
			}
			b.Log(fmt.Sprint(times))
		})
	}
}
