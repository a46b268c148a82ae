package local

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// cloneReserve is how many bytes must be free on the state's disk for a clone,
// even if it takes no space at first.
const cloneReserve = 64 << 20

// Clone makes the volume to a copy of the volume from, which nobody may have
// mounted; an earlier to is replaced, if nobody has it mounted. Where the file
// system can they share their blocks until one of them is written to, else the
// data is copied and holes are kept. It is durable when Clone returns, and
// appears whole or not at all. Without space for it the error is Exhausted.
func (v *Volumes) Clone(ctx context.Context, from, to isle.ID) (how string, err error) {
	src, err := v.open(from, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer src.Close()
	// Several may clone it at once; who mounts it waits until they have.
	if err := lock(ctx, src, unix.LOCK_SH); err != nil {
		return "", err
	}
	d, err := v.draft(ctx, src, to)
	if err != nil {
		return "", err
	}
	return d.how, d.keep()
}

// A draft is a clone that is not there yet.
type draft struct {
	v   *Volumes
	to  isle.ID
	tmp *os.File
	how string
	// What it was prefilled with; size 0: it was not.
	size   int64
	shares []extent
}

// draft clones an open file, which is still while that lasts: nobody has it
// mounted, or its file system is frozen.
func (v *Volumes) draft(ctx context.Context, src *os.File, to isle.ID) (*draft, error) {
	d, err := v.emptyDraft(ctx, to)
	if err != nil {
		return nil, err
	}
	if err := d.fill(ctx, src); err != nil {
		d.drop()
		return nil, err
	}
	return d, nil
}

// emptyDraft makes the file of a clone.
func (v *Volumes) emptyDraft(ctx context.Context, to isle.ID) (*draft, error) {
	if err := v.roomFor(ctx, to); err != nil {
		return nil, err
	}
	tmp, err := os.OpenFile(v.Path(to)+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, cloneError(to, err)
	}
	return &draft{v: v, to: to, tmp: tmp}, nil
}

// prefill shares what it can of an open file that is written to, for fill to
// find little left to do. A file that has been written to at random places since
// it was cloned before is in many pieces, and each takes its time: that is not
// for when everybody waits. Where it can't, fill does all of it.
func (d *draft) prefill(ctx context.Context, src *os.File) error {
	size, err := src.Seek(0, io.SeekEnd)
	if err == nil {
		err = d.tmp.Truncate(size)
	}
	if err == nil {
		err = reflinkAll(ctx, d.tmp, src, size)
	}
	if err == nil {
		d.shares, err = extents(d.tmp)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return cloneError(d.to, err)
	}
	d.size = size
	return nil
}

// fill gives the draft the content of the file, which is still while that lasts.
func (d *draft) fill(ctx context.Context, src *os.File) (err error) {
	d.how = environment.ByReflink
	if d.size > 0 {
		err = reflinkRest(d.tmp, src, d.shares, d.size)
	} else if err = reflink(d.tmp, src); errors.Is(err, errors.ErrUnsupported) {
		d.how, err = environment.ByCopy, d.v.copy(ctx, d.tmp, src)
	}
	if err != nil {
		return cloneError(d.to, err)
	}
	return nil
}

// keep makes the clone durable and has it appear. On error nothing of it is left.
func (d *draft) keep() error {
	if err := d.tmp.Sync(); err != nil {
		d.drop()
		return cloneError(d.to, err)
	}
	d.v.fault("clone.written")
	if err := os.Rename(d.tmp.Name(), d.v.Path(d.to)); err != nil {
		d.drop()
		return cloneError(d.to, err)
	}
	d.tmp.Close()
	return syncDir(filepath.Dir(d.v.Path(d.to)))
}

// drop removes it.
func (d *draft) drop() {
	d.tmp.Close()
	os.Remove(d.tmp.Name())
}

// roomFor returns nil where a clone can be made.
func (v *Volumes) roomFor(ctx context.Context, to isle.ID) error {
	if !to.Valid() {
		return isle.Errorf(isle.Internal, "clone a volume: %q is no ID", to)
	}
	if err := v.store.prepare(ctx); err != nil {
		return err
	}
	if free, err := freeSpace(v.dir); err == nil && free < cloneReserve {
		return isle.Errorf(isle.Exhausted, "no space left to clone a volume: %d MiB are free for the state folder", free>>20).
			WithHint("make room, for example with `isle gc`")
	}
	return v.unused(ctx, to)
}

// cloneError says why a volume was not cloned.
func cloneError(to isle.ID, err error) error {
	var known *isle.Error
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return isle.Errorf(isle.Exhausted, "no space left to clone a volume: %w", err).WithHint("make room, for example with `isle gc`")
	}
	return isle.Errorf(isle.Unavailable, "clone a volume to %s: %w", to, err)
}

// reflink makes dst share all blocks of src (ioctl_ficlone(2)). The error is
// errors.ErrUnsupported where the file system can't, or where they are on two.
func reflink(dst, src *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	switch err {
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS:
		return errors.ErrUnsupported
	}
	return os.NewSyscallError("ficlone", err)
}

// copyChunk is how many bytes are copied between two looks at the context.
const copyChunk = 8 << 20

// copy copies the data of src to dst, which is empty, and leaves holes where src
// has them.
func (v *Volumes) copy(ctx context.Context, dst, src *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if free, err := freeSpace(v.dir); err == nil && st.Blocks*512 > free {
		return isle.Errorf(isle.Exhausted, "no space left to copy a volume of %d MiB: %d MiB are free for the state folder", st.Blocks*512>>20, free>>20).
			WithHint("make room, for example with `isle gc`")
	}
	if err := dst.Truncate(st.Size); err != nil {
		return err
	}
	for at := int64(0); at < st.Size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		for at = data; at < hole; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := copyRange(dst, src, at, min(copyChunk, hole-at))
			if err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}

// copyRange copies up to n bytes at the same offset of both files: in the
// kernel, or through memory where the kernel can't between these two.
func copyRange(dst, src *os.File, at, n int64) (int64, error) {
	from, to := at, at
	copied, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(n), 0)
	switch {
	case err == nil && copied > 0:
		return int64(copied), nil
	case err == nil:
		return 0, io.ErrUnexpectedEOF
	case !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL):
		return 0, os.NewSyscallError("copy_file_range", err)
	}
	written, err := io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, n))
	if err == nil && written == 0 {
		err = io.ErrUnexpectedEOF
	}
	return written, err
}
