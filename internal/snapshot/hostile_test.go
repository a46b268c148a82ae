package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/seal"
	"isle/internal/snapshot/ext4"
)

// A forger changes the volume of an image that mke2fs has made.
type forger struct {
	t      *testing.T
	b      []byte
	inodes map[string]uint32 // by path
}

// inode is the inode of a path.
func (f *forger) inode(path string) []byte {
	f.t.Helper()
	n, le := f.inodes[path], binary.LittleEndian
	if n == 0 {
		f.t.Fatalf("there is no %s", path)
	}
	block := 1024 << le.Uint32(f.b[1024+0x18:])
	per, size := le.Uint32(f.b[1024+0x28:]), int(le.Uint16(f.b[1024+0x58:]))
	at := (int(le.Uint32(f.b[1024+0x14:]))+1)*block + int((n-1)/per)*int(le.Uint16(f.b[1024+0xFE:]))
	at = int(le.Uint32(f.b[at+8:]))*block + int((n-1)%per)*size
	return f.b[at : at+size]
}

// extent has a file hold count blocks of the image from one on, and nothing else.
func (f *forger) extent(path string, from, count uint32) {
	f.t.Helper()
	i, le := f.inode(path), binary.LittleEndian
	le.PutUint32(i[4:], count*uint32(1024<<le.Uint32(f.b[1024+0x18:])))
	copy(i[0x28:], []byte{0x0A, 0xF3, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0})
	le.PutUint32(i[0x28+12:], 0)
	le.PutUint16(i[0x28+16:], uint16(count))
	le.PutUint16(i[0x28+18:], 0)
	le.PutUint32(i[0x28+20:], from)
}

// first is the first block of a file.
func (f *forger) first(path string) uint32 {
	return binary.LittleEndian.Uint32(f.inode(path)[0x28+20:])
}

// forge makes the file of a snapshot whose volume has the files that fill makes,
// as change then changes the image.
func forge(t *testing.T, size int64, fill func(dir string), change func(f *forger)) []byte {
	t.Helper()
	w := newWorld(t, "mallory")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	fill(filepath.Join(dir, "data"))
	d, err := w.Draft()
	if err != nil {
		t.Fatal(err)
	}
	id := d.Volume("db", "/data")
	if err := w.volumes.Create(t.Context(), id, size); err != nil {
		t.Fatal(err)
	}
	if err := w.volumes.Fill(t.Context(), id, dir); err != nil {
		t.Fatal(err)
	}
	path := w.volumes.Path(id)
	f := &forger{t: t, inodes: map[string]uint32{}}
	if f.b, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	image, err := ext4.New(bytes.NewReader(f.b), size)
	if err != nil {
		t.Fatal(err)
	}
	err = image.Walk(t.Context(), volumeFolder, func(e ext4.Entry, _ func(func(int64, []byte) error) error) error {
		f.inodes[e.Path] = e.Inode
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	change(f)
	if err := os.WriteFile(path, f.b, 0o600); err != nil {
		t.Fatal(err)
	}
	snap, err := d.Seal(t.Context(), alice, manifest())
	if err != nil {
		t.Fatal(err)
	}
	return w.export(snap.Digest.Hex())
}

// A measured is Volumes that look at what lies on disk when one is to be filled.
type measured struct {
	folder
	used *int64
}

func (m measured) Fill(ctx context.Context, id isle.ID, dir string) error {
	*m.used = max(*m.used, usedBelow(dir))
	return m.folder.Fill(ctx, id, dir)
}

func TestFilesOfZerosTakeNoSpaceWhileTheyAreImported(t *testing.T) {
	const size = 64 << 20
	file := forge(t, size, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "zeros"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}, func(f *forger) { f.extent("zeros", size/2/1024, 30<<10) }) // which nothing was ever written to
	there := newWorld(t, "there")
	var used int64
	there.config.Volumes = measured{there.volumes, &used}
	there.open()
	snap, err := there.take(file)
	if err != nil {
		t.Fatal(err)
	}
	if used > 1<<20 {
		t.Errorf("a file of %d bytes takes %d bytes of disk while it is imported", len(file), used)
	}
	f, err := seal.Open(there.volumes.Path(snap.Local["db:/data"]))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := treeOf(t.Context(), f)
	if err != nil || len(tree.Entries) != 2 || tree.Entries[1].Size != 30<<20 {
		t.Errorf("%+v %v", tree, err)
	}
}

func TestBlocksThatManyFilesClaimAreNotWrittenForEach(t *testing.T) {
	const files = 12
	random := make([]byte, 4<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	file := forge(t, 64<<20, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "real"), random, 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("copy%d", i)), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}, func(f *forger) {
		for i := range files {
			f.extent(fmt.Sprintf("copy%d", i), f.first("real"), 3<<10)
		}
	})
	there := newWorld(t, "there")
	if _, err := there.take(file); code(err) != isle.Invalid || !strings.Contains(err.Error(), "more in them") {
		t.Errorf("%s: %v", code(err), err)
	}
	if folders, volumes := there.left(); len(folders)+len(volumes) != 0 {
		t.Errorf("%v %v", folders, volumes)
	}
}

func TestOnlySoManyImportsGoOnAtOnce(t *testing.T) {
	w := newWorld(t, "there")
	var all sync.WaitGroup
	defer all.Wait()
	var ends []*io.PipeWriter
	for range maxImports {
		r, end := io.Pipe()
		ends = append(ends, end)
		all.Go(func() { w.Import(t.Context(), alice, r, anything) })
	}
	for _, end := range ends {
		if _, err := end.Write([]byte{0x28}); err != nil { // it was begun, and waits for more
			t.Error(err)
		}
	}
	if _, err := w.take(nil); code(err) != isle.Exhausted {
		t.Errorf("%s: %v", code(err), err)
	}
	for _, end := range ends {
		end.Close()
	}
	all.Wait()
	if _, err := w.take(nil); code(err) != isle.Invalid {
		t.Errorf("%s: %v", code(err), err)
	}
}

// sparseEntry is an entry of a tar that says to have size bytes, and has none: the
// format 1.0 of GNU tar (its manual, "Sparse Formats").
func sparseEntry(name string, size int64) []byte {
	block := func(name string, kind byte, data string) []byte {
		b := make([]byte, 512)
		copy(b, name)
		copy(b[100:], "0000600\x000000000\x000000000\x00")
		copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", len(data)))
		b[156] = kind
		copy(b[257:], "ustar\x0000")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(b, append([]byte(data), make([]byte, (512-len(data)%512)%512)...)...)
	}
	var records string
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=" + name, fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(r) + 4 // a space, a newline and two digits
		records += fmt.Sprintf("%d %s\n", n, r)
	}
	content := fmt.Sprintf("1\n%d\n0\n", size)
	return append(block("pax", 'x', records), block("GNUSparseFile.0/x", '0', content+strings.Repeat("\x00", 512-len(content)))...)
}

func TestWhatIsHashedOfAnImportIsSentWhole(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	made := here.database("pages")
	m := made.Manifest
	memory := *m.Memory
	memory.Files = slices.Clone(memory.Files)
	memory.Files[0].Size = 1 << 40
	m.Memory = &memory
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := keyOf(t, "mallory").Sign(seal.NoteText(shelfKind, isle.DigestOf(b)))
	if err != nil {
		t.Fatal(err)
	}
	parts := unzip(t, here.export(made.Digest.Hex()))
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, p := range []part{{parts[0].name, b}, {parts[1].name, sig}, parts[2]} {
		if err := w.WriteHeader(&tar.Header{Name: p.name, Typeflag: tar.TypeReg, Size: int64(len(p.body)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		w.Write(p.body)
	}
	w.Flush()
	plain.Write(sparseEntry(parts[3].name, memory.Files[0].Size))
	var file bytes.Buffer
	z, err := zstd.NewWriter(&file)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain.Bytes())
	z.Close()
	if _, err := there.take(file.Bytes()); code(err) != isle.Invalid || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("%s: %v", code(err), err)
	}
}
