package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/snapshot/ext4"
	"isle/internal/spec"
)

// volumeFolder is the folder of a volume's file system that is the volume.
const volumeFolder = "data"

// walkVolume visits the files of a volume's image.
func walkVolume(ctx context.Context, f *os.File, visit ext4.Visit) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	image, err := ext4.New(f, fi.Size())
	if err != nil {
		return err
	}
	return image.Walk(ctx, volumeFolder, visit)
}

// A filesSummer makes the digest of the files in a volume: of what all of them
// are called, are and hold, wherever it lies in the image.
type filesSummer struct {
	hash    hash.Hash
	first   map[uint32]string // the first name of each file that has several
	leftOut int               // what is not in the digest, nor in a volume written anew
}

func newFilesSummer() *filesSummer {
	s := &filesSummer{hash: sha256.New(), first: map[uint32]string{}}
	s.text("isle files v1")
	return s
}

func (s *filesSummer) text(t string) {
	s.hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(t))))
	s.hash.Write([]byte(t))
}

func (s *filesSummer) number(n int64) {
	s.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// leaves reports whether an entry is left out: a device, which a volume's mount
// has no use for.
func leaves(e ext4.Entry) bool { return e.Mode&fs.ModeDevice != 0 }

// timeOf is when an entry was changed, in whole seconds, as far as mke2fs can
// write that.
func timeOf(e ext4.Entry) time.Time {
	return time.Unix(min(max(e.ModTime.Unix(), math.MinInt32), math.MaxInt32), 0)
}

// add takes in one entry. same is the name that the file was met by before, ""
// if it was not; content is the digest of what a file holds.
func (s *filesSummer) add(e ext4.Entry, content isle.Digest) (same string) {
	s.leftOut += e.LeftOut
	if leaves(e) {
		s.leftOut++
		return ""
	}
	s.text(e.Path)
	if same, met := s.first[e.Inode]; met {
		s.text(same)
		return same
	}
	if !e.Mode.IsDir() && e.Links > 1 {
		s.first[e.Inode] = e.Path
	}
	s.text("")
	s.number(int64(e.Mode))
	s.number(int64(e.UID))
	s.number(int64(e.GID))
	s.number(timeOf(e).Unix())
	s.number(e.Size)
	s.text(string(content))
	s.text(e.Target)
	s.number(int64(len(e.Xattrs)))
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		s.text(k)
		s.text(e.Xattrs[k])
	}
	return ""
}

func (s *filesSummer) digest() isle.Digest { return isle.DigestFromSum(s.hash.Sum(nil)) }

// hashPieces is the SHA-256 of a file of size bytes, of which data gives what is
// no hole. also gets each piece, if it is not nil.
func hashPieces(ctx context.Context, size int64, data func(func(int64, []byte) error) error, also func(at int64, b []byte) error) (isle.Digest, error) {
	h := sha256.New()
	zeros := make([]byte, 64<<10)
	var end int64
	skip := func(to int64) error {
		for end < to {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(to-end, int64(len(zeros)))
			h.Write(zeros[:n])
			end += n
		}
		return nil
	}
	err := data(func(at int64, b []byte) error {
		if err := skip(at); err != nil {
			return err
		}
		h.Write(b)
		end += int64(len(b))
		if also != nil {
			return also(at, b)
		}
		return nil
	})
	if err == nil {
		err = skip(size)
	}
	return isle.DigestFromSum(h.Sum(nil)), err
}

// sumFiles is the digest of the files in a volume.
func sumFiles(ctx context.Context, f *os.File) (isle.Digest, int, error) {
	s := newFilesSummer()
	err := walkVolume(ctx, f, func(e ext4.Entry, data func(func(int64, []byte) error) error) error {
		var content isle.Digest
		var err error
		if data != nil {
			content, err = hashPieces(ctx, e.Size, data, nil)
		}
		s.add(e, content)
		return err
	})
	return s.digest(), s.leftOut, err
}

// treeOf lists the files of a volume as `isle diff` compares them: owners and
// times do not count, and what is neither file, folder nor link is not there.
func treeOf(ctx context.Context, f *os.File) (spec.Tree, error) {
	var t spec.Tree
	digests := map[uint32]isle.Digest{}
	names := 0
	err := walkVolume(ctx, f, func(e ext4.Entry, data func(func(int64, []byte) error) error) error {
		x := spec.TreeEntry{Path: spec.TreeName(e.Path)}
		switch {
		case e.Mode.IsDir():
			x.Type = spec.TypeDir
		case e.Mode&fs.ModeSymlink != 0:
			x.Type, x.Target = spec.TypeLink, spec.TreeName(e.Target)
		case e.Mode.IsRegular():
			x.Type, x.Exec, x.Size = spec.TypeFile, e.Mode&0o100 != 0, e.Size
			if data != nil {
				d, err := hashPieces(ctx, e.Size, data, nil)
				if err != nil {
					return err
				}
				digests[e.Inode] = d
			}
			x.Digest = digests[e.Inode]
		default:
			return nil
		}
		names += len(x.Path) + len(x.Target)
		if t.Entries = append(t.Entries, x); len(t.Entries) > spec.MaxTreeEntries || names > spec.MaxTreeSize {
			return isle.Errorf(isle.Exhausted, "a volume has more than %d files, or %s of names", spec.MaxTreeEntries, spec.FormatSize(spec.MaxTreeSize))
		}
		return nil
	})
	slices.SortFunc(t.Entries, func(a, b spec.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return t, err
}

// unpack writes the files of a foreign volume's image below a new folder, which
// nobody else sees. What is left out it does not write. No name leads out of the
// folder, nor through a link. most is how many bytes of the image are not zero:
// its files can't have more, unless several claim the same ones. room is asked
// now and then whether the disk has room for more.
func unpack(ctx context.Context, f *os.File, dir string, most int64, room func() error) (digest isle.Digest, leftOut int, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", 0, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", 0, err
	}
	defer root.Close()
	u := &unpacker{ctx: ctx, root: root, sum: newFilesSummer(), left: most, room: room}
	if err := walkVolume(ctx, f, u.visit); err != nil {
		return "", 0, err
	}
	if err := u.leave(""); err != nil {
		return "", 0, err
	}
	return u.sum.digest(), u.sum.leftOut, nil
}

type unpacker struct {
	ctx     context.Context
	root    *os.Root
	sum     *filesSummer
	folders []folderTime // that the walk is in
	left    int64        // bytes that files may still have
	room    func() error
	since   int64 // bytes written since room was asked, an entry counting as some
}

// What is written between two looks at the room on the disk, in bytes, and what
// a file counts for besides its content.
const (
	roomEach = 32 << 20
	entryTax = 4 << 10
)

// leave gives the folders that a name is not in their times, which what came into
// them has changed.
func (u *unpacker) leave(name string) error {
	for len(u.folders) > 0 {
		d := u.folders[len(u.folders)-1]
		if strings.HasPrefix(name, d.name+"/") {
			return nil
		}
		if err := u.root.Chtimes(d.name, d.time, d.time); err != nil {
			return err
		}
		u.folders = u.folders[:len(u.folders)-1]
	}
	return nil
}

// spend notes that so many bytes are about to be written.
func (u *unpacker) spend(n int64) error {
	if u.since += n; u.since < roomEach {
		return nil
	}
	u.since = 0
	return u.room()
}

type folderTime struct {
	name string
	time time.Time
}

func (u *unpacker) visit(e ext4.Entry, data func(func(int64, []byte) error) error) error {
	name := filepath.Join(volumeFolder, e.Path)
	if leaves(e) {
		u.sum.add(e, "")
		return nil
	}
	if err := u.leave(name); err != nil {
		return err
	}
	if err := u.spend(entryTax); err != nil {
		return err
	}
	if same, met := u.sum.first[e.Inode]; met {
		u.sum.add(e, "")
		return u.root.Link(filepath.Join(volumeFolder, same), name)
	}
	switch {
	case e.Mode.IsDir():
		u.folders = append(u.folders, folderTime{name, timeOf(e)})
		u.sum.add(e, "")
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	case e.Mode&fs.ModeSymlink != 0:
		u.sum.add(e, "")
		if err := u.root.Symlink(e.Target, name); err != nil {
			return err
		}
		return u.link(name, e)
	case e.Mode.IsRegular():
		return u.file(name, e, data)
	default:
		u.sum.add(e, "")
		if err := u.special(name, e); err != nil {
			return err
		}
	}
	f, err := u.open(name, e)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.finish(f, e)
}

// link gives a symbolic link its owner and time.
func (u *unpacker) link(name string, e ext4.Entry) error {
	if err := u.root.Lchown(name, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	parent, err := u.root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	at := unix.NsecToTimespec(timeOf(e).UnixNano())
	return unix.UtimesNanoAt(int(parent.Fd()), filepath.Base(name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

// special makes a pipe or a socket's name.
func (u *unpacker) special(name string, e ext4.Entry) error {
	parent, err := u.root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	kind := uint32(unix.S_IFIFO)
	if e.Mode&fs.ModeSocket != 0 {
		kind = unix.S_IFSOCK
	}
	return unix.Mknodat(int(parent.Fd()), filepath.Base(name), kind|0o600, 0)
}

// open opens what was just made, without waiting for who would write into a pipe.
func (u *unpacker) open(name string, e ext4.Entry) (*os.File, error) {
	if e.Mode&(fs.ModeSocket|fs.ModeNamedPipe) != 0 { // a socket's name cannot be opened but so
		return u.root.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	}
	return u.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// file writes a file, holes left out.
func (u *unpacker) file(name string, e ext4.Entry, data func(func(int64, []byte) error) error) error {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(e.Size); err != nil {
		return err
	}
	content, err := hashPieces(u.ctx, e.Size, data, func(at int64, b []byte) error { return u.write(f, at, b) })
	if err != nil {
		return err
	}
	u.sum.add(e, content)
	return u.finish(f, e)
}

// write writes a piece of a file, and leaves a hole where it is zero: what takes
// no space in the image takes none here.
func (u *unpacker) write(f *os.File, at int64, b []byte) error {
	for len(b) > 0 {
		var n int
		zero := false
		for ; n < len(b); n += min(smallestBlock, len(b)-n) {
			z := isZero(b[n : n+min(smallestBlock, len(b)-n)])
			if n > 0 && z != zero {
				break
			}
			zero = z
		}
		if !zero {
			if u.left -= int64(n); u.left < 0 {
				return isle.Errorf(isle.Invalid, "its files have more in them than it has")
			}
			if err := u.spend(int64(n)); err != nil {
				return err
			}
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		at, b = at+int64(n), b[n:]
	}
	return nil
}

// smallestBlock is the size of ext4's smallest blocks.
const smallestBlock = 1024

func isZero(b []byte) bool {
	return len(bytes.TrimLeft(b[:min(len(b), 8)], "\x00")) == 0 && bytes.Equal(b[:len(b)-min(len(b), 8)], b[min(len(b), 8):])
}

// finish gives what was made its attributes, owner, permissions and time.
func (u *unpacker) finish(f *os.File, e ext4.Entry) error {
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) // also of what was opened as a path only
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if err := unix.Setxattr(path, k, []byte(e.Xattrs[k]), 0); err != nil {
			return isle.Errorf(isle.Unavailable, "the state folder's file system takes no extended attributes, and the volume has some: %w", err)
		}
	}
	if err := os.Chown(path, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if err := os.Chmod(path, e.Mode); err != nil {
		return err
	}
	return os.Chtimes(path, timeOf(e), timeOf(e))
}
