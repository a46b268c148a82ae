package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/seal"
)

// Import reads a snapshot from a file that Export wrote, on this server or
// another. Everything in it is taken for hostile: it is read within the bounds
// that its manifest gives, what does not have its digest is Untrusted, no name is
// taken from it, and no file system of it is given to the kernel: each volume is
// written anew from the files that are read out of it. Memory is kept where the
// signature is trusted, and left out otherwise. The snapshot has the digest that
// it had; the record says that its volumes were written anew, and the digests of
// their new content.
//
// allow is asked before anything is stored, whether whoever imports may have a
// snapshot of that stage and project.
func (s *Snapshots) Import(ctx context.Context, actor isle.Actor, r io.Reader, allow func(Manifest) error) (Snapshot, error) {
	if err := s.beginImport(); err != nil {
		return Snapshot{}, err
	}
	defer s.endImport()
	d, err := s.Draft()
	if err != nil {
		return Snapshot{}, err
	}
	defer d.Discard()
	z, err := zstd.NewReader(contextReader{ctx, r}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(4*maxWindow))
	if err != nil {
		return Snapshot{}, isle.Errorf(isle.Internal, "import a snapshot: %w", err)
	}
	defer z.Close()
	// Beyond what the entries may have together tar has its own headers.
	limited := &limitedReader{r: z, left: MaxManifest + 64<<10}
	i := &importer{s: s, ctx: ctx, draft: d, limit: limited, tar: tar.NewReader(bufio.NewReaderSize(limited, 64<<10))}
	if err := i.manifest(); err != nil {
		return Snapshot{}, i.error(err)
	}
	if err := allow(i.m); err != nil {
		return Snapshot{}, err
	}
	if err := i.content(); err != nil {
		return Snapshot{}, i.error(err)
	}
	rec := record{
		Sealed: s.cfg.Now().UTC(), By: actor, Volumes: d.local.Volumes, Ref: i.m.Ref, Project: i.m.Project, Parent: i.m.Parent,
		Imported: &imported{NoMemory: i.m.Memory != nil && !i.trusted},
	}
	e := audit.NewEvent(actor, isle.ActionSnapshotImport, resourceOf(i.m.Ref), isle.Allow, "volumes written anew from their files").
		With("signer", i.signer).With("trusted", strconv.FormatBool(i.trusted))
	if err := d.settle(ctx, i.digest, rec, entryWith(e, i.digest, i.m)); err != nil {
		return Snapshot{}, i.error(err)
	}
	return s.view(i.digest)
}

// maxImports bounds the imports that go on at once: what each may take of memory
// and of time is bounded for itself.
const maxImports = 8

func (s *Snapshots) beginImport() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.imports >= maxImports {
		return isle.Errorf(isle.Exhausted, "%d imports of snapshots go on already, as many as there may be", s.imports).WithHint("try again when one has ended")
	}
	s.imports++
	return nil
}

func (s *Snapshots) endImport() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imports--
}

// settle makes a snapshot of a draft whose content is all there.
func (d *Draft) settle(ctx context.Context, digest isle.Digest, r record, e audit.Entry) (err error) {
	d.mu.Lock()
	d.ended = true
	d.mu.Unlock()
	dir := d.dir
	defer func() {
		if err != nil {
			d.remove(dir)
		}
	}()
	return d.publish(ctx, &dir, digest, r, e, nil)
}

// errLarge is a file that has more in it than its manifest says.
var errLarge = errors.New("it has more in it than it says")

// A limitedReader gives at most so many bytes, which whoever reads may raise.
type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLarge
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

type importer struct {
	s     *Snapshots
	ctx   context.Context
	draft *Draft
	limit *limitedReader
	tar   *tar.Reader

	m       Manifest
	digest  isle.Digest
	signer  string
	trusted bool
	local   error // of writing here, which is not the file's fault
}

// error says what went wrong. What this machine is to blame for has been marked.
func (i *importer) error(err error) error {
	switch known := new(isle.Error); {
	case i.ctx.Err() != nil:
		return context.Cause(i.ctx)
	case i.local != nil:
		return diskError("import a snapshot", i.local)
	case errors.As(err, &known):
		return err
	}
	return isle.Errorf(isle.Invalid, "this is no file of a snapshot, or not all of one: %w", err).WithHint("`isle snapshot export` makes one")
}

// here marks an error as this machine's.
func (i *importer) here(err error) error {
	if err != nil && i.local == nil && isle.CodeOf(err) != isle.Invalid {
		i.local = err
	}
	return err
}

// next begins the next entry, which must be so called and have size bytes, or at
// most limit where size is -1.
func (i *importer) next(name string, size, limit int64) (int64, error) {
	h, err := i.tar.Next()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, err
	}
	if isSparse(h) {
		return 0, isle.Errorf(isle.Invalid, "the file of a snapshot has %s as a sparse file, which no export has", name)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || size >= 0 && h.Size != size || h.Size > limit {
		return 0, isle.Errorf(isle.Invalid, "the file of a snapshot has %q of %d bytes where %s belongs", clip(h.Name), h.Size, name)
	}
	return h.Size, nil
}

// isSparse reports whether an entry's size is not backed by bytes of the stream: a
// few bytes could be hashed for days, also when nobody sends any more.
func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// manifest reads what everything else is checked against.
func (i *importer) manifest() error {
	b, err := i.small(entryManifest, MaxManifest)
	if err != nil {
		return err
	}
	if i.m, err = DecodeManifest(b); err != nil {
		return err
	}
	if err := i.m.Spec.Check(); err != nil {
		return isle.Errorf(isle.Invalid, "the environment's file in the snapshot: %w", err)
	}
	// Who looks at the snapshot is shown the one and asked about it, and what is
	// made of it is of the other.
	if f := i.m.Spec; i.m.Project != f.Name || i.m.Isolation != f.Isolation {
		return isle.Errorf(isle.Invalid, "the snapshot says to be of project %s and class %s, and its environment's file is of %s and %s", i.m.Project, i.m.Isolation, f.Name, f.Isolation)
	}
	// Copies get higher ones than it has, and all that come after them: no snapshot
	// could be made of those.
	if i.m.Generation > i.s.cfg.Now().AddDate(1, 0, 0).UnixNano() {
		return isle.Errorf(isle.Invalid, "the snapshot says to be of generation %d, a time that is far from now", i.m.Generation)
	}
	i.digest = isle.DigestOf(b)
	sig, err := i.small(entrySignature, seal.MaxNote)
	if err != nil {
		return err
	}
	if i.signer, i.trusted, err = i.s.shelf.OpenNote(sig, i.digest); err != nil {
		return err
	}
	if i.s.has(i.digest) {
		return isle.Errorf(isle.Conflict, "snapshot %s is here already", i.digest.Short())
	}
	for _, v := range i.m.Volumes {
		i.limit.left += v.entrySize()
	}
	if i.m.Memory != nil {
		for _, f := range i.m.Memory.Files {
			i.limit.left += f.Size
		}
	}
	i.limit.left += 4096 * int64(maxVolumes+maxFiles) // headers
	if err := i.room(int64(len(b))); err != nil {
		return i.here(err)
	}
	err = errors.Join(seal.Write(filepath.Join(i.draft.dir, seal.FileManifest), b), seal.Write(filepath.Join(i.draft.dir, seal.FileSignature), sig))
	return i.here(err)
}

func (i *importer) small(name string, limit int64) ([]byte, error) {
	size, err := i.next(name, -1, limit)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	_, err = io.ReadFull(i.tar, b)
	return b, err
}

// content reads volumes and memory into the draft.
func (i *importer) content() error {
	i.draft.local.Stamps = map[string]stamp{}
	for n, v := range i.m.Volumes {
		if _, err := i.next(fmt.Sprintf(entryVolume, n), v.entrySize(), v.entrySize()); err != nil {
			return err
		}
		if err := i.volume(v); err != nil {
			return err
		}
	}
	if i.m.Memory != nil {
		for n, f := range i.m.Memory.Files {
			if _, err := i.next(fmt.Sprintf(entryMemory, n), f.Size, f.Size); err != nil {
				return err
			}
			if err := i.memory(f); err != nil {
				return err
			}
		}
	}
	if _, err := i.tar.Next(); err != io.EOF {
		return errors.Join(errors.New("something comes after it"), err)
	}
	if i.m.Memory == nil || !i.trusted {
		if err := os.Remove(i.draft.Memory()); err != nil {
			return i.here(err)
		}
	} else if err := seal.SyncFolder(i.draft.Memory()); err != nil {
		return i.here(err)
	}
	err := i.draft.local.write(i.draft.dir)
	if err == nil {
		err = seal.SyncFolder(i.draft.dir)
	}
	return i.here(err)
}

// memory reads a file of the memory, and keeps it where it is trusted.
func (i *importer) memory(want File) error {
	h := sha256.New()
	w := io.Writer(h)
	var f *os.File
	if i.trusted {
		var err error
		if err = i.room(want.Size); err == nil {
			f, err = os.OpenFile(filepath.Join(i.draft.Memory(), want.Name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		}
		if err != nil {
			return i.here(err)
		}
		defer f.Close()
		w = io.MultiWriter(h, localWriter{i, f})
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{i.tar}, make([]byte, BlockSize)); err != nil {
		return err
	}
	if isle.DigestFromSum(h.Sum(nil)) != want.Digest {
		return isle.Errorf(isle.Untrusted, "the file %s of the snapshot's memory does not have the digest that was signed", want.Name)
	}
	if f == nil {
		return nil
	}
	err := errors.Join(f.Chmod(0o400), f.Sync())
	if err == nil {
		i.draft.local.Stamps[folderMemory+"/"+want.Name], err = stampOf(f)
	}
	return i.here(err)
}

// A localWriter marks its errors as this machine's.
type localWriter struct {
	i *importer
	f *os.File
}

func (w localWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	return n, w.i.here(err)
}

// spare is what an import leaves free on the disk for what runs, in bytes.
const spare = 256 << 20

// room fails where the disk has no room for so many bytes more, or hardly any
// for files.
func (i *importer) room(bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(i.draft.dir, &st); err != nil {
		return err
	}
	if st.Ffree < st.Files/20 {
		return isle.Errorf(isle.Exhausted, "no room left to import a snapshot: the file system of the state folder can take %d files more", st.Ffree).
			WithHint("remove snapshots with `isle snapshot rm`, or free what nothing uses with `isle gc`")
	}
	if free := int64(st.Bavail) * st.Bsize; bytes+spare > free {
		return isle.Errorf(isle.Exhausted, "no space left to import a snapshot: it takes %d MiB for now, and %d MiB are free", (bytes+spare)>>20, free>>20).
			WithHint("remove snapshots with `isle snapshot rm`, or free what nothing uses with `isle gc`")
	}
	return nil
}

// volume reads a volume as it was, and writes it anew.
func (i *importer) volume(v Volume) error {
	// What came, its files, and the volume that is made of them, which is not made
	// where it could fill the disk.
	if err := i.room(max(3*v.Bytes, v.Size)); err != nil {
		return i.here(err)
	}
	raw, err := os.OpenFile(filepath.Join(i.draft.dir, "foreign"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return i.here(err)
	}
	defer os.Remove(raw.Name())
	defer raw.Close()
	c, err := i.blocks(v, raw)
	if err != nil {
		return err
	}
	if c.digest != v.Digest || c.bytes != v.Bytes {
		return isle.Errorf(isle.Untrusted, "the snapshot's volume %s does not have the digest that was signed", v.Name())
	}
	return i.here(i.rewrite(v, raw))
}

// blocks reads the blocks of a volume that are not zero into a file.
func (i *importer) blocks(v Volume, raw *os.File) (content, error) {
	if err := raw.Truncate(v.Size); err != nil {
		return content{}, i.here(err)
	}
	sum, next := newSummer(v.Size), int64(0)
	buf := make([]byte, BlockSize)
	for range blocks(v.Bytes) {
		var number [numberSize]byte
		if _, err := io.ReadFull(i.tar, number[:]); err != nil {
			return content{}, err
		}
		n := int64(binary.BigEndian.Uint64(number[:]))
		if n < next || n >= blocks(v.Size) {
			return content{}, isle.Errorf(isle.Invalid, "the snapshot's volume %s has block %d where block %d or later belongs", v.Name(), n, next)
		}
		for ; next < n; next++ {
			sum.add(next, sum.zero(next))
		}
		b := buf[:blockLength(v.Size, n)]
		if _, err := io.ReadFull(i.tar, b); err != nil {
			return content{}, err
		}
		sum.add(n, sha256.Sum256(b))
		next = n + 1
		if _, err := raw.WriteAt(b, n*BlockSize); err != nil {
			return content{}, i.here(err)
		}
	}
	for ; next < blocks(v.Size); next++ {
		if next%window == 0 && i.ctx.Err() != nil {
			return content{}, i.ctx.Err()
		}
		sum.add(next, sum.zero(next))
	}
	return sum.content(), nil
}

// rewrite makes a volume of the draft out of the files in a foreign image, and
// sees that they are the same ones.
func (i *importer) rewrite(v Volume, raw *os.File) error {
	tree := filepath.Join(i.draft.dir, "files")
	defer os.RemoveAll(tree)
	files, leftOut, err := unpack(i.ctx, raw, tree, v.Bytes, func() error { return i.room(0) })
	if err != nil {
		return isle.Errorf(isle.CodeOf(err), "the snapshot's volume %s: %w", v.Name(), err)
	}
	id := i.draft.Volume(v.Service, v.Path)
	if i.draft.err != nil {
		return i.draft.err
	}
	volumes := i.s.cfg.Volumes
	if err := volumes.Create(i.ctx, id, v.Size); err != nil {
		return err
	}
	if err := volumes.Fill(i.ctx, id, tree); err != nil {
		return err
	}
	f, err := seal.Open(volumes.Path(id))
	if err != nil {
		return err
	}
	defer f.Close()
	c, st, err := sealVolume(i.ctx, f)
	if err != nil {
		return err
	}
	again, _, err := sumFiles(i.ctx, f)
	if err != nil {
		return isle.Errorf(isle.Internal, "the volume %s that was written anew cannot be read: %w", v.Name(), err)
	}
	if again != files {
		return isle.Errorf(isle.Internal, "the volume %s that was written anew does not have the files that it was written from", v.Name())
	}
	i.draft.mu.Lock()
	defer i.draft.mu.Unlock()
	i.draft.local.Volumes[v.Name()] = localVolume{ID: id, Digest: c.digest, Files: files, LeftOut: leftOut}
	i.draft.local.Stamps[v.Name()] = st
	return nil
}

// lookAtFiles compares the files in volumes that were written anew with what they
// were written from.
func (s *Snapshots) lookAtFiles(ctx context.Context, snap Snapshot) error {
	s.mu.RLock()
	r := s.known[snap.Digest]
	s.mu.RUnlock()
	for name, v := range r.Volumes {
		if v.Files == "" {
			continue
		}
		f, err := seal.Open(s.cfg.Volumes.Path(v.ID))
		if err == nil {
			var files isle.Digest
			if files, _, err = sumFiles(ctx, f); err == nil && files != v.Files {
				err = errChanged
			}
			f.Close()
		}
		if err != nil {
			return s.wrong(snap, "the files of its volume "+name, err)
		}
	}
	return nil
}
