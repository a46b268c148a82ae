package secret

import (
	"context"
	"encoding/json"
	"log/slog"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// keyLedger is the ledger with the one record that says which key is in use.
const (
	keyLedger = "key"
	keyRecord = "secrets"
)

// KeyConfig says where the key of a store is.
type KeyConfig struct {
	Store ledger.Store
	Path  string // of the key file
	// Anew takes whatever key is at Path, or a new one, in place of the one in
	// use. What that has sealed is lost, if it is not put back.
	Anew bool
	Log  *slog.Logger // nil discards
}

// keyUse is the record of the key in use.
type keyUse struct {
	ID string `json:"id"`
}

// UseKey returns the keyring of a store. The first time it makes a key; from
// then on it is that key and no other. Where it is missing, or another is in its
// place, no key is made and the keyring has none: each use says what is wrong,
// and whatever needs none goes on.
func UseKey(ctx context.Context, cfg KeyConfig) (*Keyring, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, use, err := openUse(ctx, cfg.Store)
	if err != nil {
		if isle.CodeOf(err) != isle.Unavailable {
			return nil, err
		}
		return cfg.without(err), nil
	}
	first := use.ID == ""
	k, err := OpenKeyring(cfg.Path, first || cfg.Anew)
	switch {
	case err != nil:
		return cfg.without(cfg.explain(use, err)), nil
	case k.ID() == use.ID:
		return k, nil
	case !first && !cfg.Anew:
		return cfg.without(cfg.giveUp("the key at %s is another one (%s) than that of this state folder's secrets (%s)", cfg.Path, k.ID(), use.ID)), nil
	}
	e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "server"}, isle.ActionSecretKey, isle.Resource{Kind: "server", Name: "server"}, isle.Allow, "").With("key", k.ID())
	if !first {
		e = e.With("instead_of", use.ID)
	}
	b, err := json.Marshal(keyUse{k.ID()})
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot encode the record of a key: %w", err)
	}
	if err := l.Change(ctx, []ledger.Record{{Key: keyRecord, Body: b}}, nil, e); err != nil {
		// The key counts once it is recorded: the next start finds it.
		return cfg.without(isle.Errorf(isle.Unavailable, "the key %s cannot be used, since that cannot be recorded: %w", cfg.Path, err)), nil
	}
	return k, nil
}

// openUse reads which key is in use.
func openUse(ctx context.Context, store ledger.Store) (*ledger.Ledger, keyUse, error) {
	var use keyUse
	l, records, err := ledger.Open(ctx, store, keyLedger)
	if err != nil {
		return nil, use, err
	}
	for _, r := range records {
		if r.Key != keyRecord || json.Unmarshal(r.Body, &use) != nil || use.ID == "" {
			return nil, use, isle.Errorf(isle.Unavailable, "the record %q of the key ledger cannot be read", r.Key).WithHint("start with the program that wrote it")
		}
	}
	return l, use, nil
}

// explain says why a key file cannot be used.
func (cfg KeyConfig) explain(use keyUse, err error) error {
	switch {
	case use.ID == "":
		return isle.Errorf(isle.Unavailable, "there is no key for secrets: %w", err)
	case isle.CodeOf(err) == isle.NotFound:
		return cfg.giveUp("the key of this state folder's secrets (%s) is missing: there is none at %s", use.ID, cfg.Path)
	}
	return isle.Errorf(isle.Unavailable, "the key of this state folder's secrets (%s) cannot be used: %w", use.ID, err)
}

func (cfg KeyConfig) giveUp(format string, args ...any) error {
	return isle.Errorf(isle.Unavailable, format, args...).
		WithHint("put the key back at %s and start the server again; or start it once with --new-key, which gives up what the key sealed: stored secrets have to be set again, and identities that were issued end", cfg.Path)
}

// without is the keyring where no key can be used.
func (cfg KeyConfig) without(err error) *Keyring {
	cfg.Log.Error("no secret can be used", "err", err)
	return WithoutKey(cfg.Path, err)
}
