package ext4

import (
	"context"
	"encoding/binary"
)

// An extent is a run of blocks of a file.
type extent struct {
	logical  int64 // in the file
	physical int64 // in the image
	count    int64
	zero     bool // it was reserved and never written to
}

// A budget is what of an image a walk may still meet. No block is two files', so
// all of them together have no more than there are.
type budget struct {
	blocks  int64 // of files
	bytes   int64 // that files say to have, with holes
	entries int64
	memory  int64 // bytes that names may take while they are remembered
}

const (
	extentMagic = 0xF30A
	extentDepth = 5 // at most, of what the kernel makes
	// uninit is added to the length of an extent that was never written to.
	uninit = 1 << 15
)

// extents calls each with the extents of an inode, in their order.
func (m *Image) extents(ctx context.Context, i *inode, left *budget, each func(extent) error) error {
	if i.flags&flagExtents == 0 {
		return broken("inode %d has no extents", i.number)
	}
	r := &extentReader{m: m, ctx: ctx, inode: i.number, left: left, each: each}
	return r.node(i.block[:], -1)
}

type extentReader struct {
	m     *Image
	ctx   context.Context
	inode uint32
	left  *budget
	next  int64 // the first logical block that may come
	each  func(extent) error
}

// node reads a node of the tree; depth is what it must have, or -1.
func (r *extentReader) node(b []byte, depth int) error {
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	if err := r.ctx.Err(); err != nil {
		return err
	}
	entries, is := int(u16(b[2:])), int(u16(b[6:]))
	switch {
	case u16(b) != extentMagic:
		return broken("inode %d has no extents", r.inode)
	case depth >= 0 && is != depth || is > extentDepth:
		return broken("the extents of inode %d are %d deep", r.inode, is)
	case entries > (len(b)-12)/12 || entries == 0 && depth >= 0:
		return broken("a node of the extents of inode %d has %d of them", r.inode, entries)
	}
	for n := range entries {
		e := b[12+12*n : 24+12*n]
		logical := int64(u32(e))
		if logical < r.next {
			return broken("the extents of inode %d are not in their order", r.inode)
		}
		if is > 0 {
			child, err := r.m.block(int64(u32(e[4:])) | int64(u16(e[8:]))<<32)
			if err != nil {
				return err
			}
			if err := r.node(child, is-1); err != nil {
				return err
			}
			continue
		}
		x := extent{logical: logical, physical: int64(u32(e[8:])) | int64(u16(e[6:]))<<32, count: int64(u16(e[4:]))}
		if x.count > uninit {
			x.count, x.zero = x.count-uninit, true
		}
		if x.count == 0 || x.physical <= 0 || x.physical+x.count > r.m.blocks {
			return broken("an extent of inode %d is outside of it", r.inode)
		}
		if r.left.blocks -= x.count; r.left.blocks < 0 {
			return broken("its files have more blocks than it has")
		}
		r.next = logical + x.count
		if err := r.each(x); err != nil {
			return err
		}
	}
	return nil
}

// pieceSize is how many bytes are read at once.
const pieceSize = 1 << 20

// data calls each with what is in an inode, in its order, holes left out; the
// bytes are its own until it returns.
func (m *Image) data(ctx context.Context, i *inode, left *budget, each func(at int64, b []byte) error) error {
	buf := make([]byte, min(pieceSize, (i.size+m.blockSize-1)/m.blockSize*m.blockSize))
	return m.extents(ctx, i, left, func(x extent) error {
		for done := int64(0); done < x.count && !x.zero; {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (x.logical + done) * m.blockSize
			if at >= i.size {
				return nil // reserved beyond its end
			}
			n := min(x.count-done, int64(len(buf))/m.blockSize, (i.size-at+m.blockSize-1)/m.blockSize)
			b := buf[:n*m.blockSize]
			if err := m.read(b, x.physical+done); err != nil {
				return err
			}
			if err := each(at, b[:min(int64(len(b)), i.size-at)]); err != nil {
				return err
			}
			done += n
		}
		return nil
	})
}
