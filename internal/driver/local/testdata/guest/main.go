// Guest stands in for isle-init and for a build step's commands in the tests
// of the driver: it tries what it is told to and reports how that went.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	fd := 3
	if len(os.Args) > 1 {
		n, err := strconv.Atoi(os.Args[1]) // as isle-init
		if err != nil {
			step(os.Args[1:])
			return
		}
		fd = n
	}
	in := os.NewFile(uintptr(fd), "boot")
	b, err := io.ReadAll(in)
	if err != nil || len(b) == 0 {
		os.Exit(9)
	}
	in.Close()
	var probes []string
	if err := json.Unmarshal(b, &probes); err != nil {
		os.Exit(8)
	}
	report := make(map[string]string)
	for _, p := range probes {
		name, arg, _ := strings.Cut(p, " ")
		report[p] = run(name, arg)
	}
	out, _ := json.Marshal(report)
	os.WriteFile("/run/report.new", out, 0o644)
	os.Rename("/run/report.new", "/run/report")
	if report["end"] != "" {
		return
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
}

func run(name, arg string) string {
	switch name {
	case "end":
		return "ended"
	case "status":
		b, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if k, v, _ := strings.Cut(line, ":"); k == arg {
				return strings.TrimSpace(v)
			}
		}
		return "none"
	case "read":
		b, err := os.ReadFile(arg)
		return said(string(b), err)
	case "write":
		return said("written", os.WriteFile(arg, []byte("x"), 0o644))
	case "owner":
		var st syscall.Stat_t
		err := syscall.Lstat(arg, &st)
		return said(fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777), err)
	case "chown":
		return said("changed", os.Chown(arg, 42, 42))
	case "list":
		entries, err := os.ReadDir(arg)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		sort.Strings(names)
		return said(strings.Join(names, " "), err)
	case "links":
		links, err := net.Interfaces()
		var names []string
		for _, l := range links {
			names = append(names, fmt.Sprint(l.Name, " ", l.Flags&net.FlagUp != 0))
		}
		return said(strings.Join(names, " "), err)
	case "mknod":
		return said("made", syscall.Mknod(arg, syscall.S_IFCHR|0o666, 1<<8|11))
	case "eat": // memory without end
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "call":
		return call(arg)
	case "fork": // processes without end
		for i := 0; ; i++ {
			cmd := exec.Command("/bin/guest", "forkbomb")
			if err := cmd.Start(); err != nil {
				return "refused"
			}
		}
	case "scribble": // for ever: writes at random places of a file of 24 MiB
		f, err := os.Create(arg)
		if err != nil {
			return said("", err)
		}
		if err := f.Truncate(24 << 20); err != nil {
			return said("", err)
		}
		go func() {
			for n := 0; ; n++ {
				page := bytes.Repeat([]byte{byte(n)}, 1+rand.IntN(8<<10))
				f.WriteAt(page, rand.Int64N(24<<20-int64(len(page))))
				if n%64 == 0 {
					f.Sync()
				}
			}
		}()
		return "scribbles"
	case "until": // a file is there
		for {
			if _, err := os.Stat(arg); err == nil {
				return "is there"
			}
			time.Sleep(time.Millisecond)
		}
	case "sync":
		f, err := os.Open(arg)
		if err == nil {
			err = f.Sync()
			f.Close()
		}
		return said("synced", err)
	case "count": // for ever: writes 1, 2, … into one file after the other
		paths := strings.Fields(arg)
		round := func(n int) {
			for _, p := range paths {
				put(p, n)
			}
		}
		round(1)
		go func() {
			for n := 2; ; n++ {
				round(n)
			}
		}()
		return "counts"
	case "fill":
		f, err := os.Create(arg)
		if err != nil {
			return said("", err)
		}
		defer f.Close()
		chunk := make([]byte, 1<<20)
		for i := 0; i < 1<<12; i++ {
			if _, err := f.Write(chunk); err != nil {
				return said("", err)
			}
		}
		return "never full"
	}
	return "unknown probe"
}

// put writes a number, at once or not at all.
func put(path string, n int) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(fmt.Appendf(nil, "%08d", n), 0); err != nil {
		panic(err)
	}
}

func said(s string, err error) string {
	if err == nil {
		return s
	}
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err.Error()
		}
		err = u.Unwrap()
	}
}

// call makes a system call by number: "call NUMBER ARG…", all in decimal.
func call(arg string) string {
	var n [7]uintptr
	for i, s := range strings.Fields(arg) {
		fmt.Sscan(s, &n[i])
	}
	_, _, errno := syscall.RawSyscall6(n[0], n[1], n[2], n[3], n[4], n[5], n[6])
	if errno != 0 {
		return errno.Error()
	}
	return "done"
}

func step(args []string) {
	var err error
	switch args[0] {
	case "forkbomb":
		for {
			if exec.Command("/bin/guest", "forkbomb").Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	case "change": // what a step does to its root
		err = os.WriteFile("/app/new", []byte("new"), 0o640)
		if err == nil {
			err = os.Chown("/app/new", 42, 43)
		}
		if err == nil {
			err = os.Remove("/app/file")
		}
		if err == nil {
			err = os.Chmod("/etc/passwd", 0o600)
		}
		fmt.Println("changed", len(os.Getenv("GREETING")))
	case "exit":
		os.Exit(7)
	case "sleep":
		fmt.Println("sleeping")
		select {}
	case "probe":
		fmt.Println(run(args[1], strings.Join(args[2:], " ")))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
