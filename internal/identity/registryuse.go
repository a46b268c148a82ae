package identity

import (
	"context"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/audit"
)

const (
	// noteEvery is how often a use of a key is written down at least: Key's
	// LastUsed is true to this.
	noteEvery = time.Hour
	// maxSources is how many sources of one key are written down at once within
	// noteEvery; the uses from more are told of with the next.
	maxSources = 16
)

// Authenticate says whom an API key or a personal token proves, and notes its
// use. source is the address that it came from. Whatever does not count gets
// the same error, Refused; why is in the audit log.
func (r *Registry) Authenticate(ctx context.Context, credential, source string) (Subject, error) {
	source = addressOf(source)
	if len(credential) > MaxCredential {
		return Subject{}, r.refuse(ctx, nil, source, "it is too long", notHere())
	}
	kind, shape := shapeOf(credential)
	switch shape {
	case shapeless:
		return Subject{}, r.refuse(ctx, nil, source, "it is no API key and no personal token", notHere())
	case mistyped:
		err := isle.Errorf(isle.Refused, "not a credential that counts here: it is mistyped or cut off").
			WithHint("copy all of it: %s and %d letters and digits", prefixOf(kind), secretRandom+secretSum)
		return Subject{}, r.refuse(ctx, nil, source, "its checksum does not fit", err)
	}
	s := r.state.Load()
	k := s.byHash[hashSecret(credential)]
	why := s.why(k, r.now())
	if why == "" && k.Kind == Personal && !r.cfg.Known(k.Holder.Name) {
		why = holderGone
	}
	if why != "" {
		return Subject{}, r.refuse(ctx, k, source, why, notHere())
	}
	if err := r.Used(ctx, k.ID, source); err != nil {
		return Subject{}, err
	}
	out := s.subject(k)
	if k.Kind == Personal {
		out.Groups = r.cfg.Groups(k.Holder.Name)
	}
	return out, nil
}

func prefixOf(kind string) string {
	if kind == Personal {
		return personalPrefix
	}
	return machinePrefix
}

// addressOf is an address without its port, and without what only looks
// different.
func addressOf(source string) string {
	if ap, err := netip.ParseAddrPort(source); err == nil {
		return ap.Addr().Unmap().WithZone("").String()
	}
	if a, err := netip.ParseAddr(source); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return shorten(source, 64)
}

// uses is when and from where keys were used last.
type uses struct {
	mu   sync.Mutex // guards what follows
	last map[isle.ID]*use
}

type use struct {
	at      time.Time
	source  string
	noted   time.Time            // when it was last written down
	sources map[string]time.Time // that were, and when
}

func (u *uses) load(keys map[isle.ID]*Key) {
	u.last = make(map[isle.ID]*use, len(keys))
	for id, k := range keys {
		if !k.LastUsed.IsZero() {
			u.last[id] = &use{k.LastUsed, k.LastSource, k.LastUsed, map[string]time.Time{k.LastSource: k.LastUsed}}
		}
	}
}

// with is a key with its last use.
func (u *uses) with(k Key) Key {
	u.mu.Lock()
	defer u.mu.Unlock()
	if l := u.last[k.ID]; l != nil {
		k.LastUsed, k.LastSource = l.at, l.source
	}
	return k
}

// due takes a use, and says whether it has to be written down.
func (u *uses) due(key isle.ID, source string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.last[key]
	if l == nil {
		return true
	}
	if now.Sub(l.noted) >= noteEvery {
		return true
	}
	if at, known := l.sources[source]; !known || now.Sub(at) >= noteEvery {
		for s, at := range l.sources {
			if now.Sub(at) >= noteEvery {
				delete(l.sources, s)
			}
		}
		if len(l.sources) < maxSources {
			return true
		}
	}
	l.at, l.source = now, source
	return false
}

// put says that a use was written down.
func (u *uses) put(key isle.ID, source string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.last[key]
	if l == nil {
		l = &use{sources: map[string]time.Time{}}
		u.last[key] = l
	}
	l.at, l.source, l.noted = now, source, now
	l.sources[source] = now
}

// Used notes that a key was used from a source. It is written down, before this
// returns, where the source is a new one for the key or the last note is old.
func (r *Registry) Used(ctx context.Context, key isle.ID, source string) error {
	source = addressOf(source)
	if !r.uses.due(key, source, r.now()) {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if !r.uses.due(key, source, now) { // others wrote it while we waited
		return nil
	}
	s := r.state.Load()
	k := s.keys[key]
	if s.why(k, now) != "" { // meanwhile
		return notHere()
	}
	e := audit.NewEvent(k.Holder, isle.ActionIdentityUse, s.resource(k), isle.Allow, "").
		With("key", string(key)).With("kind", k.Kind).With("source", source)
	used := *k
	used.LastUsed, used.LastSource = now, source
	if err := r.write(ctx, &used, e); err != nil {
		return err
	}
	r.uses.put(key, source, now)
	return nil
}

const (
	// refusedBurst is how many refusals of one source are entries of their own
	// in a row; one more may be every refusedEvery. refusedAll and refusedAllEvery
	// say the same of all sources together.
	refusedBurst    = 10
	refusedEvery    = 10 * time.Second
	refusedAll      = 200
	refusedAllEvery = time.Second
	// togetherEvery is how often those beyond are told of, in one entry that
	// names togetherNamed sources.
	togetherEvery = time.Minute
	togetherNamed = 8
	// maxShares is how many sources are told apart; those that come when they are
	// all taken have one share together.
	maxShares = 1000
)

// refused bounds what wrong credentials put into the log, for each of what they
// are told apart by.
type refused struct {
	each allowance.Table

	mu     sync.Mutex // guards what follows
	all    allowance.Allowance
	since  time.Time // when the first of those was counted that are to be told of together; zero: there are none
	count  int
	named  map[string]int
	others int
}

func newRefused() *refused {
	return &refused{each: allowance.Table{Rate: allowance.Rate{Burst: refusedBurst, Every: refusedEvery}, Max: maxShares}}
}

// take says whether a refusal is an entry of its own; if not, it is counted.
func (f *refused) take(key string, now time.Time) bool {
	own := f.each.Take(key, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if own && f.all.Take(now, allowance.Rate{Burst: refusedAll, Every: refusedAllEvery}) {
		return true
	}
	if f.count == 0 {
		f.since, f.named = now, map[string]int{}
	}
	f.count++
	if _, ok := f.named[key]; ok || len(f.named) < togetherNamed {
		f.named[key]++
	} else {
		f.others++
	}
	return false
}

// Neighbours is what a source is counted as: an IPv4 address by itself, an IPv6
// address with all of its /64, which one customer has.
func Neighbours(source string) string {
	a, err := netip.ParseAddr(source)
	if err != nil || a.Is4() {
		return source
	}
	p, err := a.Prefix(64)
	if err != nil {
		return source
	}
	return p.String()
}

// together is the entry of what was counted, if it is time for one.
func (f *refused) together(now time.Time, always bool) (audit.Entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == 0 || !always && now.Sub(f.since) < togetherEvery {
		return audit.Entry{}, false
	}
	e := audit.NewEvent(nobody, isle.ActionIdentityUse, isle.Resource{Kind: "identity", Name: "*"}, isle.Deny,
		strconv.Itoa(f.count)+" more credentials that do not count, told of together")
	e.Rule, e.Count = CredentialRule, f.count
	for by, n := range f.named {
		e = e.With(by, strconv.Itoa(n))
	}
	if f.others > 0 {
		e = e.With("others", strconv.Itoa(f.others))
	}
	f.count, f.named, f.others = 0, nil, 0
	return e, true
}

// nobody is who shows a credential that proves nobody. No machine has the name.
var nobody = isle.Actor{Kind: isle.Machine, Name: "?"}

// CredentialRule is the rule that refuses what does not count as a credential,
// or no longer.
const CredentialRule = "built in: a credential counts until it ends"

// Unproven is the entry of what a source showed and proves nobody. why says what
// is wrong with it, and nothing of it.
func Unproven(why, source string) audit.Entry {
	e := audit.NewEvent(nobody, isle.ActionIdentityUse, isle.Resource{Kind: "identity", Name: nobody.Name}, isle.Deny, why).With("source", source)
	e.Rule = CredentialRule
	return e
}

// refuse records that a credential did not count, and returns err. k
// is the key that the credential is of; nil if it is of none.
func (r *Registry) refuse(ctx context.Context, k *Key, source, why string, err error) error {
	e := Unproven("a credential that does not count: "+why, source)
	bound, by := r.unknown, Neighbours(source)
	if k != nil {
		e.Actor, e.Resource = k.Holder, r.state.Load().resource(k)
		e = e.With("key", string(k.ID))
		bound, by = r.ended, string(k.ID)
	}
	if bound.take(by, r.now()) {
		r.append(ctx, e)
	}
	return err
}

// tellTogether writes what was counted and is due, or all of it.
func (r *Registry) tellTogether(ctx context.Context, all bool) {
	for _, f := range []*refused{r.unknown, r.ended} {
		if e, ok := f.together(r.now(), all); ok {
			r.append(ctx, e)
		}
	}
}

// append records what is refused anyway.
func (r *Registry) append(ctx context.Context, e audit.Entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := r.cfg.Log.Append(ctx, e); err != nil {
		r.cfg.Slog.Error("a refusal could not be recorded", "what", e.Summary, "err", err)
	}
}
