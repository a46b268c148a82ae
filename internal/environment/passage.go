package environment

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"isle"
)

// A passage is one client's connection to a published port, and the connection
// inside that it leads to. Between two turns of HTTP it can be led to another
// instance, and the client sees nothing of it.
type passage struct {
	p      *publisher
	client net.Conn
	ctx    context.Context // ends with cut and with the Manager
	cancel context.CancelFunc
	pumps  sync.WaitGroup                                                // what copies answers
	may    func(ctx context.Context, ref isle.Ref, project string) error // refuses whose it is; nil: it was not asked yet
	visiting

	mu     sync.Mutex
	to     *live              // that it leads to; nil: to none now
	inside io.ReadWriteCloser // nil: to is
	turns  turns
	left   bool      // the client has ended its side: who owes it an answer may have gone for that
	rests  time.Time // since when nothing is asked, of a connection on which something was
}

// patience is how long nothing may be asked on a connection without that being a
// reason for a server to end it.
const patience = time.Second

func newPassage(p *publisher, client net.Conn) *passage {
	c := &passage{p: p, client: client}
	c.ctx, c.cancel = context.WithCancel(p.m.ctx)
	c.heard()
	c.turns.status = func(status int) { // with c.mu held
		if c.to != nil {
			c.to.answers.add(status)
		}
	}
	return c
}

// cut ends it at once.
func (c *passage) cut() {
	c.cancel()
	c.client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
}

// leave lets go of the connection inside; c.mu is held.
func (c *passage) leave() {
	if c.inside == nil {
		return
	}
	c.inside.Close()
	c.to.letGo(c)
	c.to, c.inside, c.rests = nil, nil, time.Time{}
	c.turns.elsewhere()
}

// moveOn lets go of the connection inside where no turn is under way.
func (c *passage) moveOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.turns.between() {
		c.leave()
	}
}

// serve copies until both sides have ended.
func (c *passage) serve() {
	defer c.cut()
	if !c.attach() {
		c.reset()
		return
	}
	b := make([]byte, 32<<10)
	for {
		n, err := c.client.Read(b)
		if n > 0 && !c.send(b[:n]) {
			break
		}
		if err == nil {
			continue
		}
		c.mu.Lock()
		c.left = true
		inside := c.inside
		c.mu.Unlock()
		half, ok := inside.(interface{ CloseWrite() error })
		if err != io.EOF || !ok || half.CloseWrite() != nil {
			c.cut()
		}
		break
	}
	c.pumps.Wait()
}

// admitted reports whether whoever opened it may. That is asked when it is opened,
// and again when the policy has changed.
func (c *passage) admitted() bool {
	l, _ := c.p.leads()
	l.mu.Lock()
	project := l.rec.Project
	l.mu.Unlock()
	if c.may == nil {
		who, may := c.p.m.cfg.Visits.Visit(c.client.RemoteAddr(), c.client.LocalAddr())
		c.who, c.may = who(), may
	}
	err := c.may(c.ctx, l.ref, project)
	if err != nil {
		c.p.m.cfg.Log.Debug("a connection to a published port is refused", "environment", l.ref, "error", err)
	}
	return err == nil
}

// reset has its client told that it is not served: a reset says that more truly
// than an end.
func (c *passage) reset() {
	if t, ok := c.client.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}

// send passes on what the client sent, between two turns to whoever serves now.
func (c *passage) send(b []byte) bool {
	c.heard()
	c.mu.Lock()
	now, _ := c.p.leads()
	if c.inside != nil && (c.to != now || c.to.holds() != nil) && c.turns.between() {
		c.leave()
	}
	if c.inside == nil {
		c.mu.Unlock()
		if !c.attach() {
			return false
		}
		c.mu.Lock()
	}
	inside := c.inside
	if c.turns.between() && !c.rests.IsZero() && time.Since(c.rests) >= patience {
		c.turns.doubt = true // it may be ending as this is sent
	}
	c.turns.sent(b)
	c.mu.Unlock()
	if inside == nil { // cut meanwhile
		return false
	}
	if _, err := inside.Write(b); err != nil {
		c.cut()
		return false
	}
	return true
}

// attach opens a connection inside, at whoever serves once requests are not held
// any more.
func (c *passage) attach() bool {
	for {
		l, number := c.p.leads()
		if held := l.holds(); held != nil {
			select {
			case <-held:
				continue
			case <-c.ctx.Done():
				return false
			}
		}
		if !l.admit(c) {
			return false
		}
		// Counted in, it is waited for before the instance is frozen: unless that
		// was looked at before.
		if now, _ := c.p.leads(); now != l || l.holds() != nil {
			l.letGo(c)
			continue
		}
		inside, err := l.dial(c.ctx, c.p.key.service, number)
		if now, _ := c.p.leads(); err != nil && now != l && c.ctx.Err() == nil {
			l.letGo(c)
			continue // another one serves by now
		}
		if err != nil {
			if c.ctx.Err() == nil {
				l.answers.lost(1)
			}
			l.letGo(c)
			return false
		}
		c.mu.Lock()
		if c.ctx.Err() != nil {
			c.mu.Unlock()
			inside.Close()
			l.letGo(c)
			return false
		}
		c.to, c.inside = l, inside
		c.pumps.Go(func() { c.pump(inside) })
		c.mu.Unlock()
		return true
	}
}

// pump copies what one instance answers, until the client is led to another one.
func (c *passage) pump(inside io.ReadWriteCloser) {
	b := make([]byte, 32<<10)
	for {
		n, err := inside.Read(b)
		if n > 0 && !c.asked(inside) {
			return
		}
		c.heard()
		if n > 0 {
			if _, err := c.client.Write(b[:n]); err != nil {
				c.cut()
				return
			}
		}
		c.mu.Lock()
		here := c.inside == inside
		if here {
			if c.turns.answered(b[:n]); c.turns.between() {
				c.rests = time.Now()
			}
			if err != nil && c.ctx.Err() == nil && !c.left { // it ends owing answers
				c.to.answers.lost(c.turns.owed())
			}
		}
		c.mu.Unlock()
		switch {
		case !here:
			return
		case err == io.EOF:
			if half, ok := c.client.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
				return
			}
			c.cut()
			return
		case err != nil:
			c.cut()
			return
		}
	}
}

// asked says whether what an instance has said may be passed on: the client is not
// led to another one by now, whose answer it would take it for. What nobody has
// asked for, as the 408 of a server that is tired of waiting, keeps the client where
// it is: its next answer is not the one to its next request.
func (c *passage) asked(inside io.ReadWriteCloser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inside != inside {
		return false
	}
	if c.turns.between() {
		c.turns.giveUp()
	}
	return true
}

// admit counts a connection in; false: there are as many as may be, and nobody has
// more of them.
func (l *live) admit(c *passage) bool {
	for {
		select {
		case l.connections <- struct{}{}:
			l.mu.Lock()
			defer l.mu.Unlock()
			l.through[c] = &c.visiting
			return true
		default:
		}
		l.mu.Lock()
		goes, ok := displaced(l.through, c.who, false)
		l.mu.Unlock()
		if !ok {
			return false
		}
		goes.cut() // which counts it out
		l.letGo(goes)
	}
}

// letGo counts it out.
func (l *live) letGo(c *passage) {
	l.mu.Lock()
	_, in := l.through[c]
	delete(l.through, c)
	l.mu.Unlock()
	if in {
		<-l.connections
	}
}

// holds returns what is closed when requests that are held now go on; nil: none
// is.
func (l *live) holds() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}
