package main

import (
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/initproto"
)

// lingerTime is how long home may take to close a connection that is done.
const lingerTime = 5 * time.Second

// A remote is a process that home steers.
type remote struct {
	s *service
	c *initproto.Conn
	*piped
	terminal *os.File // also in outputs; nil without

	mu     sync.Mutex
	more   *sync.Cond // signalled when what follows changes
	input  []byte     // received, not written to the process
	window int        // bytes received and not yet granted anew
	eof    bool       // no more input comes
	closed bool       // the process has ended
}

// exec runs a command for home until it ends or the connection does.
func (s *service) exec(c *initproto.Conn, r initproto.Request) {
	p, exit := s.startRemote(c, r)
	if exit != nil {
		_ = c.WriteFrame(initproto.FrameExit, initproto.EncodeExit(*exit))
		linger(c)
		return
	}
	var outputs sync.WaitGroup
	for i, f := range p.outputs {
		t := initproto.FrameStdout + initproto.FrameType(i)
		outputs.Go(func() {
			pump(f, initproto.HeaderSize, func(b []byte) error {
				initproto.PutHeader(b, t, len(b)-initproto.HeaderSize)
				return c.WriteRaw(b)
			})
		})
	}
	go p.feed()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		p.obey()
		// The connection has ended, or what came over it made no sense. Ends
		// nothing if the process has ended before.
		s.spawn.killSession(p.child)
		_ = c.SetWriteDeadline(time.Now()) // nobody reads the output
	}()
	<-p.child.exited
	p.drain()
	outputs.Wait()
	p.mu.Lock()
	p.closed = true
	p.more.Broadcast()
	p.mu.Unlock()
	p.close()
	_ = c.WriteFrame(initproto.FrameExit, initproto.EncodeExit(initproto.Exit{Code: p.child.code()}))
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	<-gone
	c.Close()
}

// linger ends a connection such that home reads all that was written.
func linger(c *initproto.Conn) {
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	for {
		if _, err := c.Reader.Discard(4 << 10); err != nil {
			break
		}
	}
	c.Close()
}

func (s *service) startRemote(c *initproto.Conn, r initproto.Request) (*remote, *initproto.Exit) {
	u := s.user
	if r.User != "" {
		var err error
		if u, err = lookUser("", r.User); err != nil {
			return nil, &initproto.Exit{Code: 126, Reason: err.Error()}
		}
	}
	cmd, exit := s.resolve(r.Command, r.Env, u, r.Workdir, r.Terminal)
	if exit != nil {
		return nil, exit
	}
	p := &remote{s: s, c: c}
	p.more = sync.NewCond(&p.mu)
	if r.Terminal {
		p.piped, exit = s.startOnTerminal(cmd, r.Rows, r.Columns)
		if exit == nil {
			p.terminal = p.outputs[0]
		}
	} else {
		p.piped, exit = s.startPiped(cmd, true, nil)
	}
	return p, exit
}

// startOnTerminal starts c on a terminal of its own.
func (s *service) startOnTerminal(c command, rows, columns uint16) (*piped, *initproto.Exit) {
	fail := func(err error) (*piped, *initproto.Exit) {
		return nil, &initproto.Exit{Code: 126, Reason: c.path + ": no terminal: " + err.Error()}
	}
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	f, err := pollable(master)
	if err != nil {
		return fail(err)
	}
	// The descriptor stays valid: f is closed by nobody before this returns.
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		f.Close()
		return fail(err)
	}
	number, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		f.Close()
		return fail(err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(int(number)), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		f.Close()
		return fail(err)
	}
	defer unix.Close(slave)
	if rows > 0 && columns > 0 {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
	if err := unix.Fchown(slave, int(c.user.uid), -1); err != nil {
		f.Close()
		return fail(err)
	}
	c.files = []int{slave, slave, slave}
	return s.startOn(&piped{stdin: f, outputs: []*os.File{f}}, c, nil)
}

// obey does what home says until the connection ends.
func (p *remote) obey() {
	for {
		t, b, err := p.c.ReadFrame()
		if err != nil {
			return
		}
		switch t {
		case initproto.FrameStdin:
			p.mu.Lock()
			p.window += len(b)
			over := p.window > initproto.StdinWindow
			if len(b) == 0 {
				p.eof = true
			} else if !p.eof && !p.closed {
				p.input = append(p.input, b...)
			}
			p.more.Broadcast()
			p.mu.Unlock()
			if over {
				return
			}
		case initproto.FrameSignal:
			sig, err := initproto.ParseSignal(string(b))
			if err != nil {
				return
			}
			_ = p.s.spawn.kill(p.child, sig)
		case initproto.FrameResize:
			rows, columns, err := initproto.ParseResize(b)
			if err != nil {
				return
			}
			p.resize(rows, columns)
		default:
			return
		}
	}
}

func (p *remote) resize(rows, columns uint16) {
	if p.terminal == nil {
		return
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
}

// feed writes input to the process, and grants home as much anew, until the
// input or the process ends. Input of a process that reads no more is dropped.
func (p *remote) feed() {
	broken := false
	for {
		p.mu.Lock()
		for len(p.input) == 0 && !p.eof && !p.closed {
			p.more.Wait()
		}
		b := p.input
		p.input = nil
		done := p.closed || len(b) == 0
		p.mu.Unlock()
		if done {
			break
		}
		if !broken {
			_, err := p.stdin.Write(b)
			broken = err != nil
		}
		p.mu.Lock()
		p.window -= len(b)
		p.mu.Unlock()
		if p.c.WriteFrame(initproto.FrameWindow, initproto.EncodeNumber(uint64(len(b)))) != nil {
			break
		}
	}
	if p.terminal != nil {
		// VEOF, as if typed. The terminal stays open for its output.
		_, _ = p.terminal.Write([]byte{4})
		return
	}
	_ = p.stdin.Close()
}

// kill ends a process that is not wanted any more and waits for its end.
func (s *service) kill(p *piped) {
	s.spawn.killSession(p.child)
	_ = s.spawn.kill(p.child, syscall.SIGKILL)
	<-p.child.exited
}
