package local

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

func TestAPreparedContainerIsLikeAnyOther(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, "crun")
	probes := []string{
		"read /proc/self/mountinfo", "read /proc/self/limits", "read /proc/self/oom_score_adj", "read /proc/sys/kernel/hostname",
		"read /proc/self/cgroup", "read /proc/self/uid_map", "read /proc/self/gid_map",
		"list /", "list /dev", "list /dev/shm", "list /run", "list /proc/self/fd", "list /isle", "owner /run/x", "owner /run/x/y", "owner /scratch", "owner /data",
		"write /run/x/f", "write /run/x/y/f", "write /scratch/f", "write /data/f", "write /dev/shm/f", "write /f", "write /isle/f", "read /etc/hosts",
		"status CapEff", "status CapBnd", "status NoNewPrivs", "status Seccomp", "status Groups", "status Uid", "status Gid", "status Umask",
	}
	var got []map[string]string
	for _, b.stocks = range []bool{false, true} {
		volume := isle.NewID()
		if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
			t.Fatal(err)
		}
		l := b.launchOf(isle.NewID(), probes...)
		l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
		l.Tmpfs = []string{"/run/x", "/run/x/y", "/scratch"}
		b.up(&l)
		r := b.report(l)
		r["read /proc/self/mountinfo"] = mountsInside(r["read /proc/self/mountinfo"])
		got = append(got, r)
		if err := b.Remove(t.Context(), l.Instance); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range probes {
		if got[1][p] != got[0][p] {
			t.Errorf("%s in a prepared container:\n%s\nin another:\n%s", p, got[1][p], got[0][p])
		}
	}
	seesNothing(t, b.Driver)
}

// mountsInside are the mounts of a container: what is mounted where with which
// options, without what differs from launch to launch.
func mountsInside(mountinfo string) string {
	var out []string
	for line := range strings.Lines(mountinfo) { // proc_pid_mountinfo(5)
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if i < 6 || len(f) < i+4 {
			return mountinfo
		}
		super := ""
		for o := range strings.SplitSeq(f[i+3], ",") {
			if strings.HasPrefix(o, "size=") || strings.HasPrefix(o, "nr_inodes=") || strings.HasPrefix(o, "mode=") {
				super += " " + o
			}
		}
		out = append(out, fmt.Sprintln(f[4], f[5], f[i+1], super))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

func TestALaunchThatAPreparedContainerDoesNotFitIsMadeAnew(t *testing.T) {
	for name, spoil := range map[string]func(b *bench, l *environment.Launch){
		"it has died":              func(b *bench, l *environment.Launch) { b.end(*l) },
		"more rights are asked":    func(_ *bench, l *environment.Launch) { l.Caps = []string{"CAP_NET_BIND_SERVICE"} },
		"a mount is in a volume's": func(_ *bench, l *environment.Launch) { l.Tmpfs = []string{"/data/x"} },
	} {
		t.Run(name, func(t *testing.T) {
			install(t, "mke2fs")
			b := newBench(t, "crun")
			volume := isle.NewID()
			if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
				t.Fatal(err)
			}
			l := b.launchOf(isle.NewID(), "write /data/f")
			l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
			prepared := b.stock(l)
			spoil(b, &l)
			b.up(&l)
			if pid := b.pid(l.Instance, l.ID); pid == 0 || pid == prepared {
				t.Errorf("the launch has process %d, prepared was %d", pid, prepared)
			}
			if r := b.report(l); r["write /data/f"] != "written" {
				t.Errorf("%v", r)
			}
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
			seesNothing(t, b.Driver)
		})
	}
}

func TestWhatWasPreparedForNobodyIsRemoved(t *testing.T) {
	for _, name := range []string{"crun", "runc", classGvisor} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, name)
			l := b.launchOf(isle.NewID())
			b.stock(l)
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
			seesNothing(t, b.Driver)

			// And by the next server, where this one has died.
			l = b.launchOf(isle.NewID())
			b.stock(l)
			next := b.open(b.state, name)
			all, err := next.List(t.Context())
			if err != nil || len(all) == 0 || all[0].Instance != l.Instance {
				t.Errorf("the next server sees %v (%v)", all, err)
			}
			if err := next.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
			seesNothing(t, b.Driver)
		})
	}
}

// end kills what runs of a launch and waits until it has ended.
func (b *bench) end(l environment.Launch) {
	b.t.Helper()
	f, err := b.openPid(l.Instance, l.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Kill(b.process(l.Instance, l.ID), syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 60_000); err != nil {
		b.t.Fatal(err)
	}
}
