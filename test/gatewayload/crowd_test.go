package gatewayload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// each runs f for 0 to n-1, so many at once, and returns the first error.
func each(n, at int, f func(i int) error) error {
	var next atomic.Int64
	var first atomic.Pointer[error]
	var all sync.WaitGroup
	for range at {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && first.Load() == nil; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					err = fmt.Errorf("%d: %w", i, err)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	all.Wait()
	if p := first.Load(); p != nil {
		return *p
	}
	return nil
}

// Bounds of the server's resident memory, in bytes. A session holds some 70 KiB:
// half of that are its goroutines' stacks, most of the rest is TLS, twice. Before
// it is collected there is as much garbage again as all that is held. The server
// without sessions has some 65 MiB, of which more than half are its program's own
// pages; what the grammar took to be translated is not among them.
const (
	mostIdle    = 160 << 20
	mostSession = 160 << 10
)

// A thousand idle sessions and two hundred that work are there at once: all
// that work get on while the others do, the idle ones still answer, and what
// they cost is given back.
func TestACrowdIsServedWithinBoundsAndNobodyStarves(t *testing.T) {
	t.Parallel()
	const idle, busy, least = 1000, 200, 25
	w := newWorld(t, 0, "max_connections=1400", "shared_buffers=32MB")
	keys := make([]string, len(machines))
	for i, m := range machines {
		keys[i] = w.key(t, m)
	}
	w.warm(t, keys[0])
	before := w.measure(t)
	if before.resident > mostIdle {
		t.Errorf("the server has %d MiB without any session", before.resident>>20)
	}
	w.forget(t)

	conns := make([]*pgconn.PgConn, idle+busy)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Conn().Close()
			}
		}
	}()
	began := time.Now()
	err := each(len(conns), 24, func(i int) (err error) { // each caller has 240 of the 256 that one may have
		conns[i], err = w.connect(t.Context(), keys[i%len(keys)], 2+i%len(keys))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	open := w.measure(t)
	share1 := func(bytes int64) int64 { return (bytes - before.resident) / int64(len(conns)) }
	t.Logf("%d sessions in %v; the server has %d MiB, %d KiB for each more than the %d MiB without, and %d files", len(conns), time.Since(began).Round(time.Millisecond),
		open.resident>>20, share1(open.resident)>>10, before.resident>>20, open.files)

	// Nobody stops before everybody has done their share.
	var share atomic.Int64
	var total atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began = time.Now()
	err = each(busy, busy, func(i int) error {
		for n := 1; share.Load() < busy; n++ {
			sql := fmt.Sprintf("select n from orders where id = %d", 1+n%1000)
			if n%10 == 0 {
				sql = fmt.Sprintf("update orders set n = n + 1 where id = %d", i+1)
			}
			if _, err := query(ctx, conns[i], sql); err != nil {
				return fmt.Errorf("after %d statements, while %d of %d had done their share: %w", n, share.Load(), busy, err)
			}
			total.Add(1)
			if n == least {
				share.Add(1)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	worked := w.measure(t)
	t.Logf("%d statements in %v until each had done %d; at most %d MiB, %d KiB for each session", total.Load(), time.Since(began).Round(time.Millisecond), least,
		worked.peak>>20, share1(worked.peak)>>10)
	if share1(worked.peak) > mostSession {
		t.Errorf("the server had %d MiB, %d KiB for each session", worked.peak>>20, share1(worked.peak)>>10)
	}
	err = each(idle, 24, func(i int) error {
		got, err := query(ctx, conns[busy+i], "select 1")
		if err == nil && got != "1" {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, c := range conns {
		c.Conn().Close()
	}
	w.settled(t, before.files+8)
	eventually(t, "the server behind has ended what was let go", func() error { // it takes as long as it needs to end a process for each
		if left := w.line.open(); left != 0 {
			return fmt.Errorf("%d connections to it are left", left)
		}
		return nil
	})
	if left := w.goroutines(t, "isle/internal/gateway.(*Door)", "isle/internal/gateway.(*Gateway).serve", "isle/internal/gateway/postgres."); len(left) > 0 {
		t.Errorf("%d goroutines are left, one is\n%s", len(left), left[0])
	}
}

// Whoever begins and does not go on holds up nobody, and is let go.
func handshakesThatNeverEnd(t *testing.T, w *world, key string) {
	before := w.measure(t)
	w.forget(t)
	begins := [][]byte{
		nil,
		{0, 0, 0},
		{0, 0, 0, 8, 4, 210, 22, 47},       // SSLRequest, and then nothing
		{0, 1, 0, 0, 0, 3, 0, 0, 'u'},      // a start-up packet of 64 KiB
		{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc},  // the first bytes of a ClientHello
		{0x16, 3, 1, 0xff, 0xff, 1, 0, 64}, // one that would be too long
	}
	conns := make([]net.Conn, 1000)
	err := each(len(conns), 32, func(i int) (err error) {
		if conns[i], err = from(t.Context(), 10+i%20, w.gateway); err != nil {
			return err
		}
		_, err = conns[i].Write(begins[i%len(begins)])
		if errors.Is(err, net.ErrClosed) || i >= 512 {
			err = nil // the oldest of too many may be ended already
		}
		return err
	})
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := query(t.Context(), w.open(t, key), "select 1"); err != nil || got != "1" {
		t.Errorf("%q %v", got, err)
	}
	crowded := w.measure(t)
	t.Logf("at most %d MiB and %d files; %d MiB and %d before", crowded.peak>>20, crowded.files, before.resident>>20, before.files)
	if crowded.peak-before.resident > 64<<20 || crowded.files > before.files+512+16 {
		t.Error("handshakes that do not end cost too much")
	}
	// All of them are let go, though nobody hangs up.
	eventually(t, "what said nothing is let go", func() error {
		if m := w.measure(t); m.files > before.files+8 {
			return fmt.Errorf("%d files are open, %d were", m.files, before.files)
		}
		return nil
	})
}
