package debian

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path"
	"sort"
	"strings"
)

// A library is one line of the linker cache.
type library struct {
	soname string
	path   string
	flags  uint32
}

// multiarch are the names of the library folders of Debian's architectures, and
// the flags that ldconfig gives their libraries (glibc, sysdeps/generic/ldconfig.h).
var multiarch = map[string]struct {
	triplet string
	machine elf.Machine
	class   elf.Class
	flags   uint32
}{
	"amd64":   {"x86_64-linux-gnu", elf.EM_X86_64, elf.ELFCLASS64, 0x0303},
	"arm64":   {"aarch64-linux-gnu", elf.EM_AARCH64, elf.ELFCLASS64, 0x0a03},
	"i386":    {"i386-linux-gnu", elf.EM_386, elf.ELFCLASS32, 0x0003},
	"armhf":   {"arm-linux-gnueabihf", elf.EM_ARM, elf.ELFCLASS32, 0x0903},
	"ppc64el": {"powerpc64le-linux-gnu", elf.EM_PPC64, elf.ELFCLASS64, 0x0503},
	"riscv64": {"riscv64-linux-gnu", elf.EM_RISCV, elf.ELFCLASS64, 0x1003},
}

// linkerCache makes /etc/ld.so.cache and the SONAME links, as ldconfig(8) does.
// Without it programs find the libraries in the default folders only, and not
// those of ld.so.conf.d. Variants for newer processors (glibc-hwcaps) are not
// listed: the plain ones are found.
func (s *system) linkerCache() {
	m, ok := multiarch[s.architecture()]
	if !ok {
		return // big-endian s390x and others: the loader searches the default folders
	}
	dirs := append(s.libraryDirs(), "/lib/"+m.triplet, "/usr/lib/"+m.triplet, "/lib", "/usr/lib")
	if m.class == elf.ELFCLASS64 {
		dirs = append(dirs, "/lib64", "/usr/lib64")
	}
	seenDir, seen := map[string]bool{}, map[string]bool{}
	var libraries []library
	for _, dir := range dirs {
		at, n := s.t.follow(strings.TrimPrefix(path.Clean(dir), "/"))
		if n == nil || !n.mode.IsDir() || seenDir[at] {
			continue
		}
		seenDir[at] = true
		for _, name := range s.t.list(at) {
			if !strings.HasPrefix(name, "lib") && !strings.HasPrefix(name, "ld-") || !strings.Contains(name, ".so") {
				continue
			}
			_, file := s.t.follow(at + "/" + name)
			if file == nil || !file.mode.IsRegular() || file.owner == nil {
				continue
			}
			soname := s.soname(file, m.machine, m.class)
			if isLink := s.t.nodes[path.Join(at, name)].mode&os.ModeSymlink != 0; isLink && strings.HasSuffix(name, ".so") && strings.HasPrefix(soname, name) {
				soname = name // ldconfig lists the link for building, too
			} else if soname == "" || isLink && soname != name {
				continue
			}
			if !s.exists(at + "/" + soname) {
				s.link(at+"/"+soname, name)
			}
			if !seen[soname] {
				seen[soname] = true
				libraries = append(libraries, library{soname, path.Clean(dir) + "/" + soname, m.flags})
			}
		}
	}
	s.file("etc/ld.so.cache", string(encodeLinkerCache(libraries)))
}

func (s *system) architecture() string {
	for _, p := range s.t.pkgs {
		if p.Architecture != "all" {
			return p.Architecture
		}
	}
	return ""
}

// maxIncludes bounds the includes and the folders of /etc/ld.so.conf; each
// looks through the whole tree.
const maxIncludes = 200

// libraryDirs reads /etc/ld.so.conf and what it includes.
func (s *system) libraryDirs() (dirs []string) {
	includes := 0
	var read func(text string, depth int)
	read = func(text string, depth int) {
		for _, line := range strings.Split(text, "\n") {
			line, _, _ = strings.Cut(line, "#")
			f := strings.Fields(line)
			switch {
			case len(f) == 2 && f[0] == "include" && depth < 4 && includes < maxIncludes:
				includes++
				dir, pattern := path.Split(strings.TrimPrefix(f[1], "/"))
				for _, name := range s.t.list(dir) {
					if ok, err := path.Match(pattern, name); ok && err == nil {
						read(string(s.t.read(dir+name)), depth+1)
					}
				}
			case len(f) == 1 && strings.HasPrefix(f[0], "/") && len(dirs) < maxIncludes:
				dirs = append(dirs, f[0])
			}
		}
	}
	read(string(s.t.read("etc/ld.so.conf")), 0)
	return dirs
}

// soname reads the DT_SONAME of a shared library for the architecture; "" if it
// is none. A library without one goes by its file's name, but the linker finds
// that without a cache.
func (s *system) soname(n *node, machine elf.Machine, class elf.Class) string {
	f, err := os.Open(n.owner.spool)
	if err != nil {
		return ""
	}
	defer f.Close()
	return readSoname(io.NewSectionReader(f, n.offset, n.size), machine, class)
}

// encodeLinkerCache writes glibc's cache format 1.1 (sysdeps/generic/dl-cache.h,
// struct cache_file_new), little endian.
func encodeLinkerCache(libraries []library) []byte {
	sort.Slice(libraries, func(i, j int) bool { return compareLibraries(libraries[i].soname, libraries[j].soname) > 0 })
	const header, entry = 48, 24
	strs := bytes.Buffer{}
	start := header + entry*len(libraries)
	var table []byte
	for _, l := range libraries {
		key := start + strs.Len()
		strs.WriteString(l.soname + "\x00")
		value := start + strs.Len()
		strs.WriteString(l.path + "\x00")
		table = binary.LittleEndian.AppendUint32(table, l.flags)
		table = binary.LittleEndian.AppendUint32(table, uint32(key))
		table = binary.LittleEndian.AppendUint32(table, uint32(value))
		table = binary.LittleEndian.AppendUint32(table, 0) // was: minimal kernel version
		table = binary.LittleEndian.AppendUint64(table, 0) // hwcap
	}
	out := []byte("glibc-ld.so.cache1.1")
	out = binary.LittleEndian.AppendUint32(out, uint32(len(libraries)))
	out = binary.LittleEndian.AppendUint32(out, uint32(strs.Len()))
	out = append(out, 2, 0, 0, 0)          // little endian
	out = append(out, make([]byte, 16)...) // no extensions
	return append(append(out, table...), strs.Bytes()...)
}

// compareLibraries orders names as the loader's binary search expects
// (elf/dl-cache.c, _dl_cache_libcmp): digits by their value, and
// after everything else.
func compareLibraries(a, b string) int {
	digit := func(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }
	for a != "" {
		switch {
		case digit(a) && digit(b):
			x, y := 0, 0
			for ; digit(a); a = a[1:] {
				x = x*10 + int(a[0]-'0')
			}
			for ; digit(b); b = b[1:] {
				y = y*10 + int(b[0]-'0')
			}
			if x != y {
				return x - y
			}
		case digit(a):
			return 1
		case digit(b):
			return -1
		case b == "":
			return 1
		case a[0] != b[0]:
			return int(a[0]) - int(b[0])
		default:
			a, b = a[1:], b[1:]
		}
	}
	return -len(b)
}
