// Package gateway is what stands between callers and everything else.
//
// A connection is a resource behind the gateway: a policy says what kind it is,
// where it is, which credential opens it, and what may be done with it. A Caller
// is who comes: an environment through its airlock, a person or a machine from
// outside. Serve lets a caller open a connection: policy is asked, a human where
// policy says so, a session begins, and the Protocol of the connection's kind
// speaks with the client on one side and with the real thing on the other. A
// Door is what a protocol has for that: it dials, hands out the credential, and
// is asked before each statement or request. What changes something is in the
// audit log before it is done; what is refused is there too; what only reads is
// in the session's recording. When the policy, the caller or the session ends,
// so does the door, within milliseconds and with the reason.
//
// Egress is the other thing that passes: an environment's connection to a
// destination that it was granted. A grant names a host, and the gateway alone
// resolves it, so that what is inside has no say in the address. An address is
// dialed if it is public, or if the grant names it; what is checked is what is
// dialed, without a second look at DNS that could answer otherwise. Loopback,
// link-local, private and reserved addresses, and those of this machine, are
// refused. The address of a connection is named by whoever keeps the policy, and
// may be private; this server's own listeners it can't be.
package gateway

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/secret"
	"isle/internal/session"
)

// Config is what a Gateway needs. The zero Config is the real thing for egress;
// connections need what is said to be required.
type Config struct {
	// Resolve looks a DNS name up; default the host's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Own reports whether an address is this machine's; default what its
	// routing table says.
	Own func(netip.Addr) (bool, error)
	// Closed says why an instance may not reach an address, although a grant
	// names it; "" if it may. Default: nothing is closed.
	Closed func(instance isle.ID, to netip.AddrPort) string
	// Timeout bounds a Dial, resolving included; default 10 seconds.
	Timeout time.Duration

	// Policy is the policy in force. Required for connections, as is all that
	// follows up to Protocols.
	Policy Policy
	// Sessions begins and records what passes.
	Sessions Sessions
	// Log is where entries go.
	Log Log
	// Protocols are the kinds of connection that can be served.
	Protocols map[string]Protocol

	// Approvals asks a human; nil: what has to be approved is refused.
	Approvals Approvals
	// Secrets are what connections are opened with; nil: none can be had.
	Secrets Secrets
	// Refused takes the entry of a refusal, within the share of who was refused;
	// nil: each is appended to Log.
	Refused func(audit.Entry)
	// Inside are the exec sessions of an instance at a time, for entries; nil:
	// none are known.
	Inside func(instance isle.ID, at time.Time) []isle.ID
	// Forward opens a port of an environment's service, for connections whose
	// address is one; nil: there are no environments.
	Forward func(ctx context.Context, c Caller, connection string, ref isle.Ref, service string, port int) (io.ReadWriteCloser, error)
	// Listening reports whether an address of this machine is a listener of this
	// server: no connection leads there. nil: none is.
	Listening func(netip.AddrPort) bool
	// Roots verify the other end of inspected egress; nil: the system's.
	Roots *x509.CertPool
	// Start bounds how long a protocol may take until it calls Door.Started;
	// default 30 seconds.
	Start time.Duration
	// Slog gets what the server's owner should know; nil discards it.
	Slog *slog.Logger
}

// Policy is the policy in force; *authority.Authority implements it.
type Policy interface {
	// State is the policy in force.
	State() *authority.State
	// Now is the time that is decided as of. It never goes back.
	Now() time.Time
}

// Sessions is what the gateway needs of room session.
type Sessions interface {
	// Begin begins a session with a durable entry.
	Begin(ctx context.Context, i session.Info) (*session.Live, error)
}

// Approvals is what the gateway needs of room approval.
type Approvals interface {
	// Acquire returns once a use of an approval is spent durably.
	Acquire(ctx context.Context, r approval.Request, waiting func(approval.Request) error) (approval.Use, error)
}

// Secrets is what the gateway needs of room secret.
type Secrets interface {
	// Resolve takes the value of a secret. The caller destroys it.
	Resolve(ctx context.Context, name string) (secret.Value, error)
}

// Log is where audit entries go.
type Log interface {
	// Append makes the entries durable, all or none, before it returns.
	Append(ctx context.Context, entries ...audit.Entry) error
}

// A Protocol speaks the language of one kind of connection.
type Protocol interface {
	// Serve speaks with one client through a door until one side ends, or ctx
	// does: its cause says why, for the client. It calls d.Started once the
	// client is through its handshake. The gateway closes client afterwards, and
	// a moment after ctx has ended. The error is why it could not be served; nil
	// where the client or the other side just left. What a client is told of an
	// error is Told.
	Serve(ctx context.Context, client net.Conn, d *Door) error
}

// A Refuser is a Protocol that tells a client in its own words why it is not
// served. client has a deadline.
type Refuser interface {
	Refuse(client net.Conn, err error)
}

// Bounds of sessions.
const (
	// MaxSessions is how many sessions may be open at once, MaxSessionsEach how
	// many of one caller.
	MaxSessions     = 4096
	MaxSessionsEach = 256

	// A caller may open sessionBurst sessions at once and one more every
	// sessionEvery; more wait. Each is two entries of a log that nobody may shorten.
	sessionBurst = 512
	sessionEvery = 20 * time.Millisecond

	startTimeout = 30 * time.Second
	// parting is how long a protocol may take to tell its client why it ends.
	parting = 2 * time.Second
	// refusing is how long it may take to tell why it does not begin.
	refusing = 5 * time.Second
	// stuck is how long Close waits for sessions to end.
	stuck = 15 * time.Second
)

// A Gateway dials for environments and serves connections. It implements
// airlock.Egress. Its methods may be called from any goroutine.
type Gateway struct {
	config  Config
	serving sync.WaitGroup
	fresh   allowance.Table // of new sessions, by caller

	mu      sync.Mutex // guards what follows
	doors   map[*Door]struct{}
	callers map[string]int // open doors by caller, those that begin among them
	total   int
	closed  bool
	changed chan struct{} // closed by PolicyChanged
}

// New returns a Gateway.
func New(c Config) *Gateway {
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.Own == nil {
		c.Own = deliveredHere
	}
	if c.Closed == nil {
		c.Closed = func(isle.ID, netip.AddrPort) string { return "" }
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Start <= 0 {
		c.Start = startTimeout
	}
	if c.Inside == nil {
		c.Inside = func(isle.ID, time.Time) []isle.ID { return nil }
	}
	if c.Listening == nil {
		c.Listening = func(netip.AddrPort) bool { return false }
	}
	if c.Slog == nil {
		c.Slog = slog.New(slog.DiscardHandler)
	}
	return &Gateway{
		config: c, fresh: allowance.Table{Rate: allowance.Rate{Burst: sessionBurst, Every: sessionEvery}, Max: MaxSessions},
		doors: map[*Door]struct{}{}, callers: map[string]int{}, changed: make(chan struct{}),
	}
}

// PolicyChanged has every door ask again whether it may be open: the policy is
// another one, or a grant has ended.
func (g *Gateway) PolicyChanged() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
}

// policyOver is closed by the next PolicyChanged.
func (g *Gateway) policyOver() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

var errStopping = isle.Errorf(isle.Unavailable, "the server is stopping").WithHint("connect again")

// Close ends every session, with a reason, and waits for them, though for none
// that does not end. Nothing is served afterwards; egress goes on.
func (g *Gateway) Close() {
	g.mu.Lock()
	g.closed = true
	for d := range g.doors {
		d.end(errStopping)
	}
	g.mu.Unlock()
	ended := make(chan struct{})
	go func() { // ends with the last session
		g.serving.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stuck):
		g.config.Slog.Error("gateway: sessions do not end, and are left", "after", stuck)
	}
}

// Waiting says at which connections sessions of an instance wait for an
// approval, and how many.
func (g *Gateway) Waiting(instance isle.ID) map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out map[string]int
	for d := range g.doors {
		if n := d.waiting.Load(); d.caller.Instance == instance && n > 0 {
			if out == nil {
				out = map[string]int{}
			}
			out[d.name]++
		}
	}
	return out
}
