package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAccounts bounds what is read of /etc/passwd and /etc/group, in bytes.
const maxAccounts = 4 << 20

// A user is who a process runs as.
type user struct {
	name     string
	uid, gid uint32
	groups   []uint32
	home     string
	shell    string
}

// lookUser resolves NAME, NAME:GROUP, UID or UID:GID by /etc/passwd and
// /etc/group below root. "" is root. A number needs no entry.
func lookUser(root, s string) (user, error) {
	who, group, explicit := strings.Cut(s, ":")
	if who == "" {
		who = "root"
	}
	u := user{name: who, home: "/", shell: "/bin/sh"}
	known := false
	err := eachLine(root+"/etc/passwd", 7, func(f []string) {
		uid, uerr := parseID(f[2])
		gid, gerr := parseID(f[3])
		if known || uerr != nil || gerr != nil || f[0] != who && f[2] != who {
			return
		}
		known = true
		u.name, u.uid, u.gid = f[0], uid, gid
		if strings.HasPrefix(f[5], "/") {
			u.home = f[5]
		}
		if strings.HasPrefix(f[6], "/") {
			u.shell = f[6]
		}
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return u, err
	}
	if !known {
		id, err := parseID(who)
		switch {
		case err == nil:
			u.uid, u.gid = id, id
		case who == "root":
			u.home = "/root"
		default:
			return u, fmt.Errorf("there is no user %q in /etc/passwd", who)
		}
	}
	found := !explicit
	if explicit {
		if id, err := parseID(group); err == nil {
			u.gid, found = id, true
		}
	}
	err = eachLine(root+"/etc/group", 4, func(f []string) {
		gid, err := parseID(f[2])
		if err != nil {
			return
		}
		if explicit && !found && f[0] == group {
			u.gid, found = gid, true
		}
		// NGROUPS_MAX is 65,536; nobody needs more than these.
		if !explicit && len(u.groups) < 256 && slices.Contains(strings.Split(f[3], ","), u.name) {
			u.groups = append(u.groups, gid)
		}
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return u, err
	}
	if !found {
		return u, fmt.Errorf("there is no group %q in /etc/group", group)
	}
	if !slices.Contains(u.groups, u.gid) {
		u.groups = append(u.groups, u.gid)
	}
	return u, nil
}

// parseID reads a user's or group's number. The highest one means "none".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

// eachLine calls f with the fields of each line that has as many.
func eachLine(name string, fields int, f func([]string)) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", name)
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if l := strings.Split(lines.Text(), ":"); len(l) == fields {
			f(l)
		}
	}
	return lines.Err()
}
