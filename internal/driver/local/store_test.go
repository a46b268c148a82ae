package local

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// newDisk makes a file system of size bytes and mounts it at the folder that it
// returns.
func newDisk(t *testing.T, size int64, mkfs ...string) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	loop, err := attachLoop(image, f, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	at := filepath.Join(dir, "disk")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	fstype := strings.TrimPrefix(filepath.Base(mkfs[0]), "mkfs.")
	if err := unix.Mount(loop.Name(), at, fstype, 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// fillDisk takes all space of a disk, which must not be larger than size: nobody
// else's is filled by mistake. The function gives it back.
func fillDisk(t *testing.T, disk string, size int64) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil || int64(st.Blocks)*st.Bsize > size {
		t.Fatalf("%s is not the test's own: %v", disk, err)
	}
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(0)
	for step := int64(1 << 30); step >= 4<<10; step /= 2 {
		for unix.Fallocate(int(f.Fd()), 0, at, step) == nil {
			at += step
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// storeLoops counts the loop devices of the driver's store.
func (b *bench) storeLoops() (n int) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if path, _ := os.ReadFile(f); strings.HasPrefix(string(path), filepath.Join(b.state, "volumes", "store.")) {
			n++
		}
	}
	return n
}

// put makes a file in a launch.
func (b *bench) put(l environment.Launch, path string) {
	b.t.Helper()
	err := onOwnThread(func() error {
		return asOwner(int(l.UIDBase), func() error {
			return os.WriteFile(fmt.Sprintf("/proc/%d/root/%s", b.pid(l.Instance, l.ID), path), nil, 0o644)
		})
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// A volume that finds no space, be it for its journal, turns read-only, as it does
// on any disk. Whatever happens to it, the store and the other volumes are whole,
// and it can be used again when there is space.
func TestAFullDiskUnderTheStoreSpoilsNothing(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs")
	disk := newDisk(t, 2<<30, "mkfs.ext4", "-q")
	b := newBenchAt(t, "crun", filepath.Join(disk, "state"))
	filled, spare := b.volume(512<<20), b.volume(8<<20)
	mounts := []environment.Mount{{Volume: filled, Path: "/data"}}
	before := b.launchOf(isle.NewID(), "write /data/x", "sync /data/x")
	before.Volumes = mounts
	b.up(&before)
	b.report(before)
	if err := b.Kill(t.Context(), before.Instance, before.ID); err != nil {
		t.Fatal(err)
	}
	first := b.launchOf(before.Instance, "until /tmp/go", "fill /data/full", "sync /data/full")
	first.Volumes = mounts
	b.up(&first)
	free := fillDisk(t, disk, 2<<30)
	if _, err := b.volumes.Clone(t.Context(), spare, isle.NewID()); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("a clone on a full disk: %v", err)
	}
	b.put(first, "/tmp/go")
	if r := b.report(first); r["sync /data/full"] == "synced" {
		t.Errorf("data that had no room was taken for written: %q", r)
	}
	free()
	if err := b.Kill(t.Context(), first.Instance, first.ID); err != nil {
		t.Fatal(err)
	}
	second := b.launchOf(first.Instance, "read /data/x", "write /data/full", "sync /data/full")
	second.Volumes = mounts
	b.up(&second)
	if r := b.report(second); r["read /data/x"] != "x" || r["sync /data/full"] != "synced" {
		t.Errorf("the volume that had no room is of no use any more: %q", r)
	}
	c := environment.Capture{Instance: second.Instance, Volumes: []environment.Clone{{From: filled, To: isle.NewID()}}}
	if _, err := b.Capture(t.Context(), c); err != nil {
		t.Error(err)
	}
	b.sound(spare)
	b.soundStore(second.Instance)
}

// soundStore ends the instance and fails the test where the store is not whole.
func (b *bench) soundStore(instance isle.ID) {
	b.t.Helper()
	if err := b.Remove(b.t.Context(), instance); err != nil {
		b.t.Fatal(err)
	}
	seesNothing(b.t, b.Driver)
	path := b.volumes.store.mount.Name()
	b.volumes.store.close()
	for deadline := time.Now().Add(20 * time.Second); b.storeLoops() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if out, err := exec.Command("xfs_repair", "-n", "-f", path).CombinedOutput(); err != nil {
		b.t.Errorf("xfs_repair: %v\n%s", err, out)
	}
}

// storeBench is a bench on a disk without reflinks whose store may be of the kinds
// alone.
func storeBench(t *testing.T, kinds ...storeKind) *bench {
	b := newBenchAt(t, "crun", filepath.Join(newDisk(t, 4<<30, "mkfs.ext4", "-q"), "state"))
	b.volumes.store.kinds = kinds
	return b
}

func clones(t *testing.T, b *bench, from isle.ID, how string) isle.ID {
	t.Helper()
	to := isle.NewID()
	if got, err := b.volumes.Clone(t.Context(), from, to); err != nil || got != how {
		t.Errorf("cloned by %q, %v; not by %q", got, err, how)
	}
	b.sound(to)
	return to
}

func TestWhereNoStoreCanBeMadeVolumesAreCopied(t *testing.T) {
	install(t, "mke2fs")
	b := storeBench(t)
	if c := b.checkClones(); c.State != warning || c.Remedy != "apt-get install xfsprogs" {
		t.Errorf("the doctor says %+v", c)
	}
	old := b.volume(32 << 20)
	clones(t, b, old, environment.ByCopy)
	// A store comes, and what was there stays where it is.
	install(t, "mkfs.xfs")
	b.volumes.store.kinds = storeKinds()
	if c := b.checkClones(); c.State != ok || !strings.Contains(c.Message, "is made for the first") {
		t.Errorf("the doctor says %+v", c)
	}
	path := b.volumes.Path(old)
	copied := clones(t, b, old, environment.ByCopy)
	clones(t, b, copied, environment.ByReflink)
	if c := b.checkClones(); c.State != ok || !strings.Contains(c.Message, "store.xfs; 2 of before it are copied") {
		t.Errorf("the doctor says %+v", c)
	}
	if b.volumes.Path(old) != path {
		t.Errorf("the volume moved to %s", b.volumes.Path(old))
	}
	ids, err := b.volumes.List(t.Context())
	if err != nil || len(ids) != 4 {
		t.Errorf("%v, %v", ids, err)
	}
	for _, id := range ids {
		if err := b.volumes.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	b.volumes.store.close()
	if left, _ := filepath.Glob(filepath.Join(b.volumes.dir, "[^.]*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// A server may be killed while it tries: what has a name then stays for good.
func TestWhetherADiskHasReflinksIsTriedWithoutANameOnIt(t *testing.T) {
	dir := t.TempDir()
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	if _, err := reflinks(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); err != unix.EAGAIN {
		t.Errorf("a name was made: %d bytes of events, %v", n, err)
	}
}

func TestADiskWithReflinksNeedsNoStore(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs")
	b := newBenchAt(t, "crun", filepath.Join(newDisk(t, 400<<20, "mkfs.xfs", "-q"), "state"))
	clones(t, b, b.volume(32<<20), environment.ByReflink)
	if c := b.checkClones(); c.State != ok || !strings.Contains(c.Message, "has reflinks") {
		t.Errorf("the doctor says %+v", c)
	}
	if left, _ := filepath.Glob(filepath.Join(b.volumes.dir, "store*")); len(left) > 0 {
		t.Errorf("there is %v", left)
	}
}

func TestAStoreOfBtrfsClonesToo(t *testing.T) {
	install(t, "mke2fs", "mkfs.btrfs")
	b := storeBench(t, storeKinds()[1])
	id := b.volume(32 << 20)
	l := b.launchOf(isle.NewID(), "count /data/n")
	l.Volumes = []environment.Mount{{Volume: id, Path: "/data"}}
	b.up(&l)
	b.report(l)
	for range 3 {
		c := environment.Capture{Instance: l.Instance, Volumes: []environment.Clone{{From: id, To: isle.NewID()}}}
		if out, err := b.Capture(t.Context(), c); err != nil || out.How != environment.ByReflink {
			t.Fatalf("%+v, %v", out, err)
		}
		b.sound(c.Volumes[0].To)
	}
	b.goesOn(l, "/data/n")
}

func TestADeletedVolumeGivesItsSpaceBackToTheDisk(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs")
	b := storeBench(t, storeKinds()...)
	id := b.volume(128 << 20)
	file, err := b.volumes.open(id, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	used := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(b.volumes.store.mount.Name(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	random := make([]byte, 64<<20)
	rand.Read(random)
	if _, err := file.WriteAt(random, 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	full := used()
	if full < 128<<20 { // 64 MiB are the store's own
		t.Fatalf("%d MiB are used", full>>20)
	}
	if err := b.volumes.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); used() > full-(60<<20); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are still used, after %d", used()>>20, full>>20)
		}
	}
}
