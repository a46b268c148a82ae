package session

import (
	"strings"
	"sync"
	"time"

	"isle"
)

// A Live is a session that goes on. It is safe for concurrent use.
type Live struct {
	s     *Sessions
	id    isle.ID
	floor uint64 // its first entry is not before this one of the log

	out sync.Mutex // held over writing; taken before mu
	w   *writer    // guarded by out

	mu     sync.Mutex // guards what follows
	info   Info
	buf    []byte // events that are not written yet
	queued bool   // in the list of what is to be written
	room   sync.Cond
	busy   int   // statements that have no result yet
	cause  error // why nothing more may pass
	broken bool  // it can be recorded no longer
	over   bool  // End was called
	done   chan struct{}
	last   int64 // statements at the last look, of the rate
}

// errOver is what is recorded after End.
var errOver error = isle.Errorf(isle.Conflict, "the session has ended")

// ID is the session's, and that of its first audit entry.
func (l *Live) ID() isle.ID { return l.id }

// Done is closed when nothing more may pass, and Cause says why: somebody ended
// it, or it cannot be recorded any more.
func (l *Live) Done() <-chan struct{} { return l.done }

// Cause is why Done is closed; nil while it is not.
func (l *Live) Cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// Info is what is known of the session now.
func (l *Live) Info() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state(l.s.cfg.Now())
}

// state is Info with the state filled in. mu is held.
func (l *Live) state(now time.Time) Info {
	i := l.info
	switch {
	case l.over:
		i.State = Ended
	case i.State == Held:
	case l.busy > 0 || now.Sub(i.Last) < idleAfter:
		i.State = Active
	default:
		i.State = Idle
	}
	return i
}

// idleAfter is how long after its last event a session counts as idle.
const idleAfter = 5 * time.Second

// Count adds to the bytes that came from the client, and that went to it.
func (l *Live) Count(in, out int64) {
	now := l.s.cfg.Now()
	l.mu.Lock()
	l.info.Last = now
	l.info.BytesIn += in
	l.info.BytesOut += out
	l.mu.Unlock()
}

// Describe sets what is known of the other end only after the session began:
// its address, the database and the role; what is "" stays as it is.
func (l *Live) Describe(address, database, role string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for to, v := range map[*string]string{&l.info.Address: address, &l.info.Database: database, &l.info.Role: role} {
		if v != "" {
			*to = clip(v)
		}
	}
}

// Record adds an event. It copies what it keeps. It is in memory when Record
// returns and in the file soon; where the file is written more slowly than
// events come, Record waits. An error means that nothing more may pass: it is
// the session's Cause. What came before an end by somebody is recorded all the
// same.
func (l *Live) Record(e Event) error {
	if e.At.IsZero() {
		e.At = l.s.cfg.Now()
	}
	if len(e.Text) > MaxText || len(e.Data) > MaxText || len(e.Params) > maxParams {
		e = e.cutTo()
	}
	l.mu.Lock()
	for l.crowded() && !l.broken && !l.over {
		l.room.Wait()
	}
	switch {
	case l.broken:
		defer l.mu.Unlock()
		return l.cause
	case l.over:
		l.mu.Unlock()
		return errOver
	}
	if l.buf == nil {
		l.buf = l.s.buffer()
	}
	before := len(l.buf)
	l.buf = appendEvent(l.buf, &e)
	l.s.unwritten.Add(int64(len(l.buf) - before))
	l.count(&e)
	queue, early, cause := !l.queued, len(l.buf) >= maxEarly, l.cause
	l.queued = true
	l.mu.Unlock()
	if queue {
		l.s.queue(l)
	}
	if early {
		poke(l.s.early)
	}
	return cause
}

// crowded says that there is no room for another event: of this session, or of
// all. What has nothing waiting gets in, since nothing of it would be written
// and make room. mu is held.
func (l *Live) crowded() bool {
	return len(l.buf) >= maxPending || len(l.buf) > 0 && l.s.unwritten.Load() >= maxUnwritten
}

// waiting is how many bytes of events are not written yet.
func (l *Live) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buf)
}

// count keeps the counters. mu is held.
func (l *Live) count(e *Event) {
	i := &l.info
	i.Last = e.At
	switch e.Kind {
	case Statement, Request:
		i.Statements++
		l.busy++
		i.State = ""
	case Result, Response, Failure:
		i.Rows += e.Rows
		l.busy = max(0, l.busy-1)
	case Holding:
		i.Held++
		i.State = Held
	case Approved:
		i.State = ""
	case Refused, Denied:
		i.Refused++
		i.State = ""
	}
}

// flush writes what is recorded. out is held.
func (l *Live) flush() error {
	l.mu.Lock()
	buf := l.buf
	l.buf, l.queued = nil, false
	broken := l.broken
	l.s.unwritten.Add(-int64(len(buf)))
	l.room.Broadcast()
	l.mu.Unlock()
	if len(buf) == 0 || broken {
		return nil
	}
	size := l.w.size
	err := l.s.pack(l.w, buf)
	l.s.giveBack(buf)
	if over := l.s.spend(l.info.Actor, l.w.size-size); over != nil {
		l.mu.Lock()
		l.stop(over) // what came before is recorded, and its end
		l.mu.Unlock()
	}
	if err != nil {
		l.fail(err)
	}
	return err
}

// fail says that the session cannot be recorded any more.
func (l *Live) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
	l.room.Broadcast()
	l.stop(err)
}

// stop lets nothing more pass. mu is held.
func (l *Live) stop(err error) {
	if l.cause == nil {
		l.cause = err
		close(l.done)
	}
}

// End ends the session, which is why it did unless it has a Cause. Its entry is
// in the log soon. It may be called more than once; the first counts.
func (l *Live) End(why string) {
	now := l.s.cfg.Now()
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return
	}
	if l.cause != nil {
		why = l.cause.Error()
	}
	why = clip(why)
	if !l.broken {
		if l.buf == nil {
			l.buf = l.s.buffer()
		}
		before := len(l.buf)
		l.buf = appendEvent(l.buf, &Event{At: now, Kind: End, Text: []byte(why)})
		l.s.unwritten.Add(int64(len(l.buf) - before))
	}
	l.over = true
	l.info.Ended, l.info.Why, l.info.State, l.info.Rate = now, why, Ended, 0
	l.stop(errOver)
	l.room.Broadcast()
	l.mu.Unlock()
	l.s.ended(l)
}

// clip bounds a text that goes into Info.
func clip(s string) string {
	const most = 500
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "")
}

// endedBy is the cause of a session that somebody ended.
func endedBy(by isle.Actor, reason string) error {
	if reason == "" {
		return isle.Errorf(isle.Refused, "the session was ended by %s", by)
	}
	return isle.Errorf(isle.Refused, "the session was ended by %s: %s", by, clip(reason))
}
