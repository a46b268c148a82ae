package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// keptSize is the fixed size of a kept checkpoint's file in bytes, one sector:
// each write replaces all of it. The note is filled up with empty lines.
const keptSize = 512

// A Keep holds the last checkpoint of a log in a file that lies outside of what
// it is of, so that going back in time is seen. What it holds is never beyond
// what is durable.
type Keep struct {
	path string
	file *os.File

	mu     sync.Mutex
	signer *Signer // nil until armed
	err    error   // of the last write
}

// OpenKeep opens or makes the file. The checkpoint is nil where there was none.
func OpenKeep(path string) (*Keep, *Checkpoint, error) {
	fail := func(err error) (*Keep, *Checkpoint, error) {
		return nil, nil, isle.Errorf(isle.Unavailable, "cannot keep the audit log's checkpoint in %s: %w", path, err).
			WithHint("choose another folder for it with --checkpoints")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	last, err := ReadKept(path)
	if err != nil && isle.CodeOf(err) != isle.NotFound {
		f.Close()
		return nil, nil, err
	}
	return &Keep{path: path, file: f}, last, nil
}

// OpenKeepAnew is OpenKeep for who accepts that what is kept there cannot be
// read: it counts as a checkpoint of no known log.
func OpenKeepAnew(path string) (*Keep, *Checkpoint, error) {
	if err := os.Truncate(path, 0); err != nil {
		return nil, nil, isle.Errorf(isle.Unavailable, "cannot replace the kept checkpoint: %w", err)
	}
	k, _, err := OpenKeep(path)
	return k, &Checkpoint{Origin: "unreadable", Head: Head{Root: emptyRoot()}}, err
}

// ReadKept reads a kept checkpoint, its signature unchecked. It fails with
// NotFound where there is none.
func ReadKept(path string) (*Checkpoint, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return nil, isle.Errorf(isle.NotFound, "no checkpoint is kept in %s", path)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the kept checkpoint: %w", err)
	}
	c, err := ParseCheckpoint(append(bytes.TrimRight(b, "\n"), '\n'), "")
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "the kept checkpoint %s cannot be read: %w", path, err).
			WithHint("see that the log is whole with `isle audit verify`, then start once with `isle server --accept-rollback`")
	}
	return &c, nil
}

// Arm begins keeping: from now on Put writes.
func (k *Keep) Arm(s *Signer) {
	k.mu.Lock()
	k.signer = s
	k.mu.Unlock()
}

// Prepare begins to sign a head, and returns what puts it: signing takes the
// time that the disk takes anyway.
func (k *Keep) Prepare(h Head) (put func()) {
	k.mu.Lock()
	signer := k.signer
	k.mu.Unlock()
	if signer == nil {
		return func() {}
	}
	type signed struct {
		c   Checkpoint
		err error
	}
	done := make(chan signed, 1)
	go func() { // ends by itself
		c, err := signer.Sign(h)
		done <- signed{c, err}
	}()
	return func() {
		s := <-done
		k.write(s.c, s.err)
	}
}

// Put replaces the kept checkpoint. It does not wait for the disk: what guards
// against is somebody who takes the folder back, not a power cut.
func (k *Keep) Put(h Head) { k.Prepare(h)() }

func (k *Keep) write(c Checkpoint, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.signer == nil {
		return // closed
	}
	if err == nil {
		b := c.Note
		for len(b) < keptSize {
			b = append(b, '\n')
		}
		_, err = k.file.WriteAt(b, 0)
	}
	k.err = err
}

// Failure is why what was put last is not there: it could not be written, or the
// file is another than the one that was opened. Nil if it is there.
func (k *Keep) Failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.err
	if err == nil {
		err = k.gone()
	}
	if err == nil {
		return nil
	}
	return isle.Errorf(isle.Unavailable, "cannot keep the audit log's checkpoint in %s: %w", k.path, err).
		WithHint("see that the folder is there and has space, then start the server again")
}

// gone says whether the file was taken away or replaced: what is written to the
// old one nobody will read. mu is held.
func (k *Keep) gone() error {
	there, err := os.Stat(k.path)
	if err != nil {
		return err
	}
	mine, err := k.file.Stat()
	if err == nil && !os.SameFile(there, mine) {
		err = errors.New("it was replaced by another file")
	}
	return err
}

// Close syncs and closes the file.
func (k *Keep) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signer = nil
	return errors.Join(k.file.Sync(), k.file.Close())
}

// GoesOn checks that a log goes on from a checkpoint of it.
func GoesOn(from Checkpoint, now Head, hashes tlog.HashReader) error {
	if now.Size < from.Size {
		return Extends(from.Head, now, nil)
	}
	proof, err := ProveExtends(from.Size, now.Size, hashes)
	if err != nil {
		return err
	}
	return Extends(from.Head, now, proof)
}
