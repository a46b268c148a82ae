package session

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/identity"
)

// A recording's file is a header and blocks.
//
// The header is the line "isle recording 1" and a line of JSON. A block is a
// byte that says its kind, the length of what follows (big-endian uint32), and
// that. The kinds are events (a random nonce of 24 bytes, and what
// XChaCha20-Poly1305 gives for a Zstandard frame of events, with "isle block
// 1\n", the session's ID and the block's place in the file (big-endian uint64)
// as associated data); a seal, which ends a chunk, and is the chunk's hash; and
// the end: the session's Info as JSON, and the length of that again, so that it
// is found from the file's end.
//
// The hash of chunk 0 is the SHA-256 of the header; that of another one is the
// SHA-256 of the hash before it and the bytes of the chunk's blocks, the seal
// not counted. The digest of a whole recording is the SHA-256 of its last hash
// and the bytes after its seal.
const (
	magic      = "isle recording 1\n"
	blockLabel = "isle block 1\n"

	blockEvents = 'E'
	blockSeal   = 'S'
	blockEnd    = 'Z'

	blockHead = 5        // bytes in front of a block's content
	maxHeader = 32 << 10 // bytes of a header's JSON, and of an end's
	maxBlock  = 4 << 20  // bytes of a block's content
	suffix    = ".rec"
)

// A header is the second line of a file.
type header struct {
	Info Info   `json:"session"` // as it was at the start
	Key  []byte `json:"key"`     // sealed
}

// purpose is what the key of a recording is sealed for.
func purpose(id isle.ID) string { return "recording/" + string(id) }

// dayOf is the folder of a session's recording, pathOf the file.
func dayOf(dir string, id isle.ID) string {
	return filepath.Join(dir, id.Time().UTC().Format(time.DateOnly))
}

func pathOf(dir string, id isle.ID) string { return filepath.Join(dayOf(dir, id), string(id)+suffix) }

// A writer writes one recording. One goroutine at a time uses it. It holds a
// file open from the first block of a chunk to the chunk's seal only.
type writer struct {
	dir  string
	head []byte // the header; nil once it is written
	id   isle.ID
	aead cipher.AEAD

	f       *os.File  // nil between chunks
	size    int64     // of the file
	tail    int64     // bytes after the last seal, which no chunk has yet
	chunks  int       // sealed, the header's included
	chain   hash      // of the last one
	rest    hasher    // over the chain and what came after it; nil if nothing did
	since   time.Time // when the first block after the last seal was written
	created bool      // its folder is to be synced
	over    bool      // its end was written, or could not be
}

type hash = [sha256.Size]byte

type hasher interface {
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
}

// scratch is what one write needs for a moment.
type scratch struct{ packed, block []byte }

// newWriter prepares a recording; nothing is written before its first block.
func newWriter(dir string, info Info, sealer identity.Sealer) (*writer, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	defer clear(key)
	rand.Read(key)
	sealed, err := sealer.Seal(purpose(info.ID), key)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "a session cannot be recorded, so none begins: %w", err)
	}
	head, err := json.Marshal(header{info, sealed})
	if err != nil || len(head) > maxHeader {
		return nil, isle.Errorf(isle.Internal, "what is known of a session is too much for its recording: %d bytes", len(head))
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot seal a recording: %w", err)
	}
	return &writer{dir: dir, id: info.ID, aead: aead, head: append(append([]byte(magic), head...), '\n')}, nil
}

// place is what a block of events is bound to beside its key.
func place(b []byte, id isle.ID, at int64) []byte {
	return binary.BigEndian.AppendUint64(append(append(b, blockLabel...), id...), uint64(at))
}

// events writes a block of encoded events.
func (w *writer) events(now time.Time, encoded []byte, z *zstd.Encoder, s *scratch) error {
	if err := w.open(); err != nil {
		return err
	}
	s.packed = z.EncodeAll(encoded, s.packed[:0])
	n := chacha20poly1305.NonceSizeX
	s.block = append(s.block[:0], make([]byte, blockHead+n)...)
	nonce := s.block[blockHead : blockHead+n]
	rand.Read(nonce)
	var bound [len(blockLabel) + 26 + 8]byte
	s.block = w.aead.Seal(s.block, nonce, s.packed, place(bound[:0], w.id, w.size))
	return w.block(now, blockEvents, s.block)
}

// block writes one block, for the head of which b has room, whole or not at all.
func (w *writer) block(now time.Time, kind byte, b []byte) error {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:blockHead], uint32(len(b)-blockHead))
	if err := w.write(b); err != nil {
		return err
	}
	if kind == blockSeal {
		return nil
	}
	if w.tail == 0 {
		w.since = now
	}
	w.tail += int64(len(b))
	if w.rest == nil {
		w.rest = sha256.New()
		w.rest.Write(w.chain[:])
	}
	w.rest.Write(b)
	return nil
}

// write appends b, or leaves the file as it was.
func (w *writer) write(b []byte) error {
	if _, err := w.f.Write(b); err != nil {
		if terr := w.f.Truncate(w.size); terr != nil {
			err = errors.Join(err, terr)
		}
		return w.failed(err)
	}
	w.size += int64(len(b))
	return nil
}

// Unwritten is the cause of an error that says that nothing can be recorded. It
// tells where this server keeps its files, for whoever runs it and not for
// clients.
type Unwritten struct{ error }

// Unwrap returns the cause.
func (u Unwritten) Unwrap() error { return u.error }

// failed says what a failure to write means.
func (w *writer) failed(err error) error {
	code := isle.Unavailable
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		code = isle.Exhausted
	}
	return isle.Errorf(code, "the session %s cannot be recorded, so nothing more may pass: %w", w.id, Unwritten{err}).
		WithHint("free space at %s; or keep recordings for a shorter time with --recordings-keep", w.dir)
}

// open opens the file, and makes it with its header the first time.
func (w *writer) open() error {
	if w.f != nil {
		return nil
	}
	path := pathOf(w.dir, w.id)
	if w.head == nil {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
		if err == nil {
			var st fs.FileInfo
			if st, err = f.Stat(); err == nil && st.Size() != w.size {
				err = isle.Errorf(isle.Untrusted, "%s has %d bytes, not %d: somebody else wrote to it", path, st.Size(), w.size)
			}
			if err != nil {
				f.Close()
			}
		}
		if err != nil {
			return w.failed(err)
		}
		w.f = f
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return w.failed(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return w.failed(err)
	}
	w.f = f
	if err := w.write(w.head); err != nil {
		w.f = nil
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	w.chain, w.chunks, w.created = sha256.Sum256(w.head), 1, true
	w.head = nil
	return nil
}

// A chunk is what the log is told of one.
type chunk struct {
	id     isle.ID
	number int   // from 1; chunk 0 is the header
	end    int64 // of the chunk in the file, its seal not counted
	hash   hash
}

// seal ends a chunk, makes it durable and closes the file.
func (w *writer) seal(now time.Time) (chunk, error) {
	if err := w.open(); err != nil {
		return chunk{}, err
	}
	c := chunk{id: w.id, number: w.chunks, end: w.size, hash: w.next()}
	b := append(make([]byte, blockHead, blockHead+len(c.hash)), c.hash[:]...)
	if err := w.block(now, blockSeal, b); err != nil {
		return c, err
	}
	if err := w.sync(); err != nil {
		return c, err
	}
	w.chunks, w.chain, w.tail, w.rest = w.chunks+1, c.hash, 0, nil
	return c, nil
}

// next is the hash of the chunk that would end here.
func (w *writer) next() (h hash) {
	if w.rest == nil {
		return sha256.Sum256(w.chain[:])
	}
	w.rest.Sum(h[:0])
	return h
}

// sync makes what is written durable and closes the file.
func (w *writer) sync() error {
	if w.f == nil {
		return nil
	}
	err := errors.Join(unix.Fdatasync(int(w.f.Fd())), w.f.Close())
	w.f = nil
	if err != nil {
		return w.failed(err)
	}
	return nil
}

// end writes the last block, makes the recording durable, and returns its
// digest, which is that of what is there also where that failed.
func (w *writer) end(now time.Time, info Info) (isle.Digest, error) {
	w.over = true
	err := w.open()
	if err == nil {
		var b []byte
		if b, err = json.Marshal(info); err == nil {
			b = append(make([]byte, blockHead, blockHead+len(b)+4), b...)
			b = binary.BigEndian.AppendUint32(b, uint32(len(b)-blockHead))
			err = w.block(now, blockEnd, b)
		}
		err = errors.Join(err, w.sync())
	}
	if w.size == 0 {
		return "", err // there is no file
	}
	h := w.next()
	return isle.DigestFromSum(h[:]), err
}

// syncFolder makes the names in a folder durable.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
