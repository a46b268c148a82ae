package seal

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// maxKeys bounds how many keys of others a ring has.
const maxKeys = 100

// keyTrust begins the keys of the records of a ring: "trust/" and the verifier.
const keyTrust = "trust/"

// A Ring is the keys whose signatures count: this server's own, and those of
// others that people trusted. The latter are records of a ledger that the Ring's
// owner opens. It is safe for concurrent use.
type Ring struct {
	own    *Key
	action isle.Action // of a change
	kind   string      // what the keys seal, for people: "snapshot", "release"

	mu    sync.RWMutex // guards what follows
	trust map[string]note.Verifier
}

// NewRing is a ring of no keys but its own, which may be nil. kind is what the
// keys seal, and what `isle KIND trust` is about.
func NewRing(own *Key, kind string, action isle.Action) *Ring {
	return &Ring{own: own, action: action, kind: kind, trust: map[string]note.Verifier{}}
}

// A TrustedKey is a key whose signatures count.
type TrustedKey struct {
	Name string
	Key  string // NAME+HASH+BASE64
	Own  bool   // this server's
}

// Load takes a record of the ledger in. ok is false where it is no key's.
func (r *Ring) Load(rec ledger.Record) (ok bool) {
	key, ok := strings.CutPrefix(rec.Key, keyTrust)
	if !ok {
		return false
	}
	v, err := ParseVerifier(key)
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trust[key] = v
	return true
}

// Own is this server's key; nil where it has none.
func (r *Ring) Own() *Key { return r.own }

// Verifiers are the keys that count.
func (r *Ring) Verifiers() (out []note.Verifier) {
	if r.own != nil {
		if v, err := note.NewVerifier(r.own.Verifier()); err == nil {
			out = append(out, v)
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.AppendSeq(out, maps.Values(r.trust))
}

// Keys lists the keys that count, this server's own first.
func (r *Ring) Keys() (out []TrustedKey) {
	if r.own != nil {
		out = append(out, TrustedKey{r.own.Name(), r.own.Verifier(), true})
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, key := range slices.Sorted(maps.Keys(r.trust)) {
		out = append(out, TrustedKey{r.trust[key].Name(), key, false})
	}
	return out
}

var resource = isle.Resource{Kind: "server", Name: "server"}

// Trust makes the signatures of another server's key count. One change at a time.
func (r *Ring) Trust(ctx context.Context, l *ledger.Ledger, actor isle.Actor, key string) (TrustedKey, error) {
	key = strings.TrimSpace(key)
	v, err := ParseVerifier(key)
	if err != nil {
		return TrustedKey{}, isle.Errorf(isle.Invalid, "%q is no key of %ss: want NAME+HASH+BASE64", clip(key), r.kind).WithHint("`isle %s trust` on the other server shows it", r.kind)
	}
	out := TrustedKey{Name: v.Name(), Key: key}
	r.mu.RLock()
	_, have := r.trust[key]
	n := len(r.trust)
	named := r.own != nil && r.own.Name() == v.Name()
	for _, o := range r.trust {
		named = named || o.Name() == v.Name()
	}
	r.mu.RUnlock()
	switch {
	case have:
		return out, nil
	case r.own != nil && r.own.Verifier() == key:
		out.Own = true
		return out, nil
	case named: // who has signed is told by the name
		return out, isle.Errorf(isle.Conflict, "another key that is called %s is trusted: with two of them nobody could tell which has signed", v.Name()).
			WithHint("if it was replaced, trust the one before no more: isle %s trust --remove KEY", r.kind)
	case n >= maxKeys:
		return out, isle.Errorf(isle.Exhausted, "%d keys are trusted, as many as there may be", n)
	}
	e := audit.NewEvent(actor, r.action, resource, isle.Allow, "trusted from now on").With("key", key)
	if err := l.Change(ctx, []ledger.Record{{Key: keyTrust + key, Body: []byte("{}")}}, nil, e); err != nil {
		return out, err
	}
	r.mu.Lock()
	r.trust[key] = v
	r.mu.Unlock()
	return out, nil
}

// Distrust makes the signatures of a key count no more. It is said whole, or by
// its name. One change at a time.
func (r *Ring) Distrust(ctx context.Context, l *ledger.Ledger, actor isle.Actor, key string) (TrustedKey, error) {
	var found []string
	r.mu.RLock()
	for k, v := range r.trust {
		if k == key || v.Name() == key {
			found = append(found, k)
		}
	}
	r.mu.RUnlock()
	if len(found) != 1 {
		return TrustedKey{}, isle.Errorf(isle.NotFound, "%d keys that are trusted are called %q", len(found), clip(key)).WithHint("isle %s trust lists them", r.kind)
	}
	name, _, _ := strings.Cut(found[0], "+")
	e := audit.NewEvent(actor, r.action, resource, isle.Allow, "trusted no more").With("key", found[0])
	if err := l.Change(ctx, nil, []string{keyTrust + found[0]}, e); err != nil {
		return TrustedKey{}, err
	}
	r.mu.Lock()
	delete(r.trust, found[0])
	r.mu.Unlock()
	return TrustedKey{Name: name, Key: found[0]}, nil
}
