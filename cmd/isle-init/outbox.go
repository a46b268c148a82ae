package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"isle/internal/initproto"
)

const (
	// itemCost is what an event costs beside its data, in bytes.
	itemCost = 128
	// joinBelow and joinWithin say when output is added to the piece before.
	joinBelow  = 8 << 10
	joinWithin = 200 * time.Millisecond
	// inFlight bounds events sent and not acknowledged.
	inFlight = 256
)

// An outbox holds the events that the server has not acknowledged. Output is
// bounded: while the server is there, who adds more than there is room for
// waits; while it is away, the oldest makes room, and the output says so.
// Other events are few, and kept.
type outbox struct {
	mu      sync.Mutex
	changed *sync.Cond // anything below
	items   []item     // in order; the first sent are on their way
	sent    int
	seq     uint64
	acked   uint64
	bytes   int // cost of the Log items
	online  bool
	dropped int64 // bytes of output since the last note

	// What was told last of the service, for whom it is to be told again.
	started *initproto.Event
	health  *initproto.Event
}

// An item is an event or a log.
type item struct {
	seq   uint64
	event *initproto.Event
	log   initproto.Log
}

func newOutbox() *outbox {
	o := &outbox{}
	o.changed = sync.NewCond(&o.mu)
	return o
}

// tell queues an event and returns its number.
func (o *outbox) tell(e initproto.Event) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.Kind == initproto.EventHealth { // only the last word on health counts
		for i := o.sent; i < len(o.items); i++ {
			if x := o.items[i].event; x != nil && x.Kind == e.Kind {
				o.items = append(o.items[:i], o.items[i+1:]...)
				break
			}
		}
	}
	switch e.Kind {
	case initproto.EventStarted:
		o.started = &e
	case initproto.EventHealth:
		o.health = &e
	}
	o.queue(&e)
	o.changed.Broadcast()
	return e.Seq
}

// queue gives e a number and queues it.
func (o *outbox) queue(e *initproto.Event) {
	o.seq++
	e.Seq = o.seq
	o.items = append(o.items, item{seq: e.Seq, event: e})
}

// restart begins again for a server that knows nothing of the service: it is
// told that the command was started, how it is, and what somebody waits for it
// to know; all else has been told to another, or will be. Numbers go on growing.
func (o *outbox) restart() {
	o.mu.Lock()
	defer o.mu.Unlock()
	kept := o.items[:0]
	for _, x := range o.items {
		if x.event != nil && (x.event.Kind == initproto.EventSetup || x.event.Kind == initproto.EventExited) {
			kept = append(kept, x)
		}
	}
	clear(o.items[len(kept):])
	o.items, o.sent, o.bytes, o.dropped, o.online = kept, 0, 0, 0, false
	if len(kept) == 0 {
		for _, e := range []*initproto.Event{o.started, o.health} {
			if e != nil {
				again := *e
				o.queue(&again)
			}
		}
	}
	o.changed.Broadcast()
}

// wait returns when the server has acknowledged seq.
func (o *outbox) wait(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.acked < seq {
		o.changed.Wait()
	}
}

// log queues a piece of output, which it copies.
func (o *outbox) log(stderr bool, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.online && o.bytes > 0 && o.bytes+len(data)+itemCost > initproto.LogBuffer {
		o.changed.Wait()
	}
	o.trim(initproto.LogBuffer - len(data) - itemCost)
	now := time.Now()
	if n := len(o.items); n > o.sent && o.dropped == 0 {
		if l := &o.items[n-1]; l.event == nil && l.log.Stderr == stderr && now.Sub(l.log.At) < joinWithin && len(l.log.Data)+len(data) <= joinBelow {
			l.log.Data = append(l.log.Data, data...)
			o.bytes += len(data)
			return // the sender has not come to it yet
		}
	}
	o.append(initproto.Log{At: now, Stderr: stderr, Data: append([]byte(nil), data...)})
	o.changed.Broadcast()
}

// append gives l a number and queues it.
func (o *outbox) append(l initproto.Log) {
	o.seq += 2 // one for a note before it
	l.Seq = o.seq
	o.items = append(o.items, item{seq: l.Seq, log: l})
	o.bytes += len(l.Data) + itemCost
}

// trim drops the oldest output until at most room bytes are left.
func (o *outbox) trim(room int) {
	if o.bytes <= room {
		return
	}
	kept := o.items[:0]
	sent := o.sent
	for i, x := range o.items {
		if x.event == nil && o.bytes > room {
			o.bytes -= len(x.log.Data) + itemCost
			o.dropped += int64(len(x.log.Data))
			if i < o.sent {
				sent--
			}
			continue
		}
		kept = append(kept, x)
	}
	clear(o.items[len(kept):])
	o.items, o.sent = kept, sent
}

// connected tells that the server is there: everything is to be sent again.
func (o *outbox) connected() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.online, o.sent = true, 0
	if o.dropped > 0 {
		// The note takes the place of what was dropped: before the oldest
		// output that is left, with the number kept free for it.
		note := fmt.Appendf(nil, "[isle: %d bytes of output were dropped while the server was away]\n", o.dropped)
		for i, x := range o.items {
			if x.event == nil {
				l := initproto.Log{Seq: x.seq - 1, At: x.log.At, Stderr: true, Data: note}
				o.items = slices.Insert(o.items, i, item{seq: l.Seq, log: l})
				o.bytes += len(note) + itemCost
				o.dropped = 0
				break
			}
		}
	}
	o.changed.Broadcast()
}

// disconnected tells that the server is away.
func (o *outbox) disconnected() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.online = false
	o.changed.Broadcast()
}

// next returns the next item to send, waiting for one, or false when the
// server is away.
func (o *outbox) next() (item, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.online && (o.sent >= len(o.items) || o.sent >= inFlight) {
		o.changed.Wait()
	}
	if !o.online {
		return item{}, false
	}
	x := o.items[o.sent]
	o.sent++
	return x, true
}

// ack drops what the server has. It reports whether something is on its way
// still, and false for a number that was never sent.
func (o *outbox) ack(seq uint64) (outstanding, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seq > o.seq {
		return false, false
	}
	n := 0
	for n < o.sent && o.items[n].seq <= seq {
		if o.items[n].event == nil {
			o.bytes -= len(o.items[n].log.Data) + itemCost
		}
		n++
	}
	rest := copy(o.items, o.items[n:])
	clear(o.items[rest:])
	o.items = o.items[:rest]
	o.sent -= n
	o.acked = max(o.acked, seq)
	o.changed.Broadcast()
	return o.sent > 0, true
}
