package local

import (
	"context"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An extent is a piece of a file and where it is on the disk (linux/fiemap.h).
type extent struct {
	logical, physical, length uint64 // bytes
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// The request FS_IOC_FIEMAP and flags of it and of what it tells.
const (
	fiemap          = 0xc020660b
	fiemapSync      = 0x1
	extentLast      = 0x1
	extentUnwritten = 0x800
	// extentVague are extents whose place doesn't say what they hold: unknown, not
	// written out yet, encoded, not aligned, in the inode, or in a block with others.
	extentVague = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

// extents lists the extents of a file, in order.
func extents(f *os.File) ([]extent, error) {
	const batch = 4096
	var all []extent
	request := struct {
		start, length uint64
		flags, mapped uint32
		count, _      uint32
		extents       [batch]extent
	}{flags: fiemapSync, count: batch}
	for {
		request.length, request.mapped = ^uint64(0)-request.start, 0
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemap, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return nil, os.NewSyscallError("fiemap", errno)
		}
		if request.mapped == 0 {
			return all, nil
		}
		all = append(all, request.extents[:request.mapped]...)
		last := all[len(all)-1]
		if last.flags&extentLast != 0 {
			return all, nil
		}
		request.start = last.logical + last.length
		request.flags = 0
	}
}

// A span is a piece of a file, in bytes.
type span struct{ at, end uint64 }

// differing lists where two files of that size do not share their blocks. What
// they share is the same in both, because neither is written to in place.
func differing(a, b []extent, size uint64) []span {
	var spans []span
	for at := uint64(0); at < size; {
		inA, endA := mapped(&a, at, size)
		inB, endB := mapped(&b, at, size)
		end := min(endA, endB)
		if inA != inB || inA.vague {
			if n := len(spans); n > 0 && spans[n-1].end == at {
				spans[n-1].end = end
			} else {
				spans = append(spans, span{at, end})
			}
		}
		at = end
	}
	return spans
}

// A place is where a byte of a file is.
type place struct {
	there, vague bool // not there: it reads as zero
	physical     uint64
}

// mapped says where the byte at is, and up to where what follows it is in the
// same extent, or in none. Extents that end before are taken off the list.
func mapped(list *[]extent, at, size uint64) (p place, end uint64) {
	for len(*list) > 0 && (*list)[0].logical+(*list)[0].length <= at {
		*list = (*list)[1:]
	}
	if len(*list) == 0 {
		return place{}, size
	}
	e := (*list)[0]
	if e.logical > at {
		return place{}, min(e.logical, size)
	}
	end = min(e.logical+e.length, size)
	if e.flags&extentUnwritten != 0 {
		return place{vague: e.flags&extentVague != 0}, end // a clone has a hole there
	}
	return place{there: true, vague: e.flags&extentVague != 0, physical: e.physical + at - e.logical}, end
}

// reflinkChunk is how many bytes are reflinked at once of a file that somebody
// writes to, who waits for that long.
const reflinkChunk = 16 << 20

// reflinkAll makes dst share all blocks of src, one chunk after the other, while
// src may be written to: dst then holds a bit of each moment.
func reflinkAll(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; at += reflinkChunk {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := reflinkRange(dst, src, uint64(at), uint64(min(at+reflinkChunk, size))); err != nil {
			return err
		}
	}
	return nil
}

// reflinkRest makes dst, which shared blocks of src before and has these extents,
// share all of them again. src must be still.
func reflinkRest(dst, src *os.File, shares []extent, size int64) error {
	now, err := extents(src)
	if err != nil {
		return err
	}
	for _, s := range differing(now, shares, uint64(size)) {
		if err := reflinkRange(dst, src, s.at, s.end); err != nil {
			return err
		}
	}
	return nil
}

// reflinkRange is reflink for a part (ioctl_ficlonerange(2)).
func reflinkRange(dst, src *os.File, at, end uint64) error {
	r := unix.FileCloneRange{Src_fd: int64(src.Fd()), Src_offset: at, Src_length: end - at, Dest_offset: at}
	err := unix.IoctlFileCloneRange(int(dst.Fd()), &r)
	switch err {
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS:
		return errors.ErrUnsupported
	}
	return os.NewSyscallError("ficlonerange", err)
}
