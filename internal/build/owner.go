package build

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"isle"
	"isle/internal/image"
)

// Bounds of owners. An environment has as many users and groups.
const (
	maxOwner    = 1<<16 - 1
	maxAccounts = 1 << 20 // bytes that are read of /etc/passwd and /etc/group
)

// An owner is a user with a group, as numbers.
type owner struct {
	uid, gid uint32
	groups   []uint32 // others that the user is in
	home     string
}

// accounts are the lines of an image's /etc/passwd or /etc/group, links followed
// inside the image; none where there is no such file.
func accounts(stack *image.Stack, name string, fields int, each func(f []string)) error {
	at, err := stack.Resolve(name)
	if err != nil {
		return err
	}
	raw, err := stack.ReadFile(at, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		if f := strings.Split(lines.Text(), ":"); len(f) >= fields {
			each(f)
		}
	}
	return lines.Err()
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxOwner
}

// lookOwner finds who USER[:GROUP] is in an image, as --chown and USER have it: a
// name with its own group, a number with the group of the same number unless the
// image knows the user and primary is set.
func lookOwner(stack *image.Stack, who string, primary bool) (owner, error) {
	name, group, hasGroup := strings.Cut(who, ":")
	o := owner{home: "/"}
	uid, numeric := number(name)
	if numeric {
		o.uid = uid
		if !primary {
			o.gid = uid
		}
	}
	known := ""
	err := accounts(stack, "/etc/passwd", 6, func(f []string) {
		id, ok := number(f[2])
		gid, okGroup := number(f[3])
		if known != "" || !ok || !okGroup || f[0] != name && (!numeric || id != uid) {
			return
		}
		known, o.uid, o.home = f[0], id, f[5]
		if !numeric || primary {
			o.gid = gid
		}
	})
	if err != nil {
		return o, err
	}
	if known == "" && !numeric {
		return o, isle.Errorf(isle.Invalid, "there is no user %.60q in the image's /etc/passwd", name).WithHint("use a number, or make the user in a step before")
	}
	found := !hasGroup
	if gid, ok := number(group); hasGroup && ok {
		o.gid, found = gid, true
	}
	err = accounts(stack, "/etc/group", 3, func(f []string) {
		gid, ok := number(f[2])
		if !ok {
			return
		}
		if hasGroup && !found && f[0] == group {
			o.gid, found = gid, true
		}
		if known != "" && !hasGroup && len(f) > 3 && memberOf(f[3], known) {
			o.groups = append(o.groups, gid)
		}
	})
	if err != nil {
		return o, err
	}
	if !found {
		return o, isle.Errorf(isle.Invalid, "there is no group %.60q in the image's /etc/group", group).WithHint("use a number, or make the group in a step before")
	}
	return o, nil
}

func memberOf(list, name string) bool {
	for m := range strings.SplitSeq(list, ",") {
		if m == name {
			return true
		}
	}
	return false
}
