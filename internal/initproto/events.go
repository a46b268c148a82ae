package initproto

import (
	"time"
)

const (
	// maxEventsWaiting bounds events connections that wait for their turn.
	maxEventsWaiting = 4
	// writeTimeout bounds a small write to isle-init outside of any request.
	writeTimeout = 10 * time.Second
	// ackEvery bounds how many events one Ack covers.
	ackEvery = 64
)

// serveEvents takes the events of one connection until it ends. A newer
// connection ends an older one.
func (l *launch) serveEvents(c *Conn) {
	defer c.Close()
	l.mu.Lock()
	if l.ended() || l.waiting >= maxEventsWaiting {
		l.mu.Unlock()
		return
	}
	l.waiting++
	if l.events != nil {
		l.events.Close()
	}
	l.events = c
	l.mu.Unlock()

	l.deliver.Lock() // the older one may be in sink still
	defer l.deliver.Unlock()
	l.mu.Lock()
	l.waiting--
	current := l.events == c
	l.mu.Unlock()
	if current {
		if err := l.receive(c); err != nil && !l.ended() {
			l.home.log.Debug("events connection ended", "launch", l.id, "reason", err)
		}
	}
	l.mu.Lock()
	if l.events == c {
		l.events = nil
	}
	l.mu.Unlock()
}

// receive hands events to sink and acknowledges what it took.
func (l *launch) receive(c *Conn) error {
	budget := newBudget(LogRate)
	var last uint64
	for pending := 0; ; {
		t, b, err := c.ReadFrame()
		if err != nil {
			return err
		}
		seq, size, err := l.handle(t, b, last)
		if err != nil {
			return err
		}
		last = seq
		if pending++; pending >= ackEvery || c.Reader.Buffered() == 0 {
			if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return err
			}
			if err := c.WriteFrame(FrameAck, EncodeNumber(last)); err != nil {
				return err
			}
			pending = 0
		}
		if pause := budget.spend(size, time.Now()); pause > 0 {
			select {
			case <-time.After(pause):
			case <-l.gone:
				return nil
			}
		}
	}
}

// handle gives one event to sink, unless sink had it before. It returns the
// event's number, which is above last, and its size.
func (l *launch) handle(t FrameType, b []byte, last uint64) (seq uint64, size int, err error) {
	var tell func() error
	switch t {
	case FrameLog:
		g, err := ParseLog(b)
		if err != nil {
			return 0, 0, err
		}
		seq, tell = g.Seq, func() error { return l.sink.Log(g.At, g.Stderr, g.Data) }
	case FrameEvent:
		e, err := ParseEvent(b)
		if err != nil {
			return 0, 0, err
		}
		seq, tell = e.Seq, func() error { return l.tell(e) }
	default:
		return 0, 0, errFrame
	}
	if seq <= last {
		return 0, 0, errFrame
	}
	if seq <= l.lastSeq { // sent again because the Ack was lost
		return seq, len(b), nil
	}
	if err := tell(); err != nil {
		return 0, 0, err
	}
	l.lastSeq = seq
	return seq, len(b), nil
}

func (l *launch) tell(e Event) error {
	switch e.Kind {
	case EventSetup:
		return l.sink.SetupDone(e.Code, e.Output)
	case EventStarted:
		return l.sink.Started()
	case EventHealth:
		return l.sink.Health(e.Healthy, e.Detail)
	case EventExited:
		return l.sink.Exited(e.Code, e.Detail)
	}
	return errFrame
}

// A budget lets bytes through at a rate, a quarter of a second's worth at once.
type budget struct {
	rate float64 // bytes a second
	debt float64 // bytes taken and not yet paid for with time
	at   time.Time
}

func newBudget(rate int) *budget { return &budget{rate: float64(rate), at: time.Now()} }

// spend takes n bytes and returns how long to wait before the next.
func (b *budget) spend(n int, now time.Time) time.Duration {
	b.debt = max(0, b.debt-now.Sub(b.at).Seconds()*b.rate) + float64(n)
	b.at = now
	if b.debt < b.rate/4 {
		return 0
	}
	return time.Duration((b.debt - b.rate/4) / b.rate * float64(time.Second))
}
