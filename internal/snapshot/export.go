package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/seal"
)

// The file of a snapshot is a tar (POSIX pax) compressed by zstd (RFC 8878), of
// entries in this order: the manifest, the signature, each volume and each file of
// the memory, as the manifest has them. The entry of a volume holds its blocks
// that are not zero, each after its number (big-endian uint64). The same snapshot
// gives the same bytes.
const (
	entryManifest  = "isle-snapshot/manifest.json"
	entrySignature = "isle-snapshot/signature"
	entryVolume    = "isle-snapshot/volume-%03d"
	entryMemory    = "isle-snapshot/memory-%03d"

	// maxWindow bounds the memory that the file's compression takes, in bytes.
	maxWindow = 8 << 20
	// numberSize is the size of a block's number.
	numberSize = 8
)

// entrySize is the size of a volume's entry: how many blocks it has is known by
// their bytes, for all but the last block of a volume have BlockSize.
func (v Volume) entrySize() int64 { return v.Bytes + numberSize*blocks(v.Bytes) }

// Export writes a snapshot as one file: what was sealed, bit for bit. It fails
// with Untrusted where that is not what is there.
func (s *Snapshots) Export(ctx context.Context, name string, w io.Writer) error {
	snap, done, err := s.Use(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	if snap.Imported {
		return isle.Errorf(isle.Refused, "snapshot %s came in a file, and its volumes were written anew: what was signed is not here", snap.Digest.Short()).
			WithHint("export it where it was made; or fork it, and export a snapshot of the fork")
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow/2))
	if err != nil {
		return isle.Errorf(isle.Internal, "export a snapshot: %w", err)
	}
	e := &exporter{s: s, ctx: ctx, snap: snap, tar: tar.NewWriter(z)}
	if err := e.all(); err != nil {
		z.Close()
		return err
	}
	if err := e.tar.Close(); err != nil {
		return err
	}
	return z.Close()
}

type exporter struct {
	s    *Snapshots
	ctx  context.Context
	snap Snapshot
	tar  *tar.Writer
}

func (e *exporter) begin(name string, size int64) error {
	return e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o400, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (e *exporter) all() error {
	dir := e.s.dir(e.snap.Digest)
	for _, f := range []struct {
		entry, file string
		limit       int64
	}{{entryManifest, seal.FileManifest, MaxManifest}, {entrySignature, seal.FileSignature, seal.MaxNote}} {
		b, err := seal.Read(filepath.Join(dir, f.file), f.limit)
		if err != nil {
			return diskError("export a snapshot", err)
		}
		if err := e.begin(f.entry, int64(len(b))); err != nil {
			return err
		}
		if _, err := e.tar.Write(b); err != nil {
			return err
		}
	}
	m := e.snap.Manifest
	for i, v := range m.Volumes {
		if err := e.begin(fmt.Sprintf(entryVolume, i), v.entrySize()); err != nil {
			return err
		}
		if err := e.volume(v); err != nil {
			return err
		}
	}
	if m.Memory == nil {
		return nil
	}
	for i, f := range m.Memory.Files {
		if err := e.begin(fmt.Sprintf(entryMemory, i), f.Size); err != nil {
			return err
		}
		if err := e.memory(filepath.Join(dir, folderMemory, f.Name), f); err != nil {
			return err
		}
	}
	return nil
}

// volume writes the blocks of a volume that are not zero, and hashes all of them
// on the way.
func (e *exporter) volume(v Volume) error {
	f, err := seal.Open(e.s.cfg.Volumes.Path(e.snap.Local[v.Name()]))
	if err != nil {
		return e.s.wrong(e.snap, "its volume "+v.Name(), err)
	}
	defer f.Close()
	sum := newSummer(v.Size)
	buf := make([]byte, BlockSize)
	w := bufio.NewWriterSize(e.tar, BlockSize+numberSize)
	for from := int64(0); from < blocks(v.Size); from += window {
		to := min(from+window, blocks(v.Size))
		data, err := dataBlocks(f, v.Size, from, to)
		if err != nil {
			return diskError("read a volume", err)
		}
		for n := from; n < to; n++ {
			if len(data) == 0 || data[0] != n {
				sum.add(n, sum.zero(n))
				continue
			}
			data = data[1:]
			if err := e.block(w, f, v, sum, buf, n); err != nil {
				return err
			}
		}
	}
	if c := sum.content(); c.digest != v.Digest {
		return e.s.wrong(e.snap, "its volume "+v.Name(), errChanged)
	}
	return w.Flush()
}

func (e *exporter) block(w *bufio.Writer, f *os.File, v Volume, sum *summer, buf []byte, n int64) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	b := buf[:blockLength(v.Size, n)]
	if _, err := f.ReadAt(b, n*BlockSize); err != nil {
		return diskError("read a volume", err)
	}
	this := sha256.Sum256(b)
	sum.add(n, this)
	if this == sum.zero(n) {
		return nil
	}
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// memory writes a file of the memory, and hashes it on the way.
func (e *exporter) memory(path string, want File) error {
	f, err := seal.Open(path)
	if err != nil {
		return e.s.wrong(e.snap, "the file "+want.Name+" of its memory", err)
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(h, e.tar)}, contextReader{e.ctx, io.LimitReader(f, want.Size)}, make([]byte, BlockSize))
	if err != nil {
		return err
	}
	if isle.DigestFromSum(h.Sum(nil)) != want.Digest {
		return e.s.wrong(e.snap, "the file "+want.Name+" of its memory", errChanged)
	}
	return nil
}
