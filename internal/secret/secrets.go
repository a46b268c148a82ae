package secret

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/problem"
)

// ledgerName is the ledger that versions are records of.
const ledgerName = "secret"

// Secrets are those of one server. They are safe for concurrent use.
type Secrets struct {
	cfg    Config
	broken error // why none can be used; nil if they can

	change sync.Mutex // held over a change
	ledger *ledger.Ledger

	mu      sync.RWMutex // guards what follows
	secrets map[string]Secret
}

// A record is a Version as it is stored, under the key NAME/NUMBER.
type record struct {
	Created   time.Time  `json:"created"`
	CreatedBy isle.Actor `json:"created_by"`
	Backend   string     `json:"backend"`
	Reference string     `json:"reference,omitempty"`
	Destroyed bool       `json:"destroyed,omitempty"`
	Sealed    []byte     `json:"sealed,omitempty"`
}

// Open reads the secrets. Where the ledger is not what the audit log says it is
// there is a Secrets all the same, of which every use fails with that: what runs
// without secrets can go on.
func Open(ctx context.Context, cfg Config) (*Secrets, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Getenv == nil {
		cfg.Getenv = func(string) (string, bool) { return "", false }
	}
	if err := cfg.Vault.check(); err != nil {
		return nil, err
	}
	s := &Secrets{cfg: cfg, secrets: map[string]Secret{}}
	l, records, err := ledger.Open(ctx, cfg.Store, ledgerName)
	if err != nil {
		if isle.CodeOf(err) != isle.Unavailable {
			return nil, err
		}
		s.broken = err
		cfg.Slog.Error("no secret can be used", "err", err)
		return s, nil
	}
	s.ledger = l
	for _, r := range records {
		if err := s.load(r); err != nil {
			s.broken, s.secrets = err, map[string]Secret{}
			cfg.Slog.Error("no secret can be used", "err", err)
			return s, nil
		}
	}
	for _, v := range s.secrets {
		slices.SortFunc(v.Versions, func(a, b Version) int { return a.Number - b.Number })
	}
	return s, nil
}

// load takes one record in.
func (s *Secrets) load(r ledger.Record) error {
	name, number, _ := strings.Cut(r.Key, "/")
	n, err := strconv.Atoi(number)
	var v record
	if err == nil {
		err = json.Unmarshal(r.Body, &v)
	}
	if err != nil || !isle.ValidName(name) || n < 1 || strconv.Itoa(n) != number {
		return isle.Errorf(isle.Unavailable, "the record %q of the secret ledger cannot be read", r.Key).WithHint("start with the program that wrote it")
	}
	have := s.secrets[name]
	have.Name = name
	have.Versions = append(have.Versions, Version{
		Number: n, Created: v.Created, CreatedBy: v.CreatedBy, Backend: v.Backend, Reference: v.Reference, Destroyed: v.Destroyed, sealed: v.Sealed,
	})
	s.secrets[name] = have
	return nil
}

func recordOf(name string, v Version) (ledger.Record, error) {
	b, err := json.Marshal(record{v.Created, v.CreatedBy, v.Backend, v.Reference, v.Destroyed, v.sealed})
	if err != nil {
		return ledger.Record{}, isle.Errorf(isle.Internal, "cannot encode a secret's record: %w", err)
	}
	return ledger.Record{Key: keyOf(name, v.Number), Body: b}, nil
}

func keyOf(name string, number int) string { return name + "/" + strconv.Itoa(number) }

// purposeOf is what the value of a version is sealed for: it opens as no other
// version, and as no other secret.
func purposeOf(name string, number int) string { return "secret/" + keyOf(name, number) }

// Err says why no secret can be used; nil if they can.
func (s *Secrets) Err() error { return s.broken }

// List returns all secrets, by name. Their Versions are not to be changed.
func (s *Secrets) List() ([]Secret, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.secrets), func(a, b Secret) int { return strings.Compare(a.Name, b.Name) }), nil
}

// get returns one secret.
func (s *Secrets) get(name string) (Secret, error) {
	if s.broken != nil {
		return Secret{}, s.broken
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	have, ok := s.secrets[name]
	if !ok {
		return Secret{}, isle.Errorf(isle.NotFound, "there is no secret %q", problem.Clip(name)).WithHint("see `isle secret ls`; set one with `isle secret set NAME`")
	}
	return have, nil
}

// Set stores a value as a new version. The caller overwrites what it holds.
func (s *Secrets) Set(ctx context.Context, actor isle.Actor, name string, value []byte) (Secret, error) {
	switch {
	case len(value) == 0:
		return Secret{}, isle.Errorf(isle.Invalid, "the value is empty").WithHint("remove a secret with `isle secret rm NAME`")
	case len(value) > MaxValue:
		return Secret{}, isle.Errorf(isle.Invalid, "the value is too large: a secret has at most %d bytes", MaxValue)
	}
	return s.add(ctx, actor, name, Version{Backend: Stored}, func(number int) ([]byte, error) {
		sealed, err := s.cfg.Sealer.Seal(purposeOf(name, number), value)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "the secret %s cannot be stored: %w", name, err)
		}
		return sealed, nil
	})
}

// Refer sets where the value is taken from, as a new version. It looks only
// whether that is a place that may be named.
func (s *Secrets) Refer(ctx context.Context, actor isle.Actor, name, backend, reference string) (Secret, error) {
	if err := s.checkReference(backend, reference); err != nil {
		return Secret{}, err
	}
	return s.add(ctx, actor, name, Version{Backend: backend, Reference: reference}, func(int) ([]byte, error) { return nil, nil })
}

// add makes a version durable with its entry, and destroys the one that falls
// out.
func (s *Secrets) add(ctx context.Context, actor isle.Actor, name string, v Version, seal func(number int) ([]byte, error)) (Secret, error) {
	if !isle.ValidName(name) {
		return Secret{}, isle.Errorf(isle.Invalid, "%q is no name for a secret: want lower-case letters, digits and dashes, at most 40, beginning with a letter", problem.Clip(name))
	}
	s.change.Lock()
	defer s.change.Unlock()
	have, err := s.get(name)
	if err != nil && isle.CodeOf(err) != isle.NotFound {
		return Secret{}, err
	}
	next := Secret{Name: name, Versions: slices.Clone(have.Versions)}
	v.Number, v.Created, v.CreatedBy = 1, s.cfg.Now().UTC().Truncate(time.Microsecond), actor
	if n := len(next.Versions); n > 0 {
		v.Number = next.Last().Number + 1
	} else if s.count() >= MaxSecrets {
		return Secret{}, isle.Errorf(isle.Exhausted, "there are %d secrets already, as many as there may be", MaxSecrets).WithHint("remove one with `isle secret rm NAME`")
	}
	if v.sealed, err = seal(v.Number); err != nil {
		return Secret{}, err
	}
	next.Versions = append(next.Versions, v)
	put, remove, err := next.prune()
	if err != nil {
		return Secret{}, err
	}
	r, err := recordOf(name, v)
	if err != nil {
		return Secret{}, err
	}
	e := audit.NewEvent(actor, isle.ActionSecretSet, resourceOf(name), isle.Allow, "").
		With("version", strconv.Itoa(v.Number)).With("backend", v.Backend)
	if v.Reference != "" {
		e = e.With("reference", v.Reference)
	}
	if err := s.ledger.Change(ctx, append(put, r), remove, e); err != nil {
		return Secret{}, err
	}
	s.mu.Lock()
	s.secrets[name] = next
	s.mu.Unlock()
	return next, nil
}

// prune destroys values beyond KeptVersions, and forgets versions beyond
// KnownVersions. s.Versions is the caller's own.
func (s *Secret) prune() (put []ledger.Record, remove []string, err error) {
	for len(s.Versions) > KnownVersions {
		remove = append(remove, keyOf(s.Name, s.Versions[0].Number))
		s.Versions = s.Versions[1:]
	}
	for i := range max(0, len(s.Versions)-KeptVersions) {
		if v := &s.Versions[i]; !v.Destroyed {
			v.Destroyed, v.sealed = true, nil
			r, err := recordOf(s.Name, *v)
			if err != nil {
				return nil, nil, err
			}
			put = append(put, r)
		}
	}
	return put, remove, nil
}

func (s *Secrets) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.secrets)
}

// Delete removes a secret with all of its versions. used says who would miss it,
// which is recorded.
func (s *Secrets) Delete(ctx context.Context, actor isle.Actor, name string, used []string) error {
	s.change.Lock()
	defer s.change.Unlock()
	have, err := s.get(name)
	if err != nil {
		return err
	}
	var remove []string
	for _, v := range have.Versions {
		remove = append(remove, keyOf(name, v.Number))
	}
	e := audit.NewEvent(actor, isle.ActionSecretDelete, resourceOf(name), isle.Allow, "").With("version", strconv.Itoa(have.Last().Number))
	if len(used) > 0 {
		e = e.With("used_by", strings.Join(used, ", "))
	}
	if err := s.ledger.Change(ctx, nil, remove, e); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.secrets, name)
	s.mu.Unlock()
	return nil
}

// Check takes a value as a connection would, and records that and how it went.
func (s *Secrets) Check(ctx context.Context, actor isle.Actor, name string) (version, size int, err error) {
	have, err := s.get(name)
	if err != nil {
		return 0, 0, err
	}
	v, err := s.take(ctx, have)
	e := audit.NewEvent(actor, isle.ActionSecretCheck, resourceOf(name), isle.Allow, "").With("version", strconv.Itoa(have.Last().Number))
	e.Result = audit.Result(err)
	if lerr := s.cfg.Log.Append(context.WithoutCancel(ctx), e); lerr != nil {
		v.Destroy()
		return 0, 0, lerr
	}
	if err != nil {
		return 0, 0, err
	}
	defer v.Destroy()
	return have.Last().Number, len(v.Reveal()), nil
}

// Resolve takes the value of a secret, for a connection that is opened now. Who
// calls it calls the value's Destroy soon, and says in the log what it was for.
func (s *Secrets) Resolve(ctx context.Context, name string) (Value, error) {
	have, err := s.get(name)
	if err != nil {
		return Value{}, err
	}
	return s.take(ctx, have)
}

// take takes the value of the last version from where it is.
func (s *Secrets) take(ctx context.Context, have Secret) (Value, error) {
	v := have.Last()
	var b []byte
	var err error
	switch {
	case v.Backend == Stored:
		b, err = s.cfg.Sealer.Open(purposeOf(have.Name, v.Number), v.sealed)
		if isle.CodeOf(err) == isle.Invalid && err != nil {
			err = isle.Errorf(isle.Unavailable, "its version %d cannot be opened: %w", v.Number, err)
		}
	case v.Backend == Environment:
		b, err = s.fromEnvironment(v.Reference)
	case v.Backend == File:
		b, err = s.fromFile(v.Reference)
	case v.Backend == Vault:
		b, err = s.cfg.Vault.read(ctx, v.Reference)
	default:
		err = isle.Errorf(isle.Unavailable, "this program knows no backend %q", v.Backend).WithHint("start with the program that wrote it")
	}
	if err == nil && len(b) == 0 {
		err = isle.Errorf(isle.Unavailable, "its value is empty")
	}
	if err == nil && len(b) > MaxValue {
		clear(b)
		err = isle.Errorf(isle.Unavailable, "its value has more than %d bytes", MaxValue)
	}
	if err != nil {
		return Value{}, isle.Errorf(isle.CodeOf(err), "the secret %s cannot be had: %w", have.Name, err)
	}
	return newValue(b), nil
}

func resourceOf(name string) isle.Resource { return isle.Resource{Kind: "secret", Name: name} }
