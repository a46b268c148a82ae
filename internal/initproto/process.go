package initproto

import (
	"io"
	"sync"
)

// A process implements Process on a work connection.
type process struct {
	n    *line
	c    *Conn
	stop func() bool // ends the watch of the context

	mu     sync.Mutex
	room   *sync.Cond // signalled when credit grows or done is set
	credit int        // bytes of input that may be sent
	done   bool       // nothing can be sent any more
	ended  error      // what Next returns from now on; nil while it runs
}

func newProcess(n *line, c *Conn, stop func() bool) *process {
	p := &process{n: n, c: c, stop: stop, credit: StdinWindow}
	p.room = sync.NewCond(&p.mu)
	return p
}

// Stdin implements Process. Writing more than StdinWindow bytes ahead of the
// command needs a concurrent Next.
func (p *process) Stdin() io.WriteCloser { return (*stdin)(p) }

// stdin is a process as seen by who writes to it.
type stdin process

const stdinPiece = 32 << 10

// Write sends b as the command consumes it.
func (s *stdin) Write(b []byte) (int, error) {
	p := (*process)(s)
	sent := 0
	for sent < len(b) {
		p.mu.Lock()
		for p.credit == 0 && !p.done {
			p.room.Wait()
		}
		k := min(len(b)-sent, p.credit, stdinPiece)
		p.credit -= k
		done := p.done
		p.mu.Unlock()
		if done {
			return sent, io.ErrClosedPipe
		}
		if err := p.c.WriteFrame(FrameStdin, b[sent:sent+k]); err != nil {
			return sent, p.n.broken("exec", err)
		}
		sent += k
	}
	return sent, nil
}

// Close sends the end of the input.
func (s *stdin) Close() error {
	p := (*process)(s)
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done {
		return nil
	}
	return p.c.WriteFrame(FrameStdin, nil)
}

// Next implements Process. The Data it returns is the caller's to keep.
func (p *process) Next() (Output, error) {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if ended != nil {
		return Output{}, ended
	}
	for {
		t, b, err := p.c.ReadFrame()
		if err != nil {
			return Output{}, p.finish(p.n.broken("exec", err))
		}
		switch t {
		case FrameStdout, FrameStderr:
			if len(b) == 0 {
				continue
			}
			return Output{Stderr: t == FrameStderr, Data: b}, nil
		case FrameWindow:
			if n, err := ParseNumber(b); err != nil || !p.grow(n) {
				return Output{}, p.finish(p.n.broken("exec", errFrame))
			}
		case FrameExit:
			e, err := ParseExit(b)
			if err != nil {
				return Output{}, p.finish(p.n.broken("exec", err))
			}
			p.finish(io.EOF)
			return Output{Exit: &e}, nil
		default:
			return Output{}, p.finish(p.n.broken("exec", errFrame))
		}
	}
}

// grow adds to the credit, which never exceeds the window.
func (p *process) grow(n uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > uint64(StdinWindow-p.credit) {
		return false
	}
	p.credit += int(n)
	p.room.Broadcast()
	return true
}

// finish closes the connection; Next returns err from now on.
func (p *process) finish(err error) error {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = err
	}
	p.done = true
	p.room.Broadcast()
	p.mu.Unlock()
	p.stop()
	p.c.Close()
	return err
}

// Signal implements Process.
func (p *process) Signal(name string) error {
	if _, err := ParseSignal(name); err != nil {
		return err
	}
	return p.send(FrameSignal, []byte(name))
}

// Resize implements Process.
func (p *process) Resize(rows, columns uint16) error {
	return p.send(FrameResize, EncodeResize(rows, columns))
}

// send writes a frame, unless the process has ended, which is no error: it
// could as well have ended a moment later.
func (p *process) send(t FrameType, payload []byte) error {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := p.c.WriteFrame(t, payload); err != nil {
		return p.n.broken("exec", err)
	}
	return nil
}

// Close implements Process.
func (p *process) Close() error {
	p.finish(io.ErrClosedPipe)
	return nil
}
