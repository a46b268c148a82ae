package environment

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/spec"
)

// A live is one instance in memory: its record, and what this server runs for
// it. The record in the store follows it.
type live struct {
	m        *Manager
	ref      isle.Ref
	instance isle.ID
	uids     uint32 // its UIDBase; under Manager.mu

	writing sync.Mutex // held over a write to the store, so that writes are in order
	stored  uint64     // version of the record in the store
	gone    bool       // the record is removed; nothing writes it again

	launching sync.RWMutex // held over a launch for reading, and over a capture of memory

	opening sync.Mutex      // held over a change of the airlock, so that they are in order
	granted Grants          // what it was last opened for
	told    map[string]bool // refused destinations that are in the audit log
	shut    bool            // removed for good
	parted  bool            // it was put aside, and has no doors before it serves again

	mu          sync.Mutex
	rec         Environment // its slices are never changed in place
	version     uint64      // grows with every change of rec
	changed     chan struct{}
	specJSON    []byte // of rec.Spec
	netns       string
	supervisors map[string]*supervisor
	published   map[portKey]*publisher
	logs        map[string]*serviceLog
	logged      chan struct{} // nil while nobody follows
	oomSeen     int
	forkLimit   time.Duration // of each on_fork; 0: Config.OnFork
	sessions    int           // open exec, copy, forward and log sessions
	execs       []visit       // exec sessions, oldest first; those that ended a while ago are forgotten
	idleSince   time.Time

	touched string        // what came in from outside first, since it was made by this server; "": nothing
	still   chan struct{} // closed when what is to come in may; nil: it may

	connections chan struct{} // bounds connections to published ports
	through     map[*passage]*visiting
	asking      map[*asking]struct{} // requests by name that are under way
	held        chan struct{}        // closed when requests that are held go on; nil: none is
	serving     context.Context
	cutOff      context.CancelFunc // ends serving: what goes on inside is cut
	transport   *http.Transport
	aside       *aside // nil: it was not put aside

	answers answers
}

func (m *Manager) newLive(e Environment) *live {
	l := &live{
		m: m, ref: e.Ref, instance: e.Instance, uids: e.UIDBase, rec: e, changed: make(chan struct{}),
		supervisors: map[string]*supervisor{}, published: map[portKey]*publisher{}, logs: map[string]*serviceLog{}, told: map[string]bool{},
		idleSince: m.cfg.Now(), connections: make(chan struct{}, maxConnections), through: map[*passage]*visiting{},
	}
	l.serve()
	l.specJSON = encodeSpec(e.Spec)
	l.transport = l.newTransport()
	return l
}

// serve makes what is begun from now on last until cutOff.
func (l *live) serve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving, l.cutOff = context.WithCancel(context.Background())
}

// whileServing calls f when the instance serves no more; the returned function
// says that it need not.
func (l *live) whileServing(f func()) (stop func() bool) {
	l.mu.Lock()
	ctx := l.serving
	l.mu.Unlock()
	return context.AfterFunc(ctx, f)
}

func encodeSpec(f spec.File) []byte {
	b, err := json.Marshal(f)
	if err != nil {
		return nil // equal to nothing
	}
	return b
}

// snapshot returns the record as it is now.
func (l *live) snapshot() Environment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clone()
}

// clone copies the record; l.mu is held.
func (l *live) clone() Environment {
	e := l.rec
	e.Services = slices.Clone(e.Services)
	return e
}

// service returns the record of one service; false if there is none.
func (e *Environment) service(name string) (*Service, bool) {
	for i := range e.Services {
		if e.Services[i].Name == name {
			return &e.Services[i], true
		}
	}
	return nil, false
}

// specOf returns what the file says of a service.
func (e *Environment) specOf(name string) (spec.Service, bool) {
	for _, s := range e.Spec.Services {
		if s.Name == name {
			return s, true
		}
	}
	return spec.Service{}, false
}

// summarize sets the environment's phase from its services'.
func (e *Environment) summarize() {
	if e.Desired == WantDown {
		e.Phase = Stopping
		return
	}
	count := map[Phase]int{}
	for _, s := range e.Services {
		count[s.Phase]++
	}
	switch {
	case count[Broken] > 0 || e.Trouble != "":
		e.Phase = Broken
	case count[Starting] > 0 || count[Pending] > 0 && count[Pending] < len(e.Services):
		e.Phase = Starting
	case count[Pending] > 0:
		e.Phase = Pending
	case e.Opening != Open:
		e.Phase = Starting
	case count[Unhealthy] > 0:
		e.Phase = Unhealthy
	case count[Exited] > 0 && count[Exited] == len(e.Services):
		e.Phase = Exited
	default:
		e.Phase = Running
	}
}

// update changes the record in memory and tells who waits. What it changed is
// stored by the next save.
func (l *live) update(f func(*Environment)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apply(f)
}

func (l *live) apply(f func(*Environment)) {
	e := l.clone()
	f(&e)
	e.summarize()
	l.rec = e
	l.version++
	close(l.changed)
	l.changed = make(chan struct{})
}

// observe is update for one launch of a service: what an earlier launch still
// tells is dropped. It reports whether the launch is the present one.
func (l *live) observe(service string, launch isle.ID, f func(*Service)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.rec.service(service)
	if !ok || s.Launch != launch {
		return false
	}
	l.apply(func(e *Environment) {
		s, _ := e.service(service)
		f(s)
	})
	return true
}

// save stores the record with what else belongs into the transaction. It does
// nothing if nothing has changed since it was stored.
func (l *live) save(ctx context.Context, c Mutation) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	version, rec := l.version, l.clone()
	l.mu.Unlock()
	if l.gone || version == l.stored {
		if len(c.Entries) == 0 && len(c.PutVolumes) == 0 && len(c.RemoveVolumes) == 0 {
			return nil
		}
	}
	if !l.gone {
		c.PutEnvironments = append(c.PutEnvironments, rec)
	}
	return l.write(ctx, version, c)
}

// change makes a change that must be durable before anything comes of it: f is
// applied to what is stored first, and to the record in memory after. It must
// do the same both times.
func (l *live) change(ctx context.Context, f func(*Environment), c Mutation) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.gone {
		return isle.Errorf(isle.Conflict, "environment %s is torn down", l.ref)
	}
	l.mu.Lock()
	version, rec := l.version, l.clone()
	l.mu.Unlock()
	f(&rec)
	rec.summarize()
	c.PutEnvironments = append(c.PutEnvironments, rec)
	if err := l.write(ctx, version, c); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	clean := l.version == version
	l.apply(f)
	l.specJSON = encodeSpec(l.rec.Spec)
	if clean {
		l.stored = l.version
	}
	return nil
}

// saveAll is change for several environments that nobody else changes, in one
// transaction.
func (m *Manager) saveAll(ctx context.Context, all []*live, f func(*Environment), c Mutation) error {
	for _, l := range all {
		l.writing.Lock()
		defer l.writing.Unlock()
		rec := l.snapshot()
		f(&rec)
		rec.summarize()
		c.PutEnvironments = append(c.PutEnvironments, rec)
	}
	if err := m.cfg.Store.Update(ctx, c); err != nil {
		return err
	}
	m.remember(c.PutVolumes, c.RemoveVolumes)
	for _, l := range all {
		l.mu.Lock()
		l.apply(f) // and is stored once more by the next save
		l.mu.Unlock()
	}
	return nil
}

// write does the transaction; l.writing is held.
func (l *live) write(ctx context.Context, version uint64, c Mutation) error {
	if err := l.m.cfg.Store.Update(ctx, c); err != nil {
		return err
	}
	l.stored = version
	l.m.remember(c.PutVolumes, c.RemoveVolumes)
	return nil
}

// remove takes the record out of the store, for good.
func (l *live) remove(ctx context.Context, c Mutation) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	c.RemoveEnvironments = append(c.RemoveEnvironments, l.instance)
	if err := l.m.cfg.Store.Update(ctx, c); err != nil {
		return err
	}
	l.gone = true
	l.m.remember(c.PutVolumes, c.RemoveVolumes)
	return nil
}

// wait returns when done says so, or with the error of ctx. done is called with
// the record after every change.
func (l *live) wait(ctx context.Context, done func(Environment) bool) error {
	for {
		l.mu.Lock()
		rec, changed := l.rec, l.changed
		l.mu.Unlock()
		if done(rec) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// upToDate reports whether a request asks for what runs already.
func (l *live) upToDate(req *UpRequest, specJSON []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Desired != WantRunning || l.rec.Opening != Open || l.rec.Project != req.Project || req.TTL != nil || !bytes.Equal(l.specJSON, specJSON) {
		return false
	}
	for _, s := range l.rec.Services {
		img, ok := req.Images[s.Name]
		if !ok || s.Phase != Running || s.Digest != img.Digest() {
			return false
		}
		for _, p := range s.Ports {
			if l.published[portKey{s.Name, p.Name}] == nil {
				return false // it could not be opened again after a restart
			}
		}
	}
	return true
}

// session counts an open session; the returned function ends it, once.
func (l *live) session() func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sessions--
		l.idleSince = l.m.cfg.Now()
	})
}
