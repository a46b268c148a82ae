package local

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// says is what the volume's device says of flushes.
func (c *captured) says(b *bench) string {
	b.t.Helper()
	m, err := b.volumes.mounted(c.volume)
	if err != nil || m == nil {
		b.t.Fatalf("the volume is not mounted: %v", err)
	}
	defer m.close()
	_, says, err := m.flushes()
	if err != nil {
		b.t.Fatal(err)
	}
	return says
}

func TestFlushesArePassedOverOnlyWhileNothingRuns(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	c := b.captured()
	if got := c.says(b); got != flushed {
		t.Fatalf("a volume's device is %q", got)
	}
	at := map[string]string{}
	b.given.Fault = func(point string) {
		switch point {
		case "capture.calm", "capture.frozen", "capture.thawed":
			at[point] = c.says(b)
		}
	}
	if _, err := c.capture(b); err != nil {
		t.Fatal(err)
	}
	if at["capture.calm"] != unflushed || at["capture.frozen"] != flushed || at["capture.thawed"] != flushed {
		t.Errorf("it was %v", at)
	}
	full := filepath.Join(b.state, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(full, unix.MNT_DETACH)
	_, err := b.Capture(t.Context(), environment.Capture{Instance: c.one.Instance, Isolation: classGvisor, Memory: full,
		Volumes: []environment.Clone{{From: c.volume, To: isle.NewID()}}})
	if got := c.says(b); err == nil || got != flushed {
		t.Errorf("after a capture that failed (%v) it is %q", err, got)
	}

	// One that dies in between leaves it to its guard, and that to the next server.
	b.given.Fault = func(string) {}
	calm := func() *preparation {
		h, err := b.hold(t.Context(), c.one.Instance, []environment.Clone{{From: c.volume, To: isle.NewID()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.close)
		h.still = true
		p, err := h.prepare(t.Context(), nil)
		if err == nil {
			err = p.calm()
		}
		if err != nil || c.says(b) != unflushed {
			t.Fatalf("%q, %v", c.says(b), err)
		}
		return p
	}
	p := calm()
	p.guard.act()
	if got := c.says(b); got != flushed {
		t.Errorf("after its guard it is %q", got)
	}
	p = calm()
	p.guard.dismiss()
	b.thawAll()
	if got := c.says(b); got != flushed {
		t.Errorf("when the server is back it is %q", got)
	}
}
