package gatewayload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Policies are replaced again and again under load: from the moment that one is
// applied which denies a table, nobody reads it, whatever they read half.
func aTableThatIsRevokedIsNotReadUnderLoad(t *testing.T, w *world, key string) {
	const changes = 50
	var epoch atomic.Int64 // odd: the table is denied
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	var read, refused, wrong atomic.Int64
	for range 6 {
		c := w.open(t, key)
		all.Go(func() {
			for ctx.Err() == nil {
				began := epoch.Load()
				_, err := query(t.Context(), c, "select count(*) from secrets")
				switch {
				case err == nil && began%2 == 1 && epoch.Load() == began:
					wrong.Add(1)
				case err == nil:
					read.Add(1)
				case state(err) == "42501":
					refused.Add(1)
				default:
					t.Errorf("a reader is told %q: %v", state(err), err)
					return
				}
			}
		})
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("\\set id random(1, 1000)\nselect n from orders where id = :id;\nupdate orders set n = n + 1 where id = :id;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(w.gateway, ":")
	bench := exec.CommandContext(ctx, "pgbench", "-n", "-M", "prepared", "-c", "4", "-T", "600", "-f", script, fmt.Sprintf("host=%s port=%s dbname=orders-db user=x sslmode=require", host, port))
	bench.Env = append(os.Environ(), "PGPASSWORD="+key)
	said := &strings.Builder{}
	bench.Stdout, bench.Stderr = said, said
	if err := bench.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- bench.Wait() }()
	var half measure
	// each waits until readers have seen the policy that is in force.
	seen := func(n *atomic.Int64) {
		from := n.Load()
		eventually(t, "readers see it", func() error {
			if n.Load() > from+6 || t.Failed() {
				return nil
			}
			return errors.New("they do not")
		})
	}
	for i := range changes / 2 {
		if i == changes/4 { // what is kept for reuse is there
			half = w.measure(t)
		}
		w.apply(t, `, rules: [{effect: deny, tables: [secrets], reason: "not for you"}]`)
		epoch.Add(1)
		seen(&refused)
		epoch.Add(1) // from here on either may be
		w.apply(t, "")
		seen(&read)
	}
	select {
	case err := <-ended:
		t.Errorf("pgbench ended: %v %s", err, said)
	default:
	}
	cancel()
	all.Wait()
	if err := <-ended; err == nil {
		t.Error("pgbench had an end")
	}
	after := w.measure(t)
	t.Logf("%d read, %d refused; %d MiB more, %d files more in the second half", read.Load(), refused.Load(), (after.resident-half.resident)>>20, after.files-half.files)
	if n := wrong.Load(); n > 0 {
		t.Errorf("what was revoked was read %d times", n)
	}
	if after.resident-half.resident > 64<<20 {
		t.Error("policies that were replaced are still there")
	}
}
