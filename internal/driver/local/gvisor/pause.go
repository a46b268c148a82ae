package gvisor

import (
	"encoding/binary"
	"runtime"
)

// pauses are the machine code of "wait for a signal, for ever".
func pauseCode() []byte {
	switch runtime.GOARCH {
	case "amd64":
		return []byte{
			0xb8, 0x22, 0, 0, 0, // mov eax, 34 (pause)
			0x0f, 0x05, // syscall
			0xeb, 0xf7, // jmp to the beginning
		}
	case "arm64":
		return []byte{
			0x00, 0x00, 0x80, 0xd2, // mov x0, 0
			0x01, 0x00, 0x80, 0xd2, // mov x1, 0
			0x02, 0x00, 0x80, 0xd2, // mov x2, 0
			0x03, 0x00, 0x80, 0xd2, // mov x3, 0
			0x28, 0x09, 0x80, 0xd2, // mov x8, 73 (ppoll, of nothing)
			0x01, 0x00, 0x00, 0xd4, // svc 0
			0xfa, 0xff, 0xff, 0x17, // b to the beginning
		}
	}
	return nil
}

// Pause is the program of a sandbox's root container: an ELF file of one
// segment that waits for ever, takes no memory to speak of and has nothing that
// could go wrong. It is nil where gVisor does not run.
func Pause() []byte {
	code := pauseCode()
	if code == nil {
		return nil
	}
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	const base, header, segment = 0x400000, 64, 56
	le := binary.LittleEndian
	b := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian
	b = le.AppendUint16(b, 2)                                          // an executable
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+header+segment) // where it begins
	b = le.AppendUint64(b, header)              // where the table of segments is
	b = le.AppendUint64(b, 0)                   // no sections
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, header)
	b = le.AppendUint16(b, segment)
	b = le.AppendUint16(b, 1)
	b = append(b, make([]byte, 6)...)
	size := uint64(header + segment + len(code))
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable and executable
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}
