package checkout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

const (
	maxIndex = 256 << 20 // bytes
	maxPaths = 256 << 20 // bytes of all paths, which version 4 writes shorter
	maxPath  = 4096      // bytes
)

// The modes of what git keeps.
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeFile    = 0o100000
	modeLink    = 0o120000
	modeModule  = 0o160000 // another repository's commit
	modeExecute = 0o100
)

// An entry is a file of the index: what is to be committed next.
type entry struct {
	path         string
	id           string // binary
	mode         uint32
	ctime, mtime stamp // of the file, as git last saw it
	inode        uint32
	uid, gid     uint32
	size         uint32 // modulo 2^32
	stage        int    // not 0: of a merge that is not resolved
	valid        bool   // git is told not to look (assume-unchanged)
	skip         bool   // not in the work tree (sparse checkouts)
	intent       bool   // to be added, content unknown
}

// A stamp is a time as the index keeps it.
type stamp struct{ seconds, nanoseconds uint32 }

func stampOf(t time.Time) stamp {
	return stamp{uint32(t.Unix()), uint32(t.Nanosecond())}
}

// is reports whether the index means t; it may have been written without the
// part below seconds.
func (s stamp) is(t time.Time) bool {
	w := stampOf(t)
	return s == w || s.nanoseconds == 0 && s.seconds == w.seconds
}

// errIndex is why an index cannot be read.
var errIndex = errors.New("the index is damaged")

// fixed is what an entry has before its hash: ten numbers of four bytes.
const fixed = 40

// parseIndex reads an index of version 2, 3 or 4, and returns the entries whose
// path begins with prefix, in order.
func parseIndex(b []byte, hashLen int, prefix string) ([]entry, error) {
	if len(b) < 12+hashLen || string(b[:4]) != "DIRC" {
		return nil, errIndex
	}
	version, count := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if version < 2 || version > 4 {
		return nil, errors.New("the index is of a version that is not known here")
	}
	rest := b[12 : len(b)-hashLen]
	var out []entry
	last := ""
	paths := 0
	for range count {
		e, n, err := parseEntry(rest, version, hashLen, last)
		if err != nil {
			return nil, err
		}
		if paths += len(e.path); paths > maxPaths {
			return nil, errors.New("the index is too large")
		}
		rest, last = rest[n:], e.path
		if strings.HasPrefix(e.path, prefix) {
			out = append(out, e)
		}
	}
	return out, extensions(rest)
}

// parseEntry reads the entry that b begins with, and how long it is.
func parseEntry(b []byte, version uint32, hashLen int, last string) (e entry, n int, err error) {
	if len(b) < fixed+hashLen+2 {
		return e, 0, errIndex
	}
	num := func(i int) uint32 { return binary.BigEndian.Uint32(b[4*i:]) }
	e = entry{
		ctime: stamp{num(0), num(1)}, mtime: stamp{num(2), num(3)}, inode: num(5), mode: num(6), uid: num(7), gid: num(8), size: num(9),
		id: string(b[fixed : fixed+hashLen]),
	}
	n = fixed + hashLen
	flags := binary.BigEndian.Uint16(b[n:])
	n += 2
	e.valid, e.stage = flags&0x8000 != 0, int(flags>>12&3)
	if flags&0x4000 != 0 {
		if version < 3 || len(b) < n+2 {
			return e, 0, errIndex
		}
		more := binary.BigEndian.Uint16(b[n:])
		e.skip, e.intent = more&0x4000 != 0, more&0x2000 != 0
		n += 2
	}
	kept := ""
	if version == 4 { // the path is the last one's, less some bytes, and what follows
		cut, k := prefixCut(b[n:])
		if k == 0 || cut > int64(len(last)) {
			return e, 0, errIndex
		}
		n += k
		kept = last[:len(last)-int(cut)]
	}
	end := bytes.IndexByte(b[n:min(len(b), n+maxPath+1)], 0)
	if end < 0 || len(kept)+end > maxPath || len(kept)+end == 0 {
		return e, 0, errIndex
	}
	e.path = kept + string(b[n:n+end])
	if e.path <= last && last != "" && (e.path != last || e.stage == 0) {
		return e, 0, errIndex // they are sorted; a merge has a path more than once
	}
	if version == 4 {
		n += end + 1
	} else if n = (n + end + 8) &^ 7; n > len(b) { // filled with 1 to 8 zeros
		return e, 0, errIndex
	}
	return e, n, nil
}

// prefixCut reads a number as a pack writes offsets, and how long it is.
func prefixCut(b []byte) (n int64, length int) {
	r := bytes.NewReader(b[:min(len(b), 9)])
	n, err := baseOffset(r)
	if err != nil {
		return 0, 0
	}
	return n, min(len(b), 9) - r.Len()
}

// extensions goes past what follows the entries. What must be understood to
// read them, and is not, is an error.
func extensions(b []byte) error {
	for len(b) > 0 {
		if len(b) < 8 {
			return errIndex
		}
		name, size := string(b[:4]), int64(binary.BigEndian.Uint32(b[4:]))
		if size > int64(len(b)-8) {
			return errIndex
		}
		switch {
		case name == "link":
			return errors.New("the index is split in two files, which is not known here")
		case name == "sdir": // some entries are folders
		case name[0] < 'A' || name[0] > 'Z':
			return errors.New("the index has a part that is not known here")
		}
		b = b[8+size:]
	}
	return nil
}
