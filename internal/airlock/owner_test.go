package airlock

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who has the other end counts, and nobody who has left: not the kernel, which
// says root of a socket that no program has any more.
func TestTheOwnerOfAConnectionIsWhoHasItsOtherEnd(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	script := fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d; echo said >&3; read x; exec 3>&-; read x", ln.Addr().(*net.TCPAddr).Port)
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Wait()
	}()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if uid, ok, err := Owner(c.RemoteAddr(), c.LocalAddr()); uid != 65534 || !ok || err != nil {
		t.Errorf("%d, %v, %v", uid, ok, err)
	}
	if uid, ok, err := Owner(c.LocalAddr(), c.RemoteAddr()); uid != 0 || !ok || err != nil {
		t.Errorf("our own end: %d, %v, %v", uid, ok, err)
	}
	// With nobody's end, and a listener where that would be.
	for _, client := range []net.Addr{ln.Addr(), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: c.RemoteAddr().(*net.TCPAddr).Port}, &net.UnixAddr{}} {
		if uid, ok, err := Owner(client, ln.Addr()); ok || err != nil {
			t.Errorf("%v: %d, %v", client, uid, err)
		}
	}
	fmt.Fprintln(in)
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		uid, ok, err := Owner(c.RemoteAddr(), c.LocalAddr())
		if err != nil || ok && uid != 65534 {
			t.Fatalf("%d, %v, %v", uid, ok, err)
		}
		if !ok {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is somebody's still")
		}
	}
}

func BenchmarkOwner(b *testing.B) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	out, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	for b.Loop() {
		if _, ok, err := Owner(out.LocalAddr(), out.RemoteAddr()); !ok || err != nil {
			b.Fatal(err)
		}
	}
}

// A program that speaks IPv6 only, as those of Java do, reaches 127.0.0.1 through a
// socket of that family: it has an owner like any other.
func TestTheOwnerOfAConnectionByWayOfIPv6IsKnown(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet6{Port: ln.Addr().(*net.TCPAddr).Port}
	copy(to.Addr[:], net.IPv4(127, 0, 0, 1).To16())
	if err := unix.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if uid, ok, err := Owner(c.RemoteAddr(), c.LocalAddr()); uid != uint32(os.Geteuid()) || !ok || err != nil {
		t.Errorf("%d, %v, %v", uid, ok, err)
	}
}
