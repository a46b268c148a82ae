package local

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

// statusOf reads a field of /proc/PID/status.
func statusOf(t *testing.T, pid int, field string) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == field {
			return strings.Fields(v)
		}
	}
	t.Fatalf("process %d has no %s", pid, field)
	return nil
}

func TestASandboxIsNobodyOnTheHost(t *testing.T) {
	b := newBench(t, classGvisor)
	one := b.launchOf(isle.NewID())
	two := b.launchOf(one.Instance)
	b.up(&one)
	b.up(&two)
	b.report(one)
	b.report(two)
	own := map[string]string{}
	for _, ns := range []string{"user", "mnt", "net", "pid", "ipc", "uts"} {
		own[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	pids := b.groups.procs(string(one.Instance), "")
	if len(pids) < 4 {
		t.Fatalf("%d processes: a sentry and three gofers are expected", len(pids))
	}
	for _, pid := range pids {
		for _, ids := range [][]string{statusOf(t, pid, "Uid"), statusOf(t, pid, "Gid")} {
			for _, id := range ids {
				if n, err := strconv.Atoi(id); err != nil || n < testUIDs || n >= testUIDs+idRange {
					t.Errorf("process %d has the host's id %s", pid, id)
				}
			}
		}
		if mode := statusOf(t, pid, "Seccomp")[0]; mode != "2" {
			t.Errorf("process %d runs with seccomp mode %s", pid, mode)
		}
		for ns, ours := range own {
			if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); err != nil || theirs == ours {
				t.Errorf("process %d is in the host's %s namespace (%v)", pid, ns, err)
			}
		}
		root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
		if err != nil {
			t.Fatal(err)
		}
		if names, _ := root.Readdirnames(-1); slices.Contains(names, "root") && slices.Contains(names, "home") {
			t.Errorf("process %d has the host's files: %v", pid, names)
		}
		root.Close()
	}
	// Each launch is one process of the host, in its group, and the sentry is
	// in none of theirs.
	for _, l := range []environment.Launch{one, two} {
		if pids := b.groups.procs(string(l.Instance), string(l.ID)); len(pids) != 1 || pids[0] != b.pid(l.Instance, l.ID) {
			t.Errorf("the group of a launch has %v", pids)
		}
	}
}

func TestASandboxThatWasKilledIsMadeAgain(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	volume := isle.NewID()
	if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
		t.Fatal(err)
	}
	one := b.launchOf(isle.NewID(), "write /data/kept")
	one.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
	two := b.launchOf(one.Instance)
	ended := []<-chan struct{}{b.up(&one), b.up(&two)}
	if got := b.report(one)["write /data/kept"]; got != "written" {
		t.Fatal(got)
	}
	sentry := b.pid(one.Instance, sandboxName)
	if err := syscall.Kill(sentry, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, e := range ended {
		select {
		case <-e:
		case <-time.After(time.Minute):
			t.Fatal("the end of a launch was not told")
		}
	}
	// As a service is restarted: another launch, beside those that ended.
	again := b.launchOf(one.Instance, "read /data/kept")
	again.Volumes = one.Volumes
	for _, l := range []environment.Launch{one, two} {
		if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
			t.Fatal(err)
		}
	}
	b.up(&again)
	if got := b.report(again)["read /data/kept"]; got != "x" {
		t.Errorf("the volume has %q", got)
	}
	if pid := b.pid(one.Instance, sandboxName); pid == 0 || pid == sentry {
		t.Errorf("the sandbox is process %d", pid)
	}
	if err := b.Remove(t.Context(), one.Instance); err != nil {
		t.Fatal(err)
	}
	seesNothing(t, b.Driver)
}

func TestALaunchThatIsKilledLeavesItsSandboxAndItsVolume(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, classGvisor)
	volume := isle.NewID()
	if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
		t.Fatal(err)
	}
	instance := isle.NewID()
	other := b.launchOf(instance)
	b.up(&other)
	sentry := b.pid(instance, sandboxName)
	for range 3 {
		l := b.launchOf(instance, "write /data/x")
		l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
		exited := b.up(&l)
		if got := b.report(l)["write /data/x"]; got != "written" {
			t.Fatal(got)
		}
		if err := b.Kill(t.Context(), instance, l.ID); err != nil {
			t.Fatal(err)
		}
		<-exited
	}
	if b.pid(instance, sandboxName) != sentry || !b.alive(instance, other.ID) {
		t.Error("the sandbox or its other launch is gone")
	}
	if n, err := b.tasks(t.Context(), instance); err != nil || n == 0 {
		t.Errorf("%d processes, %v", n, err)
	}
}

// What a sandbox answers is not needed to end what is in it.
func TestASandboxThatDoesNotAnswerIsEnded(t *testing.T) {
	b := newBench(t, classGvisor)
	l := b.launchOf(isle.NewID())
	exited := b.up(&l)
	b.report(l)
	sentry := b.pid(l.Instance, sandboxName)
	if err := syscall.Kill(sentry, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
		t.Fatal(err)
	}
	<-exited
	if b.alive(l.Instance, sandboxName) {
		t.Error("it runs on")
	}
	// The next is started where this one was ended.
	again := b.launchOf(l.Instance)
	b.up(&again)
	b.report(again)
}

// Whatever takes all processes that the sandbox may have on the host takes
// nobody else's. The guest has the capability by which the sandbox's own kernel
// lets it: the host's limit is what is left.
func TestBombsInASandboxHurtNobodyElse(t *testing.T) {
	b := newBench(t, classGvisor)
	neighbour := b.launchOf(isle.NewID())
	b.up(&neighbour)
	for name, probes := range map[string][]string{
		"processes": {"fork"}, "memory": {"fill /tmp/full", "fill /dev/shm/full", "eat"},
	} {
		t.Run(name, func(t *testing.T) {
			l := b.launchOf(isle.NewID(), probes...)
			l.Limits = spec.Limits{CPUs: 1, Memory: 96 << 20, PIDs: 32}
			exited := b.up(&l)
			if name == "memory" {
				<-exited
			} else {
				for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && b.alive(l.Instance, l.ID); time.Sleep(10 * time.Millisecond) {
					if n := b.groups.usage(string(l.Instance)).PIDs; n > sandboxLimits(l.Limits).PIDs {
						t.Fatalf("%d processes on the host", n)
					}
				}
			}
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
			<-exited
		})
	}
	if !b.alive(neighbour.Instance, neighbour.ID) {
		t.Error("the neighbour is gone")
	}
	if out, err := b.inside(neighbour, "probe", "write", "/tmp/well"); err != nil || strings.TrimSpace(string(out)) != "written" {
		t.Errorf("the neighbour: %q, %v", out, err)
	}
}

func TestRecordsOfTheRuntimeGoWithTheLaunch(t *testing.T) {
	b := newBench(t, classGvisor)
	l := b.launchOf(isle.NewID())
	b.up(&l)
	if err := b.Remove(t.Context(), l.Instance); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.runsc().Root, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
