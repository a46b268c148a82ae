package identity

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// RegistryLedger is the ledger that a Registry keeps.
const RegistryLedger = "identity"

// The keys of its records: the machine's name or the key's ID follows.
const (
	recordMachine = "machine/"
	recordKey     = "key/"
)

// Log is where refusals are recorded. Append makes entries durable before it
// returns.
type Log interface {
	Append(ctx context.Context, entries ...audit.Entry) error
}

// RegistryConfig is what a Registry needs. Store and Log are required.
type RegistryConfig struct {
	Store ledger.Store
	Log   Log
	// Known says whether the operating system knows a person; it says so too
	// where it cannot tell. nil: everybody is known.
	Known func(person string) bool
	// Groups are those of the operating system that a person is in; nil: none.
	Groups func(person string) []string
	Now    func() time.Time // default time.Now
	Slog   *slog.Logger     // nil discards
}

// A Registry keeps machines and keys, and says whom a credential proves. What it
// answers is read from memory; what it changes is durable with its audit entry
// before it counts. It is safe for concurrent use.
type Registry struct {
	cfg    RegistryConfig
	latest atomic.Int64 // Unix microseconds: the latest time that was seen
	state  atomic.Pointer[registered]

	mu     sync.Mutex // held over a change
	ledger *ledger.Ledger

	uses    uses
	unknown *refused        // credentials that are nobody's, by source
	ended   *refused        // keys that do not count any more, by key: no flood of the others hides one
	gone    map[string]bool // people whom the last look did not find; of Run
}

// A registered is all that is registered between two changes. It never changes.
type registered struct {
	machines map[string]*Machine   // by name
	keys     map[isle.ID]*Key      // as they were at their last change: uses are newer
	byHash   map[isle.Digest]*Key  // API keys and personal tokens
	byHolder map[isle.Actor][]*Key // in the order of their making
	over     chan struct{}         // closed once something else counts
}

// OpenRegistry reads the ledger. It fails with Unavailable where the ledger is
// not what the audit log says it must be, or cannot be read.
func OpenRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Known == nil {
		cfg.Known = func(string) bool { return true }
	}
	if cfg.Groups == nil {
		cfg.Groups = func(string) []string { return nil }
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, unknown: newRefused(), ended: newRefused(), gone: map[string]bool{}}
	l, records, err := ledger.Open(ctx, cfg.Store, RegistryLedger)
	if err != nil {
		return nil, err
	}
	r.ledger = l
	s := &registered{machines: map[string]*Machine{}, keys: map[isle.ID]*Key{}, over: make(chan struct{})}
	for _, rec := range records {
		if err := s.read(rec); err != nil {
			return nil, err
		}
	}
	s.index()
	r.uses.load(s.keys)
	r.state.Store(s)
	return r, nil
}

// read takes one record of the ledger.
func (s *registered) read(rec ledger.Record) error {
	var err error
	name, machine := strings.CutPrefix(rec.Key, recordMachine)
	id, key := strings.CutPrefix(rec.Key, recordKey)
	switch {
	case machine:
		m := &Machine{}
		err = json.Unmarshal(rec.Body, m)
		s.machines[name] = m
	case key:
		k := &Key{}
		err = json.Unmarshal(rec.Body, k)
		s.keys[isle.ID(id)] = k
	default:
		err = isle.Errorf(isle.Invalid, "there is no such kind of record")
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "the record %s of the %s ledger cannot be read: %w", rec.Key, RegistryLedger, err).
			WithHint("start with the program that wrote it")
	}
	return nil
}

// index fills what is found from the rest.
func (s *registered) index() {
	s.byHash = make(map[isle.Digest]*Key, len(s.keys))
	s.byHolder = make(map[isle.Actor][]*Key, len(s.machines))
	for _, id := range slices.Sorted(maps.Keys(s.keys)) {
		k := s.keys[id]
		s.byHolder[k.Holder] = append(s.byHolder[k.Holder], k)
		if k.Kind != PublicKey {
			s.byHash[k.Hash] = k
		}
	}
}

// now is the time, which never goes back: a clock that is put back brings
// nothing to life again that has ended.
func (r *Registry) now() time.Time {
	t := r.cfg.Now().UnixMicro()
	for {
		last := r.latest.Load()
		if t <= last {
			return time.UnixMicro(last).UTC()
		}
		if r.latest.CompareAndSwap(last, t) {
			return time.UnixMicro(t).UTC()
		}
	}
}

// Why something does not count. It is for the audit log, and for whoever may
// read identities.
const (
	unknownKey     = "no such credential"
	keyRevoked     = "the key was revoked"
	keyExpired     = "the key has expired"
	machineRevoked = "the machine was revoked"
	machineExpired = "the machine has expired"
	ownerLeft      = "the owner of the machine left"
	holderGone     = "the operating system does not know its holder"
)

// why says why a key does not count at a time; "" if it does.
func (s *registered) why(k *Key, now time.Time) string {
	switch {
	case k == nil:
		return unknownKey
	case !k.Revoked.IsZero():
		return keyRevoked
	case !now.Before(k.Expires):
		return keyExpired
	case k.Holder.Kind != isle.Machine:
		return ""
	}
	m := s.machines[k.Holder.Name]
	if m == nil {
		return unknownKey
	}
	return m.why(now)
}

// why says why a machine does not count at a time; "" if it does.
func (m *Machine) why(now time.Time) string {
	switch {
	case !m.Revoked.IsZero():
		return machineRevoked
	case !now.Before(m.Expires):
		return machineExpired
	case !m.Stops.IsZero() && !now.Before(m.Stops):
		return ownerLeft
	}
	return ""
}

// ends is when a machine ends by itself.
func (m *Machine) ends() time.Time {
	if !m.Stops.IsZero() && m.Stops.Before(m.Expires) {
		return m.Stops
	}
	return m.Expires
}

// subject is whom a key proves.
func (s *registered) subject(k *Key) Subject {
	out := Subject{Actor: k.Holder, Stage: k.Stage, Key: k.ID, Expires: k.Expires, Owner: k.Holder}
	if k.Holder.Kind == isle.Machine {
		m := s.machines[k.Holder.Name]
		out.Stage, out.Owner = m.Stage, m.Owner
		if e := m.ends(); e.Before(out.Expires) {
			out.Expires = e
		}
	}
	return out
}

// notHere is what is said of every credential that does not count.
func notHere() error {
	return isle.Errorf(isle.Refused, "not a credential that counts here").
		WithHint("whoever keeps the identities can tell why, and give another: `isle identity rotate NAME`; your own you make with `isle token create`")
}

// Subject says whom a key proves, if it counts now.
func (r *Registry) Subject(key isle.ID) (Subject, error) {
	s := r.state.Load()
	k := s.keys[key]
	if s.why(k, r.now()) != "" {
		return Subject{}, notHere()
	}
	out := s.subject(k)
	if k.Kind == Personal {
		if !r.cfg.Known(k.Holder.Name) {
			return Subject{}, notHere()
		}
		out.Groups = r.cfg.Groups(k.Holder.Name)
	}
	return out, nil
}

// Check is nil as long as the credential of a Subject counts. It takes no lock
// and does no I/O, so that it can be asked on every decision.
func (r *Registry) Check(s Subject) error {
	state, now := r.state.Load(), r.now()
	why := state.why(state.keys[s.Key], now)
	if why == "" && !s.Expires.IsZero() && !now.Before(s.Expires) {
		why = "it has expired"
	}
	if why != "" {
		return isle.Errorf(isle.Refused, "the credential of %s counts no longer: %s", s.Actor, why).
			WithHint("ask whoever keeps the identities for another")
	}
	return nil
}

// Over is closed at the next change, or end, of anything that is registered.
// Whoever waits takes it before Check.
func (r *Registry) Over() <-chan struct{} { return r.state.Load().over }

// Machine finds a machine by its name, whether it counts or not.
func (r *Registry) Machine(name string) (Machine, bool) {
	m, ok := r.state.Load().machines[name]
	if !ok {
		return Machine{}, false
	}
	return *m, true
}

// Machines are all of them, by name.
func (r *Registry) Machines() []Machine {
	s := r.state.Load()
	out := make([]Machine, 0, len(s.machines))
	for _, m := range s.machines {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Machine) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Key finds a key by its ID, whether it counts or not.
func (r *Registry) Key(id isle.ID) (Key, bool) {
	k, ok := r.state.Load().keys[id]
	if !ok {
		return Key{}, false
	}
	return r.uses.with(*k), true
}

// Keys are those of a holder, whether they count or not, the oldest first.
func (r *Registry) Keys(holder isle.Actor) []Key {
	var out []Key
	for _, k := range r.state.Load().byHolder[holder] {
		out = append(out, r.uses.with(*k))
	}
	return out
}

// PublicKeys are those of a machine that count now.
func (r *Registry) PublicKeys(machine string) (out []Key) {
	s, now := r.state.Load(), r.now()
	for _, k := range s.byHolder[isle.Actor{Kind: isle.Machine, Name: machine}] {
		if k.Kind == PublicKey && s.why(k, now) == "" {
			out = append(out, *k)
		}
	}
	return out
}

// The states of machines and keys.
const (
	Active  = "active"
	Expired = "expired"
	Revoked = "revoked"
	Stopped = "stopped" // of a machine: its owner left, and the grace is over
)

// StateOf is the state of a machine now.
func (r *Registry) StateOf(m Machine) string {
	switch m.why(r.now()) {
	case machineRevoked:
		return Revoked
	case machineExpired:
		return Expired
	case ownerLeft:
		return Stopped
	}
	return Active
}

// StateOfKey is the state of a key now, its machine's aside.
func (r *Registry) StateOfKey(k Key) string {
	switch {
	case !k.Revoked.IsZero():
		return Revoked
	case !r.now().Before(k.Expires):
		return Expired
	}
	return Active
}

// put makes a change durable with its entries, and then has it count. mu is held.
func (r *Registry) put(ctx context.Context, machines []*Machine, keys []*Key, entries ...audit.Entry) error {
	old := r.state.Load()
	next := &registered{machines: maps.Clone(old.machines), keys: maps.Clone(old.keys), over: make(chan struct{})}
	var records []ledger.Record
	add := func(key string, v any) error {
		body, err := json.Marshal(v)
		if err != nil {
			return isle.Errorf(isle.Internal, "the record %s cannot be written: %w", key, err)
		}
		records = append(records, ledger.Record{Key: key, Body: body})
		return nil
	}
	for _, m := range machines {
		next.machines[m.Name] = m
		if err := add(recordMachine+m.Name, m); err != nil {
			return err
		}
	}
	holders := map[isle.Actor]bool{}
	for _, k := range keys {
		next.keys[k.ID] = k
		holders[k.Holder] = true
		if err := add(recordKey+string(k.ID), r.uses.with(*k)); err != nil {
			return err
		}
	}
	var remove []string
	for holder := range holders {
		for _, k := range old.byHolder[holder] {
			if r.forgotten(next.keys[k.ID]) {
				delete(next.keys, k.ID)
				remove = append(remove, recordKey+string(k.ID))
			}
		}
	}
	next.index()
	if err := r.ledger.Change(ctx, records, remove, entries...); err != nil {
		return err
	}
	r.state.Store(next)
	close(old.over)
	return nil
}

// write makes a change of a key's record durable that changes nothing about what
// counts. mu is held.
func (r *Registry) write(ctx context.Context, k *Key, e audit.Entry) error {
	body, err := json.Marshal(k)
	if err != nil {
		return isle.Errorf(isle.Internal, "the key %s cannot be written: %w", k.ID, err)
	}
	return r.ledger.Change(ctx, []ledger.Record{{Key: recordKey + string(k.ID), Body: body}}, nil, e)
}

// keepEnded is how long the record of a key that has ended is kept: after that
// the audit log alone remembers it.
const keepEnded = 90 * 24 * time.Hour

// forgotten reports whether a key ended so long ago that its record may go.
func (r *Registry) forgotten(k *Key) bool {
	end := k.Expires
	if !k.Revoked.IsZero() && k.Revoked.Before(end) {
		end = k.Revoked
	}
	return r.now().Sub(end) > keepEnded
}
