package local

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// content reads a file of a volume that nobody has mounted.
func (b *bench) content(volume isle.ID, name string) string {
	b.t.Helper()
	var out []byte
	err := inPrivateMounts(b.private, b.hide, func() error {
		if err := os.Mkdir("v", 0o755); err != nil {
			return err
		}
		if err := b.volumes.attach(b.t.Context(), volume, "v", nil); err != nil {
			return err
		}
		var err error
		out, err = os.ReadFile(filepath.Join("v", volumeRoot, name))
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return string(out)
}

// sound fails the test where a volume's file system is not whole.
func (b *bench) sound(volume isle.ID) {
	b.t.Helper()
	f, err := b.volumes.open(volume, os.O_RDONLY)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("e2fsck", "-fn", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func (b *bench) volume(size int64) isle.ID {
	b.t.Helper()
	id := isle.NewID()
	if err := b.volumes.Create(b.t.Context(), id, size); err != nil {
		b.t.Fatal(err)
	}
	return id
}

// The guard of a server that died lets go on what it was to, late where the
// machine is busy: what the next one stops must not be that.
func TestACaptureWaitsForTheGuardOfTheOneBefore(t *testing.T) {
	b := newBench(t, "crun")
	volume := b.volume(8 << 20)
	l := b.launchOf(isle.NewID(), "count /data/n")
	l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
	b.up(&l)
	b.report(l)
	before, err := b.newGuard(t.Context(), l.Instance, nil)
	if err != nil {
		t.Fatal(err)
	}
	captured := make(chan error, 1)
	go func() {
		_, err := b.Capture(t.Context(), environment.Capture{Instance: l.Instance, Volumes: []environment.Clone{{From: volume, To: isle.NewID()}}})
		captured <- err
	}()
	select {
	case err := <-captured:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	before.act()
	if err := <-captured; err != nil {
		t.Error(err)
	}
	b.goesOn(l, "/data/n")
}

// goesOn waits until what counts into the file of a launch counts on.
func (b *bench) goesOn(l environment.Launch, path string) {
	b.t.Helper()
	counts(b.t, filepath.Join("/proc", strconv.Itoa(b.pid(l.Instance, l.ID)), "root", path))
}

func TestACaptureHoldsAllVolumesAsTheyWereAtOneInstant(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		one, two, idle := b.volume(32<<20), b.volume(16<<20), b.volume(8<<20)
		l := b.launchOf(isle.NewID(), "count /one/n /two/n")
		l.Volumes = []environment.Mount{{Volume: one, Path: "/one"}, {Volume: two, Path: "/two"}}
		b.up(&l)
		b.report(l)
		for range 5 {
			c := environment.Capture{Instance: l.Instance, Isolation: b.class, Volumes: []environment.Clone{
				{From: one, To: isle.NewID()}, {From: two, To: isle.NewID()}, {From: idle, To: isle.NewID()},
			}}
			out, err := b.Capture(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%v, %s", out.Paused, out.How)
			for _, v := range c.Volumes {
				b.sound(v.To)
			}
			first, _ := strconv.Atoi(b.content(c.Volumes[0].To, "n"))
			second, _ := strconv.Atoi(b.content(c.Volumes[1].To, "n"))
			if first < 1 || first-second > 1 || first < second {
				t.Errorf("%d was written before %d", first, second)
			}
			b.goesOn(l, "/one/n")
		}
	})
}

func TestAVolumeThatNobodyWritesToIsClonedByItself(t *testing.T) {
	b := newBench(t, "crun")
	from, to := b.volume(32<<20), isle.NewID()
	l := b.launchOf(isle.NewID(), "write /data/x")
	l.Volumes = []environment.Mount{{Volume: from, Path: "/data"}}
	b.up(&l)
	b.report(l)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.volumes.Clone(ctx, from, to); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("a volume in use was cloned: %v", err)
	}
	if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.volumes.Clone(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	b.sound(to)
	if got := b.content(to, "x"); got != "x" {
		t.Errorf("the clone holds %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(b.volumes.Path(to), &st); err != nil || st.Size != 32<<20 || st.Blocks*512 > 8<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("%+v, %v", st, err)
	}
}
