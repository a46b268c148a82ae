package airlock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

func TestAirlocksOutliveTheirServer(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	synthetic := ""
	inside(t, ns, func() (err error) {
		synthetic, err = addressOf("api.example.com")
		return err
	})
	before, err := os.Stat(ns)
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	inside(t, ns, func() error {
		if err := echo(hostPort(synthetic, h.port)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("without a server: %v, want connection refused", err)
		}
		return nil
	})

	h.Airlocks = h.start(h.config)
	if ids, err := h.List(context.Background()); err != nil || len(ids) != 1 || ids[0] != id {
		t.Fatalf("List: %v, %v; want %s", ids, err, id)
	}
	again, err := h.Open(context.Background(), id, granting(h.granted("api.example.com")))
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(again)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the namespace is another one")
	}
	inside(t, ns, func() error { return echo(hostPort(synthetic, h.port)) })
}

func TestListenersAreHandedOver(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	files, err := h.Export()
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	var waiting net.Conn
	inside(t, ns, func() (err error) { // nobody serves, but the socket is still there and queues
		waiting, err = dialer.Dial("tcp4", homeAddress.String())
		return err
	})
	defer waiting.Close()

	c := h.config
	c.Inherited = files
	h.Airlocks = h.start(c)
	if _, err := h.Open(context.Background(), id, granting(h.granted("api.example.com"))); err != nil {
		t.Fatal(err)
	}
	(<-h.homes).Close()
	inside(t, ns, func() error {
		a, err := addressOf("api.example.com")
		if err != nil {
			return err
		}
		if err := echo(hostPort(a, h.port)); err != nil {
			return err
		}
		dialer.Dial("tcp4", "203.0.113.77:80")
		return nil
	})
	h.door(id, "203.0.113.77:80", "tcp", "refused")
}

func TestGrantsChangeInARunningAirlock(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("one.example.com"))
	if _, err := h.Open(context.Background(), id, granting(h.granted("two.example.com"))); err != nil {
		t.Fatal(err)
	}
	inside(t, ns, func() error {
		if a, err := addressOf("one.example.com"); err == nil {
			return fmt.Errorf("a revoked name resolves to %s", a)
		}
		a, err := addressOf("two.example.com")
		if err != nil {
			return err
		}
		return echo(hostPort(a, h.port))
	})
}

func TestAHalfMadeAirlockIsFoundAndRemovedOrMadeAnew(t *testing.T) {
	h := newHouse(t)
	id := isle.NewID()
	dir := filepath.Join(h.config.Dir, string(id))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, sandboxPin), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", filepath.Join(dir, sandboxPin), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if ids, _ := h.List(context.Background()); len(ids) != 1 {
		t.Fatalf("List: %v, want the half-made one", ids)
	}
	ns, err := h.Open(context.Background(), id, granting())
	if err != nil {
		t.Fatal(err)
	}
	inside(t, ns, func() error {
		if _, err := dialer.Dial("tcp4", "203.0.113.9:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%v, want connection refused", err)
		}
		return nil
	})
	for range 2 { // closing what is closed succeeds
		if err := h.Close(context.Background(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

func TestManyAirlocksLeaveNothingBehind(t *testing.T) {
	h := newHouse(t)
	const many = 50
	ids := make([]isle.ID, many)
	held := make([]*os.File, many) // one namespace of each pair: its link vanishes when the other namespace does
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			id := isle.NewID()
			ns, err := h.Open(context.Background(), id, granting(h.granted("api.example.com")))
			if err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				ns = filepath.Join(filepath.Dir(ns), airlockPin)
			}
			ids[i] = id
			held[i], _ = os.Open(ns)
		})
	}
	all.Wait()
	for i := range many {
		all.Go(func() {
			if err := h.Close(context.Background(), ids[i]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if left, _ := h.List(context.Background()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), h.config.Dir+"/") {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
	for i, ns := range held {
		if ns == nil {
			continue
		}
		name := sandboxLink
		if i%2 == 0 {
			name = airlockLink
		}
		var err error
		for range 1000 { // the kernel takes namespaces down in its own time
			err = onThread(func() error {
				if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
					return err
				}
				b, err := os.ReadFile("/proc/thread-self/net/dev")
				if err == nil && strings.Contains(string(b), name+":") {
					return errors.New("the link is left")
				}
				return err
			})
			if err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("airlock %d: %v: the other namespace lives on", i, err)
		}
		ns.Close()
	}
}

func TestAMountNamespaceOfAnotherDaemonDoesNotKeepAnAirlockAlive(t *testing.T) {
	h := newHouse(t)
	id, _ := h.enter()
	copied, done := make(chan error), make(chan struct{})
	var left string
	var wait sync.WaitGroup
	wait.Go(func() {
		onThread(func() error {
			err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
			if err == nil {
				err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "") // as systemd does for its services
			}
			copied <- err
			<-done
			b, _ := os.ReadFile("/proc/thread-self/mountinfo")
			left = string(b)
			return nil
		})
	})
	if err := <-copied; err != nil {
		close(done)
		t.Fatal(err)
	}
	if err := h.Close(context.Background(), id); err != nil {
		t.Error(err)
	}
	close(done)
	wait.Wait()
	if strings.Contains(left, string(id)) {
		t.Errorf("a copy of the pin is left:\n%s", left)
	}
}

func TestTheFirstThreadStaysInTheHostsNetwork(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 200 { // some of these meet the first thread
		all.Go(func() {
			onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
		})
	}
	all.Wait()
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("it is in %s, %v, and was in %s", after, err, before)
	}
}
