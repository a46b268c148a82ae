package main

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
	"sync"

	"gvisor.dev/gvisor/pkg/abi"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/mm"
)

// A forkID is what this sandbox answers to who asks by getpid(2) whether it is
// still the process that it was, and means itself: OpenSSL's random generators.
// They ask each time before they generate, and take new entropy from the kernel
// where the answer is another than the last (RAND_DRBG(7), "fork safety").
// Memory that is brought back is in another sandbox, whose answer is another;
// so no two forks, and no fork and its parent, go on with the same numbers.
//
// Everybody else is told the process's number. Who asks is known by where the
// call returns to, which has to be in a file named libcrypto: a copy of OpenSSL
// that is linked into another program is not found so.
type forkID struct {
	salt   uint32
	getpid kernel.SyscallFn

	mu    sync.Mutex
	known map[caller]bool
}

// A caller is a place in an address space.
type caller struct {
	mm *mm.MemoryManager
	at hostarch.Addr
}

// maxCallers bounds known.
const maxCallers = 4096

// giveForkIDs puts a forkID in getpid's place. It is for x86-64 only, where the
// address that a call returns to is on the stack.
func giveForkIDs() {
	table, ok := kernel.LookupSyscallTable(abi.Linux, arch.AMD64)
	if !ok {
		return
	}
	no, err := table.LookupNo("getpid")
	if err != nil {
		return
	}
	var b [4]byte
	rand.Read(b[:])
	entry := table.Table[no]
	id := &forkID{salt: binary.LittleEndian.Uint32(b[:]), getpid: entry.Fn, known: make(map[caller]bool)}
	entry.Fn = id.answer
	table.Table[no] = entry
	table.Init()
}

// answer implements getpid(2).
func (f *forkID) answer(t *kernel.Task, no uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
	pid, control, err := f.getpid(t, no, args)
	if err == nil && control == nil && f.asks(t) {
		pid = uintptr((uint32(pid) ^ f.salt) & 0x7fffffff)
	}
	return pid, control, err
}

// asks reports whether it is OpenSSL that the call returns to.
func (f *forkID) asks(t *kernel.Task) bool {
	var b [8]byte
	if _, err := t.CopyInBytes(hostarch.Addr(t.Arch().Stack()), b[:]); err != nil {
		return false
	}
	c := caller{t.MemoryManager(), hostarch.Addr(binary.LittleEndian.Uint64(b[:]))}
	f.mu.Lock()
	is, ok := f.known[c]
	f.mu.Unlock()
	if ok {
		return is
	}
	is = inLibcrypto(t, c)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.known) >= maxCallers {
		clear(f.known)
	}
	f.known[c] = is
	return is
}

// inLibcrypto reports whether a file of that name is mapped there (proc(5),
// "/proc/pid/maps").
func inLibcrypto(t *kernel.Task, c caller) (is bool) {
	c.mm.ReadMapsDataInto(t, func(start, end hostarch.Addr, permissions hostarch.AccessType, private string, offset uint64, major, minor uint32, inode uint64, path string) {
		if start <= c.at && c.at < end {
			is = strings.Contains(path[strings.LastIndexByte(path, '/')+1:], "libcrypto")
		}
	})
	return is
}
