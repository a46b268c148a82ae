package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"isle"
)

// A content is what a volume's file holds.
type content struct {
	digest isle.Digest
	size   int64 // bytes, with holes
	bytes  int64 // in blocks that are not all zero
}

// contentHeading begins what a content digest is of.
const contentHeading = "isle volume v1\n"

// A blockSum is the SHA-256 of one block.
type blockSum = [sha256.Size]byte

// blocks is the number of blocks in size bytes; the last may be short.
func blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// blockLength is the length of block n of a file of size bytes.
func blockLength(size, n int64) int { return int(min(BlockSize, size-n*BlockSize)) }

// ContentDigest is the digest of a volume's content: SHA-256 over a heading with
// the size (big-endian uint64) and the SHA-256 of each block of BlockSize bytes,
// the last of which may be short. A hole is a block of zeros: equal content has
// an equal digest, however it lies on disk.
func ContentDigest(ctx context.Context, f *os.File) (isle.Digest, error) {
	c, err := readContent(ctx, f)
	return c.digest, err
}

// readContent hashes a file that nobody writes to. It takes what the machine has
// to spare and no more: an environment that was just captured goes on beside it.
func readContent(ctx context.Context, f *os.File) (content, error) {
	fi, err := f.Stat()
	if err != nil {
		return content{}, err
	}
	size := fi.Size()
	if size > maxSize {
		return content{}, isle.Errorf(isle.Exhausted, "%s has %d bytes, at most %d are possible", f.Name(), size, int64(maxSize))
	}
	s := newSummer(size)
	sums := make([]blockSum, min(window, blocks(size)))
	for from := int64(0); from < blocks(size); from += window {
		here := sums[:min(window, blocks(size)-from)]
		for i := range here {
			here[i] = s.zero(from + int64(i))
		}
		if err := sumBlocks(ctx, f, size, from, here); err != nil {
			return content{}, err
		}
		for i, sum := range here {
			s.add(from+int64(i), sum)
		}
	}
	return s.content(), nil
}

// window is how many blocks are hashed between two of the steps that cannot be
// done side by side.
const window = 1 << 10

// A summer makes a content of the sums of all blocks in their order.
type summer struct {
	c             content
	hash          hash.Hash
	whole, ending blockSum // of zeros
}

func newSummer(size int64) *summer {
	s := &summer{c: content{size: size}, hash: sha256.New()}
	s.hash.Write(binary.BigEndian.AppendUint64([]byte(contentHeading), uint64(size)))
	zeros := make([]byte, BlockSize)
	s.whole = sha256.Sum256(zeros)
	if n := blocks(size); n > 0 {
		s.ending = sha256.Sum256(zeros[:blockLength(size, n-1)])
	}
	return s
}

// zero is the sum of block n if it is all zeros.
func (s *summer) zero(n int64) blockSum {
	if n == blocks(s.c.size)-1 {
		return s.ending
	}
	return s.whole
}

func (s *summer) add(n int64, sum blockSum) {
	s.hash.Write(sum[:])
	if sum != s.zero(n) {
		s.c.bytes += int64(blockLength(s.c.size, n))
	}
}

// content is what was summed, once all blocks were added.
func (s *summer) content() content {
	s.c.digest = isle.DigestFromSum(s.hash.Sum(nil))
	return s.c
}

// sumBlocks puts the sums of blocks, from one on, into sums, those of holes
// aside.
func sumBlocks(ctx context.Context, f *os.File, size, from int64, sums []blockSum) error {
	data, err := dataBlocks(f, size, from, from+int64(len(sums)))
	if err != nil || len(data) == 0 {
		return err
	}
	var next atomic.Int64
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8, len(data)) {
		workers.Go(func() { // ends with the blocks, or with work
			lowPriority()
			buf := make([]byte, BlockSize)
			for i := next.Add(1) - 1; i < int64(len(data)) && work.Err() == nil; i = next.Add(1) - 1 {
				b := buf[:blockLength(size, data[i])]
				if _, err := f.ReadAt(b, data[i]*BlockSize); err != nil {
					stop(err)
					return
				}
				sums[data[i]-from] = sha256.Sum256(b)
			}
		})
	}
	workers.Wait()
	return context.Cause(work)
}

// dataBlocks are the blocks in [from, to) of a file of size bytes that are not
// whole holes, as far as the file system says (SEEK_DATA, lseek(2)); all of them
// where it does not.
func dataBlocks(f *os.File, size, from, to int64) (out []int64, err error) {
	limit := min(to*BlockSize, size)
	for at := from * BlockSize; at < limit; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		end := limit
		if errors.Is(err, unix.EINVAL) {
			start = at
		} else if err != nil {
			return nil, err
		} else if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		n := start / BlockSize
		if len(out) > 0 && out[len(out)-1] >= n {
			n = out[len(out)-1] + 1
		}
		for ; n*BlockSize < min(end, limit); n++ {
			out = append(out, n)
		}
		at = end
	}
	return out, nil
}

// lowPriority makes the calling goroutine run only when nothing else wants to.
// It is the only one of its thread, which ends with it.
func lowPriority() {
	runtime.LockOSThread()
	// Linux has a niceness for each thread (setpriority(2)). What cannot be
	// lowered is slower for others, and no failure.
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
	const thread, idle = 1, 3 << 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE: ioprio_set(2)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, thread, uintptr(unix.Gettid()), idle)
}

// readFile hashes a file of the memory.
func readFile(ctx context.Context, f *os.File) (isle.Digest, int64, error) {
	h := sha256.New()
	done := make(chan struct{})
	var n int64
	var err error
	go func() { // ends with the file, or with ctx
		defer close(done)
		lowPriority()
		n, err = io.CopyBuffer(h, struct{ io.Reader }{contextReader{ctx, f}}, make([]byte, BlockSize))
	}()
	<-done
	return isle.DigestFromSum(h.Sum(nil)), n, err
}

// A contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
