package identity

import (
	"context"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"isle"
	"isle/internal/audit"
)

// Bounds of what is registered.
const (
	// MaxMachine is how far ahead the end of a machine may be.
	MaxMachine = 366 * 24 * time.Hour
	// MaxKey is how long a key of a machine lives at most; it ends with its
	// machine if that is sooner.
	MaxKey = 90 * 24 * time.Hour
	// MaxPersonal is how long a personal token lives at most.
	MaxPersonal = 90 * 24 * time.Hour
	// DefaultOverlap is how long the keys before a new one go on.
	DefaultOverlap = 24 * time.Hour
	// MaxOverlap bounds that.
	MaxOverlap = 30 * 24 * time.Hour
	// DefaultGrace is how long machines go on after their owner left.
	DefaultGrace = 7 * 24 * time.Hour
	// MaxGrace bounds that.
	MaxGrace = 90 * 24 * time.Hour

	maxMachines = 100_000 // of all times: names are never used again
	maxLiveKeys = 10      // of one holder; personal tokens: maxLiveTokens
	maxTokens   = 50
	maxPurpose  = 200 // bytes of a purpose or reason
)

// resource is a machine as a resource.
func (m *Machine) resource() isle.Resource {
	return isle.Resource{Kind: "identity", Name: m.Name, Stage: m.Stage}
}

// actor is the machine as who acts.
func (m *Machine) actor() isle.Actor { return isle.Actor{Kind: isle.Machine, Name: m.Name} }

// resource is a key's holder as a resource: a machine by its name, a person as
// human:NAME.
func (s *registered) resource(k *Key) isle.Resource {
	if m := s.machines[k.Holder.Name]; m != nil && k.Holder.Kind == isle.Machine {
		return m.resource()
	}
	return isle.Resource{Kind: "identity", Name: k.Holder.String(), Stage: k.Stage}
}

// A NewMachine asks for a machine. Everything but PublicKey is needed: nothing is
// made without an owner, a purpose and an end.
type NewMachine struct {
	Name      string
	Owner     isle.Actor // a person whom the operating system knows
	Purpose   string
	Stage     string
	Expires   time.Time
	PublicKey []byte // JWK or PEM; nil: an API key is made
}

// A NewKey is what was made: a key, and of one that is no public key the secret,
// which is not kept.
type NewKey struct {
	Key
	Secret string
}

// Create makes a machine with its first key. It fails with Conflict where there
// is or was one of the name.
func (r *Registry) Create(ctx context.Context, by isle.Actor, n NewMachine) (Machine, NewKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, err := r.plan(by, n)
	if err != nil {
		return Machine{}, NewKey{}, err
	}
	k, err := r.newKey(m, n.PublicKey)
	if err != nil {
		return Machine{}, NewKey{}, err
	}
	e := audit.NewEvent(by, isle.ActionIdentityCreate, m.resource(), isle.Allow, m.Purpose).
		With("owner", m.Owner.String()).With("expires", m.Expires.Format(time.RFC3339)).
		With("key", string(k.ID)).With("kind", k.Kind).With("key_expires", k.Expires.Format(time.RFC3339))
	return *m, k, r.put(ctx, []*Machine{m}, []*Key{&k.Key}, e)
}

// Plan says whether Create would make a machine, and makes nothing.
func (r *Registry) Plan(by isle.Actor, n NewMachine) error {
	m, err := r.plan(by, n)
	if err == nil {
		_, err = r.newKey(m, n.PublicKey)
	}
	return err
}

func (r *Registry) plan(by isle.Actor, n NewMachine) (*Machine, error) {
	now := r.now()
	n.Expires = n.Expires.UTC().Truncate(time.Microsecond)
	s := r.state.Load()
	switch old := s.machines[n.Name]; {
	case !isle.ValidName(n.Name):
		return nil, isle.Errorf(isle.Invalid, "%q is no name for a machine: want lower-case letters, digits and dashes, at most 40, beginning with a letter", shorten(Redacted(n.Name), 60))
	case old != nil && old.why(now) == "":
		return nil, isle.Errorf(isle.Conflict, "there is a machine identity %s, owned by %s", n.Name, old.Owner).
			WithHint("choose another name, or give it a new key with `isle identity rotate %s`", n.Name)
	case old != nil:
		return nil, isle.Errorf(isle.Conflict, "there was a machine identity %s: %s; a name is never used again, because roles are bound to it", n.Name, old.why(now)).
			WithHint("choose another name, such as %s-2", n.Name)
	case !isle.ValidName(n.Stage):
		return nil, isle.Errorf(isle.Invalid, "%q is no stage: want lower-case letters, digits and dashes, at most 40, beginning with a letter", shorten(n.Stage, 60))
	case n.Expires.IsZero():
		return nil, isle.Errorf(isle.Invalid, "a machine identity needs an end").WithHint("say when with --expires, for example --expires 90d")
	case !n.Expires.After(now):
		return nil, passed(n.Expires, now)
	case n.Expires.Sub(now) > MaxMachine:
		return nil, isle.Errorf(isle.Invalid, "the end %s is more than a year ahead", n.Expires.Format(time.RFC3339)).
			WithHint("a machine identity lives for 366 days at most; make another when it ends")
	case len(s.machines) >= maxMachines:
		return nil, isle.Errorf(isle.Exhausted, "there are %d machine identities already, more than a server keeps", len(s.machines))
	}
	if err := r.checkOwner(n.Owner); err != nil {
		return nil, err
	}
	purpose, err := oneLine("purpose", n.Purpose, true)
	if err != nil {
		return nil, err
	}
	return &Machine{
		ID: isle.NewID(), Name: n.Name, Owner: n.Owner, Purpose: purpose, Stage: n.Stage,
		Created: now, CreatedBy: by, Expires: n.Expires,
	}, nil
}

// passed says that an end is not ahead. The server's time is that of its log,
// which never goes back.
func passed(end, now time.Time) error {
	return isle.Errorf(isle.Invalid, "the end %s has passed: for the server it is %s", end.Format(time.RFC3339), now.Format(time.RFC3339)).
		WithHint("say a later one with --expires")
}

// checkOwner says whether somebody can own a machine.
func (r *Registry) checkOwner(owner isle.Actor) error {
	switch {
	case owner.Name == "":
		return isle.Errorf(isle.Invalid, "a machine identity needs an owner: a person who answers for it").WithHint("name one with --owner human:NAME")
	case owner.Kind != isle.Human:
		return isle.Errorf(isle.Invalid, "%s cannot own a machine identity: only a person can", shorten(owner.String(), 100)).WithHint("name one with --owner human:NAME")
	case len(owner.Name) > 128 || !r.cfg.Known(owner.Name):
		return isle.Errorf(isle.Invalid, "the operating system knows nobody called %s", shorten(owner.Name, 60)).WithHint("the owner is a user of this machine: see `getent passwd`")
	}
	return nil
}

// oneLine checks a text that people give.
func oneLine(what, s string, needed bool) (string, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "" && needed:
		return "", isle.Errorf(isle.Invalid, "it needs a %s: one line that says what it is for", what).WithHint("give one with --%s", what)
	case len(s) > maxPurpose || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return "", isle.Errorf(isle.Invalid, "the %s is one line of at most %d bytes", what, maxPurpose)
	}
	if holdsSecret(s) || strings.Contains(s, "PRIVATE KEY") {
		return "", isle.Errorf(isle.Invalid, "the %s looks like a credential, and is read by many", what)
	}
	return s, nil
}

// newKey makes a key of a machine; it is not registered yet.
func (r *Registry) newKey(m *Machine, public []byte) (NewKey, error) {
	now := r.now()
	k := NewKey{Key: Key{ID: isle.NewID(), Kind: APIKey, Holder: m.actor(), Created: now, Expires: now.Add(MaxKey)}}
	if m.Expires.Before(k.Expires) {
		k.Expires = m.Expires
	}
	if public == nil {
		k.Secret, k.Hash, k.Hint = newSecret(APIKey)
		return k, nil
	}
	var err error
	k.Kind = PublicKey
	if k.JWK, k.Hash, err = ParsePublicKey(public); err != nil {
		return NewKey{}, err
	}
	s := r.state.Load()
	for _, o := range s.keys {
		if o.Kind == PublicKey && o.Hash == k.Hash {
			if s.why(o, now) == "" {
				return NewKey{}, isle.Errorf(isle.Conflict, "this public key is one of %s already", o.Holder).
					WithHint("make another pair of keys: one pair for each machine, and for each rotation")
			}
			return NewKey{}, isle.Errorf(isle.Conflict, "this public key was one of %s, and has ended", o.Holder).WithHint("make another pair of keys")
		}
	}
	k.Hint = k.Hash.Short()
	return k, nil
}

// live finds a machine that counts.
func (r *Registry) live(name string) (*Machine, error) {
	m, err := r.find(name)
	if err != nil {
		return nil, err
	}
	if why := m.why(r.now()); why != "" {
		err := isle.Errorf(isle.Conflict, "the machine identity %s counts no more: %s", name, why)
		if why == ownerLeft {
			return nil, err.WithHint("give it another owner: `isle identity owner %s --to human:NAME`", name)
		}
		return nil, err.WithHint("make another one with `isle identity create`")
	}
	return m, nil
}

// Rotate gives a machine a new key, and has those before it end after an
// overlap; at once where that is 0. It returns when they end.
func (r *Registry) Rotate(ctx context.Context, by isle.Actor, name string, overlap time.Duration, public []byte) (NewKey, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	none := time.Time{}
	if overlap < 0 || overlap > MaxOverlap {
		return NewKey{}, none, isle.Errorf(isle.Invalid, "an overlap is from 0 to %d days, not %s", int(MaxOverlap.Hours()/24), overlap)
	}
	m, err := r.live(name)
	if err != nil {
		return NewKey{}, none, err
	}
	k, err := r.newKey(m, public)
	if err != nil {
		return NewKey{}, none, err
	}
	s, now := r.state.Load(), r.now()
	end := now.Add(overlap)
	keys := []*Key{&k.Key}
	live := 0
	for _, old := range s.byHolder[m.actor()] {
		if s.why(old, now) != "" {
			continue
		}
		live++
		if end.Before(old.Expires) {
			ending := *old
			ending.Expires = end
			keys = append(keys, &ending)
		}
	}
	if overlap > 0 && live >= maxLiveKeys {
		return NewKey{}, none, isle.Errorf(isle.Exhausted, "the machine identity %s has %d keys that count", name, live).
			WithHint("end them with the new one: `isle identity rotate %s --overlap 0s`", name)
	}
	e := audit.NewEvent(by, isle.ActionIdentityRotate, m.resource(), isle.Allow, "").
		With("key", string(k.ID)).With("kind", k.Kind).With("key_expires", k.Expires.Format(time.RFC3339)).
		With("others", strconv.Itoa(len(keys)-1)).With("others_end", end.Format(time.RFC3339))
	return k, end, r.put(ctx, nil, keys, e)
}

// find finds a machine, whether it counts or not. Its error names none: who may
// not see them asks too.
func (r *Registry) find(name string) (*Machine, error) {
	if m := r.state.Load().machines[name]; m != nil {
		return m, nil
	}
	return nil, isle.Errorf(isle.NotFound, "there is no machine identity %q", shorten(Redacted(name), 60)).WithHint("see `isle identity ls --all`")
}

// Revoke ends a machine with all of its keys, at once and for ever.
func (r *Registry) Revoke(ctx context.Context, by isle.Actor, name, reason string) (Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reason, err := oneLine("reason", reason, false)
	if err != nil {
		return Machine{}, err
	}
	old, err := r.find(name)
	if err != nil {
		return Machine{}, err
	}
	if !old.Revoked.IsZero() {
		return *old, nil
	}
	m, now := *old, r.now()
	m.Revoked = now
	keys := r.ending(m.actor(), now)
	e := audit.NewEvent(by, isle.ActionIdentityRevoke, m.resource(), isle.Allow, reason).With("keys", strconv.Itoa(len(keys)))
	return m, r.put(ctx, []*Machine{&m}, keys, e)
}

// ending are the keys of a holder that were not revoked yet, as revoked.
func (r *Registry) ending(holder isle.Actor, now time.Time) (out []*Key) {
	for _, k := range r.state.Load().byHolder[holder] {
		if k.Revoked.IsZero() && now.Before(k.Expires) {
			ended := *k
			ended.Revoked = now
			out = append(out, &ended)
		}
	}
	return out
}

// RevokeKey ends one key, at once and for ever.
func (r *Registry) RevokeKey(ctx context.Context, by isle.Actor, id isle.ID, reason string) (Key, error) {
	return r.revokeKey(ctx, by, id, isle.ActionIdentityRevoke, reason)
}

// RevokeToken is RevokeKey by whom the personal token proves.
func (r *Registry) RevokeToken(ctx context.Context, by isle.Actor, id isle.ID) (Key, error) {
	if k := r.state.Load().keys[id]; k == nil || k.Kind != Personal || k.Holder != by {
		return Key{}, noKey(id).WithHint("see `isle token ls`")
	}
	return r.revokeKey(ctx, by, id, isle.ActionTokenRevoke, "")
}

func noKey(id isle.ID) *isle.Error {
	return isle.Errorf(isle.NotFound, "there is no key %q", shorten(Redacted(string(id)), 40)).WithHint("see `isle identity show NAME`")
}

func (r *Registry) revokeKey(ctx context.Context, by isle.Actor, id isle.ID, action isle.Action, reason string) (Key, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reason, err := oneLine("reason", reason, false)
	if err != nil {
		return Key{}, err
	}
	s := r.state.Load()
	old := s.keys[id]
	if old == nil {
		return Key{}, noKey(id)
	}
	if !old.Revoked.IsZero() {
		return r.uses.with(*old), nil
	}
	k := *old
	k.Revoked = r.now()
	e := audit.NewEvent(by, action, s.resource(old), isle.Allow, reason).With("key", string(id)).With("kind", k.Kind)
	if action == isle.ActionTokenRevoke {
		e.Resource = tokenResource(k.Holder)
	}
	return r.uses.with(k), r.put(ctx, nil, []*Key{&k}, e)
}

// SetOwner gives a machine another owner. One that stopped, or will, because its
// owner left goes on.
func (r *Registry) SetOwner(ctx context.Context, by isle.Actor, name string, owner isle.Actor) (Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, err := r.find(name)
	if err != nil {
		return Machine{}, err
	}
	if why := old.why(r.now()); why != "" && why != ownerLeft {
		return Machine{}, isle.Errorf(isle.Conflict, "the machine identity %s counts no more: %s", name, why)
	}
	if err := r.checkOwner(owner); err != nil {
		return Machine{}, err
	}
	m := *old
	m.Owner, m.OwnerLeft, m.Stops = owner, time.Time{}, time.Time{}
	e := audit.NewEvent(by, isle.ActionIdentityTransfer, m.resource(), isle.Allow, "").
		With("owner", owner.String()).With("from", old.Owner.String())
	return m, r.put(ctx, []*Machine{&m}, nil, e)
}

// OwnedBy are the machines that a person owns and that count.
func (r *Registry) OwnedBy(owner isle.Actor) (out []Machine) {
	now := r.now()
	for _, m := range r.Machines() {
		if m.Owner == owner && m.why(now) == "" {
			out = append(out, m)
		}
	}
	return out
}

// OwnerLeft says that a person has left: their machines stop after a grace
// period unless they get another owner, and their personal tokens end at once.
// What was said before stands. It returns what it changes, or would on a dry
// run. may is asked about all that the person owns and holds, none of which
// changes meanwhile; nil: nobody is.
func (r *Registry) OwnerLeft(ctx context.Context, by, owner isle.Actor, grace time.Duration, dryRun bool, may func(owned []Machine, tokens int) error) ([]Machine, []Key, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner.Kind != isle.Human || owner.Name == "" {
		return nil, nil, isle.Errorf(isle.Invalid, "%s is no person", shorten(owner.String(), 100)).WithHint("name one as human:NAME")
	}
	if grace < 0 || grace > MaxGrace {
		return nil, nil, isle.Errorf(isle.Invalid, "a grace period is from 0 to %d days, not %s", int(MaxGrace.Hours()/24), grace)
	}
	now := r.now()
	var machines []Machine
	var changed []*Machine
	var entries []audit.Entry
	owned := r.OwnedBy(owner)
	if may != nil {
		if err := may(owned, len(r.state.Load().byHolder[owner])); err != nil {
			return nil, nil, err
		}
	}
	for _, m := range owned {
		if stops := now.Add(grace); m.Stops.IsZero() || stops.Before(m.Stops) {
			m.OwnerLeft, m.Stops = now, stops
			machines, changed = append(machines, m), append(changed, &m)
			entries = append(entries, audit.NewEvent(by, isle.ActionIdentityTransfer, m.resource(), isle.Allow, "its owner left").
				With("owner", owner.String()).With("stops", stops.Format(time.RFC3339)))
		}
	}
	ended := r.ending(owner, now)
	var tokens []Key
	for _, k := range ended {
		tokens = append(tokens, r.uses.with(*k))
		entries = append(entries, audit.NewEvent(by, isle.ActionIdentityRevoke, r.state.Load().resource(k), isle.Allow, "its holder left").With("key", string(k.ID)).With("kind", k.Kind))
	}
	if dryRun || len(entries) == 0 {
		return machines, tokens, nil
	}
	return machines, tokens, r.put(ctx, changed, ended, entries...)
}

// A NewToken asks for a personal token.
type NewToken struct {
	Purpose string
	Stage   string // the only one that it acts in; "": any, one at a time
	Expires time.Time
}

func tokenResource(holder isle.Actor) isle.Resource {
	return isle.Resource{Kind: "token", Name: holder.Name}
}

// CreateToken makes a personal token of a person.
func (r *Registry) CreateToken(ctx context.Context, holder isle.Actor, n NewToken) (NewKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	n.Expires = n.Expires.UTC().Truncate(time.Microsecond)
	switch {
	case holder.Kind != isle.Human:
		return NewKey{}, isle.Errorf(isle.Invalid, "a personal token is for a person, and %s is none", holder).WithHint("a machine has keys: `isle identity rotate NAME`")
	case !r.cfg.Known(holder.Name):
		return NewKey{}, isle.Errorf(isle.Invalid, "the operating system knows nobody called %s", shorten(holder.Name, 60))
	case n.Stage != "" && !isle.ValidName(n.Stage):
		return NewKey{}, isle.Errorf(isle.Invalid, "%q is no stage: want lower-case letters, digits and dashes, at most 40, beginning with a letter", shorten(n.Stage, 60))
	case n.Expires.IsZero():
		return NewKey{}, isle.Errorf(isle.Invalid, "a personal token needs an end").WithHint("say when with --expires, for example --expires 30d")
	case !n.Expires.After(now):
		return NewKey{}, passed(n.Expires, now)
	case n.Expires.Sub(now) > MaxPersonal:
		return NewKey{}, isle.Errorf(isle.Invalid, "the end %s is more than %d days ahead", n.Expires.Format(time.RFC3339), int(MaxPersonal.Hours()/24)).
			WithHint("a personal token lives for 90 days at most; make another when it ends")
	}
	purpose, err := oneLine("purpose", n.Purpose, true)
	if err != nil {
		return NewKey{}, err
	}
	live := len(r.ending(holder, now))
	if live >= maxTokens {
		return NewKey{}, isle.Errorf(isle.Exhausted, "%s has %d personal tokens that count", holder, live).WithHint("end those that are not needed: `isle token ls`, `isle token revoke ID`")
	}
	k := NewKey{Key: Key{ID: isle.NewID(), Kind: Personal, Holder: holder, Purpose: purpose, Stage: n.Stage, Created: now, Expires: n.Expires}}
	k.Secret, k.Hash, k.Hint = newSecret(Personal)
	e := audit.NewEvent(holder, isle.ActionTokenCreate, tokenResource(holder), isle.Allow, purpose).
		With("key", string(k.ID)).With("expires", k.Expires.Format(time.RFC3339)).With("stage", n.Stage)
	return k, r.put(ctx, nil, []*Key{&k.Key}, e)
}

// EndAll ends every key of before, of machines and people. Machines stay, and
// are given new keys. why is for the audit log.
func (r *Registry) EndAll(ctx context.Context, why string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	var keys []*Key
	for holder := range r.state.Load().byHolder {
		keys = append(keys, r.ending(holder, now)...)
	}
	if len(keys) == 0 {
		return nil
	}
	e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "server"}, isle.ActionIdentityEndAll, isle.Resource{Kind: "identity", Name: "*"}, isle.Allow, why).
		With("keys", strconv.Itoa(len(keys)))
	return r.put(ctx, nil, keys, e)
}
