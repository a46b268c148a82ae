package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/spec"
)

const testUIDs = 0x0100_0000 // below those of environments

var guest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "isle-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "guest"), "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "guest"))
})

// runsc builds isle-runsc, once, and as the Makefile does, whose compiled
// packages it then finds.
var runsc = sync.OnceValues(func() (path string, err error) {
	if runscDir, err = os.MkdirTemp("", "isle-runsc-"); err != nil {
		return "", err
	}
	path = filepath.Join(runscDir, "isle-runsc")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "isle/cmd/isle-runsc")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// runscDir is where runsc is; "" until it is built.
var runscDir string

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(runscDir)
	os.Exit(code)
}

// A bench is a driver with a state folder and an image of its own.
type bench struct {
	*Driver
	t      testing.TB
	class  string // of isolation of its launches
	stocks bool   // up prepares the launch before
	init   string
	layers []string
}

func newBench(t testing.TB, runtime string) *bench {
	t.Helper()
	return newBenchAt(t, runtime, t.TempDir())
}

func newBenchAt(t testing.TB, runtime, state string) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: sandboxes are made by root")
	}
	class := classContainer
	if runtime == classGvisor {
		class = classGvisor
	} else {
		install(t, runtime)
	}
	program, err := guest()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, class: class, init: filepath.Join(state, "guest")}
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	// The state folder is closed; isle-init is bound from it all the same.
	if err := os.WriteFile(b.init, program, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(filepath.Join(state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	b.layers = testLayers(t, store, program)
	b.Driver = b.open(state, runtime)
	return b
}

// open makes a driver as a server that starts would.
func (b *bench) open(state, runtime string) *Driver {
	b.t.Helper()
	c := Config{State: state, Runtime: runtime, Log: slog.New(slog.NewTextHandler(b.t.Output(), nil))}
	if runtime == classGvisor {
		path, err := runsc()
		if err != nil {
			b.t.Fatal(err)
		}
		c.Runtime, c.Runsc = "", path
	}
	d, err := New(c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx := context.Background()
		for instance := range d.launches() {
			if err := d.Remove(ctx, instance); err != nil {
				b.t.Error(err)
			}
		}
		d.Close()
	})
	return d
}

// install installs a Debian package's program where it is missing.
func install(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := findTool(name); err == nil {
			continue
		}
		pkg := map[string]string{"mke2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "xfs_repair": "xfsprogs"}[name]
		if pkg == "" {
			pkg = name
		}
		args := []string{"install", "-y", "--no-install-recommends", pkg}
		if exec.Command("apt-get", args...).Run() == nil {
			continue
		}
		exec.Command("apt-get", "update").Run() // a machine that has no lists yet
		if out, err := exec.Command("apt-get", args...).CombinedOutput(); err != nil {
			t.Fatalf("apt-get install %s: %v\n%s", pkg, err, out)
		}
	}
}

type file struct {
	path     string
	mode     fs.FileMode
	uid, gid uint32
	content  string
}

func testLayers(t testing.TB, store *image.Store, program []byte) (paths []string) {
	t.Helper()
	for _, files := range [][]file{
		{
			{"/bin", fs.ModeDir | 0o755, 0, 0, ""},
			{"/bin/guest", 0o755, 0, 0, string(program)},
			{"/etc/passwd", 0o644, 0, 0, "root:x:0:0::/:/bin/sh\n"},
			{"/etc/shadow", 0o640, 0, 42, "secret"},
			{"/etc/hosts", 0o644, 0, 0, "the image's own\n"},
			{"/app/file", 0o644, 0, 0, "below"},
			{"/app/kept", 0o644, 1000, 1000, "kept"},
		},
		{{"/app/file", 0o644, 0, 0, "above"}},
	} {
		l, err := store.WriteLayer(t.Context(), "copy", "test", func(w *image.Writer) error {
			for _, f := range files {
				e := image.Entry{Path: f.path, Mode: f.mode, UID: f.uid, GID: f.gid, Size: int64(len(f.content))}
				if err := w.Add(e, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.content)), nil }); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, store.LayerPath(l.Digest))
	}
	return paths
}

// launchOf is a launch whose guest tries the probes.
func (b *bench) launchOf(instance isle.ID, probes ...string) environment.Launch {
	boot, err := json.Marshal(append([]string{}, probes...))
	if err != nil {
		b.t.Fatal(err)
	}
	return environment.Launch{
		Instance: instance, ID: isle.NewID(), Isolation: b.class, Service: "web", Hostname: "web", Hosts: []string{"web", "db"},
		Layers: b.layers, UIDBase: testUIDs, Limits: spec.Limits{CPUs: 1, Memory: 256 << 20, PIDs: 64},
		Init: b.init, Boot: boot,
	}
}

// up prepares and launches, and returns a channel that is closed at its exit.
func (b *bench) up(l *environment.Launch) <-chan struct{} {
	b.t.Helper()
	exited := make(chan struct{})
	l.Exited = func() { close(exited) }
	if b.stocks {
		pid := b.stock(*l)
		if b.class != classGvisor || len(l.Volumes) == 0 { // else it takes the sandbox alone
			defer b.tookStock(*l, pid)
		}
	}
	if err := b.Prepare(b.t.Context(), environment.Shared{Instance: l.Instance, Isolation: b.class, Limits: l.Limits}); err != nil {
		b.t.Fatal(err)
	}
	if err := b.Launch(b.t.Context(), *l); err != nil {
		b.t.Fatal(err)
	}
	return exited
}

// stock prepares what a launch begins with, as for one that nobody has asked
// for, and returns its process on the host.
func (b *bench) stock(l environment.Launch) (pid int) {
	b.t.Helper()
	err := b.Stock(b.t.Context(), environment.Stock{
		Shared: environment.Shared{Instance: l.Instance, Isolation: b.class}, Launch: l.ID, UIDBase: l.UIDBase, Network: l.Network, Init: b.init,
		Limits: l.Limits,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return b.stockPid(l)
}

// stockPid is the process of what stock has prepared.
func (b *bench) stockPid(l environment.Launch) int {
	return b.process(l.Instance, l.ID)
}

// tookStock fails the test if a launch did not begin with what was prepared.
func (b *bench) tookStock(l environment.Launch, prepared int) {
	b.t.Helper()
	if pid := b.stockPid(l); prepared == 0 || pid != prepared {
		b.t.Errorf("the launch has process %d, prepared was %d", pid, prepared)
	}
}

// report waits for what the guest has found out.
func (b *bench) report(l environment.Launch) map[string]string {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		pid := b.pid(l.Instance, l.ID)
		if pid == 0 {
			b.t.Fatalf("the guest has ended without a report\n%s", b.traces(l))
		}
		var data []byte
		var err error
		if b.class == classGvisor {
			data, err = b.inside(l, "probe", "read", "/run/report")
		} else {
			data, err = os.ReadFile(fmt.Sprintf("/proc/%d/root/run/report", pid))
		}
		if err == nil && len(data) > 0 && data[0] == '{' {
			var r map[string]string
			if err := json.Unmarshal(data, &r); err != nil {
				b.t.Fatal(err)
			}
			return r
		}
	}
	b.t.Fatal("the guest did not report")
	return nil
}

// traces is what is left to see of a launch that should be there.
func (b *bench) traces(l environment.Launch) string {
	var out strings.Builder
	show := func(name string) {
		text, err := os.ReadFile(name)
		fmt.Fprintf(&out, "%s: %s %v\n", name, bytes.TrimSpace(text), err)
	}
	dir := b.dir(l.Instance, l.ID)
	pid, _ := os.ReadFile(filepath.Join(dir, "pid"))
	for _, name := range []string{"stat", "cgroup"} {
		show(filepath.Join("/proc", string(bytes.TrimSpace(pid)), name))
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	fmt.Fprintln(&out, files)
	for _, name := range []string{"memory", "pids", "unified"} {
		events, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", name, b.groups.root, string(l.Instance), string(l.ID), "*.events"))
		control, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", name, b.groups.root, string(l.Instance), string(l.ID), "memory.oom_control"))
		for _, f := range append(events, control...) {
			show(f)
		}
	}
	return out.String()
}

// runtimeName is what open is called with for a driver like this one.
func (b *bench) runtimeName() string {
	if b.class == classGvisor {
		return classGvisor
	}
	return b.given.Runtime
}

// inside has the guest do a step in a launch of the class gvisor.
func (b *bench) inside(l environment.Launch, step ...string) ([]byte, error) {
	args := append([]string{"--root", b.runsc().Root, "exec", string(l.ID), "/bin/guest"}, step...)
	cmd := exec.Command(b.given.Runsc, args...)
	cmd.Stdin = b.silence
	return cmd.Output()
}

// eachRuntime runs a test on crun, on runc and in a sandbox of gVisor.
func eachRuntime(t *testing.T, test func(t *testing.T, b *bench)) {
	for _, name := range []string{"crun", "runc", classGvisor} {
		t.Run(name, func(t *testing.T) { test(t, newBench(t, name)) })
	}
}

// eachWay is eachRuntime, and again with launches that were prepared.
func eachWay(t *testing.T, test func(t *testing.T, b *bench)) {
	eachRuntime(t, test)
	for _, name := range []string{"crun", classGvisor} {
		t.Run(name+"-prepared", func(t *testing.T) {
			b := newBench(t, name)
			b.stocks = true
			test(t, b)
		})
	}
}

// hostSees is all that a launch could leave behind on the host.
func hostSees(t testing.TB, d *Driver) string {
	t.Helper()
	var b strings.Builder
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, d.state) || strings.Contains(line, d.private) {
			fmt.Fprint(&b, "mount ", line)
		}
	}
	for _, l := range loops(t, d) {
		fmt.Fprintln(&b, "loop", l)
	}
	for instance, launches := range d.groups.list() {
		fmt.Fprintln(&b, "group", instance, launches)
	}
	folders, _ := filepath.Glob(filepath.Join(d.sandboxes(), "[^.]*"))
	more, _ := filepath.Glob(filepath.Join(d.runtimeRoot(), "[^.]*"))
	for _, f := range append(folders, more...) {
		fmt.Fprintln(&b, "folder", f)
	}
	return b.String()
}

// loops are the loop devices of the driver's files, but for that of the store,
// which the driver keeps.
func loops(t testing.TB, d *Driver) (found []string) {
	t.Helper()
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		t.Fatal(err)
	}
	var store unix.Stat_t
	if root, ok := d.volumes.store.root(); ok {
		if err := unix.Stat(root, &store); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range attached {
		name := "/dev/" + filepath.Base(filepath.Dir(a))
		backing, _ := os.ReadFile(filepath.Join(a, "backing_file"))
		if strings.Contains(string(backing), d.state) && !strings.Contains(string(backing), "/volumes/store.") {
			found = append(found, name)
			continue
		}
		// Of a file in the store there is no path that says whose it is.
		if dev, err := os.Open(name); err == nil {
			info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
			dev.Close()
			if err == nil && store.Dev != 0 && info.Device == store.Dev {
				found = append(found, name)
			}
		}
	}
	return found
}

// seesNothing waits until the host sees nothing of the driver: what the kernel tidies
// away after a mount it does a moment later.
func seesNothing(t testing.TB, d *Driver) {
	t.Helper()
	var left string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if left = hostSees(t, d); left == "" {
			return
		}
	}
	t.Errorf("left behind:\n%s", left)
}
