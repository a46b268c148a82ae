package postgres

import (
	"context"
	"errors"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/gateway/postgres/query"
	"isle/internal/policy"
	"isle/internal/session"
)

// Bounds of one session.
const (
	// maxOutstanding is how many messages may await the server's answer; then no
	// more are taken from the client.
	maxOutstanding = 8192
	// maxStatements and maxPortals bound what a client prepares.
	maxStatements = 4096
	maxPortals    = 4096
	// maxPrepared bounds the text of the prepared statements, in bytes.
	maxPrepared = 32 << 20
	// maxMessage bounds a statement, or a Bind with its parameters, in bytes.
	maxMessage = 64 << 20
	// maxReply bounds what of the server's must be read whole, in bytes.
	maxReply = 64 << 20
)

// An entry is a message of the client's that the server has yet to answer.
type entry struct {
	kind      byte // the message's type
	refused   *refusal
	run       *run
	key       string // of statement or portal
	statement *name[statement]
	portal    *name[portal]
	segment   uint64
	of        *portal
	sets      bool   // may change how statements are read
	probe     *probe // a Query of our own: the client hears nothing of it
	forgets   bool   // no prepared statement is left after it
	answered  bool   // a Query: what the server says next may be that it is ready
	ours      bool   // a Describe of our own
}

// A session is one client at one server. Two goroutines carry it: fromClient and
// fromServer, which share what is under mu.
type exchange struct {
	p            *Protocol
	door         door
	connection   policy.Connection
	reader       *query.Reader
	side         *side
	masks        *mask.Masks  // nil where the connection has none
	in, out      atomic.Int64 // bytes that are not counted yet
	looks        atomic.Int32 // reasons to look at rows
	client       net.Conn
	server       net.Conn
	up           splice // client to server; of the goroutine fromClient
	down         splice // server to client; of the goroutine fromServer
	outlet       outlet
	poison       []byte // an Execute that fails
	ctx          context.Context
	end          context.CancelCauseFunc
	role         role
	database     string
	cancelPacket []byte // for the server behind

	// Of the goroutine fromClient.
	segment  uint64
	prepared int // bytes of statements' texts
	params   []approval.Param
	asking   *run
	stale    bool // search_path may have changed
	touched  bool // a setting that matters was changed: a transaction's end may change it back
	moved    bool // search_path is among them
	epoch    int  // how often settings may have changed
	open     bool // messages that no Sync has ended yet were sent
	waiting  func(approval.Request) error
	estimate func(ctx context.Context) string

	rows int64 // of the answer that comes; of the goroutine fromServer

	masking sync.Mutex    // guards masked
	masked  *mask.Session // nil as masks

	mu         sync.Mutex // guards what follows
	showing    *mask.Rows // of the Query that the server answers
	changed    sync.Cond  // an answer came, or the session ends
	queue      []entry
	head       int
	status     byte // of the transaction, as the server said last: I, T or E
	skipping   bool // until Sync: something of this segment failed
	copying    bool // the server reads COPY data
	setting    int  // entries in queue that may change how statements are read
	ended      error
	statements names[statement]
	portals    names[portal]
	settings   map[string]string // as the server reported them
	reading    query.Settings    // those of them that say how SQL is read
	pairs      []approval.Pair   // what an approval is bound to; never changed, made anew
	dated      bool              // a setting was reported since
	acting     string            // the role that SET ROLE took, as SHOW role has it
	leaving    bool              // the client says nothing more
	wrote      bool              // the transaction has, or will have, written
	hold       holding
}

// outstanding is how many messages await an answer.
func (s *exchange) outstanding() int { return len(s.queue) - s.head }

// push adds an entry. The caller holds mu.
func (s *exchange) push(e entry) {
	if s.head > 256 && s.head*2 > len(s.queue) {
		n := copy(s.queue, s.queue[s.head:])
		clear(s.queue[n:])
		s.queue, s.head = s.queue[:n], 0
	}
	s.queue = append(s.queue, e)
}

// pop takes the oldest entry. The caller holds mu.
func (s *exchange) pop() entry {
	e := s.queue[s.head]
	s.queue[s.head] = entry{}
	s.head++
	if e.sets {
		s.setting--
	}
	if s.head == len(s.queue) {
		s.queue, s.head = s.queue[:0], 0
		if cap(s.queue) > 1024 {
			s.queue = nil
		}
	}
	s.changed.Broadcast()
	return e
}

// front is the oldest entry; nil if there is none. The caller holds mu.
func (s *exchange) front() *entry {
	if s.head == len(s.queue) {
		return nil
	}
	return &s.queue[s.head]
}

var (
	// errDone ends a session as both sides want.
	errDone = errors.New("postgres: the session is over")
	// errLeft is a client that says nothing more, and takes what it asked for.
	errLeft = errors.New("postgres: the client has left")
)

// serve carries a session until one side ends it, or ctx.
func (s *exchange) serve() error {
	s.changed.L = &s.mu
	over := make(chan struct{})
	stop := context.AfterFunc(s.ctx, func() {
		defer close(over)
		s.over()
	})
	var carried sync.WaitGroup
	carried.Go(func() { s.stop(s.guarded(s.fromServer)) })
	if err := s.guarded(s.fromClient); !errors.Is(err, errLeft) {
		s.stop(err)
	}
	carried.Wait()
	if !stop() {
		<-over
	}
	s.finish()
	err := context.Cause(s.ctx)
	if errors.Is(err, errDone) || errors.As(err, new(clientGone)) {
		return nil // to leave is no failure
	}
	return err
}

// stop ends the session, for a reason; the first one counts.
func (s *exchange) stop(why error) {
	if why == nil {
		why = errDone
	}
	s.end(why)
}

// over tells the client why, has the server cancel what it still does, and closes
// both sides: then both goroutines end.
func (s *exchange) over() {
	why := context.Cause(s.ctx)
	s.mu.Lock()
	s.ended = why
	s.changed.Broadcast()
	s.mu.Unlock()
	if last := s.lastWords(why); last != nil {
		s.outlet.farewell(last.frame(nil, "FATAL"), time.Second)
	}
	s.client.Close()
	s.abandon(why)
	s.server.Close()
}

// lastWords is what a client is told of an end that it did not ask for.
func (s *exchange) lastWords(why error) *refusal {
	var told *refusal
	switch {
	case errors.Is(why, errDone) || errors.As(why, new(clientGone)):
		return nil
	case errors.As(why, &told):
		return told
	case errors.As(why, new(serverGone)):
		return &refusal{State: stateAway, Message: "isle: the server behind ended the connection", Hint: "what was being done may or may not have been done"}
	}
	r := refuse(why)
	return &refusal{State: stateEnded, Message: r.Message, Detail: r.Detail, Hint: r.Hint}
}

// clientGone and serverGone are ends of connections.
type clientGone struct{ error }

type serverGone struct{ error }

// Unwrap returns the cause.
func (e clientGone) Unwrap() error { return e.error }

// Unwrap returns the cause.
func (e serverGone) Unwrap() error { return e.error }

// finish accounts for what will not be answered any more, and gives memory back.
func (s *exchange) finish() {
	s.mu.Lock()
	var left []*run
	for s.outstanding() > 0 {
		if e := s.pop(); e.run != nil {
			left = append(left, e.run)
		}
	}
	s.mu.Unlock()
	for _, r := range left {
		s.account(r, "unknown")
	}
	s.count()
	s.up.in.release()
	s.down.in.release()
	s.side.close()
}

// guarded runs f and makes an error of a panic: a hostile message ends its own
// session only.
func (s *exchange) guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.p.config.Slog.Error("a PostgreSQL session failed", "connection", s.connection.Name, "panic", v, "stack", string(debug.Stack()))
			err = isle.Errorf(isle.Internal, "the gateway failed at a message of this session")
		}
	}()
	return f()
}

// account says what became of an execution, to those who passed it and to the
// recording.
func (s *exchange) account(r *run, outcome string) {
	for _, p := range r.passes {
		p.Done(outcome, r.rows)
	}
	s.count()
	if r.began.IsZero() {
		return
	}
	e := session.Event{Kind: session.Result, Tag: outcome, Rows: r.rows, Took: time.Since(r.began)}
	if r.failure != "" {
		e.Kind, e.Error = session.Failure, r.failure
	}
	s.record(e)
}

// count tells the session how many bytes went each way.
func (s *exchange) count() {
	if in, out := s.in.Swap(0), s.out.Swap(0); in+out > 0 {
		s.door.Count(in, out)
	}
}

// record adds to the recording. Where that can't be, nothing more may pass.
func (s *exchange) record(e session.Event) {
	if err := s.door.Record(e); err != nil {
		s.stop(&refusal{State: stateNoLog, Message: "isle: nothing more passes: " + err.Error()})
	}
}
