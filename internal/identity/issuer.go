package identity

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// IssuerConfig is what an Issuer needs.
type IssuerConfig struct {
	Store  ledger.Store
	Sealer Sealer // of the private keys
	// TrustDomain is the name of this server's trust domain. Default: the one
	// of the first start, and then a random one. It never changes: every
	// identity has it in its name.
	TrustDomain string
	// URL is the issuer's URL in tokens (iss), "" as long as there is none.
	// nil: never one.
	URL func() string
	Now func() time.Time // default time.Now
	Log *slog.Logger     // nil discards
	// Renew replaces keys that the Sealer cannot open by new ones: the way on
	// for who has lost the key of secrets. Every SVID of before ends with them.
	Renew bool
}

// An Issuer gives SVIDs, and signs access tokens, by keys that it keeps in the
// ledger "issuer", sealed. It is safe for concurrent use.
type Issuer struct {
	cfg    IssuerConfig
	err    error // of one that is closed
	ledger *ledger.Ledger
	state  atomic.Pointer[issuerState]

	mu sync.Mutex // held over a change of the keys
}

// An issuerState is the keys between two changes. It never changes.
type issuerState struct {
	domain domainRecord
	keys   []*issuerKey // in the order in which they begin to sign
	bundle Bundle
	tokens []byte // JWKS (RFC 7517) of all keys that sign JWTs
	over   chan struct{}
}

// The ledger and its one record that is not a key.
const (
	issuerLedger = "issuer"
	domainKey    = "domain"
)

// A domainRecord is the trust domain and the number of its bundle. The number
// grows with each change and is never below the seconds since 1970 at which it
// was made, so that it also grows over a state that was put back.
type domainRecord struct {
	TrustDomain string `json:"trust_domain"`
	Sequence    uint64 `json:"sequence"`
}

// OpenIssuer reads the keys, and makes those that are missing now. It fails with
// Unavailable where the ledger is not what the log says or the Sealer does not
// open the keys, and with Conflict for another trust domain than the one that
// is kept.
func OpenIssuer(ctx context.Context, cfg IssuerConfig) (*Issuer, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.URL == nil {
		cfg.URL = func() string { return "" }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, records, err := ledger.Open(ctx, cfg.Store, issuerLedger)
	if err != nil {
		return nil, err
	}
	i := &Issuer{cfg: cfg, ledger: l}
	domain, err := readDomain(records)
	if err != nil {
		return nil, err
	}
	if err := checkDomain(cfg.TrustDomain, domain.TrustDomain); err != nil {
		return nil, err
	}
	if domain.TrustDomain == "" {
		if domain.TrustDomain = cfg.TrustDomain; domain.TrustDomain == "" {
			domain.TrustDomain = randomDomain()
		}
	}
	keys, err := openKeys(cfg.Sealer, records, domain.TrustDomain)
	if err != nil && !cfg.Renew {
		flat := isle.Errorf(isle.Unavailable, "the keys that sign identities cannot be opened: %w", err)
		return nil, flat.WithHint("put the key of secrets back, and start the server again; if it is lost, start it once with --new-key: the trust domain gets new keys, and every identity document of before ends")
	}
	i.state.Store(newState(domain, keys))
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		due, _ := schedule(nil, cfg.Now())
		err = i.change(ctx, "the keys of before could not be opened", nil, due, keyIDs(records))
	} else {
		err = i.rotate(ctx)
	}
	if err != nil {
		return nil, err
	}
	return i, nil
}

// ClosedIssuer stands for an issuer that could not be opened: whatever is asked
// of it fails with err, its bundle is empty, and nothing counts by it. So the
// server that has it goes on with all that needs no identity. EndAll works.
func ClosedIssuer(store ledger.Store, err error) *Issuer {
	i := &Issuer{cfg: IssuerConfig{Store: store, Now: time.Now, URL: func() string { return "" }, Log: slog.New(slog.DiscardHandler)}, err: err}
	i.state.Store(newState(domainRecord{}, nil))
	return i
}

// Err is why the issuer is closed; nil if it is not.
func (i *Issuer) Err() error { return i.err }

// dropKeys removes an issuer's keys and leaves it its trust domain: it makes new
// ones when it is opened.
func dropKeys(ctx context.Context, store ledger.Store, why string) error {
	l, records, err := ledger.Open(ctx, store, issuerLedger)
	if err != nil {
		return err
	}
	keys := keyIDs(records)
	if len(keys) == 0 {
		return nil
	}
	return l.Change(ctx, nil, keys, rotation(why).With("removed", strings.Join(keys, " ")))
}

// rotation is the entry of a change of the keys.
func rotation(why string) audit.Entry {
	return audit.NewEvent(isle.Actor{Kind: isle.System, Name: "issuer"}, isle.ActionIssuerRotate, isle.Resource{Kind: "server", Name: "server"}, isle.Allow, why)
}

func readDomain(records []ledger.Record) (d domainRecord, err error) {
	for _, r := range records {
		if r.Key == domainKey {
			if err := json.Unmarshal(r.Body, &d); err != nil {
				return d, isle.Errorf(isle.Unavailable, "the issuer's trust domain cannot be read: %w", err)
			}
		}
	}
	return d, nil
}

// checkDomain says whether a trust domain that was asked for may be used where
// another one may be kept already.
func checkDomain(wanted, kept string) error {
	if wanted == "" {
		return nil
	}
	if kept != "" && kept != wanted {
		return isle.Errorf(isle.Conflict, "this state's trust domain is %s, and not %s", kept, wanted).
			WithHint("a trust domain never changes, since every identity has it in its name: leave --trust-domain out, or begin a new state folder")
	}
	// SPIFFE-ID standard, 2.1: letters, digits, dots, dashes and underscores.
	valid := len(wanted) <= 255 && !strings.HasPrefix(wanted, ".") && !strings.HasSuffix(wanted, ".") && !strings.Contains(wanted, "..")
	for _, c := range wanted {
		valid = valid && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
	}
	if !valid {
		return isle.Errorf(isle.Invalid, "%.300q is no trust domain", wanted).
			WithHint("it is a name like a host's, of at most 255 lower-case letters, digits, dots, dashes and underscores: isle.example.org")
	}
	return nil
}

// randomDomain names a trust domain like no other, below a top-level domain that
// is reserved for private use.
func randomDomain() string {
	var b [10]byte
	rand.Read(b[:])
	return "isle-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:])) + ".internal"
}

// TrustDomain is the name of the trust domain.
func (i *Issuer) TrustDomain() string { return i.state.Load().domain.TrustDomain }

// ID names the workload of a service of an environment.
func (i *Issuer) ID(ref isle.Ref, project, service string) SPIFFEID {
	if ref.Stage == "" {
		ref.Stage = isle.DefaultStage
	}
	return SPIFFEID{TrustDomain: i.TrustDomain(), Project: project, Stage: ref.Stage, Name: ref.Name, Service: service}
}

// Bundle is the trust domain's, for now.
func (i *Issuer) Bundle() Bundle { return i.state.Load().bundle }

// TokenKeys is the JWK set (RFC 7517) by which others check the JWTs that this
// server signs: JWT-SVIDs and access tokens.
func (i *Issuer) TokenKeys() []byte { return i.state.Load().tokens }

// Over is closed when the bundle or the keys that sign change, and when the
// clock jumped: what was issued before may be of another time now, and whoever
// holds it for others had better get new ones. Take it before what it is about.
func (i *Issuer) Over() <-chan struct{} { return i.state.Load().over }

// put puts keys in force and wakes who waits on those before. mu is held.
func (i *Issuer) put(domain domainRecord, keys []*issuerKey) {
	old := i.state.Swap(newState(domain, keys))
	close(old.over)
}

// every is how often Run looks at the clock.
const every = 5 * time.Second

// Run makes keys ahead of the time at which they are needed and removes those
// that nothing is signed with any more, until ctx ends. It watches the clock,
// which may jump.
func (i *Issuer) Run(ctx context.Context) {
	if i.err != nil {
		<-ctx.Done()
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	wall, steady := i.cfg.Now(), time.Now()
	signing := i.signing()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, elapsed := i.cfg.Now(), time.Since(steady)
		// Round(0): by the wall clock, which is what documents are read by.
		jump := now.Round(0).Sub(wall.Round(0)) - elapsed
		wall, steady = now, time.Now()
		before := i.state.Load()
		err := i.Rotate(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			i.cfg.Log.Error("the issuer's keys could not be rotated; trying again", "error", err)
		}
		failed = err != nil
		if next := i.signing(); jump.Abs() > Skew || !slices.Equal(signing, next) {
			signing = next
			i.mu.Lock()
			if i.state.Load() == before { // else everybody was woken already
				i.put(before.domain, before.keys)
			}
			i.mu.Unlock()
		}
	}
}

// signing are the keys that sign now.
func (i *Issuer) signing() (ids []string) {
	s, now := i.state.Load(), i.cfg.Now()
	for _, kind := range keyKinds {
		if k := signer(s.keys, kind.name, now); k != nil {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// Rotate makes the keys that are due and removes those that are past, as Run
// does by itself.
func (i *Issuer) Rotate(ctx context.Context) error {
	if i.err != nil {
		return i.err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rotate(ctx)
}

// EndAll replaces every key at once: what was signed by those of before does not
// count any more for who asks this server, nor for others once they have the
// new bundle.
func (i *Issuer) EndAll(ctx context.Context, why string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return dropKeys(ctx, i.cfg.Store, why)
	}
	var old []string
	for _, k := range i.state.Load().keys {
		old = append(old, k.recordKey())
	}
	due, _ := schedule(nil, i.cfg.Now())
	return i.change(ctx, why, nil, due, old)
}

// rotate does what the schedule asks for now. mu is held.
func (i *Issuer) rotate(ctx context.Context) error {
	s, now := i.state.Load(), i.cfg.Now()
	due, past := schedule(s.keys, now)
	if len(due) == 0 && len(past) == 0 {
		return nil
	}
	keep := slices.DeleteFunc(slices.Clone(s.keys), func(k *issuerKey) bool { return slices.Contains(past, k) })
	var remove []string
	for _, k := range past {
		remove = append(remove, k.recordKey())
	}
	why := "in time"
	if len(s.keys) == 0 {
		why = "the first keys"
	}
	return i.change(ctx, why, keep, due, remove)
}

// change makes keys, and puts them in force with those that are kept, durably
// and with its entry. mu is held.
func (i *Issuer) change(ctx context.Context, why string, keep []*issuerKey, due []term, remove []string) error {
	s, now := i.state.Load(), i.cfg.Now()
	domain := s.domain
	domain.Sequence = max(domain.Sequence+1, uint64(max(now.Unix(), 0)))
	body, err := json.Marshal(domain)
	if err != nil {
		return isle.Errorf(isle.Internal, "the issuer's record: %w", err)
	}
	put := []ledger.Record{{Key: domainKey, Body: body}}
	keys := slices.Clone(keep)
	e := rotation(why).With("trust_domain", domain.TrustDomain)
	for _, t := range due {
		k, err := makeKey(t, domain.TrustDomain)
		if err != nil {
			return err
		}
		r, err := k.seal(i.cfg.Sealer)
		if err != nil {
			return isle.Errorf(isle.Unavailable, "a new key of the issuer cannot be sealed: %w", err)
		}
		put, keys = append(put, r), append(keys, k)
		e = e.With("new_"+k.Kind+"_"+t.place, k.ID)
	}
	if len(remove) > 0 {
		e = e.With("removed", strings.Join(remove, " "))
	}
	if err := i.ledger.Change(ctx, put, remove, e); err != nil {
		return err
	}
	i.put(domain, keys)
	return nil
}
