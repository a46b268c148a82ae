package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity"
	"isle/internal/ledger"
	"isle/internal/store/sqlite"
)

// credentials measures what a call with an API key costs before the policy is
// asked: whom it proves (once for each request) and whether it still counts (on
// each decision of an open stream), with few keys and with many, beside one
// Ed25519 signature, which is the least that a signed token costs.
func credentials(runs int) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	message := make([]byte, 500)
	signature := ed25519.Sign(private, message)
	fmt.Printf("\n### A credential\n\n%d interleaved runs each, of 2,000 times.\n\n", runs)
	fmt.Printf("| keys | authenticate | check | one Ed25519 signature | one key more, durable |\n|---|---|---|---|---|\n")
	for _, n := range []int{1, 100, 10_000} {
		if err := withKeys(n, func(ctx context.Context, r *identity.Registry, secret string) error {
			s, err := r.Authenticate(ctx, secret, "192.0.2.1")
			if err != nil {
				return err
			}
			const times = 2000
			var authenticate, check, verify, create []time.Duration
			for i := range runs {
				begin := time.Now()
				if err := another(ctx, r, fmt.Sprintf("more-%d", i)); err != nil {
					return err
				}
				create = append(create, time.Since(begin))
				begin = time.Now()
				for range times {
					if _, err := r.Authenticate(ctx, secret, "192.0.2.1"); err != nil {
						return err
					}
				}
				authenticate = append(authenticate, time.Since(begin)/times)
				begin = time.Now()
				for range times {
					if err := r.Check(s); err != nil {
						return err
					}
				}
				check = append(check, time.Since(begin)/times)
				begin = time.Now()
				for range times / 20 {
					if !ed25519.Verify(public, message, signature) {
						return fmt.Errorf("the signature is wrong")
					}
				}
				verify = append(verify, time.Since(begin)/(times/20))
			}
			fmt.Printf("| %d | %.2f µs | %.2f µs | %.1f µs | %s |\n", n, micro(middle(authenticate)), micro(middle(check)), micro(middle(verify)), ms(middle(create)))
			return nil
		}); err != nil {
			return fmt.Errorf("%d keys: %w", n, err)
		}
	}
	return nil
}

// withKeys opens a registry of n machines with a key each, in a store of its
// own.
func withKeys(n int, do func(ctx context.Context, r *identity.Registry, secret string) error) error {
	dir, err := os.MkdirTemp("", "isle-bench-keys-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, err := sqlite.Open(filepath.Join(dir, "isle.db"), sqlite.Config{})
	if err != nil {
		return err
	}
	defer store.Close()
	ctx := context.Background()
	if err := fill(ctx, store, n-1); err != nil {
		return err
	}
	r, err := identity.OpenRegistry(ctx, identity.RegistryConfig{Store: store, Log: store})
	if err != nil {
		return err
	}
	_, k, err := r.Create(ctx, root, newMachine("mine"))
	if err != nil {
		return err
	}
	return do(ctx, r, k.Secret)
}

var root = isle.Actor{Kind: isle.Human, Name: "root"}

func newMachine(name string) identity.NewMachine {
	return identity.NewMachine{Name: name, Owner: root, Purpose: "measures", Stage: "testing", Expires: time.Now().Add(time.Hour)}
}

// another makes one machine more, with its key: the state of the whole ledger is
// bound to the entry of each change.
func another(ctx context.Context, r *identity.Registry, name string) error {
	_, _, err := r.Create(ctx, root, newMachine(name))
	return err
}

// fill registers machines in one change: one by one takes as many transactions.
func fill(ctx context.Context, store ledger.Store, n int) error {
	if n == 0 {
		return nil
	}
	l, _, err := ledger.Open(ctx, store, identity.RegistryLedger)
	if err != nil {
		return err
	}
	var records []ledger.Record
	add := func(key string, v any) {
		body, jerr := json.Marshal(v)
		if jerr != nil {
			err = jerr
		}
		records = append(records, ledger.Record{Key: key, Body: body})
	}
	now := time.Now().UTC()
	for i := range n {
		who := isle.Actor{Kind: isle.Machine, Name: fmt.Sprintf("m%d", i)}
		add("machine/"+who.Name, identity.Machine{ID: isle.NewID(), Name: who.Name, Stage: "testing", Created: now, Expires: now.Add(time.Hour)})
		id := isle.NewID()
		add("key/"+string(id), identity.Key{ID: id, Kind: identity.APIKey, Holder: who, Hash: isle.DigestOf([]byte(who.Name)), Created: now, Expires: now.Add(time.Hour)})
	}
	if err != nil {
		return err
	}
	e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "bench"}, isle.ActionIdentityCreate, isle.Resource{Kind: "identity", Name: "*"}, isle.Allow, "")
	return l.Change(ctx, records, nil, e)
}
