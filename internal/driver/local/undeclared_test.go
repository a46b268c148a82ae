package local

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// within does something in the mounts of a process, as whoever is root on the
// machine can.
func within(t *testing.T, pid int, do func() error) {
	t.Helper()
	err := onOwnThread(func() error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil {
			return err
		}
		defer f.Close()
		root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
		if err != nil {
			return err
		}
		defer root.Close()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := root.Chdir(); err != nil {
			return err
		}
		if err := unix.Chroot("."); err != nil {
			return err
		}
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsMountedThatWasNotDeclaredIsFound(t *testing.T) {
	install(t, "mke2fs")
	eachWay(t, func(t *testing.T, b *bench) {
		volume := isle.NewID()
		if err := b.volumes.Create(t.Context(), volume, 8<<20); err != nil {
			t.Fatal(err)
		}
		defer b.volumes.Delete(t.Context(), volume)
		l := b.launchOf(isle.NewID())
		l.Volumes, l.Tmpfs = []environment.Mount{{Volume: volume, Path: "/var/my data"}}, []string{"/scratch"}
		b.up(&l)
		b.report(l)
		look := func() string {
			t.Helper()
			found, err := b.Undeclared(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(found, "; ")
		}
		if got := look(); got != "" {
			t.Errorf("of what was launched: %s", got)
		}
		pid := b.pid(l.Instance, l.ID)
		within(t, pid, func() error { return unix.Mount("tmpfs", "/app", "tmpfs", 0, "") })
		within(t, pid, func() error { return unix.Mount("tmpfs", "/var/my data", "tmpfs", 0, "") })
		got := look()
		for _, want := range []string{"something is mounted at /app that was not declared: / of tmpfs from tmpfs", "something is mounted over /var/my data: tmpfs"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is not in %q", want, got)
			}
		}
		within(t, pid, func() error { return unix.Unmount("/var/my data", unix.MNT_DETACH) })
		within(t, pid, func() error { return unix.Unmount("/var/my data", unix.MNT_DETACH) })
		if got := look(); !strings.Contains(got, "the volume at /var/my data is not mounted") {
			t.Errorf("%q", got)
		}
		other := l
		other.Layers, other.Volumes = l.Layers[:1], nil
		if got := strings.Join(must(b.Undeclared(t.Context(), other)), "; "); !strings.Contains(got, "its root has 2 layers, and its image 1") {
			t.Errorf("%q", got)
		}
		if err := b.Remove(t.Context(), l.Instance); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != "" {
			t.Errorf("of what does not run: %q", got)
		}
	})
}

func TestARootThatCanBeWrittenToIsFound(t *testing.T) {
	for line, want := range map[string]string{
		`1 0 0:45 / / ro - overlay root ro,lowerdir=top:l1:l0:bottom`:                              "",
		`1 0 0:45 / / rw - overlay root rw,lowerdir=top:l1:l0:bottom`:                              "its root can be written to",
		`1 0 0:45 / / ro - overlay root rw,lowerdir=l1:l0,upperdir=x,workdir=y`:                    "its root has a layer that takes what is written",
		`1 0 0:45 / / ro - overlay root ro,lowerdir=top:l2:l1:l0:bottom`:                           "its root has 3 layers, and its image 2",
		`1 0 254:0 /root / ro - ext4 /dev/vda ro`:                                                  "its root is no image, but ext4 from /dev/vda",
		`1 0 0:45 / /x ro - overlay root ro,lowerdir=top:l1:l0:bottom`:                             "it has no root",
		"1 0 0:45 / / ro - overlay root ro,lowerdir=l1:l0\n2 1 0:3 / /proc/sys rw - proc proc rw":  "something is mounted at /proc/sys that was not declared",
		"1 0 0:45 / / ro - overlay root ro,lowerdir=l1:l0\n2 1 8:1 /x /isle/init rw - ext4 sda rw": "/isle/init can be written to",
	} {
		lines, err := readMounts(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		found, err := strange(&container{class: classContainer, init: "x", layers: []string{"a", "b"}}, lines, nil)
		if got := strings.Join(found, "; "); err != nil || !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, %v; want %q", line, got, err, want)
		}
	}
}

func must(found []string, err error) []string {
	if err != nil {
		return []string{err.Error()}
	}
	return found
}

func FuzzReadMounts(f *testing.F) {
	f.Add(`141 101 0:45 / / ro,nosuid - overlay root ro,lowerdir=top:l3:l2:l1:l0:bottom`)
	f.Add(`1 2 7:1 /data /my\040data rw - ext4 /dev/loop1 rw`)
	f.Fuzz(func(_ *testing.T, text string) {
		lines, err := readMounts(strings.NewReader(text))
		if err == nil {
			_, _ = strange(&container{class: classContainer}, lines, map[string]string{"/data": "/dev/loop1"})
		}
	})
}
