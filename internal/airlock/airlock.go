// Package airlock is the only network an environment has.
//
// An airlock is two network namespaces joined by one veth pair. The sandbox is
// the one that services join; its default route leads to the other one, the
// airlock proper, where every address is local and which has no other
// interface. So nothing can pass: there is no forwarding and no firewall rule
// that could be missing. What listens in the airlock are sockets of the
// server: home, for isle-init; DNS, which knows granted names only; and one for
// each grant, at an address made up for its name. A connection to a host that is
// granted is dialed by the Egress, outside, and copied; one to a connection (a
// resource behind the gateway, found by its name) is handed to the gateway with
// the name and with whose airlock it came from. Anything else finds no socket and
// is refused by the kernel at once, while a filter on the link sees the
// attempt, and it becomes a refused door.
//
// What arrives in an airlock is from its environment: the wire is the
// identity. Both namespaces are pinned below Config.Dir, so that environments
// outlive the server, which takes their airlocks up again when it is back.
// Until then the kernel refuses everything; what was open is closed.
package airlock

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/gateway"
)

// Config is what an Airlocks needs.
type Config struct {
	// Dir is the folder, of this server alone, below which namespaces are
	// pinned as DIR/INSTANCE/{sandbox,airlock}. A tmpfs is mounted there, for
	// as long as there are airlocks. It must be in a mount namespace that
	// outlives the server.
	Dir string
	// Home gets each connection to initproto.HomeAddress, owns it, and returns
	// at once.
	Home func(instance isle.ID, conn net.Conn)
	// Egress dials what is granted.
	Egress Egress
	// Connect gets each connection to a port of a connection that is granted by
	// name. It serves it, closes it, and returns when it is over, with why it could
	// not be served, if so. ctx ends, with the cause, when the door closes, and the
	// connection is closed a moment later.
	Connect func(ctx context.Context, instance isle.ID, name string, port int, conn net.Conn) error
	// Inspect serves each connection to a destination that is granted to be
	// inspected, as Connect does those to connections. nil: none can be.
	Inspect func(ctx context.Context, instance isle.ID, to gateway.Egress, conn net.Conn) error
	// Refused is told of each refused destination: when it is first tried, and
	// from then on how often, at intervals that grow from RefusedEvery to an
	// hour while it is tried, and when the airlock closes. It may block, for a while: what is tried meanwhile is
	// counted. It must not call back into the airlock. It may be nil.
	Refused func(Refusal)
	// RefusedEvery is the first of these intervals; default 10 seconds.
	RefusedEvery time.Duration
	// Inherited are sockets that an earlier server of the same Dir exported
	// and left open across exec. Open uses those of its instance.
	Inherited map[string]*os.File
	// Now is the clock for doors and refusals; default time.Now.
	Now func() time.Time
	// Log gets what the server's owner should know; default none.
	Log *slog.Logger
	// Fault is called by name around each step, for tests that crash there;
	// nil in production. FaultPoints lists the names.
	Fault func(point string)
}

// An Egress dials destinations outside.
type Egress interface {
	// Dial connects to a granted host (a DNS name or an IPv4 address) and port.
	// An address that the host resolves to is dialed if it is public or within
	// allowed. The error's code is isle.Refused where policy says no.
	Dial(ctx context.Context, instance isle.ID, host string, port int, allowed []netip.Prefix) (net.Conn, error)
}

// A Refusal is one or more attempts to reach what is not granted.
type Refusal struct {
	Instance    isle.ID
	Destination string // as in environment.Door
	Protocol    string
	Reason      string
	Count       int // attempts since the last Refusal of the same destination
	First, Last time.Time
}

// Airlocks makes, keeps and removes airlocks. It implements
// environment.Network.
type Airlocks struct {
	config   Config
	trailing sync.WaitGroup // sockets that are being closed; Stop waits for it
	shelf    shelf

	mu        sync.Mutex // guards what follows
	slots     map[isle.ID]*slot
	inherited map[string]*os.File
	stopped   bool
}

var _ environment.Network = (*Airlocks)(nil)

// A slot serialises what is done to one instance. It exists while it is used
// or holds an open airlock.
type slot struct {
	users   int // guarded by Airlocks.mu
	mu      sync.Mutex
	airlock *airlock // nil: not open here; guarded by mu
}

// New returns an Airlocks. It makes the folder, and opens nothing.
func New(c Config) (*Airlocks, error) {
	if c.RefusedEvery <= 0 {
		c.RefusedEvery = 10 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Refused == nil {
		c.Refused = func(Refusal) {}
	}
	if c.Connect == nil {
		c.Connect = func(_ context.Context, _ isle.ID, name string, _ int, conn net.Conn) error {
			conn.Close()
			return isle.Errorf(isle.Refused, "there is no connection %s", name)
		}
	}
	if c.Fault == nil {
		c.Fault = func(string) {}
	}
	if err := ground(c.Dir); err != nil {
		return nil, wrap(err, "prepare the folder of network namespaces")
	}
	inherited := make(map[string]*os.File)
	for name, file := range c.Inherited {
		if strings.HasPrefix(name, "airlock/") {
			inherited[name] = file
		}
	}
	return &Airlocks{config: c, slots: make(map[isle.ID]*slot), inherited: inherited}, nil
}

// hold takes the slot of an instance; release must follow.
func (s *Airlocks) hold(instance isle.ID) (*slot, func()) {
	s.mu.Lock()
	sl := s.slots[instance]
	if sl == nil {
		sl = &slot{}
		s.slots[instance] = sl
	}
	sl.users++
	s.mu.Unlock()
	sl.mu.Lock()
	return sl, func() {
		empty := sl.airlock == nil
		sl.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if sl.users--; sl.users == 0 && empty {
			delete(s.slots, instance)
		}
	}
}

// Open makes the airlock of an instance, or takes it up again, or changes what
// is granted in it. It returns the path of the network namespace to join.
func (s *Airlocks) Open(ctx context.Context, instance isle.ID, grants environment.Grants) (string, error) {
	if !instance.Valid() {
		return "", isle.Errorf(isle.Invalid, "airlock: %q is not an instance ID", instance)
	}
	plan, err := newPlan(grants)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	sl, release := s.hold(instance)
	defer release()
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return "", isle.Errorf(isle.Unavailable, "the airlock of %s can't open: the server is stopping", instance)
	}
	if sl.airlock != nil && !s.made(instance) { // somebody else took its pins
		sl.airlock.stop()
		sl.airlock = nil
	}
	a := sl.airlock
	if a == nil {
		a = newAirlock(&s.config, instance, &s.trailing)
	}
	if err := s.open(a, plan); err != nil {
		if sl.airlock == nil {
			a.stop()
		} else {
			a.forget()
		}
		return "", wrap(err, "open the airlock of "+string(instance))
	}
	sl.airlock = a
	return filepath.Join(s.dir(instance), sandboxPin), nil
}

// made reports whether both namespaces of an instance are there.
func (s *Airlocks) made(instance isle.ID) bool {
	dir := s.dir(instance)
	return pinned(filepath.Join(dir, sandboxPin)) && pinned(filepath.Join(dir, airlockPin))
}

// open sees to it that the namespaces are there and the plan's sockets listen.
func (s *Airlocks) open(a *airlock, plan *plan) error {
	dir := s.dir(a.instance)
	listen := func() error { return a.listen(plan, s.inherit(a.instance)) }
	if s.made(a.instance) {
		if err := within(filepath.Join(dir, airlockPin), listen); err != nil {
			return err
		}
		return a.follow(plan)
	}
	if err := unpin(dir, s.config.Fault); err != nil { // half-made
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.config.Fault("airlock.folder")
	err := build(dir, s.shelf.take(), listen, s.config.Fault)
	if err == nil {
		s.config.Fault("airlock.pinned")
		err = a.follow(plan)
	}
	if err != nil {
		unpin(dir, s.config.Fault)
	}
	return err
}

func (s *Airlocks) dir(instance isle.ID) string { return filepath.Join(s.config.Dir, string(instance)) }

// inherit takes the inherited sockets of an instance, by their names in it.
func (s *Airlocks) inherit(instance isle.ID) map[string]*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine map[string]*os.File
	prefix := exportName(instance, "")
	for name, file := range s.inherited {
		if short, ok := strings.CutPrefix(name, prefix); ok {
			if mine == nil {
				mine = make(map[string]*os.File)
			}
			mine[short] = file
			delete(s.inherited, name)
		}
	}
	return mine
}

// Close removes the airlock of an instance, whole or half-made: its
// connections end, its namespaces are let go. Afterwards processes that are
// still in the sandbox have no network.
func (s *Airlocks) Close(ctx context.Context, instance isle.ID) error {
	if !instance.Valid() {
		return isle.Errorf(isle.Invalid, "airlock: %q is not an instance ID", instance)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	sl, release := s.hold(instance)
	defer release()
	for _, file := range s.inherit(instance) {
		file.Close()
	}
	if sl.airlock != nil {
		sl.airlock.stop()
		sl.airlock = nil
	}
	s.config.Fault("airlock.stopped")
	if err := unpin(s.dir(instance), s.config.Fault); err != nil {
		return wrap(err, "remove the airlock of "+string(instance))
	}
	s.config.Fault("airlock.removed")
	return nil
}

// List says for which instances an airlock exists, whole or half-made, open in
// this server or not.
func (s *Airlocks) List(ctx context.Context) ([]isle.ID, error) {
	entries, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return nil, wrap(err, "list airlocks")
	}
	var all []isle.ID
	for _, e := range entries {
		if id := isle.ID(e.Name()); id.Valid() {
			all = append(all, id)
		}
	}
	return all, ctx.Err()
}

// Doors says what is open and what was tried, since this server opened the
// airlock.
func (s *Airlocks) Doors(instance isle.ID) []environment.Door {
	sl, release := s.hold(instance)
	defer release()
	if sl.airlock == nil {
		return nil
	}
	return sl.airlock.listDoors()
}

// Export returns duplicates of the sockets of every open airlock, for a
// successor that the server execs itself into: pass them on under their names
// in its Config.Inherited. Then no connection request is lost on the way;
// connections that are open end. Names are "airlock/INSTANCE/" and then "home",
// "dns-udp", "dns-tcp", "watch", "egress/ADDRESS:PORT" or
// "connection/ADDRESS:PORT".
func (s *Airlocks) Export() (map[string]*os.File, error) {
	s.mu.Lock()
	var ids []isle.ID
	for id := range s.slots {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	files := make(map[string]*os.File)
	for _, id := range ids {
		sl, release := s.hold(id)
		var err error
		if sl.airlock != nil {
			err = sl.airlock.export(files)
		}
		release()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, wrap(err, "hand over the airlock of "+string(id))
		}
	}
	return files, nil
}

// Stop ends what this server does in all airlocks and leaves them, refusing
// everything, for the next one to open. It waits until connections are closed.
func (s *Airlocks) Stop() {
	s.mu.Lock()
	s.stopped = true
	var all []isle.ID
	for id := range s.slots {
		all = append(all, id)
	}
	rest := s.inherited
	s.inherited = nil
	s.mu.Unlock()
	for _, file := range rest {
		file.Close()
	}
	for _, id := range all {
		sl, release := s.hold(id)
		if sl.airlock != nil {
			sl.airlock.stop()
			sl.airlock = nil
		}
		release()
	}
	s.trailing.Wait()
	s.shelf.close()
	if err := unground(s.config.Dir); err != nil {
		s.config.Log.Warn("airlock: the folder's mount is left", "dir", s.config.Dir, "error", err)
	}
}

func exportName(instance isle.ID, name string) string {
	return "airlock/" + string(instance) + "/" + name
}

// wrap says in which act a system call failed, unless err says more already.
func wrap(err error, doing string) error {
	if code := isle.CodeOf(err); code != isle.Internal {
		return err
	}
	return isle.Errorf(isle.Internal, "could not %s: %w", doing, err)
}
