package checkpoint

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

const (
	// patience is how long a sandbox may take to say that it goes on.
	patience = 30 * time.Second
	// maxHeld bounds how long a sandbox stands still for its volumes.
	maxHeld = time.Minute
	// maxHeader bounds the header of a state file, in bytes: it has the
	// configurations of all containers.
	maxHeader = 16 << 20
	// maxState bounds the state of a sandbox's kernel, in bytes, which is not
	// memory of its processes but grows with them.
	maxState = 4 << 30
	// maxAnswer bounds what a sandbox answers, in bytes.
	maxAnswer = 64 << 10
	// glance is how often a wait looks whether its caller is still there.
	glance = 50 * time.Millisecond
)

// A Capture is a sandbox to capture. Nothing that it says or writes is trusted.
type Capture struct {
	// Socket is the path of the sandbox's control socket.
	Socket string
	// Dir is the folder for its memory. It exists and is empty; after an error
	// it is empty again, as far as that can be.
	Dir string
	// Held is called while the sandbox stands still, with everything that was
	// written to its volumes in their file systems; they are to be captured
	// here. The sandbox saves its memory meanwhile. It goes on when Held has
	// returned, whatever that returns. Nil: there are none.
	Held func(context.Context) error
	// Patience is how long the sandbox may take to let go of the files that it was
	// given; default 30 s.
	Patience time.Duration
}

// A Captured is how a capture went.
type Captured struct {
	Paused time.Duration // how long the sandbox stood still, at most
	Bytes  int64         // size of the files
}

// Run captures the sandbox. When it returns without an error the files are
// whole, nobody can write to them, and the sandbox goes on; they are not durable
// yet, because most are read once and removed: who keeps them syncs them. After
// an error the sandbox goes on too, as soon as it has seen it. After ErrKept it
// has to be ended.
func (c Capture) Run(ctx context.Context) (Captured, error) {
	if c.Patience <= 0 {
		c.Patience = patience
	}
	watched, end := context.WithCancelCause(ctx)
	seen := make(chan struct{})
	go func() { defer close(seen); watch(watched, c.Dir, end) }()
	done, err := c.run(watched)
	end(nil)
	<-seen
	if kept := alone(c.Dir, c.Patience); kept != nil {
		err = errors.Join(err, kept)
	}
	if err != nil {
		discard(c.Dir)
		return Captured{}, failure("capture the memory", err)
	}
	return done, nil
}

func (c Capture) run(ctx context.Context) (done Captured, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.Socket)
	if ctx.Err() != nil {
		if err == nil {
			conn.Close()
		}
		return done, context.Cause(ctx)
	}
	if err != nil {
		return done, isle.Errorf(isle.Unavailable, "the sandbox does not answer: %w", err)
	}
	defer conn.Close()
	files, err := openFiles(c.Dir)
	if err != nil {
		return done, err
	}
	defer files.close()

	began := time.Now()
	if err := files.ask(conn.(*net.UnixConn)); err != nil {
		return done, fmt.Errorf("ask the sandbox: %w", err)
	}
	err = files.wait(ctx)
	if err == nil && c.Held != nil {
		ctx, cancel := context.WithTimeout(ctx, maxHeld)
		err = c.Held(ctx)
		cancel()
	}
	if err == nil {
		err = files.readOn(ctx)
	}
	files.pipe.Close() // where it was not read to its end, the sandbox learns so now
	// It goes on before it answers. Whoever has asked has no say in this wait:
	// until it is over nobody knows whether the sandbox goes on.
	if aerr := answer(conn); aerr != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = aerr
	}
	if err != nil {
		return done, err
	}
	done.Paused = time.Since(began)
	done.Bytes, err = files.size()
	return done, err
}

// saveFiles are what a sandbox writes to.
type saveFiles struct {
	pipe         *os.File // what the kernel's state is read from
	in           *os.File // its other end, until the sandbox has it
	state, pages *os.File
	meta         *os.File
	wrote        *os.File // inotify(7): can be read when pages were written
}

// openFiles makes the files in a folder, where there may be none of them.
func openFiles(dir string) (s *saveFiles, err error) {
	s = &saveFiles{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for name, f := range map[string]**os.File{stateFile: &s.state, pagesFile: &s.pages, metaFile: &s.meta} {
		if *f, err = os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return s, err
		}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return s, os.NewSyscallError("inotify_init1", err)
	}
	s.wrote = os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, s.pages.Name(), unix.IN_MODIFY); err != nil {
		return s, os.NewSyscallError("inotify_add_watch", err)
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return s, os.NewSyscallError("pipe2", err)
	}
	// The end that is read from has deadlines; the sandbox's blocks.
	err = unix.SetNonblock(ends[0], true)
	s.pipe, s.in = os.NewFile(uintptr(ends[0]), "state"), os.NewFile(uintptr(ends[1]), "state")
	if err != nil {
		return s, err
	}
	// No more than a page of the state is ever on its way until it is read on.
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		return s, fmt.Errorf("make a small pipe: %w", err)
	}
	return s, nil
}

func (s *saveFiles) close() {
	for _, f := range []*os.File{s.pipe, s.in, s.state, s.pages, s.meta, s.wrote} {
		if f != nil {
			f.Close()
		}
	}
}

// ask tells the sandbox to save itself and go on (containerManager.Checkpoint
// with control.SaveOpts, of gVisor's packages boot and sentry/control). It has
// the pipe's other end alone after that.
func (s *saveFiles) ask(conn *net.UnixConn) error {
	b, err := json.Marshal(map[string]any{
		"method": "containerManager.Checkpoint",
		"arg":    map[string]any{"metadata": map[string]string{"compression": "none"}, "have_pages_file": true, "Resume": true},
	})
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(s.in.Fd()), int(s.meta.Fd()), int(s.pages.Fd()))
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, _, err := conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = conn.Write(b[n:])
	}
	if cerr := s.in.Close(); err == nil {
		err = cerr
	}
	return err
}

// answer reads what the sandbox says when it goes on.
func answer(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var said struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxAnswer)).Decode(&said); err != nil {
		return fmt.Errorf("the sandbox does not say that it goes on: %w", err)
	}
	if !said.Success {
		const most = 1000
		return fmt.Errorf("the sandbox said: %.*q", most, said.Err)
	}
	return nil
}

// wait returns when the sandbox stands still: when the header of the state file
// (gVisor's package statefile: 8 bytes of magic, a length in 8, a map) is there
// and after it something of the state or of the pages. All file systems have
// been told to write what they have before either.
func (s *saveFiles) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var h [16]byte
	if _, err := io.ReadFull(s.pipe, h[:]); err != nil {
		return ended(ctx, err)
	}
	n := binary.BigEndian.Uint64(h[8:])
	if n > maxHeader {
		return fmt.Errorf("the sandbox says that its header has %d bytes", n)
	}
	if _, err := s.state.Write(h[:]); err != nil {
		return err
	}
	if _, err := io.CopyN(s.state, s.pipe, int64(n)); err != nil {
		return ended(ctx, err)
	}
	if !stop() {
		return context.Cause(ctx)
	}
	raw, err := s.pipe.SyscallConn()
	if err != nil {
		return err
	}
	var still bool
	var perr error
	for !still && perr == nil && ctx.Err() == nil {
		if err := raw.Control(func(fd uintptr) { still, perr = stands(int32(fd), int32(s.wrote.Fd())) }); err != nil {
			return err
		}
	}
	if perr != nil {
		return perr
	}
	return context.Cause(ctx)
}

// stands reports, after a glance, whether something can be read from either.
func stands(pipe, wrote int32) (bool, error) {
	ready := []unix.PollFd{{Fd: pipe, Events: unix.POLLIN}, {Fd: wrote, Events: unix.POLLIN}}
	n, err := unix.Poll(ready, int(glance.Milliseconds()))
	switch {
	case err == unix.EINTR || err == nil && n == 0:
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("poll", err)
	case ready[1].Revents == 0 && ready[0].Revents&unix.POLLIN == 0:
		return false, io.ErrUnexpectedEOF
	}
	return true, nil
}

// readOn reads the state to its end, by which the sandbox can go on.
func (s *saveFiles) readOn(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := s.pipe.SyscallConn()
	if err != nil {
		return err
	}
	// Only faster.
	_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	n, err := io.Copy(s.state, io.LimitReader(s.pipe, maxState+1))
	if err == nil && n > maxState {
		err = isle.Errorf(isle.Exhausted, "the state of the sandbox's kernel has more than %d bytes", int64(maxState))
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// ended is why a read failed.
func ended(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// size is that of the files, in bytes.
func (s *saveFiles) size() (total int64, err error) {
	for _, f := range []*os.File{s.state, s.meta, s.pages} {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		total += st.Size()
	}
	return total, nil
}

// failure is err as a user sees it.
func failure(doing string, err error) error {
	var known *isle.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return isle.Errorf(isle.Unavailable, "%s: %w", doing, err)
	case strings.Contains(err.Error(), syscall.ENOSPC.Error()): // what a sandbox says are words
		return isle.Errorf(isle.Exhausted, "%s: %w", doing, err).WithHint("free space on the disk of the state folder; isle snapshot ls says what snapshots take")
	}
	return isle.Errorf(isle.Failed, "%s: %w", doing, err)
}
