package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Bounds of one package, far above what Debian has.
const (
	maxControl = 32 << 20 // bytes of the control archive, unpacked
	maxScript  = 1 << 20  // bytes of one maintainer script
	maxFiles   = 1 << 20
	maxData    = 16 << 30 // bytes of the data archive, unpacked
)

// A control is the metadata of a package.
type control struct {
	fields  paragraph
	scripts string // postinst and preinst, one after the other
	md5sums string
}

// size is how many bytes of memory it takes.
func (c *control) size() int {
	n := len(c.scripts) + len(c.md5sums)
	for _, f := range c.fields {
		n += len(f.name) + len(f.value)
	}
	return n
}

// A file is one entry of a package's data archive.
type file struct {
	path   string // relative, clean, as the package has it: "bin/sh"
	mode   fs.FileMode
	uid    uint32
	gid    uint32
	target string // of a symbolic link
	link   string // of a hard link: the path of an earlier file
	offset int64  // of the content in the spool
	size   int64
}

// readDeb reads a package (deb(5)): an ar archive of debian-binary,
// control.tar and data.tar, the tars perhaps compressed. visit is called for
// each file of the data archive in order, with its content.
func readDeb(r io.Reader, visit func(f file, content io.Reader) error) (c control, err error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return c, errors.New("not a Debian package")
	}
	seen := ""
	for {
		name, size, err := arHeader(r)
		if err == io.EOF {
			break
		}
		if err != nil {
			return c, err
		}
		member := &io.LimitedReader{R: r, N: size}
		base, _, _ := strings.Cut(name, ".tar")
		switch {
		case name == "debian-binary" && seen == "":
			version, err := io.ReadAll(io.LimitReader(member, 16))
			if err != nil || !bytes.HasPrefix(version, []byte("2.")) {
				return c, fmt.Errorf("unknown package format %q", version)
			}
			seen = "binary"
		case base == "control" && seen == "binary":
			if c, err = readControl(name, member); err != nil {
				return c, fmt.Errorf("%s: %w", name, err)
			}
			seen = "control"
		case base == "data" && seen == "control":
			if err := readData(name, member, visit); err != nil {
				return c, fmt.Errorf("%s: %w", name, err)
			}
			seen = "data"
		case strings.HasPrefix(name, "_"): // to be ignored, says deb(5)
		default:
			return c, fmt.Errorf("unexpected member %q", name)
		}
		if seen == "data" {
			break
		}
		if _, err := io.CopyN(io.Discard, r, member.N+size&1); err != nil {
			return c, fmt.Errorf("truncated: %w", err)
		}
	}
	if seen != "data" {
		return c, errors.New("truncated package")
	}
	return c, nil
}

// arHeader reads one member's header: name, size, and what we do not need.
func arHeader(r io.Reader) (name string, size int64, err error) {
	var h [60]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err == io.EOF {
			return "", 0, io.EOF
		}
		return "", 0, fmt.Errorf("truncated: %w", err)
	}
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 || h[58] != '`' || h[59] != '\n' {
		return "", 0, errors.New("damaged archive header")
	}
	return strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), size, nil
}

func readControl(name string, r io.Reader) (c control, err error) {
	z, err := decompressor(name, r)
	if err != nil {
		return c, err
	}
	defer z.Close()
	t := tar.NewReader(io.LimitReader(z, maxControl))
	for range maxFiles {
		h, err := t.Next()
		if err == io.EOF {
			if c.fields == nil {
				return c, errors.New("no control file")
			}
			return c, nil
		}
		if err != nil {
			return c, err
		}
		name := path.Clean("/" + h.Name)[1:]
		if h.Typeflag != tar.TypeReg || name != "control" && name != "postinst" && name != "preinst" && name != "md5sums" {
			continue
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return c, err
		}
		switch name {
		case "control":
			for p := range paragraphs(bytes.NewReader(b)) {
				c.fields = p
				break
			}
		case "md5sums":
			c.md5sums = string(b)
		default:
			if len(b) <= maxScript { // what is larger is no script that could be read
				c.scripts += string(b) + "\n"
			}
		}
	}
	return c, errors.New("too many files")
}

func readData(name string, r io.Reader, visit func(file, io.Reader) error) error {
	z, err := decompressor(name, r)
	if err != nil {
		return err
	}
	defer z.Close()
	t := tar.NewReader(io.LimitReader(z, maxData))
	for range maxFiles {
		h, err := t.Next()
		if err == io.EOF {
			// Read on to the end of the compressed data, whose checksum stands there.
			_, err := io.Copy(io.Discard, io.LimitReader(z, maxData))
			return err
		}
		if err != nil {
			return err
		}
		f, err := fileOf(h)
		if err != nil {
			return err
		}
		if f.path == "" {
			continue
		}
		if err := visit(f, t); err != nil {
			return err
		}
	}
	return errors.New("too many files")
}

// fileOf turns a tar header into a file, and refuses what no package has to
// have. The empty path is the root directory.
func fileOf(h *tar.Header) (file, error) {
	f := file{mode: h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky), uid: owner(h.Uid), gid: owner(h.Gid)}
	var err error
	if f.path, err = cleanPath(h.Name); err != nil {
		return f, err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f.size = h.Size
	case tar.TypeDir:
		f.mode |= fs.ModeDir
	case tar.TypeSymlink:
		f.mode = fs.ModeSymlink | 0o777
		if f.target = h.Linkname; f.target == "" || len(f.target) > 4095 || strings.ContainsRune(f.target, 0) {
			return f, fmt.Errorf("%s: bad link target", f.path)
		}
	case tar.TypeLink:
		if f.link, err = cleanPath(h.Linkname); err != nil || f.link == "" {
			return f, fmt.Errorf("%s: bad link target %q", f.path, h.Linkname)
		}
	default:
		return f, fmt.Errorf("%s: a file of type %q is not taken from a package", f.path, h.Typeflag)
	}
	return f, nil
}

// owner keeps the ids below 100, which mean the same on every Debian system
// (Debian Policy 9.2.2), and gives the rest to root: they are of the machine
// that built the package.
func owner(id int) uint32 {
	if id < 0 || id >= 100 {
		return 0
	}
	return uint32(id)
}

// cleanPath makes a path of an archive relative and clean. One that leaves the
// root is an error, not something to be mended.
func cleanPath(name string) (string, error) {
	if len(name) > 4096 || strings.ContainsRune(name, 0) {
		return "", errors.New("bad path")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." || len(part) > 255 {
			return "", fmt.Errorf("bad path %q", name)
		}
	}
	return path.Clean("/" + name)[1:], nil
}
