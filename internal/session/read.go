package session

import (
	"bufio"
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/identity"
)

// A file is a recording that is read, block by block. Whatever it holds may be
// somebody's who wants to mislead.
type file struct {
	path string
	id   isle.ID
	f    *os.File
	in   *bufio.Reader
	size int64 // as it was opened
	head header

	at     int64  // the bytes before it are accepted
	chain  hash   // of the last chunk of them
	rest   hasher // over that and what came after it
	tail   int64  // bytes of that
	chunks int
	read   block // the one that begins at at; none yet if its kind is 0
	buf    []byte
}

// A block is one of a file; its content counts until the next one is read.
type block struct {
	kind    byte
	at      int64
	content []byte
	// Of a seal: what the chunk that it ends must be in the log.
	chunk chunk
}

// errTorn says that a file ends inside a block, or that what follows is none.
var errTorn = errors.New("what follows is no block")

func (f *file) bad(format string, args ...any) error {
	return isle.Errorf(isle.Untrusted, "the recording "+f.path+" is not as it was written: "+format, args...)
}

// openFile opens the recording of a session. It fails with NotFound if there is
// none.
func openFile(dir string, id isle.ID) (*file, error) {
	if !id.Valid() {
		return nil, isle.Errorf(isle.NotFound, "%q is no session's ID", clip(string(id)))
	}
	f := &file{path: pathOf(dir, id), id: id}
	var err error
	f.f, err = os.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, isle.Errorf(isle.NotFound, "there is no recording of a session %s", id)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read a recording: %w", err)
	}
	if err := f.begin(); err != nil {
		f.f.Close()
		return nil, err
	}
	return f, nil
}

// begin reads the header.
func (f *file) begin() error {
	st, err := f.f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return f.bad("it is no file (%v)", err)
	}
	f.size = st.Size()
	f.in = bufio.NewReaderSize(io.NewSectionReader(f.f, 0, f.size), maxHeader+len(magic)+1)
	first, err := f.in.ReadSlice('\n')
	if err != nil || string(first) != magic {
		return f.bad("its first line is not %q", magic[:len(magic)-1])
	}
	sum := sha256.New()
	sum.Write(first)
	line, err := f.in.ReadSlice('\n')
	if err != nil || json.Unmarshal(line, &f.head) != nil {
		return f.bad("its header cannot be read")
	}
	if f.head.Info.ID != f.id {
		return f.bad("it is that of the session %s", clip(string(f.head.Info.ID)))
	}
	sum.Write(line)
	sum.Sum(f.chain[:0])
	f.at, f.chunks = int64(len(magic)+len(line)), 1
	return nil
}

func (f *file) close() { f.f.Close() }

// next reads a block, io.EOF after the last one. A seal that is not that of
// what is in front of it is Untrusted. The block before it counts as part of the
// file from then on.
func (f *file) next() (block, error) {
	f.accept()
	if f.at == f.size {
		return block{}, io.EOF
	}
	if cap(f.buf) < blockHead {
		f.buf = make([]byte, blockHead, 4<<10)
	}
	f.buf = f.buf[:blockHead]
	if _, err := io.ReadFull(f.in, f.buf); err != nil {
		return block{}, errTorn
	}
	n := int(binary.BigEndian.Uint32(f.buf[1:]))
	if n > maxBlock || int64(n) > f.size-f.at-blockHead {
		return block{}, errTorn
	}
	f.buf = slices.Grow(f.buf, n)[:blockHead+n]
	if _, err := io.ReadFull(f.in, f.buf[blockHead:]); err != nil {
		return block{}, errTorn
	}
	b := block{kind: f.buf[0], at: f.at, content: f.buf[blockHead:]}
	switch b.kind {
	case blockEvents, blockEnd:
	case blockSeal:
		b.chunk = chunk{id: f.id, number: f.chunks, end: f.at, hash: f.hash()}
		if !bytes.Equal(b.chunk.hash[:], b.content) {
			return b, f.bad("chunk %d, which ends at byte %d, has another hash than its seal says", f.chunks, f.at)
		}
	default:
		return block{}, errTorn
	}
	f.read = b
	return b, nil
}

// accept takes the block that was read last into what the file is so far.
func (f *file) accept() {
	b := f.read
	f.read = block{}
	switch b.kind {
	case 0:
		return
	case blockSeal:
		f.chain, f.rest, f.tail, f.chunks = b.chunk.hash, nil, 0, f.chunks+1
	default:
		if f.rest == nil {
			f.rest = sha256.New()
			f.rest.Write(f.chain[:])
		}
		f.rest.Write(f.buf)
		f.tail += int64(len(f.buf))
	}
	f.at += int64(len(f.buf))
}

// hash is that of the chunk that would end here.
func (f *file) hash() (h hash) {
	if f.rest == nil {
		return sha256.Sum256(f.chain[:])
	}
	f.rest.Sum(h[:0])
	return h
}

// digest is that of the recording, if it ends here.
func (f *file) digest() isle.Digest {
	h := f.hash()
	return isle.DigestFromSum(h[:])
}

// end is what the file says last of its session; ok is false if it has no end.
func (f *file) end() (i Info, ok bool) {
	var n [4]byte
	if _, err := f.f.ReadAt(n[:], f.size-4); err != nil {
		return i, false
	}
	size := int64(binary.BigEndian.Uint32(n[:]))
	start := f.size - 4 - size - blockHead
	if size > maxHeader || start < f.at {
		return i, false
	}
	b := make([]byte, blockHead+size)
	if _, err := f.f.ReadAt(b, start); err != nil || b[0] != blockEnd || int64(binary.BigEndian.Uint32(b[1:])) != size+4 {
		return i, false
	}
	if json.Unmarshal(b[blockHead:], &i) != nil || i.ID != f.id {
		return Info{}, false
	}
	return i, true
}

// info is what is known of the session of a file.
func (f *file) info() Info {
	if i, ok := f.end(); ok {
		return i
	}
	i := f.head.Info
	i.State, i.Why = Ended, "its end was not recorded"
	return i
}

// An unpacker opens blocks of events.
type unpacker struct {
	id   isle.ID
	aead cipher.AEAD
	z    *zstd.Decoder
	out  []byte
	text []byte
}

// unpacker opens the file's key.
func (f *file) unpacker(sealer identity.Sealer) (*unpacker, error) {
	key, err := sealer.Open(purpose(f.id), f.head.Key)
	if err != nil {
		return nil, isle.Errorf(isle.CodeOf(err), "the recording %s cannot be opened: %w", f.id, err)
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, f.bad("its key is none")
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlock), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot read recordings: %w", err)
	}
	return &unpacker{id: f.id, aead: aead, z: z}, nil
}

func (u *unpacker) close() { u.z.Close() }

// open returns the encoded events of a block; they count until the next one.
func (u *unpacker) open(b block) ([]byte, error) {
	n := u.aead.NonceSize()
	if len(b.content) < n {
		return nil, errEvent
	}
	var err error
	if u.text, err = u.aead.Open(u.text[:0], b.content[:n], b.content[n:], place(nil, u.id, b.at)); err != nil {
		return nil, errEvent
	}
	if u.out, err = u.z.DecodeAll(u.text, u.out[:0]); err != nil {
		return nil, errEvent
	}
	return u.out, nil
}

// Get returns what is known of a session, live or recorded.
func (s *Sessions) Get(id isle.ID) (Info, error) {
	if l := s.find(id); l != nil {
		return l.Info(), nil
	}
	f, err := openFile(s.cfg.Dir, id)
	if isle.CodeOf(err) == isle.NotFound && err != nil {
		return Info{}, isle.Errorf(isle.NotFound, "there is no session %q", clip(string(id))).WithHint("see `isle sessions ls --all`; recordings are deleted after a time, and `isle audit search --action session` knows of all")
	}
	if err != nil {
		return Info{}, err
	}
	defer f.close()
	return f.info(), nil
}

// Events gives what is recorded of a session, in order, up to now if it is live;
// with follow up to its end. It fails with Untrusted where the recording is not
// as it was written.
func (s *Sessions) Events(ctx context.Context, id isle.ID, follow bool, emit func(Event) error) error {
	var f *file
	for {
		l := s.find(id)
		if l != nil {
			l.out.Lock()
			l.flush() // what fails is the session's end, and not the reader's
			l.out.Unlock()
		}
		var err error
		if f, err = openFile(s.cfg.Dir, id); err == nil {
			break
		}
		switch {
		case l == nil || isle.CodeOf(err) != isle.NotFound:
			return err
		case !follow:
			return nil // nothing happened yet
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	defer f.close()
	u, err := f.unpacker(s.cfg.Sealer)
	if err != nil {
		return err
	}
	defer u.close()
	for {
		l := s.find(id)
		ended, err := f.events(ctx, u, l != nil, emit)
		if err != nil || ended || l == nil || !follow {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
		l.out.Lock()
		l.flush()
		l.out.Unlock()
		if err := f.grow(); err != nil {
			return err
		}
	}
}

// pause waits for more to be recorded.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(followEvery):
		return nil
	}
}

// grow takes what was written meanwhile.
func (f *file) grow() error {
	st, err := f.f.Stat()
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot read a recording: %w", err)
	}
	f.accept()
	f.size = max(st.Size(), f.at)
	f.in.Reset(io.NewSectionReader(f.f, f.at, f.size-f.at))
	return nil
}

// events reads the events up to the end of the file, which may be growing.
// ended says that it cannot grow any more.
func (f *file) events(ctx context.Context, u *unpacker, growing bool, emit func(Event) error) (ended bool, err error) {
	for {
		b, err := f.next()
		switch {
		case err == io.EOF, err == errTorn && growing:
			return false, nil
		case err == errTorn:
			return false, f.bad("from byte %d on it cannot be read", f.at)
		case err != nil:
			return false, err
		case ctx.Err() != nil:
			return false, ctx.Err()
		case b.kind == blockEnd:
			return true, nil
		}
		if b.kind != blockEvents {
			continue
		}
		encoded, err := u.open(b)
		for err == nil && len(encoded) > 0 {
			var e Event
			if e, encoded, err = readEvent(encoded); err == nil {
				if err := emit(e); err != nil {
					return false, err
				}
			}
		}
		if err != nil {
			return false, f.bad("the block at byte %d cannot be opened", b.at)
		}
	}
}
