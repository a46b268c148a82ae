package local

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// harmless are the only devices that a process of an environment may use, as
// in cgroup-v1/devices.txt: null, zero, full, random, urandom, tty, ptmx and
// pseudo-terminals. deviceFilter says the same for v2.
var harmless = []string{"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"}

// limitDevices allows the harmless devices alone; v1 says whether in a v1 group
// too. A v1 group that has groups below it can't be denied everything any more:
// it was when it was made.
func (h hierarchy) limitDevices(dir string, v1 bool) error {
	if h.v2 && len(h.controllers) > 0 {
		return attachDeviceFilter(dir)
	}
	if !v1 || !slices.Contains(h.controllers, "devices") {
		return nil
	}
	list, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(string(list), "a ") {
		if err := write(dir, "devices.deny", "a"); err != nil {
			return err
		}
	}
	for _, d := range harmless {
		if err := write(dir, "devices.allow", d); err != nil {
			return err
		}
	}
	return nil
}

// instruction is struct bpf_insn of linux/bpf.h.
type instruction struct {
	code      uint8
	registers uint8 // destination in the low half, source in the high one
	offset    int16
	value     int32
}

// deviceFilter is a program of type BPF_PROG_TYPE_CGROUP_DEVICE that returns 1
// for the harmless devices and 0 for all others. Its context is struct
// bpf_cgroup_dev_ctx: access and type, major, minor.
func deviceFilter() []instruction {
	const (
		load, and, jumpEqual, jumpNotEqual, jump, set, exit = 0x61, 0x54, 0x15, 0x55, 0x05, 0xb7, 0x95
		char                                                = 2
		deny, allow                                         = 16, 18
	)
	to := func(at, target int) int16 { return int16(target - at - 1) }
	return []instruction{
		{load, 0x12, 0, 0}, // r2 = type, in the low 16 bits
		{and, 0x02, 0, 0xffff},
		{load, 0x14, 4, 0}, // r4 = major
		{load, 0x15, 8, 0}, // r5 = minor
		{jumpNotEqual, 0x02, to(4, deny), char},
		{jumpEqual, 0x04, to(5, allow), 136},
		{jumpEqual, 0x04, to(6, 14), 5},
		{jumpNotEqual, 0x04, to(7, deny), 1},
		{jumpEqual, 0x05, to(8, allow), 3},
		{jumpEqual, 0x05, to(9, allow), 5},
		{jumpEqual, 0x05, to(10, allow), 7},
		{jumpEqual, 0x05, to(11, allow), 8},
		{jumpEqual, 0x05, to(12, allow), 9},
		{jump, 0, to(13, deny), 0},
		{jumpEqual, 0x05, to(14, allow), 0}, // 14: major 5
		{jumpEqual, 0x05, to(15, allow), 2},
		{set, 0x00, 0, 0}, // 16: deny
		{exit, 0, 0, 0},
		{set, 0x00, 0, 1}, // 18: allow
		{exit, 0, 0, 0},
	}
}

// attachDeviceFilter attaches the filter to a v2 group that has none yet.
func attachDeviceFilter(dir string) error {
	const (
		progLoad, progAttach, progQuery = 5, 8, 16
		typeCgroupDevice                = 15
		attachCgroupDevice              = 6
		allowMulti                      = 2
	)
	group, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer group.Close()
	query := struct {
		target, kind, flags, attached uint32
		ids                           uint64
		count, _                      uint32
	}{target: uint32(group.Fd()), kind: attachCgroupDevice}
	if _, err := bpf(progQuery, unsafe.Pointer(&query), unsafe.Sizeof(query)); err == nil && query.count > 0 {
		return nil
	}
	program, license := deviceFilter(), []byte("GPL\x00")
	load := struct {
		kind, count            uint32
		instructions, license  uint64
		logLevel, logSize      uint32
		log                    uint64
		kernelVersion, flags   uint32
		name                   [16]byte
		interfaceIndex, expect uint32
	}{
		kind: typeCgroupDevice, count: uint32(len(program)),
		instructions: uint64(uintptr(unsafe.Pointer(&program[0]))),
		license:      uint64(uintptr(unsafe.Pointer(&license[0]))),
		name:         [16]byte{'i', 's', 'l', 'e', '_', 'd', 'e', 'v', 'i', 'c', 'e', 's'},
		expect:       attachCgroupDevice,
	}
	var fd int
	err = unix.EAGAIN
	for n := 0; err == unix.EAGAIN && n < 20; n++ { // a signal came while it was checked: Go sends itself some
		fd, err = bpf(progLoad, unsafe.Pointer(&load), unsafe.Sizeof(load))
	}
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	if err != nil {
		return fmt.Errorf("load the filter: %w", err)
	}
	defer unix.Close(fd)
	attach := struct{ target, program, kind, flags, replace uint32 }{
		target: uint32(group.Fd()), program: uint32(fd), kind: attachCgroupDevice, flags: allowMulti,
	}
	if _, err := bpf(progAttach, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	return nil
}

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
