package build

import (
	"io/fs"
	"strconv"
	"strings"

	"isle"
)

// parseMode reads a --chmod: octal digits, or chmod(1)'s symbols (u+x,go=rX). It
// returns what makes a mode of another, nil for "".
func parseMode(s string) (func(fs.FileMode) fs.FileMode, error) {
	if s == "" {
		return nil, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return nil, badMode(s)
		}
		return func(m fs.FileMode) fs.FileMode { return m.Type() | fileMode(uint32(n)) }, nil
	}
	var changes []modeChange
	for clause := range strings.SplitSeq(s, ",") {
		c, ok := parseClause(clause)
		if !ok {
			return nil, badMode(s)
		}
		changes = append(changes, c...)
	}
	return func(m fs.FileMode) fs.FileMode {
		bits := unixMode(m)
		for _, c := range changes {
			bits = c.apply(bits, m.IsDir())
		}
		return m.Type() | fileMode(bits)
	}, nil
}

func badMode(s string) error {
	return isle.Errorf(isle.Invalid, "--chmod=%.40s is no mode: want octal digits up to 7777, or symbols such as u+x,go=rX", s)
}

// A modeChange is one operator of a clause.
type modeChange struct {
	who    uint32 // bits of user, group and others that it concerns
	op     byte   // + - =
	perm   uint32 // r, w, x for each of them, and s, t
	maybeX bool   // X: execute where something may be, or a folder
	from   byte   // u, g or o: as those have it
}

// parseClause reads [ugoa]*([-+=][rwxXst]*|[ugo])+.
func parseClause(s string) (out []modeChange, ok bool) {
	i, who := 0, uint32(0)
	for ; i < len(s) && strings.ContainsRune("ugoa", rune(s[i])); i++ {
		who |= map[byte]uint32{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}[s[i]]
	}
	if who == 0 {
		who = 0o7777 // BuildKit knows no umask here
	}
	if i == len(s) {
		return nil, false
	}
	for i < len(s) {
		c := modeChange{who: who, op: s[i]}
		if c.op != '+' && c.op != '-' && c.op != '=' {
			return nil, false
		}
		for i++; i < len(s) && !strings.ContainsRune("+-=", rune(s[i])); i++ {
			switch s[i] {
			case 'r':
				c.perm |= 0o444
			case 'w':
				c.perm |= 0o222
			case 'x':
				c.perm |= 0o111
			case 'X':
				c.maybeX = true
			case 's':
				c.perm |= 0o6000
			case 't':
				c.perm |= 0o1000
			case 'u', 'g', 'o':
				if c.from != 0 {
					return nil, false
				}
				c.from = s[i]
			default:
				return nil, false
			}
		}
		out = append(out, c)
	}
	return out, true
}

func (c modeChange) apply(bits uint32, dir bool) uint32 {
	perm := c.perm
	if c.maybeX && (dir || bits&0o111 != 0) {
		perm |= 0o111
	}
	switch c.from {
	case 'u':
		perm |= bits >> 6 & 7 * 0o111
	case 'g':
		perm |= bits >> 3 & 7 * 0o111
	case 'o':
		perm |= bits & 7 * 0o111
	}
	perm &= c.who
	switch c.op {
	case '+':
		return bits | perm
	case '-':
		return bits &^ perm
	}
	return bits&^c.who | perm
}

// fileMode is Go's mode of Unix's permission bits.
func fileMode(bits uint32) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	for bit, set := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			m |= set
		}
	}
	return m
}

func unixMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for bit, set := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&set != 0 {
			bits |= bit
		}
	}
	return bits
}
