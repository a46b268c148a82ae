package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hold takes as much as it gets of things that the machine has a limited
// number of, says how many it got, and keeps them until its input ends.
func hold(args []string) {
	for _, what := range args {
		n, err := 0, error(nil)
		take := takers[what]
		for take != nil && err == nil && n < 1<<17 {
			if err = take(n); err == nil {
				n++
			}
		}
		if take != nil {
			say(what, fmt.Sprintf("%d %s", n, outcome(err)))
		}
	}
	fmt.Println("holding")
	io.Copy(io.Discard, os.Stdin)
}

var takers = map[string]func(int) error{
	"files": func(int) error {
		_, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
		return err
	},
	"inotify": func(int) error {
		_, err := unix.InotifyInit1(0)
		return err
	},
	"terminals": func(int) error {
		_, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
		return err
	},
	"timers": func(int) error {
		var id int32
		return call(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&id)))
	},
	"signals": func(n int) error {
		if n == 0 {
			block := unix.Sigset_t{Val: [16]uint64{^uint64(0)}}
			if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, nil); err != nil {
				return err
			}
		}
		info := make([]byte, 128)
		info[8] = 0xff // si_code: SI_QUEUE
		for i := 9; i < 12; i++ {
			info[i] = 0xff
		}
		return call(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(unix.Gettid()), 40, uintptr(unsafe.Pointer(&info[0])))
	},
	"pipes": func(int) error {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_NONBLOCK); err != nil {
			return err
		}
		unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 1<<20)
		return nil
	},
	"queues": func(n int) error {
		name, err := unix.BytePtrFromString("q" + strconv.Itoa(n))
		if err != nil {
			return err
		}
		return call(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_CREAT|unix.O_RDWR, 0o600, 0)
	},
	"segments": func(int) error {
		_, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600|unix.IPC_CREAT)
		return err
	},
	"listeners": func(int) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		return err
	},
	// The kernel walks all locks of a file for each that is taken or dropped:
	// with 20,000 the attacker takes a minute to be killed.
	"locks": func(n int) error {
		if n == 1000 {
			return unix.ENOLCK
		}
		fd, err := unix.Open("/tmp/lock", unix.O_RDWR|unix.O_CREAT, 0o600)
		if err != nil {
			return err
		}
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(2 * n), Len: 1})
	},
}

// forkBomb starts processes that start processes, until it is told to end.
func forkBomb(args []string) {
	refused := 0
	for i := range 1 << 14 {
		cmd := exec.Command("/attacker", "fork", "child")
		if len(args) > 0 && i >= 4 {
			break
		}
		if err := cmd.Start(); err != nil {
			if refused++; refused >= 16 {
				if len(args) == 0 {
					try("start one more process", err)
				}
				break
			}
		}
	}
	if len(args) == 0 {
		fmt.Println("holding")
	}
	select {}
}

// memoryBomb takes memory without end, of several kinds.
func memoryBomb(args []string) {
	switch args[0] {
	case "heap":
		for all := [][]byte(nil); ; {
			all = append(all, bytes.Repeat([]byte{1}, 1<<20))
			runtime.KeepAlive(all)
		}
	case "file": // a file without a name, in memory
		fd, err := unix.MemfdCreate("bomb", 0)
		for err == nil {
			_, err = unix.Write(fd, bytes.Repeat([]byte{1}, 1<<20))
		}
		try("memory file", err)
	case "shared": // pages that belong to no process
		for {
			id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 16<<20, 0o600|unix.IPC_CREAT)
			if err != nil {
				try("shared memory", err)
				return
			}
			m, err := unix.SysvShmAttach(id, 0, 0)
			if err != nil {
				try("shared memory", err)
				return
			}
			for i := 0; i < len(m); i += 4096 {
				m[i] = 1
			}
			unix.SysvShmDetach(m)
		}
	case "kernel": // memory of the kernel's: socket buffers
		var all [][2]int
		for {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				try("socket buffers", err)
				return
			}
			all = append(all, p)
			runtime.KeepAlive(all)
			for err == nil {
				_, err = unix.Write(p[0], make([]byte, 1<<16))
			}
		}
	}
}

// fill writes to a file until there is no more room.
func fill(args []string) {
	path := filepath.Join(args[0], "fill")
	f, err := os.Create(path)
	if err != nil {
		try("fill "+args[0], err)
		return
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	n := 0
	for ; n < 1<<12 && err == nil; n++ {
		_, err = f.Write(chunk)
	}
	if err == nil {
		err = f.Sync()
	}
	say("fill "+args[0], fmt.Sprintf("%s after %d MiB", outcome(err), n))
	if len(args) < 2 {
		os.Remove(path)
	}
}

// inodes makes empty files until there are no more.
func inodes(args []string) {
	dir := filepath.Join(args[0], "many")
	os.MkdirAll(dir, 0o755)
	n := 0
	var err error
	for ; n < 1<<20 && err == nil; n++ {
		var fd int
		if fd, err = unix.Open(filepath.Join(dir, strconv.Itoa(n)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
			unix.Close(fd)
		}
	}
	say("files in "+args[0], fmt.Sprintf("%s after %d", outcome(err), n))
	os.RemoveAll(dir)
}

// shout writes to standard output what a log may not bear: control sequences,
// a line without an end, and more than anyone keeps.
func shout(args []string) {
	switch args[0] {
	case "escapes":
		fmt.Print("\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m \x9b31m \u009b31m \u202egnp.exe\x00 \rgone\x08\n")
		fmt.Println("after the escapes")
	case "giant":
		line := bytes.Repeat([]byte("x"), 1<<20)
		for range 4 {
			os.Stdout.Write(line)
		}
		fmt.Println("\nafter the giant")
	case "flood":
		n, _ := strconv.Atoi(args[1])
		line := []byte(strings.Repeat("flood ", 16) + "\n")
		for range n << 20 / len(line) {
			os.Stdout.Write(line)
		}
		fmt.Println("after the flood")
	}
}

// trap lays a tree whose copy shall write elsewhere: links out of it, names
// with control sequences, set-ID bits, and what is no file.
func trap(args []string) {
	dir := args[0]
	for _, d := range []string{"deep/er", "out"} {
		os.MkdirAll(filepath.Join(dir, d), 0o755)
	}
	for name, to := range map[string]string{
		"absolute": "/etc", "above": "../../../../../../../../etc", "root": "/", "proc": "/proc/self/root", "cwd": "/proc/self/cwd",
		"deep/er/up": "../..", "sly": "deep/er/up/../victim", "inside": "out", "dangling": "nowhere", "victim": "../victim",
	} {
		try("link "+name, os.Symlink(to, filepath.Join(dir, name)))
	}
	for _, name := range []string{"out/file", "\x1b]0;owned\x07\x1b[31mname", "new\nline", "-rf", "bad\xffutf8", "\u202egnp.exe"} {
		try("file", os.WriteFile(filepath.Join(dir, name), []byte("content"), 0o644))
	}
	path := filepath.Join(dir, "setuid")
	os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755)
	try("setuid", unix.Chmod(path, 0o6777))
	try("pipe", unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err == nil {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	try("socket", err)
	huge, err := os.Create(filepath.Join(dir, "sparse"))
	if err == nil {
		err = huge.Truncate(8 << 20)
		huge.Close()
	}
	try("sparse", err)
}

// live does what an ordinary program does, and says what did not work.
func live([]string) {
	try("start a process", exec.Command("/attacker", "hold").Run())
	for _, what := range []string{"files", "inotify", "terminals", "timers", "pipes", "queues", "segments", "listeners", "signals"} {
		try(what, takers[what](0))
	}
	for _, dir := range []string{"/tmp", "/dev/shm", "/data"} {
		path := filepath.Join(dir, "live")
		err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o644)
		if errors.Is(err, syscall.ENOENT) && dir == "/data" {
			continue // has no volume
		}
		try("write to "+dir, err)
		os.Remove(path)
	}
	m, err := unix.Mmap(-1, 0, 16<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	for i := 0; i < len(m); i += 4096 {
		m[i] = 1
	}
	try("memory", err)
}

// serve answers on a port, and on an abstract unix socket of the name.
func serve(args []string) {
	inherited(nil) // for the tests: what a service's command is given
	if l, err := net.Listen("unix", "@"+args[1]); err == nil {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	fmt.Println("serving")
	http.ListenAndServe(":"+args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "well\n")
	}))
}
