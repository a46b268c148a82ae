// Command attacker runs inside an environment and tries to get out of it, to
// look out of it, or to hurt what else runs on the machine. Each of its
// subcommands is a group of attempts; each attempt becomes one line of output:
// what was tried, a tab, and how it ended: the name of an errno, or DONE where
// the attempt succeeded, or what was seen.
//
// It is not a test: it never judges. The tests in the folder above run it and
// say which answers are right.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// groups are the attacks, by the name of their subcommand.
var groups = map[string]func(args []string){
	"mounts":     mounts,
	"namespaces": namespaces,
	"init":       initProcess,
	"processes":  processes,
	"settings":   settings,
	"secrets":    secrets,
	"kernel":     kernel,
	"clock":      clock,
	"foreign":    foreign,
	"devices":    devices,
	"handles":    handles,
	"cgroups":    cgroups,
	"inherited":  inherited,
	"identity":   identity,
	"binaries":   binaries,
	"sockets":    sockets,
	"netlink":    netlinkChanges,
	"reach":      reach,
	"tunnel":     tunnel,
	"whisper":    whisper,
	"abstract":   abstract,
	"pose":       pose,
	"flood":      flood,
	"hold":       hold,
	"fork":       forkBomb,
	"memory":     memoryBomb,
	"fill":       fill,
	"inodes":     inodes,
	"shout":      shout,
	"trap":       trap,
	"end":        end,
	"live":       live,
	"serve":      serve,
}

func main() {
	if len(os.Args) < 2 || groups[os.Args[1]] == nil {
		var names []string
		for n := range groups {
			names = append(names, n)
		}
		sort.Strings(names)
		fmt.Fprintln(os.Stderr, "usage: attacker", strings.Join(names, "|"))
		os.Exit(2)
	}
	groups[os.Args[1]](os.Args[2:])
}

// say reports one attempt. Whatever is in outcome stays on the line.
func say(what, outcome string) {
	outcome = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, outcome)
	fmt.Printf("%s\t%s\n", what, outcome)
}

// try reports one attempt by its error.
func try(what string, err error) { say(what, outcome(err)) }

func outcome(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "DONE"
	case errors.As(err, &errno):
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
		return errno.Error()
	}
	return err.Error()
}

// call makes a system call.
func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// open tries to open a file, and to take a byte out of it.
func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if flags&unix.O_ACCMODE == unix.O_RDONLY && flags&(unix.O_DIRECTORY|unix.O_PATH) == 0 {
		n, err := unix.Read(fd, make([]byte, 1))
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
	}
	return nil
}

// write tries to write to a file that exists.
func write(path, content string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(content))
	return err
}
