package checkpoint_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isle/internal/driver/local/checkpoint"
)

// build makes a static program of a package, once for all tests.
func build(t testing.TB, dir, pkg string) string {
	t.Helper()
	at := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return at
}

// A world is a folder with programs and sandboxes in it.
type world struct {
	t       testing.TB
	dir     string
	runtime string
	silence *os.File
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: sandboxes are made by root")
	}
	w := &world{t: t, dir: t.TempDir()}
	for at := w.dir; at != "/"; at = filepath.Dir(at) { // uids of sandboxes have to get through
		if st, err := os.Stat(at); err != nil || st.Mode()&0o011 != 0o011 {
			if err := os.Chmod(at, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.runtime = build(t, w.dir, "isle/cmd/isle-runsc")
	var err error
	if w.silence, err = os.OpenFile(filepath.Join(w.dir, "silence"), os.O_CREATE|os.O_RDWR, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.silence.Close()
		_ = unix.Unmount(filepath.Join(w.dir, "runsc", "null-netns"), unix.MNT_DETACH) // what gofers have for a network
	})
	for _, d := range []string{"proc", "dev", "tmp", "out", "etc"} {
		if err := os.MkdirAll(filepath.Join(w.dir, "root", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(w.dir, "root", "etc", "mark"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, filepath.Join(w.dir, "root"), "./testdata/guest")
	return w
}

func (w *world) flags() []string {
	return []string{"--root", filepath.Join(w.dir, "runsc"), "--network=sandbox", "--platform=systrap", "--ignore-cgroups", "--overlay2=none",
		"--allow-live-tcp-migration=false", "--restore-spec-validation=ignore", "--host-settings=ignore"}
}

// command is isle-runsc with the arguments.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.runtime, append(append(w.flags(), "--log", filepath.Join(w.dir, "log")), args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.silence, w.silence, w.silence
	return cmd
}

func (w *world) run(args ...string) {
	w.t.Helper()
	if err := w.command(args...).Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(w.dir, "log"))
		w.t.Fatalf("%v: %v\n%s", args, err, log)
	}
}

// A sandbox is one of a world: its own container "top", "db" and "app".
type sandbox struct {
	*world
	name  string
	base  uint32
	netns string
	root  string
}

// out is what the service has at /out.
func (s *sandbox) out(service string) string { return filepath.Join(s.dir, s.name, service, "out") }

// outside is where the container has out: a folder that its root has.
func (s *sandbox) outside() string {
	if s.root == filepath.Join(s.dir, "root") {
		return "/out"
	}
	return "/mnt"
}

func (s *sandbox) id(container string) string { return s.name + "-" + container }

// sandbox prepares one, without starting it.
func (w *world) sandbox(name string, base uint32, megabytes int) *sandbox {
	w.t.Helper()
	return w.running(name, base, filepath.Join(w.dir, "root"), map[string][]string{
		"top": {"/guest", "hold"}, "db": {"/guest", "db"}, "app": {"/guest", "app", fmt.Sprint(megabytes)}})
}

// running prepares a sandbox of what runs in its three containers.
func (w *world) running(name string, base uint32, root string, commands map[string][]string) *sandbox {
	w.t.Helper()
	s := &sandbox{world: w, name: name, base: base, netns: filepath.Join(w.dir, name+".net"), root: root}
	network(w.t, s.netns)
	for container, args := range commands {
		s.bundle(container, args)
	}
	w.t.Cleanup(func() {
		for _, c := range []string{"app", "db", "top"} {
			_ = w.command("delete", "--force", s.id(c)).Run()
		}
	})
	return s
}

// bundle writes the configuration of one container.
func (s *sandbox) bundle(container string, args []string) {
	s.t.Helper()
	dir := filepath.Join(s.dir, s.name, container)
	if err := os.MkdirAll(s.out(container), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(s.out(container), int(s.base), int(s.base)); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mark"), []byte("of "+s.name), 0o644); err != nil {
		s.t.Fatal(err)
	}
	kind := "container"
	if container == "top" {
		kind = "sandbox"
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.base, Size: 65536}}
	config := specs.Spec{
		Version: "1.0.2", Hostname: s.name,
		Root:    &specs.Root{Path: s.root, Readonly: true},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/"}, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
			{Destination: s.outside(), Type: "bind", Source: s.out(container), Options: []string{"bind", "rw"}},
		},
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.UserNamespace}, {Type: specs.NetworkNamespace, Path: s.netns}},
		},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": s.id("top"), "io.kubernetes.cri.container-name": container},
	}
	if s.root == filepath.Join(s.dir, "root") {
		config.Mounts = append(config.Mounts, specs.Mount{Destination: "/etc/mark", Type: "bind", Source: filepath.Join(dir, "mark"), Options: []string{"bind", "ro"}})
	}
	b, err := json.Marshal(config)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// start starts it from nothing.
func (s *sandbox) start() {
	s.t.Helper()
	for _, c := range []string{"top", "db", "app"} {
		s.run("create", "--bundle", filepath.Join(s.dir, s.name, c), s.id(c))
		s.run("start", s.id(c))
	}
}

// bringBack makes it of an image, with the number that the database had then.
func (s *sandbox) bringBack(image, number string) error {
	if err := os.WriteFile(filepath.Join(s.out("db"), "number"), []byte(number), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(s.out("db"), "number"), int(s.base), int(s.base)); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range []string{"top", "db", "app"} {
		cmd := s.command("restore", "--detach", "--background", "--image-path", image, "--bundle", filepath.Join(s.dir, s.name, c), s.id(c))
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) capture(image string, held func(context.Context) error) checkpoint.Capture {
	return checkpoint.Capture{Socket: filepath.Join(s.dir, "runsc", "runsc-"+s.id("top")+".sock"), Dir: image, Held: held}
}

type seen struct {
	Number                            int
	Hostname, Marked, Outside, Random string
	Gap                               time.Duration
	Sum                               int
}

// sees waits until the application has told what fits.
func (s *sandbox) sees(fits func(seen) bool) seen {
	s.t.Helper()
	var last seen
	for range 3000 {
		b, err := os.ReadFile(filepath.Join(s.out("app"), "seen"))
		if err == nil {
			if err := json.Unmarshal(b, &last); err != nil {
				s.t.Fatal(err)
			}
			if fits(last) {
				return last
			}
		}
		for _, c := range []string{"app", "db"} {
			if why, err := os.ReadFile(filepath.Join(s.out(c), "failed")); err == nil {
				s.t.Fatalf("%s of %s failed: %s", c, s.name, why)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("%s sees %+v", s.name, last)
	return last
}

// goesOn waits for more than what it saw.
func (s *sandbox) goesOn() seen {
	s.t.Helper()
	now := s.sees(func(seen) bool { return true })
	return s.sees(func(n seen) bool { return n.Number > now.Number+40 })
}

// network makes a namespace whose only way leads to another one, in which
// whatever comes to 198.51.100.1:7 is accepted and never answered.
func network(t testing.TB, path string) {
	t.Helper()
	var listener net.Listener
	inNew(t, func(away int) error {
		l, err := net.Listen("tcp", "[::]:7")
		listener = l
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "away"}, PeerName: "out"})
	}, func(away, inside int) error {
		far, err := netlink.LinkByName("out")
		if err == nil {
			err = netlink.LinkSetNsFd(far, inside)
		}
		if err != nil {
			return err
		}
		return address("away", "198.51.100.1/24")
	}, func() error {
		if err := address("out", "198.51.100.2/24"); err != nil {
			return err
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	var accepted sync.WaitGroup
	accepted.Go(func() { // ends when listener is closed
		var open []net.Conn
		for {
			c, err := listener.Accept()
			if err != nil {
				for _, c := range open {
					c.Close()
				}
				return
			}
			open = append(open, c)
		}
	})
	t.Cleanup(func() {
		listener.Close()
		accepted.Wait()
	})
}

// inNew runs first and then in one new network namespace and last in another.
func inNew(t testing.TB, first func(away int) error, then func(away, inside int) error, last func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespaces
		enter := func() (int, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return 0, err
			}
			if lo, err := netlink.LinkByName("lo"); err != nil {
				return 0, err
			} else if err := netlink.LinkSetUp(lo); err != nil {
				return 0, err
			}
			return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		done <- func() error {
			inside, err := enter()
			if err != nil {
				return err
			}
			defer unix.Close(inside)
			away, err := enter()
			if err != nil {
				return err
			}
			defer unix.Close(away)
			if err := first(away); err != nil {
				return err
			}
			if err := then(away, inside); err != nil {
				return err
			}
			if err := unix.Setns(inside, unix.CLONE_NEWNET); err != nil {
				return err
			}
			return last()
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// address gives a link of this namespace its address, and brings it up.
func address(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

// number is what the database has on its volume.
func (s *sandbox) number() string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.out("db"), "number"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (s *sandbox) image() string {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "image-")
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}
