package debian

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
)

// Bounds of what is read of a library, in bytes; a library of Debian has some
// ten segments and fifty dynamic entries.
const (
	maxSegments = 64
	maxDynamic  = 64 << 10
	maxSoname   = 255
)

// readSoname returns the DT_SONAME of a shared library for the machine, "" if
// it is none. It reads what the dynamic linker reads: the file header, the
// program headers and the dynamic segment (System V ABI, chapters 4 and 5).
// Package debug/elf also reads sections, whose sizes and compression are a
// package's to choose, and would take as much memory as they say.
func readSoname(r io.ReaderAt, machine elf.Machine, class elf.Class) string {
	at := func(offset int64, n int) []byte {
		b := make([]byte, n)
		if offset < 0 {
			return nil
		}
		if _, err := r.ReadAt(b, offset); err != nil {
			return nil
		}
		return b
	}
	wide := class == elf.ELFCLASS64
	size, entry := 52, 32
	if wide {
		size, entry = 64, 56
	}
	h := at(0, size)
	if h == nil || string(h[:4]) != elf.ELFMAG || elf.Class(h[elf.EI_CLASS]) != class || elf.Data(h[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return ""
	}
	half, word := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	long := func(b []byte) int64 { return int64(word(b)) }
	if wide {
		long = func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) }
	}
	if elf.Type(half(h[16:])) != elf.ET_DYN || elf.Machine(half(h[18:])) != machine {
		return ""
	}
	phoff, phsize, phnum := long(h[28:]), half(h[42:]), int(half(h[44:]))
	if wide {
		phoff, phsize, phnum = long(h[32:]), half(h[54:]), int(half(h[56:]))
	}
	if int(phsize) != entry || phnum > maxSegments {
		return ""
	}
	headers := at(phoff, phnum*entry)
	type segment struct{ offset, address, size int64 }
	var loads []segment
	var dynamic []byte
	for ; len(headers) >= entry; headers = headers[entry:] {
		s := segment{long(headers[4:]), long(headers[8:]), long(headers[16:])}
		if wide {
			s = segment{long(headers[8:]), long(headers[16:]), long(headers[32:])}
		}
		switch elf.ProgType(word(headers)) {
		case elf.PT_LOAD:
			loads = append(loads, s)
		case elf.PT_DYNAMIC:
			if s.size >= 0 && s.size <= maxDynamic {
				dynamic = at(s.offset, int(s.size))
			}
		}
	}
	name, table := int64(-1), int64(-1)
	step := 8
	if wide {
		step = 16
	}
	for ; len(dynamic) >= step; dynamic = dynamic[step:] {
		tag, value := elf.DynTag(long(dynamic)), long(dynamic[step/2:])
		if tag == elf.DT_NULL {
			break
		}
		switch tag {
		case elf.DT_SONAME:
			if name >= 0 {
				return "" // which one counts is the linker's secret
			}
			name = value
		case elf.DT_STRTAB:
			table = value
		}
	}
	if name < 0 || table < 0 {
		return ""
	}
	for _, s := range loads {
		if table < s.address || table-s.address >= s.size || name >= s.size-(table-s.address) {
			continue
		}
		b := make([]byte, maxSoname+1)
		n, _ := r.ReadAt(b, s.offset+(table-s.address)+name)
		text, _, ended := bytes.Cut(b[:n], []byte{0})
		if !ended || bytes.IndexByte(text, '/') >= 0 {
			return ""
		}
		return string(text)
	}
	return ""
}
