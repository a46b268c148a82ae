// Package ext4 reads the files in an ext4 image without giving it to the kernel.
//
// An Image may be anybody's. Of it are read the super block, group descriptors,
// inodes, extents and directories (docs.kernel.org/filesystems/ext4), and what
// mke2fs and Linux do not write to a volume that was frozen when it was copied is
// refused: other features, a journal that was not played back, files of block
// maps. Every Walk is bounded: all files together have no more blocks than the
// image, no folder is met twice, sizes that no such image has are refused, and
// names take a bounded memory.
package ext4

import (
	"encoding/binary"
	"fmt"
	"io"

	"isle"
)

// Features that an image may have (s_feature_incompat, s_feature_ro_compat).
// Those that are compatible say nothing about how files are read.
const (
	incompatFiletype = 0x2
	incompatRecover  = 0x4
	incompatExtents  = 0x40
	incompat64bit    = 0x80
	incompatFlexBG   = 0x200
	incompatCsumSeed = 0x2000
	incompatLargeDir = 0x4000
	incompatKnown    = incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG | incompatCsumSeed | incompatLargeDir

	// sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink,
	// extra_isize, quota, metadata_csum, read-only, project, orphan_present
	roCompatKnown = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x10000
)

// Bounds of a walk.
const (
	maxEntries    = 8 << 20 // in all
	maxEntriesDir = 1 << 20 // of one folder
	maxPath       = 4096    // bytes
	maxNameLen    = 255
	maxTarget     = 4095
	// slack is how much larger than their image files with holes may say to be in
	// all, in bytes.
	slack = 64 << 30
	// maxMemory is for the names that are remembered: those of the folders that the
	// walk is in, and of files that have several. Each counts for nameCost besides.
	maxMemory = 128 << 20
	nameCost  = 64
)

// An Image is an ext4 file system in a file. It is safe for concurrent use if
// its reader is.
type Image struct {
	r         io.ReaderAt
	size      int64
	blockSize int64
	blocks    int64 // in all
	first     int64 // s_first_data_block
	inodes    uint32
	perGroup  uint32 // inodes
	inodeSize int64
	descSize  int64
	memory    int64 // maxMemory
}

// broken is an image that cannot be read.
func broken(format string, args ...any) error {
	return isle.Errorf(isle.Invalid, "the volume's file system cannot be read: %s", fmt.Sprintf(format, args...))
}

// New reads the super block of an image of size bytes. It fails with Invalid for
// what is no ext4, or has what a volume of Isle's does not.
func New(r io.ReaderAt, size int64) (*Image, error) {
	var sb [1024]byte
	if _, err := r.ReadAt(sb[:], 1024); err != nil {
		if err == io.EOF {
			return nil, broken("it is too small")
		}
		return nil, err
	}
	u16, u32 := func(at int) uint16 { return binary.LittleEndian.Uint16(sb[at:]) }, func(at int) uint32 { return binary.LittleEndian.Uint32(sb[at:]) }
	if u16(0x38) != 0xEF53 {
		return nil, broken("it is no ext4")
	}
	log, incompat, roCompat := u32(0x18), u32(0x60), u32(0x64)
	switch {
	case incompat&incompatRecover != 0:
		return nil, broken("its journal was not played back: the volume was copied while it was written to")
	case incompat&^incompatKnown != 0 || roCompat&^roCompatKnown != 0:
		return nil, broken("it has features that volumes do not have (%#x, %#x)", incompat&^incompatKnown, roCompat&^roCompatKnown)
	case incompat&incompatExtents == 0 || incompat&incompatFiletype == 0 || u32(0x4C) != 1:
		return nil, broken("it is an older ext2 or ext3")
	case log > 2:
		return nil, broken("its blocks are larger than 4096 bytes")
	}
	m := &Image{r: r, size: size, blockSize: 1024 << log, blocks: int64(u32(4)), first: int64(u32(0x14)), inodes: u32(0), perGroup: u32(0x28), inodeSize: int64(u16(0x58)), descSize: 32, memory: maxMemory}
	if incompat&incompat64bit != 0 {
		m.blocks |= int64(u32(0x150)) << 32
		m.descSize = int64(u16(0xFE))
	}
	switch {
	case m.blocks <= 0 || m.blocks > size/m.blockSize:
		return nil, broken("it says to have %d blocks of %d bytes, and is %d bytes long", m.blocks, m.blockSize, size)
	case m.first > 1 || m.perGroup == 0 || m.inodes == 0 || int64(m.inodes) > m.blocks*(m.blockSize/128):
		return nil, broken("its groups are none")
	case m.inodeSize < 128 || m.inodeSize > m.blockSize || m.inodeSize&(m.inodeSize-1) != 0:
		return nil, broken("its inodes have %d bytes", m.inodeSize)
	case m.descSize < 32 || m.descSize > m.blockSize || m.descSize&(m.descSize-1) != 0:
		return nil, broken("its group descriptors have %d bytes", m.descSize)
	}
	return m, nil
}

// block reads one block.
func (m *Image) block(n int64) ([]byte, error) {
	b := make([]byte, m.blockSize)
	return b, m.read(b, n)
}

// read reads whole blocks, the first of them n.
func (m *Image) read(b []byte, n int64) error {
	if n <= 0 || n+int64(len(b))/m.blockSize > m.blocks {
		return broken("block %d is outside of it", n)
	}
	if _, err := m.r.ReadAt(b, n*m.blockSize); err != nil {
		return fmt.Errorf("read the volume's block %d: %w", n, err)
	}
	return nil
}

// The types of files, as i_mode has them.
const (
	typeMask   = 0xF000
	typeFIFO   = 0x1000
	typeChar   = 0x2000
	typeDir    = 0x4000
	typeBlock  = 0x6000
	typeFile   = 0x8000
	typeLink   = 0xA000
	typeSocket = 0xC000
)

// Flags of inodes.
const (
	flagEncrypt  = 0x800
	flagExtents  = 0x80000
	flagVerity   = 0x100000
	flagEAInode  = 0x200000
	flagInline   = 0x10000000
	flagsRefused = flagEncrypt | flagVerity | flagEAInode | flagInline
)

// An inode is one file, folder or other.
type inode struct {
	number   uint32
	mode     uint16
	uid, gid uint32
	size     int64
	mtime    int64  // Unix seconds
	nanos    uint32 // of mtime
	links    uint16
	flags    uint32
	block    [60]byte // i_block: extents, or where a short link leads
	xattr    []byte   // within the inode, from its first entry on; nil: none
	xblock   int64    // with more of them; 0: none
}

func (i *inode) kind() uint16 { return i.mode & typeMask }

// inode reads one by its number.
func (m *Image) inode(n uint32) (*inode, error) {
	if n == 0 || n > m.inodes {
		return nil, broken("it has no inode %d", n)
	}
	group, index := int64((n-1)/m.perGroup), int64((n-1)%m.perGroup)
	desc := make([]byte, m.descSize)
	at := (m.first+1)*m.blockSize + group*m.descSize
	if at+m.descSize > m.blocks*m.blockSize {
		return nil, broken("inode %d is in group %d, which is outside of it", n, group)
	}
	if _, err := m.r.ReadAt(desc, at); err != nil {
		return nil, fmt.Errorf("read the volume's group %d: %w", group, err)
	}
	table := int64(binary.LittleEndian.Uint32(desc[8:]))
	if m.descSize >= 64 {
		table |= int64(binary.LittleEndian.Uint32(desc[0x28:])) << 32
	}
	b := make([]byte, m.inodeSize)
	if table <= 0 || table >= m.blocks || table*m.blockSize+(index+1)*m.inodeSize > m.blocks*m.blockSize {
		return nil, broken("inode %d is outside of it", n)
	}
	if _, err := m.r.ReadAt(b, table*m.blockSize+index*m.inodeSize); err != nil {
		return nil, fmt.Errorf("read the volume's inode %d: %w", n, err)
	}
	return parseInode(n, b)
}

func parseInode(n uint32, b []byte) (*inode, error) {
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	i := &inode{
		number: n, mode: u16(b), links: u16(b[0x1A:]), flags: u32(b[0x20:]),
		uid:    uint32(u16(b[2:])) | uint32(u16(b[0x78:]))<<16,
		gid:    uint32(u16(b[0x18:])) | uint32(u16(b[0x7A:]))<<16,
		size:   int64(u32(b[4:])) | int64(u32(b[0x6C:]))<<32,
		mtime:  int64(int32(u32(b[0x10:]))),
		xblock: int64(u32(b[0x68:])) | int64(u16(b[0x76:]))<<32,
	}
	copy(i.block[:], b[0x28:])
	if len(b) > 128 {
		extra := 128 + int(u16(b[0x80:]))
		if extra > len(b) || extra%4 != 0 {
			return nil, broken("inode %d says to have %d bytes", n, extra)
		}
		if extra >= 0x8C {
			x := u32(b[0x88:]) // two more bits of seconds, then nanoseconds
			i.mtime += int64(x&3) << 32
			i.nanos = min(x>>2, 999_999_999)
		}
		if len(b)-extra > 4 && u32(b[extra:]) == xattrMagic {
			i.xattr = b[extra+4:]
		}
	}
	switch {
	case i.links == 0 || i.mode == 0:
		return nil, broken("inode %d is of nothing", n)
	case i.flags&flagsRefused != 0:
		return nil, broken("inode %d has flags that volumes do not have (%#x)", n, i.flags&flagsRefused)
	case i.size < 0:
		return nil, broken("inode %d has %d bytes", n, i.size)
	}
	return i, nil
}
