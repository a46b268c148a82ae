package local

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// reads what a launch of a sandbox has in a file, as a number.
func (b *bench) reads(l environment.Launch, path string) int {
	b.t.Helper()
	out, err := b.inside(l, "probe", "read", path)
	if err != nil {
		b.t.Fatalf("read %s: %v", path, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// goesBeyond waits until a launch of a sandbox has counted further.
func (b *bench) goesBeyond(l environment.Launch, path string, n int) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); b.reads(l, path) <= n; {
		if time.Now().After(deadline) {
			b.t.Fatalf("%s stands at %d", path, b.reads(l, path))
		}
	}
}

// captured is an instance of two services and its memory.
type captured struct {
	one, two environment.Launch
	volume   isle.ID
	memory   string
	out      environment.Captured
}

func (b *bench) captured() *captured { return b.capturedOf(false) }

// capturedOf is captured, where one of the launches may begin with what was
// prepared.
func (b *bench) capturedOf(prepared bool) *captured {
	b.t.Helper()
	c := &captured{volume: b.volume(32 << 20)}
	c.one = b.launchOf(isle.NewID(), "count /data/n")
	c.one.Volumes = []environment.Mount{{Volume: c.volume, Path: "/data"}}
	c.two = b.launchOf(c.one.Instance, "count /tmp/m")
	c.two.Service, c.two.Hostname, c.two.MachineID = "db", "db", strings.Repeat("a", 32)
	if prepared { // of the two the one that has no volume
		defer b.tookStock(c.two, b.stock(c.two))
	}
	b.up(&c.one)
	b.up(&c.two)
	b.report(c.one)
	b.report(c.two)
	return c
}

// capture captures it, its volume as clone.
func (c *captured) capture(b *bench) (clone isle.ID, err error) {
	clone = isle.NewID()
	c.memory, err = os.MkdirTemp(b.state, "memory-")
	if err != nil {
		b.t.Fatal(err)
	}
	c.out, err = b.Capture(b.t.Context(), environment.Capture{Instance: c.one.Instance, Isolation: b.class,
		Volumes: []environment.Clone{{From: c.volume, To: clone}}, Memory: c.memory})
	return clone, err
}

// fork is what it is brought back as, on a volume.
func (c *captured) fork(n int, volume isle.ID) environment.Restore {
	one, two := c.one, c.two
	one.Instance, one.ID, two.ID = isle.NewID(), isle.NewID(), isle.NewID()
	two.Instance = one.Instance
	one.UIDBase, two.UIDBase = testUIDs+uint32(n)<<16, testUIDs+uint32(n)<<16
	one.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
	two.MachineID, two.Generation = strings.Repeat(strconv.Itoa(n), 32), int64(n)
	one.Boot, two.Boot = nil, nil
	one.Exited, two.Exited = func() {}, func() {}
	return environment.Restore{Shared: environment.Shared{Instance: one.Instance, Isolation: classGvisor, Limits: one.Limits},
		Launches: []environment.Launch{one, two}, Memory: c.memory, Runtime: c.out.Runtime}
}

func TestForksOfMemoryGoOnEachOnItsOwn(t *testing.T) { forksGoOn(t, false) }

func TestForksOfAPreparedLaunchGoOnEachOnItsOwn(t *testing.T) { forksGoOn(t, true) }

func forksGoOn(t *testing.T, prepared bool) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	c := b.capturedOf(prepared)
	clone, err := c.capture(b)
	if err != nil {
		t.Fatal(err)
	}
	if c.out.Paused <= 0 || c.out.Memory <= 0 || !c.out.Runtime.Valid() || c.out.How == "" {
		t.Errorf("captured %+v", c.out)
	}
	b.sound(clone)
	at, err := strconv.Atoi(strings.TrimSpace(b.content(clone, "n")))
	if err != nil {
		t.Fatal(err)
	}
	b.goesBeyond(c.one, "/data/n", at)
	for n := 1; n <= 3; n++ {
		volume := isle.NewID()
		if _, err := b.volumes.Clone(t.Context(), clone, volume); err != nil {
			t.Fatal(err)
		}
		r := c.fork(n, volume)
		ended := make(chan struct{})
		r.Launches[0].Exited = func() { close(ended) }
		if err := b.Restore(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		one, two := r.Launches[0], r.Launches[1]
		if service, err := spareIn(b.dir(two.Instance, two.ID)); err != nil || (service == two.Service) != prepared {
			t.Errorf("a capture of fork %d would call %q as a prepared one (%v)", n, service, err)
		}
		b.goesBeyond(one, "/data/n", at)
		b.goesBeyond(two, "/tmp/m", b.reads(two, "/tmp/m"))
		for path, want := range map[string]string{"/etc/machine-id": two.MachineID, "/etc/isle/generation": strconv.Itoa(n)} {
			if got, err := b.inside(two, "probe", "read", path); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s of fork %d is %q, %v", path, n, got, err)
			}
		}
		if err := b.Kill(t.Context(), one.Instance, one.ID); err != nil {
			t.Fatal(err)
		}
		<-ended
		b.goesBeyond(two, "/tmp/m", b.reads(two, "/tmp/m")) // the other one lives
		if err := b.Remove(t.Context(), one.Instance); err != nil {
			t.Fatal(err)
		}
		b.sound(volume)
	}
	b.goesBeyond(c.one, "/data/n", b.reads(c.one, "/data/n"))
	b.goesBeyond(c.two, "/tmp/m", b.reads(c.two, "/tmp/m"))
}

func TestMemoryOfAnotherBuildIsRefused(t *testing.T) {
	b := newBench(t, classGvisor)
	c := &captured{one: b.launchOf(isle.NewID()), two: b.launchOf(isle.NewID()), memory: b.state}
	c.out.Runtime = isle.DigestOf([]byte("another"))
	err := b.Restore(t.Context(), c.fork(1, isle.NewID()))
	if isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), c.out.Runtime.Short()) {
		t.Errorf("got %v", err)
	}
	seesNothing(t, b.Driver)
}

func TestACaptureOfMemoryThatFailsLeavesNothing(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	c := b.captured()
	fails := func(code isle.Code, capture environment.Capture) {
		t.Helper()
		if _, err := b.Capture(t.Context(), capture); isle.CodeOf(err) != code {
			t.Errorf("got %v", err)
		}
		b.goesBeyond(c.one, "/data/n", b.reads(c.one, "/data/n"))
		if all, err := b.volumes.List(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("the volumes are %v, %v", all, err)
		}
	}
	full := filepath.Join(b.state, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(full, unix.MNT_DETACH)
	ok := environment.Capture{Instance: c.one.Instance, Isolation: classGvisor, Memory: full, Volumes: []environment.Clone{{From: c.volume, To: isle.NewID()}}}
	fails(isle.Exhausted, ok)
	ok.Isolation = classContainer
	fails(isle.Invalid, ok)
	ok.Isolation, ok.Instance, ok.Volumes = classGvisor, isle.NewID(), nil
	fails(isle.Unavailable, ok)
}

func TestMemoryThatIsBrokenLeavesNothing(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	c := b.captured()
	clone, err := c.capture(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(context.Background(), c.one.Instance); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(c.memory, "checkpoint.img"), 100_000); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(t.Context(), c.fork(1, clone)); isle.CodeOf(err) != isle.Failed {
		t.Errorf("got %v", err)
	}
	seesNothing(t, b.Driver)
}
