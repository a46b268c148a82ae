package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// A way leads to a server that is measured.
type way struct {
	address string
	pid     int // of the process between; 0 where there is none
}

// beside starts this program once more, as something that stands between the
// client and the server: a process of its own, which serves until stop.
func beside(args ...string) (w way, stop func(), err error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return w, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return w, nil, err
	}
	if err := cmd.Start(); err != nil {
		return w, nil, err
	}
	stop = func() { in.Close(); cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return w, nil, fmt.Errorf("%v does not start: %w", args, err)
	}
	return way{strings.TrimSpace(line), cmd.Process.Pid}, stop, nil
}

// all calls each of what stops something, the last first.
func all(stops []func()) {
	for _, f := range slices.Backward(stops) {
		f()
	}
}

// resident is what a process has in memory, in KiB.
func resident(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, errors.New("no VmRSS")
}

// serveInner listens, says where, and serves until its standard input ends.
func serveInner(serve func(net.Conn)) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		go serve(c)
	}
}

// copyBlindly is the yardstick: it copies what comes, and looks at none of it.
func copyBlindly(target string) error {
	return serveInner(func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		// Not io.Copy between the sockets: splice(2) would do that in the kernel,
		// which nobody can who reads a byte of it.
		pass := func(to, from net.Conn) {
			buffer := make([]byte, 32<<10)
			for {
				n, err := from.Read(buffer)
				if n > 0 {
					if _, err := to.Write(buffer[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}
		done := make(chan struct{}, 2)
		go func() { pass(server, client); done <- struct{}{} }()
		go func() { pass(client, server); done <- struct{}{} }()
		<-done
	})
}
