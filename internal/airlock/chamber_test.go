package airlock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// enclose opens a chamber whose connections say where they were meant to go.
func enclose(t *testing.T) *Chamber {
	t.Helper()
	c, err := OpenChamber([]int{80, 443}, func(conn net.Conn) {
		go func() {
			defer conn.Close()
			io.WriteString(conn, conn.LocalAddr().String())
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestInAChamberEveryNameAndAddressLeadsToOnePlace(t *testing.T) {
	c := enclose(t)
	inside(t, c.Path(), func() error {
		for _, name := range []string{"a.example", "b.example", "single"} {
			at, err := addressOf(name)
			if err != nil {
				return err
			}
			for _, to := range []string{at + ":80", "192.0.2.9:443", "10.1.2.3:80"} {
				conn, err := dialer.Dial("tcp4", to)
				if err != nil {
					return err
				}
				got, err := io.ReadAll(conn)
				conn.Close()
				if err != nil || string(got) != to {
					return fmt.Errorf("%s was meant to go to %q: %w", to, got, err)
				}
			}
		}
		if _, err := dialer.Dial("tcp4", "192.0.2.9:22"); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("another port: %w", err)
		}
		if r, err := lookup("udp", "a.example", dns.TypeAAAA); err != nil || len(r.Answer) != 0 || r.Rcode != dns.RcodeSuccess {
			return fmt.Errorf("of IPv6 it says %v: %w", r, err)
		}
		if _, err := dialer.Dial("tcp6", "[2001:db8::1]:80"); err == nil {
			return errors.New("IPv6 leads somewhere")
		}
		return nil
	})
}

func TestAChamberHasNoWayToTheMachineAndIsGoneWhenItIsClosed(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := enclose(t)
	inside(t, c.Path(), func() error {
		if _, err := dialer.Dial("tcp4", l.Addr().String()); err == nil {
			return errors.New("the machine's loopback is reached")
		}
		return nil
	})
	ns, err := os.Open(c.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	path := c.Path()
	c.Close()
	if pinned(path) {
		t.Error("its path still names a namespace")
	}
	err = onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp4", "192.0.2.9:80"); err != nil {
				return nil
			}
		}
		return errors.New("something still answers")
	})
	if err != nil {
		t.Error(err)
	}
}
