package main

import (
	"archive/tar"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/initproto"
	"isle/internal/spec"
)

// maxSkipped bounds how many left-out names are told.
const maxSkipped = 20

// kernelFiles reports whether the open file lies in a file system in which the
// kernel shows itself: nothing there is the service's, and this process can see
// more of it than the service.
func kernelFiles(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return true
	}
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, 0x19800202 /* mqueue */ :
		return true
	}
	return false
}

// openFolder opens a folder as the root for what is done below it: an os.Root
// follows links inside and never out of it, whoever changes what meanwhile.
func openFolder(dir string) (*os.Root, error) {
	// First as a mere handle: what the service put there may be a pipe, and to
	// open that would wait.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	var r *os.Root
	if err == nil {
		r, err = os.OpenRoot("/proc/self/fd/" + strconv.Itoa(fd))
		unix.Close(fd)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, isle.Errorf(isle.NotFound, "there is no %s in the service", dir)
	case errors.Is(err, syscall.ENOTDIR):
		return nil, isle.Errorf(isle.Invalid, "%s in the service is not a folder", dir)
	case err != nil:
		return nil, isle.Errorf(isle.Failed, "%s in the service: %w", dir, err)
	}
	f, err := r.Open(".")
	if err != nil {
		r.Close()
		return nil, isle.Errorf(isle.Failed, "%s in the service: %w", dir, err)
	}
	defer f.Close()
	if kernelFiles(int(f.Fd())) {
		r.Close()
		return nil, isle.Errorf(isle.Invalid, "%s in the service shows the kernel and has no files to copy", dir)
	}
	return r, nil
}

// copyIn extracts a tar stream below a folder.
func (s *service) copyIn(stream io.Reader, r initproto.Request) error {
	owner := s.user
	if r.User != "" {
		var err error
		if owner, err = lookUser("", r.User); err != nil {
			return isle.Errorf(isle.Invalid, "copy: %w", err)
		}
	}
	root, err := openFolder(r.Path)
	if isle.CodeOf(err) == isle.NotFound && err != nil {
		if root, err = makeFolder(r.Path, owner); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	defer root.Close()
	x := &extraction{root: root, dir: r.Path, owner: owner}
	t := tar.NewReader(stream)
	for {
		h, err := t.Next()
		if err == io.EOF {
			// What follows the end of the archive is padding.
			_, err = io.Copy(io.Discard, stream)
			return x.fail("", err)
		}
		if err == nil {
			err = x.entry(h, t)
		}
		if err != nil {
			name := ""
			if h != nil {
				name = h.Name
			}
			return x.fail(name, err)
		}
	}
}

// makeFolder makes a folder that is not there, and those above it.
func makeFolder(dir string, owner user) (*os.Root, error) {
	dir = filepath.Clean(dir)
	above := filepath.Dir(dir)
	root, err := openFolder(above)
	if isle.CodeOf(err) == isle.NotFound && err != nil && above != dir {
		root, err = makeFolder(above, owner)
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	x := &extraction{root: root, dir: above, owner: owner}
	if err := x.folder(filepath.Base(dir), 0o755); err != nil {
		return nil, x.fail(dir, err)
	}
	return openFolder(dir)
}

// An extraction writes below a folder, for a user.
type extraction struct {
	root  *os.Root
	dir   string // for messages
	owner user
}

// fail gives an error its words.
func (x *extraction) fail(name string, err error) error {
	var said *isle.Error
	switch {
	case err == nil || errors.As(err, &said):
		return err
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return isle.Errorf(isle.Exhausted, "no space is left in %s of the service", x.dir).WithHint("give its volume a larger size in isle.yaml")
	case errors.Is(err, syscall.EROFS):
		return isle.Errorf(isle.Invalid, "%s of the service is read-only", x.dir).WithHint("copy into a volume; an image changes by a new build only")
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF):
		return isle.Errorf(isle.Invalid, "the stream of files is damaged or incomplete")
	}
	return isle.Errorf(isle.Failed, "%s below %s of the service: %w", name, x.dir, err)
}

// entry extracts one entry. Names are taken relative to the folder, and none
// leads out of it.
func (x *extraction) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean("/" + h.Name)[1:]
	for part := range strings.SplitSeq(h.Name, "/") {
		if part == ".." {
			return isle.Errorf(isle.Invalid, "%q leads out of the folder it is copied to", h.Name)
		}
	}
	if name == "" {
		return nil // the folder itself is there, and stays as it is
	}
	mode := fs.FileMode(h.Mode) & 0o777 // no setuid, setgid or sticky bits
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		return x.folder(name, mode)
	}
	if err := x.parents(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return x.file(name, mode, h.ModTime, content)
	case tar.TypeSymlink:
		return x.replace(name, func(temp string) error {
			if err := x.root.Symlink(h.Linkname, temp); err != nil {
				return err
			}
			return x.root.Lchown(temp, int(x.owner.uid), int(x.owner.gid))
		})
	case tar.TypeLink:
		target := path.Clean("/" + h.Linkname)[1:]
		// It keeps its owner: what it names may have been there before.
		return x.replace(name, func(temp string) error { return x.root.Link(target, temp) })
	}
	return isle.Errorf(isle.Invalid, "%q is a device, a pipe or something else that is not copied", h.Name)
}

// parents makes the folders above name.
func (x *extraction) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if st, err := x.root.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := x.parents(dir); err != nil {
		return err
	}
	return x.folder(dir, 0o755)
}

// folder makes a folder, unless it is there.
func (x *extraction) folder(name string, mode fs.FileMode) error {
	if err := x.parents(name); err != nil {
		return err
	}
	if st, err := x.root.Stat(name); err == nil && st.IsDir() {
		return nil
	}
	if err := x.root.Mkdir(name, 0o700); errors.Is(err, fs.ErrExist) {
		if err := x.root.Remove(name); err != nil {
			return err
		}
		if err := x.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	f, err := x.root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return x.give(f, mode)
}

// give hands an open file or folder to the owner. Owner first: that clears
// bits of the mode.
func (x *extraction) give(f *os.File, mode fs.FileMode) error {
	if err := f.Chown(int(x.owner.uid), int(x.owner.gid)); err != nil {
		return err
	}
	return f.Chmod(mode)
}

// file writes a file beside its place and moves it there, so that nobody reads
// half of it and nothing that lies there is written through.
func (x *extraction) file(name string, mode fs.FileMode, modified time.Time, content io.Reader) error {
	return x.replace(name, func(temp string) error {
		f, err := x.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		// The writer alone: io.Copy would read the whole of a large hole.
		if _, err := io.CopyBuffer(struct{ io.Writer }{f}, content, make([]byte, 64<<10)); err != nil {
			return err
		}
		if err := x.give(f, mode); err != nil {
			return err
		}
		if !modified.IsZero() && modified.Unix() > 0 {
			t := unix.NsecToTimeval(modified.UnixNano())
			_ = unix.Futimes(int(f.Fd()), []unix.Timeval{t, t}) // not worth failing for
		}
		return f.Close()
	})
}

// replace makes something under a name of its own and moves it to name.
func (x *extraction) replace(name string, make func(temp string) error) error {
	temp := path.Join(path.Dir(name), ".isle-"+rand.Text())
	if err := make(temp); err != nil {
		_ = x.root.Remove(temp)
		return err
	}
	err := x.root.Rename(temp, name)
	if err != nil {
		_ = x.root.Remove(temp)
		if st, serr := x.root.Lstat(name); serr == nil && st.IsDir() {
			return isle.Errorf(isle.Conflict, "%q is a folder in %s of the service, and a file in what is copied", name, x.dir)
		}
	}
	// Of a hard link to what name was already, the temporary one stays.
	_ = x.root.Remove(temp)
	return err
}

// A found is one thing that walk comes to.
type found struct {
	path string // below the top; "" the top itself
	info fs.FileInfo
	root *os.Root
	at   string // below root
}

// walk calls f for the thing at p and, if it is a folder, everything below.
func walk(p string, f func(found) error) error {
	p = filepath.Clean(p)
	st, err := os.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return isle.Errorf(isle.NotFound, "there is no %s in the service", p)
	}
	if err != nil {
		return isle.Errorf(isle.Failed, "%s in the service: %w", p, err)
	}
	if !st.IsDir() {
		root, err := openFolder(filepath.Dir(p))
		if err != nil {
			return err
		}
		defer root.Close()
		info, err := root.Lstat(filepath.Base(p))
		if err != nil {
			return isle.Errorf(isle.Failed, "%s in the service: %w", p, err)
		}
		return f(found{"", info, root, filepath.Base(p)})
	}
	root, err := openFolder(p)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			if at == "." || !errors.Is(err, fs.ErrNotExist) {
				return isle.Errorf(isle.Failed, "%s in the service: %w", path.Join(p, at), err)
			}
			return nil // gone meanwhile
		}
		info, err := root.Lstat(at)
		if err != nil {
			return nil // likewise
		}
		name := at
		if at == "." {
			name = ""
		} else if info.IsDir() {
			if dir, err := root.Open(at); err != nil || kernelFiles(int(dir.Fd())) {
				if dir != nil {
					dir.Close()
				}
				return fs.SkipDir
			} else if err := dir.Close(); err != nil {
				return err
			}
		}
		return f(found{name, info, root, at})
	})
}

// open opens a file that walk came to, if it still is one.
func (f found) open() (*os.File, fs.FileInfo, error) {
	file, err := f.root.OpenFile(f.at, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("is not a file any more")
	}
	if err == nil && kernelFiles(int(file.Fd())) {
		err = errors.New("shows the kernel")
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, st, nil
}

// copyOut writes what is at p as a tar stream. Names begin with the last
// element of p.
func copyOut(w io.Writer, p string) error {
	t := tar.NewWriter(w)
	base := path.Base(path.Clean(p))
	if base == "/" {
		base = "."
	}
	var skipped []string
	err := walk(p, func(f found) error {
		name := path.Join(base, f.path)
		ok, err := addTo(t, name, f)
		if !ok && err == nil && len(skipped) < maxSkipped {
			skipped = append(skipped, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(skipped) > 0 {
		note := strings.ToValidUTF8(strings.Join(skipped, ", "), "?")
		h := &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "isle", PAXRecords: map[string]string{"comment": "left out: " + note}}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
	}
	return t.Close()
}

// addTo adds one thing to a stream, or reports that it can not be.
func addTo(t *tar.Writer, name string, f found) (bool, error) {
	switch mode := f.info.Mode(); {
	case mode.IsDir():
		h, err := tar.FileInfoHeader(f.info, "")
		if err != nil {
			return false, err
		}
		h.Name = name + "/"
		return true, t.WriteHeader(plain(h))
	case mode&fs.ModeSymlink != 0:
		target, err := f.root.Readlink(f.at)
		if err != nil {
			return false, nil
		}
		h, err := tar.FileInfoHeader(f.info, target)
		if err != nil {
			return false, err
		}
		h.Name = name
		return true, t.WriteHeader(plain(h))
	case !mode.IsRegular():
		return false, nil
	}
	file, st, err := f.open()
	if err != nil {
		return false, nil
	}
	defer file.Close()
	h, err := tar.FileInfoHeader(st, "")
	if err != nil {
		return false, err
	}
	h.Name = name
	if err := t.WriteHeader(plain(h)); err != nil {
		return false, err
	}
	n, err := io.Copy(t, io.LimitReader(file, h.Size))
	if err == nil && n < h.Size { // it was cut while being read
		_, err = io.CopyN(t, zeros{}, h.Size-n)
	}
	return true, err
}

// plain takes from a header what depends on this machine's accounts and clock
// resolution.
func plain(h *tar.Header) *tar.Header {
	h.Uname, h.Gname = "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.ModTime = h.ModTime.Truncate(time.Second)
	return h
}

// zeros is an endless file of zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// list writes an entry for everything at p.
func list(w io.Writer, p string) error {
	out := json.NewEncoder(w)
	sum, buf := sha256.New(), make([]byte, 64<<10)
	return walk(p, func(f found) error {
		e := spec.TreeEntry{Path: spec.TreeName(f.path)}
		switch mode := f.info.Mode(); {
		case mode.IsDir():
			e.Type = spec.TypeDir
		case mode&fs.ModeSymlink != 0:
			target, err := f.root.Readlink(f.at)
			if err != nil {
				return nil
			}
			e.Type, e.Target = spec.TypeLink, spec.TreeName(target)
		case mode.IsRegular():
			file, _, err := f.open()
			if err != nil {
				return nil
			}
			defer file.Close()
			e.Type, e.Exec = spec.TypeFile, mode&0o100 != 0
			if e.Size, e.Digest, err = digest(file, sum, buf); err != nil {
				return isle.Errorf(isle.Failed, "%s in the service: %w", path.Join(p, f.path), err)
			}
		default:
			return nil // no part of a Tree
		}
		return out.Encode(e)
	})
}

func digest(f io.Reader, sum hash.Hash, buf []byte) (int64, isle.Digest, error) {
	sum.Reset()
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buf)
	return n, isle.DigestFromSum(sum.Sum(nil)), err
}
