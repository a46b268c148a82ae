package local

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
	"isle/internal/initproto"
)

// told is what an isle-init tells.
type told struct {
	mu   sync.Mutex
	said []string
}

func (e *told) add(s string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.said = append(e.said, s)
	return nil
}
func (e *told) SetupDone(int, string) error             { return e.add("setup") }
func (e *told) Started() error                          { return e.add("started") }
func (e *told) Health(bool, string) error               { return e.add("health") }
func (e *told) Exited(int, string) error                { return e.add("exited") }
func (e *told) Log(_ time.Time, _ bool, b []byte) error { return e.add("log " + string(b)) }
func (e *told) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.said, "; ")
}

// homeAddress is home in the networks of homeNetwork.
const homeAddress = "198.51.100.1:7"

// homeNetwork makes a network namespace from which home can be called, and
// nobody else. What calls there is the instance, whatever it says.
func homeNetwork(t *testing.T, home *initproto.Home, instance isle.ID) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "net")
	var listener net.Listener
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		inside, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(inside)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "away"}, PeerName: "eth0"}); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetNsFd(peer, inside)
		}
		if err == nil {
			err = address("away", "198.51.100.1/24")
		}
		if err == nil {
			listener, err = net.Listen("tcp", homeAddress)
		}
		if err == nil {
			err = unix.Setns(inside, unix.CLONE_NEWNET)
		}
		if err == nil {
			err = address("eth0", "198.51.100.2/24")
		}
		if err != nil {
			return err
		}
		return address("lo", "127.0.0.1/8")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		listener.Close()
		_ = unix.Unmount(path, unix.MNT_DETACH)
	})
	go func() { // ends with the listener
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			home.Serve(instance, c)
		}
	}()
	return path
}

// address gives a link of this thread's namespace an address, and brings it up.
func address(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil && err != unix.EEXIST {
		return err
	}
	return netlink.LinkSetUp(l)
}

// TestIsleInitOfAForkIsTheForks has the real isle-init captured and brought
// back.
func TestIsleInitOfAForkIsTheForks(t *testing.T) {
	b := newBench(t, classGvisor)
	at := filepath.Join(b.state, "isle-init")
	build := exec.Command("go", "build", "-o", at, "isle/cmd/isle-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	home := initproto.NewHome(initproto.HomeConfig{Refused: func(r initproto.Refusal) { t.Errorf("refused %+v", r) }})
	defer home.Close()

	parent := b.launchOf(isle.NewID())
	secret := []byte("the secret of exactly 32 bytes!!")
	boot, err := json.Marshal(initproto.Boot{Launch: parent.ID, Secret: secret, Home: homeAddress, Hostname: "web"})
	if err != nil {
		t.Fatal(err)
	}
	parent.Init, parent.Boot, parent.Network = at, boot, homeNetwork(t, home, parent.Instance)
	parents := &told{}
	home.Expect(parent.Instance, parent.ID, isle.DigestOf(secret), parents)
	b.up(&parent)
	runs := func(l environment.Launch, script ...string) string {
		t.Helper()
		line, err := home.Line(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		p, err := line.Exec(t.Context(), initproto.Exec{Command: append([]string{"/bin/guest"}, script...)})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var out strings.Builder
		for {
			o, err := p.Next()
			if err != nil {
				t.Fatal(err)
			}
			if o.Exit != nil {
				return strings.TrimSpace(out.String())
			}
			out.Write(o.Data)
		}
	}
	if got := runs(parent, "probe", "read", "/proc/sys/kernel/hostname"); got != "web" {
		t.Errorf("the parent's hostname is %q", got)
	}
	memory := t.TempDir()
	captured, err := b.Capture(t.Context(), environment.Capture{Instance: parent.Instance, Isolation: classGvisor, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	before := parents.String()
	for _, name := range []string{"web-f1", "web-f2"} {
		fork := parent
		fork.Instance, fork.ID, fork.UIDBase, fork.Boot = isle.NewID(), isle.NewID(), parent.UIDBase+idRange, nil
		fork.Network = homeNetwork(t, home, fork.Instance)
		fork.Exited = func() {}
		forks := &told{}
		become := initproto.Become{Launch: fork.ID, Secret: []byte(strings.Repeat("new!", 8)), Hostname: name, Generation: 1}
		if err := home.ExpectFork(fork.Instance, parent.ID, isle.DigestOf(secret), become, forks); err != nil {
			t.Fatal(err)
		}
		err := b.Restore(t.Context(), environment.Restore{Shared: environment.Shared{Instance: fork.Instance, Isolation: classGvisor, Limits: fork.Limits},
			Launches: []environment.Launch{fork}, Memory: memory, Runtime: captured.Runtime})
		if err != nil {
			t.Fatal(err)
		}
		if got := runs(fork, "probe", "read", "/proc/sys/kernel/hostname"); got != name {
			t.Errorf("the hostname of %s is %q", name, got)
		}
		for deadline := time.Now().Add(time.Minute); forks.String() != "started"; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the fork told %q", forks)
			}
		}
		if err := b.Remove(t.Context(), fork.Instance); err != nil {
			t.Fatal(err)
		}
		home.Forget(fork.ID)
	}
	if got := runs(parent, "probe", "read", "/proc/sys/kernel/hostname"); got != "web" || parents.String() != before {
		t.Errorf("the parent's hostname is %q, and it told %q after %q", got, parents, before)
	}
}
