// Package recorder is the network of a build step: the only thing it reaches.
//
// A Recorder answers one step. A request that the lock has a material for is
// answered from the store, without a network; another is sent on, once, and its
// answer becomes a material. What the step sees of an answer is what a material
// holds, the first time too: so a step cannot tell a recording from a replay. A
// Recorder that is Frozen sends nothing on that the lock does not name.
//
// TLS ends here, in front of an authority that lives as long as the step, whose
// key is in memory only. Of what arrives nothing is trusted: HTTP is read by
// net/http and TLS by crypto/tls, both with deadlines and bounds, and where a
// request leads is decided outside of the step, by who dials.
package recorder

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/conceal"
	"isle/internal/image"
	"isle/internal/inspection"
	"isle/internal/spec"
)

// Bounds of one step.
const (
	// maxBytes is how much a step may be answered, what is replayed included.
	maxBytes = 16 << 30
	// maxNoted is how many bytes of addresses and headers its answers may have: they
	// are in the lock, which has at most twice as much (spec.MaxLockSize).
	maxNoted = spec.MaxLockSize / 2
	// maxTime is how long one answer may take to come.
	maxTime = 30 * time.Minute
	// stall is how long an answer may bring nothing.
	stall = 60 * time.Second
	// maxAtOnce is how many requests of a step are sent on at once, maxOpen how
	// many of its connections are open.
	maxAtOnce = 32
	maxOpen   = 256
	// maxSaid is how many requests and refusals are told one by one.
	maxSaid = 20
)

// Config is what recorders need of the machine.
type Config struct {
	Store *image.Store // bodies, by digest
	// Dial connects to a host, a DNS name or an address, if that may be reached.
	Dial func(ctx context.Context, host string, port int) (net.Conn, error)
	// Roots verify servers; nil: the system's.
	Roots *x509.CertPool
	// Now is the clock for answers that have no Date.
	Now func() time.Time
}

// Options are what is known of one step.
type Options struct {
	// Locked are the step's materials, Others those of other steps of its
	// service, which are as good where the step asks for the same.
	Locked, Others []spec.Material
	// Frozen has what no material answers refused. A material whose body the
	// store lacks is fetched even so, and must be what the lock says.
	Frozen bool
	// Secrets are in no request that is sent on, nor in what is kept of an answer
	// beside its body: the lock has both. nil: there are none.
	Secrets *conceal.Forms
	// Say tells people what goes on.
	Say func(message string)
}

// A Recorder is one step's network. Its methods may be called from several
// goroutines. Close ends it.
type Recorder struct {
	config    Config
	o         Options
	authority *inspection.Authority
	client    *http.Client
	server    *http.Server
	conns     *accepted
	ctx       context.Context
	cancel    context.CancelFunc
	sending   chan struct{} // one is taken by each request that is sent on
	serving   sync.WaitGroup

	mu      sync.Mutex
	locked  map[string]spec.Material
	used    map[string]spec.Material
	flights map[string]chan struct{} // requests that are being answered, by key
	open    int                      // connections
	closed  bool
	bytes   int64
	noted   int // bytes of addresses and headers
	fresh   int // materials that the lock had not
	refused []string
	missed  []string // what Frozen refused
	spoiled []string // what is locked and cannot be had as it was
	more    int      // beyond those
	lacks   error    // why an answer is no material
}

// New begins to answer a step.
func New(c Config, o Options) (*Recorder, error) {
	if c.Dial == nil {
		return nil, isle.Errorf(isle.Unavailable, "this server gives builds no network")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	a, err := newAuthority()
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "make a step's own authority: %w", err)
	}
	r := &Recorder{
		config: c, o: o, authority: a, conns: newAccepted(), sending: make(chan struct{}, maxAtOnce),
		locked: map[string]spec.Material{}, used: map[string]spec.Material{}, flights: map[string]chan struct{}{},
	}
	for _, list := range [][]spec.Material{o.Others, o.Locked} {
		for _, m := range list {
			r.locked[m.Key()] = m
		}
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.client = r.newClient()
	r.server = &http.Server{
		Handler: http.HandlerFunc(r.answer), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 64 << 10,
		Protocols: onlyHTTP1(), ErrorLog: silent(), BaseContext: func(net.Listener) context.Context { return r.ctx },
	}
	r.serving.Go(func() { r.server.Serve(r.conns) }) // ends with Close
	return r, nil
}

// Close ends every connection and request, and waits for them: what the step was
// answered does not change after it.
func (r *Recorder) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.server.Close()
	r.conns.Close()
	r.serving.Wait()
	r.client.CloseIdleConnections()
}

// Materials are what the step was answered, in a lock's order. It is called after
// Close.
func (r *Recorder) Materials() []spec.Material {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.used), spec.CompareMaterials)
}

// Fresh is how many of them no lock had.
func (r *Recorder) Fresh() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fresh
}

// Judge is the error of a step that ended with one or without, given what it was
// refused: what a program makes of a refusal is rarely what people need to read.
// A Frozen step that asked for what is not locked has failed, whatever it says.
func (r *Recorder) Judge(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spoiled) > 0 {
		return isle.Errorf(isle.Conflict, "what isle.lock names is not to be had any more: %s", listed(r.spoiled, r.more)).
			WithHint("take its bytes from a server that has them (`isle lock export`), or record anew: `isle lock --update`, `isle build`")
	}
	if len(r.missed) > 0 {
		return isle.Errorf(isle.Conflict, "it asked for what isle.lock does not have: %s", listed(r.missed, r.more)).
			WithHint("`isle build` records it, where a network is")
	}
	if err == nil && r.lacks != nil {
		return r.lacks
	}
	if err == nil || len(r.refused) == 0 {
		return err
	}
	said := "the recorded network refused it: " + listed(r.refused, r.more)
	e := isle.Errorf(isle.CodeOf(err), "%w; %s", err, said)
	return e.WithHint("%s", "docs/dockerfile.md tells what is recorded and what is not")
}

func listed(what []string, more int) string {
	if len(what) > 5 {
		what, more = what[:5], more+len(what)-5
	}
	s := strings.Join(what, "; ")
	if more > 0 {
		s += fmt.Sprintf("; and %d more", more)
	}
	return s
}

// say tells people something, within bounds.
func (r *Recorder) say(nth int, format string, args ...any) {
	switch {
	case nth < maxSaid:
		r.o.Say("network: " + fmt.Sprintf(format, args...))
	case nth == maxSaid:
		r.o.Say("network: and so on")
	}
}

// note adds what was refused to one of the lists, once.
func (r *Recorder) note(list *[]string, format string, args ...any) string {
	reason := fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case slices.Contains(*list, reason):
	case len(*list) >= maxSaid:
		r.more++
	default:
		*list = append(*list, reason)
		what := "refused"
		if list == &r.missed {
			what = "not in isle.lock"
		}
		r.say(0, "%s: %s", what, reason)
	}
	return reason
}

// Trust is the step's authority, in PEM.
func (r *Recorder) Trust() []byte { return r.authority.PEM() }
