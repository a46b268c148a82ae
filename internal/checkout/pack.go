package checkout

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

const (
	maxPacks  = 4096
	maxDeltas = 4096     // that stand on each other; git makes at most 4095
	maxChain  = 64 << 20 // bytes of them
	maxMade   = 1 << 30  // bytes of what is made on the way, one after the other
)

// A pack is a file of many objects, and its index (gitformat-pack(5), version
// 2 of both).
type pack struct {
	hashLen int
	index   io.ReaderAt
	data    io.ReaderAt
	size    int64 // of data
	count   int64 // of objects
	files   []*os.File
}

// errPack is why an object of a pack cannot be read.
var errPack = errors.New("a pack is damaged")

// openPacks lists the packs, once.
func (o *objects) openPacks() error {
	if o.opened {
		return nil
	}
	o.opened = true
	for _, dir := range o.dirs {
		entries, err := os.ReadDir(filepath.Join(dir, "pack"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return cause(err)
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), ".idx")
			if !ok || len(o.packs) == maxPacks {
				continue
			}
			p, err := openPack(filepath.Join(dir, "pack", name), o.hashLen)
			if errors.Is(err, fs.ErrNotExist) {
				continue // one that is being replaced
			}
			if err != nil {
				return err
			}
			o.packs = append(o.packs, p)
		}
	}
	return nil
}

// openPack opens name.idx and name.pack.
func openPack(name string, hashLen int) (*pack, error) {
	index, err := openFile(name + ".idx")
	if err != nil {
		return nil, err
	}
	data, err := openFile(name + ".pack")
	if err != nil {
		index.Close()
		return nil, err
	}
	p := &pack{hashLen: hashLen, index: index, data: data, files: []*os.File{index, data}}
	st, err := data.Stat()
	if err == nil {
		p.size = st.Size()
		err = p.readHeader()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pack) close() {
	for _, f := range p.files {
		f.Close()
	}
}

const (
	fanout   = 8 // where in an index the counts by first byte are
	idxNames = fanout + 256*4
)

func (p *pack) readHeader() error {
	var head [fanout]byte
	if _, err := p.index.ReadAt(head[:], 0); err != nil || string(head[:]) != "\xfftOc\x00\x00\x00\x02" {
		return errors.New("a pack's index is of a version that is not known here")
	}
	n, err := p.uint32(fanout + 255*4)
	p.count = n
	return err
}

// uint32 reads a number of the index.
func (p *pack) uint32(at int64) (int64, error) {
	var b [4]byte
	if _, err := p.index.ReadAt(b[:], at); err != nil {
		return 0, errPack
	}
	return int64(binary.BigEndian.Uint32(b[:])), nil
}

// find returns where in the pack an object begins.
func (p *pack) find(id string) (offset int64, ok bool, err error) {
	var from int64
	if id[0] > 0 {
		if from, err = p.uint32(fanout + (int64(id[0])-1)*4); err != nil {
			return 0, false, err
		}
	}
	to, err := p.uint32(fanout + int64(id[0])*4)
	if err != nil || from > to || to > p.count {
		return 0, false, errPack
	}
	name := make([]byte, p.hashLen)
	i := from + int64(sort.Search(int(to-from), func(i int) bool {
		if _, rerr := p.index.ReadAt(name, idxNames+(from+int64(i))*int64(p.hashLen)); rerr != nil {
			err = errPack
			return true
		}
		return bytes.Compare(name, []byte(id)) >= 0
	}))
	if err != nil || i == to {
		return 0, false, err
	}
	if _, err := p.index.ReadAt(name, idxNames+i*int64(p.hashLen)); err != nil {
		return 0, false, errPack
	}
	if string(name) != id {
		return 0, false, nil
	}
	offsets := idxNames + p.count*int64(p.hashLen+4) // behind the names and their checksums
	offset, err = p.uint32(offsets + i*4)
	if err == nil && offset&(1<<31) != 0 { // in the table of large ones
		var b [8]byte
		if _, err := p.index.ReadAt(b[:], offsets+p.count*4+(offset&^(1<<31))*8); err != nil {
			return 0, false, errPack
		}
		offset = int64(binary.BigEndian.Uint64(b[:]))
	}
	return offset, err == nil, err
}

// read returns the object at an offset: what it is a change of first, then
// each change.
func (p *pack) read(offset int64) (object, error) {
	var deltas [][]byte
	seen := map[int64]bool{}
	total := 0
	for range maxDeltas {
		if offset < 0 || offset >= p.size || seen[offset] {
			return object{}, errPack
		}
		seen[offset] = true
		r := bufio.NewReader(io.NewSectionReader(p.data, offset, p.size-offset))
		kind, size, err := entryHeader(r)
		if err != nil {
			return object{}, err
		}
		next := int64(-1)
		switch kind {
		case typeOfsDelta:
			back, err := baseOffset(r)
			if err != nil || back <= 0 || back > offset {
				return object{}, errPack
			}
			next = offset - back
		case typeRefDelta:
			base := make([]byte, p.hashLen)
			if _, err := io.ReadFull(r, base); err != nil {
				return object{}, errPack
			}
			at, ok, err := p.find(string(base))
			if err != nil || !ok {
				return object{}, errPack
			}
			next = at
		case typeCommit, typeTree:
		default:
			return object{kind: kind}, nil // a file's content, which nobody asks for
		}
		data, err := inflate(r, size)
		if err != nil {
			return object{}, err
		}
		if next < 0 {
			made := 0
			for i := len(deltas) - 1; i >= 0; i-- {
				if made += len(data); made > maxMade {
					return object{}, errPack
				}
				if data, err = applyDelta(data, deltas[i]); err != nil {
					return object{}, err
				}
			}
			return object{kind, data}, nil
		}
		if total += len(data); total > maxChain {
			break
		}
		deltas = append(deltas, data)
		offset = next
	}
	return object{}, errPack
}

// entryHeader reads the type and the size of an entry of a pack.
func entryHeader(r io.ByteReader) (kind int, size int64, err error) {
	b, err := r.ReadByte()
	if err != nil {
		return 0, 0, errPack
	}
	kind, size = int(b>>4&7), int64(b&15)
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = r.ReadByte(); err != nil || shift > 46 {
			return 0, 0, errPack
		}
		size |= int64(b&0x7f) << shift
	}
	return kind, size, nil
}

// baseOffset reads how far before an entry the one is that it is a change of.
func baseOffset(r io.ByteReader) (int64, error) {
	b, err := r.ReadByte()
	if err != nil {
		return 0, errPack
	}
	n := int64(b & 0x7f)
	for range 8 {
		if b&0x80 == 0 {
			return n, nil
		}
		if b, err = r.ReadByte(); err != nil {
			return 0, errPack
		}
		n = (n+1)<<7 | int64(b&0x7f)
	}
	return 0, errPack
}

// inflate reads compressed bytes that are size uncompressed.
func inflate(r io.Reader, size int64) ([]byte, error) {
	if size > maxObject {
		return nil, errPack
	}
	z, err := zlib.NewReader(r)
	if err != nil {
		return nil, errPack
	}
	// Grown as it is read: a size is easily claimed.
	b, err := io.ReadAll(io.LimitReader(z, size+1))
	if err != nil || int64(len(b)) != size {
		return nil, errPack
	}
	return b, nil
}

// applyDelta makes an object of another and what differs.
func applyDelta(base, delta []byte) ([]byte, error) {
	from, delta, ok1 := deltaSize(delta)
	to, delta, ok2 := deltaSize(delta)
	if !ok1 || !ok2 || from != int64(len(base)) || to > maxObject {
		return nil, errPack
	}
	var out []byte
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		if op&0x80 == 0 { // bytes of its own
			n := int(op)
			if n == 0 || n > len(delta) {
				return nil, errPack
			}
			out, delta = append(out, delta[:n]...), delta[n:]
		} else { // bytes of the other
			var v [7]int // four of the offset, three of the length
			for i := range v {
				if op&(1<<i) != 0 {
					if len(delta) == 0 {
						return nil, errPack
					}
					v[i], delta = int(delta[0]), delta[1:]
				}
			}
			at, n := v[0]|v[1]<<8|v[2]<<16|v[3]<<24, v[4]|v[5]<<8|v[6]<<16
			if n == 0 {
				n = 0x10000
			}
			if at+n > len(base) {
				return nil, errPack
			}
			out = append(out, base[at:at+n]...)
		}
		if int64(len(out)) > to {
			return nil, errPack
		}
	}
	if int64(len(out)) != to {
		return nil, errPack
	}
	return out, nil
}

// deltaSize reads one of the two sizes that a delta begins with.
func deltaSize(b []byte) (n int64, rest []byte, ok bool) {
	for i := 0; i < len(b) && i < 8; i++ {
		n |= int64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return n, b[i+1:], true
		}
	}
	return 0, nil, false
}
