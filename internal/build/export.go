package build

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/debian"
	"isle/internal/image"
	"isle/internal/spec"
)

// Names and bounds of an export: a tar file whose first entry is the lock and
// whose others are blobs by digest, sorted.
const (
	exportLock     = "isle.lock"
	exportBlobs    = "blobs/sha256/"
	maxExportBlobs = 1 << 20
	maxExportBlob  = 64 << 30 // bytes of one blob
)

// Export writes what a lock names, packages, copied files and what steps were
// answered, as one tar file:
// the same lock gives the same bytes. Packages that the store lacks are fetched
// first; of copied files that it lacks the export has none, for they come from
// the project's folder.
func (b *Builder) Export(ctx context.Context, lock *spec.Lock, w io.Writer) error {
	if lock.ImageFormat != image.FormatVersion {
		return formatError(lock)
	}
	defer b.Images.Hold()()
	names := map[isle.Digest]bool{}
	for _, s := range slices.Sorted(maps.Keys(lock.Services)) {
		sl := lock.Services[s]
		for _, p := range sl.Packages {
			names[p.Digest] = true
		}
		if err := b.fetch(ctx, sl, Options{}, func(Event) {}); err != nil {
			return prefix(s, err)
		}
		b.copiedBlobs(sl, names)
		if err := b.answerBlobs(sl, names); err != nil {
			return prefix(s, err)
		}
	}
	buf := bufio.NewWriterSize(w, 256<<10)
	tw := tar.NewWriter(buf)
	encoded := lock.Encode()
	if err := tw.WriteHeader(exportHeader(exportLock, int64(len(encoded)))); err != nil {
		return err
	}
	if _, err := tw.Write(encoded); err != nil {
		return err
	}
	for _, d := range slices.Sorted(maps.Keys(names)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.exportBlob(tw, d); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return buf.Flush()
}

// copiedBlobs adds the trees and files of a service that the store has.
func (b *Builder) copiedBlobs(sl spec.ServiceLock, names map[isle.Digest]bool) {
	var trees []isle.Digest
	for _, c := range sl.Copy {
		trees = append(trees, c.Tree)
	}
	if sl.Build != nil {
		trees = append(trees, sl.Build.Tree, sl.Build.File)
	}
	for _, d := range trees {
		t, err := b.tree(d)
		if err != nil {
			continue
		}
		names[d] = true
		for _, e := range t.Entries {
			if e.Type == spec.TypeFile && len(b.Images.Missing([]isle.Digest{e.Digest})) == 0 {
				names[e.Digest] = true
			}
		}
	}
}

// answerBlobs adds what a service's steps were answered. It may be had nowhere else
// any more, so what is missing is an error.
func (b *Builder) answerBlobs(sl spec.ServiceLock, names map[isle.Digest]bool) error {
	for _, step := range sl.Network {
		for _, m := range step.Materials {
			if len(b.Images.Missing([]isle.Digest{m.Digest})) > 0 {
				return isle.Errorf(isle.NotFound, "%s: what it was answered is not in the store", step.Step).WithHint("`isle build --no-cache` fetches it, where it is to be had")
			}
			names[m.Digest] = true
		}
	}
	return nil
}

func (b *Builder) exportBlob(tw *tar.Writer, d isle.Digest) error {
	f, err := b.Images.OpenBlob(d)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return diskError("read blob "+d.Short(), err)
	}
	if err := tw.WriteHeader(exportHeader(exportBlobs+d.Hex(), fi.Size())); err != nil {
		return err
	}
	_, err = io.Copy(tw, io.LimitReader(f, fi.Size()))
	return err
}

func exportHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: image.Time, Format: tar.FormatPAX}
}

// Import reads what Export wrote into the store. Every blob is hashed; one that
// does not have its digest, and anything that Export does not write, is Invalid,
// and what was read before it stays, being what it says it is. It returns how
// many of the lock's packages were in it and the bytes of all.
func (b *Builder) Import(ctx context.Context, r io.Reader) (packages int, size int64, err error) {
	defer b.Images.Hold()()
	tr := tar.NewReader(bufio.NewReaderSize(r, 256<<10))
	isPackage := map[isle.Digest]bool{}
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return packages, size, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			return packages, size, nil
		} else if err != nil {
			return packages, size, importError("%w", err)
		}
		if n == 0 {
			if isPackage, err = importLock(h, tr); err != nil {
				return packages, size, err
			}
			continue
		}
		d := isle.Digest("sha256:" + strings.TrimPrefix(h.Name, exportBlobs))
		if n > maxExportBlobs || h.Typeflag != tar.TypeReg || sparse(h) || !strings.HasPrefix(h.Name, exportBlobs) || !d.Valid() || h.Size < 0 || h.Size > maxExportBlob {
			return packages, size, importError("entry %.100q does not belong in it", h.Name)
		}
		if err := b.Images.PutBlob(ctx, d, tr); err != nil {
			if isle.CodeOf(err) == isle.Unavailable {
				err = importError("%w", err)
			}
			return packages, size, prefix("entry "+h.Name, err)
		}
		size += h.Size
		if isPackage[d] {
			packages++
		}
	}
}

// sparse reports whether an entry's size is not backed by bytes of the file.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func importLock(h *tar.Header, r io.Reader) (map[isle.Digest]bool, error) {
	if h.Name != exportLock || h.Typeflag != tar.TypeReg || h.Size > spec.MaxLockSize {
		return nil, importError("it begins with %.100q and not with %s", h.Name, exportLock)
	}
	raw, err := io.ReadAll(io.LimitReader(r, spec.MaxLockSize+1))
	if err != nil {
		return nil, importError("%w", err)
	}
	lock, err := spec.ParseLock(exportLock, raw)
	if err != nil {
		return nil, err
	}
	names := map[isle.Digest]bool{}
	for _, s := range lock.Services {
		for _, p := range s.Packages {
			names[p.Digest] = true
		}
	}
	return names, nil
}

func importError(format string, args ...any) error {
	return isle.Errorf(isle.Invalid, "this is no export of isle, or it was cut: "+format, args...).WithHint("`isle lock --export FILE` writes one")
}

var _ Archive = (*debian.Archive)(nil)
