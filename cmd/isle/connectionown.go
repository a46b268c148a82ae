package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"isle"
)

// listenOwn listens at an address of this machine, for processes of the caller's
// own user only: whoever else may connect is let go at once. It is the path of a
// unix socket, or a loopback address and a port.
func listenOwn(ctx context.Context, address string) (net.Listener, error) {
	if strings.Contains(address, "/") {
		return listenUnix(address)
	}
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, usagef("--listen %s: want 127.0.0.1:PORT, [::1]:PORT or the path of a unix socket: whoever connects acts as you", address).
			WithHint("for other machines there is the gateway's own listener: see `isle server --help`, --gateway")
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, isle.Errorf(isle.Conflict, "cannot listen at %s: %w", address, err).WithHint("choose another port, or 0 for any")
	}
	return &ownListener{l, ownTCP}, nil
}

func listenUnix(path string) (net.Listener, error) {
	old := syscall.Umask(0o177) // nobody else may connect, not even at first
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		e := isle.Errorf(isle.Conflict, "cannot listen at %s: %w", path, err)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, e.WithHint("make the folder first, for yourself only")
		}
		return nil, e.WithHint("choose another path, or remove what is there")
	}
	return &ownListener{l, ownUnix}, nil
}

// An ownListener accepts who is the caller's own.
type ownListener struct {
	net.Listener
	own func(net.Conn) bool
}

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.own(conn) {
			return conn, nil
		}
		conn.Close()
	}
}

// ownUnix asks the kernel who connected (SO_PEERCRED, unix(7)).
func ownUnix(conn net.Conn) bool {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	own := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		own = err == nil && int(cred.Uid) == os.Getuid()
	})
	return err == nil && own
}

// ownTCP looks up whose the other end of a connection over loopback is, in the
// kernel's table of connections (proc_pid_net(5)).
func ownTCP(conn net.Conn) bool {
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return false
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return false
	}
	// A client that speaks IPv6 too has 127.0.0.1 as ::ffff:127.0.0.1, as Java has.
	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	return ownIn("/proc/self/net/tcp", remote, local) || ownIn("/proc/self/net/tcp6", mapped(remote), mapped(local))
}

// ownIn looks for a connection in one of the tables.
func ownIn(table string, from, to netip.AddrPort) bool {
	f, err := os.Open(table)
	if err != nil {
		return false
	}
	defer f.Close()
	client, server := kernelAddress(from), kernelAddress(to)
	for s := bufio.NewScanner(f); s.Scan(); {
		// sl local_address rem_address st … uid timeout inode: one that nobody holds
		// any more has the inode 0, and no owner.
		if field := strings.Fields(s.Text()); len(field) > 9 && field[1] == client && field[2] == server {
			return field[7] == strconv.Itoa(os.Getuid()) && field[9] != "0"
		}
	}
	return false
}

// kernelAddress is an address as the kernel's table has it: words of 32 bits in
// this machine's order of bytes, in hexadecimal.
func kernelAddress(a netip.AddrPort) string {
	var b strings.Builder
	raw := a.Addr().AsSlice()
	for i := 0; i+4 <= len(raw); i += 4 {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(raw[i:i+4]))
	}
	return fmt.Sprintf("%s:%04X", b.String(), a.Port())
}
