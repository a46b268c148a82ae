package initproto

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"isle"
)

// A HomeConfig is what a Home needs.
type HomeConfig struct {
	// Log gets what an operator may want to know. Nil discards it.
	Log *slog.Logger
	// Refused is told of connections that did not prove themselves: something
	// in the instance that is not isle-init tried to speak as if it were. It
	// is called at most once a second for each instance, and ever more seldom,
	// down to once an hour, while that goes on. Nil: nobody is told.
	Refused func(Refusal)
	// Workload serves a connection to the WorkloadSocket of a launch of the
	// instance, and returns when that has ended; then it is closed. It is closed
	// under it, too, when the launch is forgotten. The connection has CloseWrite.
	// Nil: such connections are closed.
	Workload func(instance, launch isle.ID, conn net.Conn)
}

// A Refusal is one or more connections that failed the handshake.
type Refusal struct {
	Instance isle.ID // where they came from, which is known for sure
	Launch   isle.ID // who the last one said it was; "" if it did not get that far
	Reason   string
	Count    int // how many since the last Refusal of this instance
	At       time.Time
}

// A Home is the server's half of the protocol: airlocks Serve it connections,
// and it hands out the Lines of launches. It implements Lines.
type Home struct {
	log      *slog.Logger
	refused  func(Refusal)
	workload func(instance, launch isle.ID, conn net.Conn)

	mu       sync.Mutex
	launches map[isle.ID]*launch
	forks    map[isle.ID]*forked // by the launch that they are to become
	pending  map[isle.ID][]*Conn // by instance, oldest first
	refusals map[isle.ID]*refusals
	closed   bool // by Close; what is pending ends with it
}

// refusals counts what was not yet told.
type refusals struct {
	count int
	next  time.Time // not to be told before
	pause time.Duration
}

// A launch is one isle-init that may dial home.
type launch struct {
	home     *Home
	instance isle.ID
	id       isle.ID
	key      [sha256.Size]byte // SHA-256 of its secret
	sink     Events
	gone     chan struct{} // closed by Forget

	mu      sync.Mutex // above what follows
	parked  []*Conn    // idle work connections, oldest first
	arrived chan struct{}
	events  *Conn              // the current one
	waiting int                // events connections that wait for their turn
	serving map[*Conn]struct{} // workload connections

	deliver sync.Mutex // held by who calls sink, so that events stay in order
	lastSeq uint64     // under deliver: what sink has had
}

var _ Lines = (*Home)(nil)

// NewHome returns a Home. It has no goroutines but those of its connections.
func NewHome(cfg HomeConfig) *Home {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Home{
		log:      cfg.Log,
		refused:  cfg.Refused,
		workload: cfg.Workload,
		launches: map[isle.ID]*launch{},
		forks:    map[isle.ID]*forked{},
		pending:  map[isle.ID][]*Conn{},
		refusals: map[isle.ID]*refusals{},
	}
}

// Expect implements Lines. To expect a launch again, as after a restart of the
// server, replaces its sink and drops its connections.
func (h *Home) Expect(instance, id isle.ID, secretHash isle.Digest, sink Events) {
	key, ok := keyOf(secretHash)
	if !ok {
		h.log.Error("a launch without a secret's hash can not call home", "launch", id)
		return
	}
	l := &launch{home: h, instance: instance, id: id, key: key, sink: sink,
		gone: make(chan struct{}), arrived: make(chan struct{}), serving: map[*Conn]struct{}{}}
	h.mu.Lock()
	old := h.launches[id]
	h.launches[id] = l
	h.endFork(id)
	h.mu.Unlock()
	if old != nil {
		old.end()
	}
}

// Forget implements Lines.
func (h *Home) Forget(id isle.ID) {
	h.mu.Lock()
	l := h.launches[id]
	delete(h.launches, id)
	h.endFork(id)
	last := l != nil
	for _, other := range h.launches {
		if l != nil && other.instance == l.instance {
			last = false
		}
	}
	if last {
		delete(h.refusals, l.instance)
	}
	h.mu.Unlock()
	if l != nil {
		l.end()
	}
}

// Close forgets every launch. Their isle-inits go on, and dial until someone
// expects them again.
func (h *Home) Close() error {
	h.mu.Lock()
	launches := h.launches
	h.launches = map[isle.ID]*launch{}
	for id := range h.forks {
		h.endFork(id)
	}
	var pending []*Conn
	for _, p := range h.pending {
		pending = append(pending, p...)
	}
	h.closed = true
	h.mu.Unlock()
	for _, l := range launches {
		l.end()
	}
	for _, c := range pending {
		c.Close()
	}
	return nil
}

// Line implements Lines.
func (h *Home) Line(ctx context.Context, id isle.ID) (Line, error) {
	h.mu.Lock()
	l := h.launches[id]
	h.mu.Unlock()
	if l == nil {
		return nil, isle.Errorf(isle.NotFound, "launch %s is not running", id)
	}
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return &line{l}, nil
}

// Serve takes a connection that arrived at HomeAddress in the airlock of the
// instance. It returns at once; the connection's goroutine ends with it.
func (h *Home) Serve(instance isle.ID, conn net.Conn) {
	c := NewConn(conn)
	h.mu.Lock()
	var oldest *Conn
	if p := h.pending[instance]; len(p) >= MaxPending {
		// Who is honest is done in a millisecond, so the oldest is the one
		// that least deserves its place.
		oldest, h.pending[instance] = p[0], p[1:]
	}
	h.pending[instance] = append(h.pending[instance], c)
	h.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	go h.handshake(instance, c)
}

func (h *Home) handshake(instance isle.ID, c *Conn) {
	deadline := time.Now().Add(HandshakeTimeout)
	if err := c.SetDeadline(deadline); err != nil {
		c.Close()
		return
	}
	l, hello, err := h.identify(instance, c)
	h.settle(instance, c)
	if err != nil || l == nil { // nobody's: it was told who to be, or is of no use until it is
		c.Close()
		if err == nil {
			return
		}
		if !errors.Is(err, io.EOF) { // who says nothing claims nothing
			h.refuse(instance, hello.Launch, err)
		}
		return
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		c.Close()
		return
	}
	switch hello.Kind {
	case KindEvents:
		l.serveEvents(c)
	case KindWorkload:
		l.serveWorkload(c)
	default:
		l.park(c)
	}
}

// identify does home's half of the handshake. There is no launch where all that
// was to be said to who called has been said.
func (h *Home) identify(instance isle.ID, c *Conn) (*launch, Hello, error) {
	challenge := NewChallenge()
	if err := c.WriteFrame(FrameChallenge, challenge.Encode()); err != nil {
		return nil, Hello{}, io.EOF
	}
	b, err := c.Expect(FrameHello)
	if err != nil {
		return nil, Hello{}, err
	}
	hello, err := ParseHello(b)
	if err != nil {
		return nil, Hello{}, err
	}
	h.mu.Lock()
	l, closed := h.launches[hello.Launch], h.closed
	h.mu.Unlock()
	var key [sha256.Size]byte // nothing hashes to zero, so it proves nobody
	f := h.fork(instance, hello.Launch)
	switch {
	case f != nil:
		defer clear(f.become.Secret)
		l, key = nil, f.key
	case l != nil && l.instance == instance:
		key = l.key
	}
	if !hello.Proves(challenge, key) {
		switch {
		case closed && l == nil && f == nil: // it was expected, maybe, and calls the next server again
			return nil, hello, io.EOF
		case f != nil:
			err = errors.New("the secret is not that of the launch which was captured")
		case l == nil:
			err = errors.New("no such launch is expected")
		case l.instance != instance:
			err = errors.New("the launch belongs to another instance")
		default:
			err = errors.New("the secret is wrong")
		}
		return nil, hello, err
	}
	if err := c.WriteFrame(FrameWelcome, hello.Welcome(challenge, key)); err != nil {
		return nil, hello, io.EOF
	}
	if f != nil {
		if err := f.tell(c, challenge, &hello); err != nil {
			h.log.Debug("a fork was not told who it is", "launch", f.become.Launch, "reason", err)
		}
		return nil, hello, nil
	}
	if hello.Kind == KindEvents {
		h.knows(hello.Launch)
	}
	return l, hello, nil
}

// settle takes c out of the connections that have not proved themselves.
func (h *Home) settle(instance isle.ID, c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pending[instance]
	for i := range p {
		if p[i] == c {
			p = append(p[:i:i], p[i+1:]...)
			break
		}
	}
	if len(p) == 0 {
		delete(h.pending, instance)
		return
	}
	h.pending[instance] = p
}

// The time between two Refusals of an instance doubles while it goes on.
const firstRefusalPause, lastRefusalPause = time.Second, time.Hour

// refuse tells of a failed handshake, ever more seldom: the audit log is not
// for the instance to fill.
func (h *Home) refuse(instance, claimed isle.ID, reason error) {
	now := time.Now()
	h.mu.Lock()
	if h.closed && errors.Is(reason, net.ErrClosed) {
		h.mu.Unlock()
		return // it would have gone on
	}
	r := h.refusals[instance]
	if r == nil {
		r = &refusals{}
		h.refusals[instance] = r
	}
	r.count++
	if now.Before(r.next) {
		h.mu.Unlock()
		return
	}
	told := Refusal{Instance: instance, Launch: claimed, Reason: reason.Error(), Count: r.count, At: now}
	if now.Sub(r.next) > r.pause { // quiet since
		r.pause = firstRefusalPause
	} else {
		r.pause = min(2*r.pause, lastRefusalPause)
	}
	r.count, r.next = 0, now.Add(r.pause)
	h.mu.Unlock()
	h.log.Warn("refused a connection home", "instance", instance, "claimed", claimed, "reason", reason, "count", told.Count)
	if h.refused != nil {
		h.refused(told)
	}
}

// end closes everything of a launch.
func (l *launch) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.gone:
		return
	default:
	}
	close(l.gone)
	for _, c := range l.parked {
		c.Close()
	}
	l.parked = nil
	if l.events != nil {
		l.events.Close()
	}
	for c := range l.serving {
		c.Close()
	}
}

func (l *launch) ended() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// serveWorkload hands a workload connection on until it ends.
func (l *launch) serveWorkload(c *Conn) {
	defer c.Close()
	l.mu.Lock()
	if l.ended() || len(l.serving) >= MaxWorkload || l.home.workload == nil {
		l.mu.Unlock()
		return
	}
	l.serving[c] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.serving, c)
	}()
	l.home.workload(l.instance, l.id, &forwarded{c})
}

// park keeps a work connection until a request needs it.
func (l *launch) park(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended() {
		c.Close()
		return
	}
	if len(l.parked) >= MaxParked {
		l.parked[0].Close()
		l.parked = l.parked[1:]
	}
	l.parked = append(l.parked, c)
	close(l.arrived)
	l.arrived = make(chan struct{})
}

// wait returns when a work connection is parked.
func (l *launch) wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		n, arrived := len(l.parked), l.arrived
		l.mu.Unlock()
		if l.ended() {
			return isle.Errorf(isle.Unavailable, "launch %s has ended", l.id)
		}
		if n > 0 {
			return nil
		}
		select {
		case <-arrived:
		case <-l.gone:
		case <-ctx.Done():
			return isle.Errorf(isle.Unavailable, "isle-init of launch %s did not call home: %w", l.id, context.Cause(ctx))
		}
	}
}

// take returns a parked connection that is alive as far as one can see,
// waiting for one until ctx ends.
func (l *launch) take(ctx context.Context) (*Conn, error) {
	for {
		if err := l.wait(ctx); err != nil {
			return nil, err
		}
		l.mu.Lock()
		var c *Conn
		if n := len(l.parked); n > 0 {
			c = l.parked[n-1] // the youngest is the likeliest to live
			l.parked = l.parked[:n-1]
		}
		l.mu.Unlock()
		if c == nil {
			continue
		}
		if quiet(c) {
			return c, nil
		}
		c.Close()
	}
}
