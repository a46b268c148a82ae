package grammar

import (
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// A region is the memory of an instance: addresses are reserved at once, so that
// it never moves, and pages are there once they are written.
type region struct {
	reserved []byte
}

// allocate reserves the memory of an instance. The module asks for 4 GiB; what
// it gets ends earlier, and its malloc fails there.
func allocate(_, limit uint64) experimental.LinearMemory {
	b, err := unix.Mmap(-1, 0, int(min(limit, memory)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return &region{}
	}
	return &region{reserved: b}
}

// Reallocate implements experimental.LinearMemory.
func (r *region) Reallocate(size uint64) []byte {
	if size > uint64(len(r.reserved)) {
		return nil
	}
	return r.reserved[:size]
}

// Free implements experimental.LinearMemory.
func (r *region) Free() {
	if r.reserved != nil {
		_ = unix.Munmap(r.reserved)
		r.reserved = nil
	}
}
