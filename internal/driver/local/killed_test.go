package local

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// A victim is what a process that is killed in the middle of a capture tells
// before: TestTheVictim is that process.
type victim struct {
	State, Init      string
	Layers           []string
	Instance, Launch isle.ID
	From, To         isle.ID
}

const victimVariable = "ISLE_TEST_VICTIM" // the point it dies at, whether its guard does too, and where it tells

func TestTheVictim(t *testing.T) {
	point, rest, ok := strings.Cut(os.Getenv(victimVariable), " ")
	if !ok {
		return // not the process that is meant
	}
	with, tells, _ := strings.Cut(rest, " ")
	b := newBench(t, "crun")
	b.given.Fault = func(at string) {
		if at != point {
			return
		}
		if with == "guard" {
			killChildren(t)
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	b.volumes.fault, b.volumes.store.fault = b.given.Fault, b.given.Fault
	l := b.launchOf(isle.NewID(), "count /data/n")
	v := victim{State: b.state, Init: b.init, Layers: b.layers, Instance: l.Instance, Launch: l.ID, From: isle.NewID(), To: isle.NewID()}
	l.Volumes = []environment.Mount{{Volume: v.From, Path: "/data"}}
	told, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tells, told, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.volumes.Create(t.Context(), v.From, 32<<20); err != nil {
		t.Fatal(err)
	}
	b.up(&l)
	b.report(l)
	_, err = b.Capture(t.Context(), environment.Capture{Instance: v.Instance, Volumes: []environment.Clone{{From: v.From, To: v.To}}})
	t.Fatalf("it lives after %s: %v", point, err)
}

// killChildren kills what this process started and what that started.
func killChildren(t *testing.T) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		b, _ := os.ReadFile(path)
		_, after, _ := strings.Cut(string(b[max(0, slices.Index(b, ')')):]), ") ")
		if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			syscall.Kill(-pid, syscall.SIGKILL)
		}
	}
}

// The server is killed at every step of a capture, and in half of the cases what
// would have thawed the volumes is killed with it.
func TestKilledInACaptureWhatRunsGoesOn(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs")
	for _, point := range CaptureFaultPoints() {
		for _, with := range []string{"alone", "guard"} {
			t.Run(point+" "+with, func(t *testing.T) { killInCapture(t, point, with) })
		}
	}
}

func killInCapture(t *testing.T, point, with string) {
	disk := newDisk(t, 4<<30, "mkfs.ext4", "-q")
	tells := filepath.Join(disk, "victim")
	cmd := exec.Command(os.Args[0], "-test.run=^TestTheVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimVariable+"="+point+" "+with+" "+tells, "TMPDIR="+disk)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v\n%s", err, out)
	}
	var v victim
	if b, err := os.ReadFile(tells); err != nil || json.Unmarshal(b, &v) != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, init: v.Init, layers: v.Layers}
	if point != "store.formatted" && with == "alone" {
		// Nobody but the guard is there to have it go on.
		at := fmt.Sprintf("/proc/%d/root/data/n", pidOf(t, v))
		counts(t, at)
	}
	b.Driver = b.open(v.State, "crun")
	if point == "store.formatted" {
		clones(t, b, b.volume(8<<20), environment.ByReflink)
		return
	}
	b.goesOn(environment.Launch{Instance: v.Instance, ID: v.Launch}, "/data/n")
	if n := b.storeLoops(); n != 1 {
		t.Errorf("%d loop devices are on the store's file", n)
	}
	again := environment.Clone{From: v.From, To: isle.NewID()}
	captured, err := b.Capture(t.Context(), environment.Capture{Instance: v.Instance, Volumes: []environment.Clone{again}})
	if err != nil || captured.How != environment.ByReflink {
		t.Errorf("%+v, %v", captured, err)
	}
	b.sound(again.To)
	ids, err := b.volumes.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id == v.To {
			if _, err := os.Lstat(b.volumes.Path(id)); err == nil {
				b.sound(id)
			}
		}
		if id != v.From && id != again.To {
			if err := b.volumes.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	}
	if ids, err := b.volumes.List(t.Context()); err != nil || len(ids) != 2 {
		t.Errorf("%v, %v", ids, err)
	}
	b.soundStore(v.Instance)
	// A machine that starts anew has no mounts: the store is opened from its file.
	if err := b.volumes.store.open(); err != nil {
		t.Fatal(err)
	}
	b.sound(again.To)
	clones(t, b, v.From, environment.ByReflink)
}

// pidOf is the victim's isle-init, found without a driver, which would thaw.
func pidOf(t *testing.T, v victim) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(v.State, "sandboxes", string(v.Instance), string(v.Launch), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || unix.Kill(pid, 0) != nil {
		t.Fatalf("%q, %v", b, err)
	}
	return pid
}

// counts waits until the number in a file grows.
func counts(t testing.TB, file string) {
	t.Helper()
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if now, err := os.ReadFile(file); err == nil && string(now) > string(before) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it stands still")
		}
	}
}
