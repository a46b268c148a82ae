package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// int80 asks for the process's number by the 32-bit table.
func int80() int {
	code := []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3} // mov eax, 20 (getpid); int 0x80; ret
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return -1
	}
	copy(page, code)
	at := uintptr(unsafe.Pointer(&page[0]))
	entry := unsafe.Pointer(&at)
	f := *(*func() int)(unsafe.Pointer(&entry))
	return f()
}
