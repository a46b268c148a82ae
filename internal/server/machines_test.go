package server

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/api"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
)

var rootUser = isle.Actor{Kind: isle.Human, Name: api.Root}

// identified opens the log, the policy and the identities of a state.
func identified(t *testing.T, cfg Config) *rooms {
	t.Helper()
	b := mustOpen(t, cfg)
	r := &rooms{server: &Server{cfg: cfg, log: slog.New(slog.DiscardHandler)}, book: b, store: b.store}
	var err error
	if r.policy, err = authority.Open(t.Context(), authority.Config{Store: r.store, Now: cfg.Now, Since: b.latest(), Reaches: r.reaches("")}); err != nil {
		t.Fatal(err)
	}
	if err := r.openSecrets(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.openIssuer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.openIdentities(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAnOlderStateThatIsAcceptedRevivesNoCredential(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept"), Keys: filepath.Join(dir, "keys")}
	backup := filepath.Join(dir, "backup")
	r := identified(t, cfg)
	_, k, err := r.machines.Create(t.Context(), rootUser, identity.NewMachine{Name: "ci", Owner: rootUser, Purpose: "builds", Stage: "testing", Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := r.machines.CreateToken(t.Context(), rootUser, identity.NewToken{Purpose: "laptop", Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	roots := r.issuer.Bundle().X509
	mustClose(t, r.book)
	copyFolder(t, cfg.State, backup)
	r = identified(t, cfg)
	if _, err := r.machines.Authenticate(t.Context(), k.Secret, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.machines.Revoke(t.Context(), rootUser, "ci", "stolen"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, r.book)

	// The state of before is accepted, and the server dies before they ended.
	copyFolder(t, backup, cfg.State)
	accepting := cfg
	accepting.AcceptRollback = true
	mustClose(t, mustOpen(t, accepting))
	r = identified(t, cfg)
	for _, secret := range []string{k.Secret, token.Secret} {
		if _, err := r.machines.Authenticate(t.Context(), secret, "192.0.2.1"); isle.CodeOf(err) != isle.Refused {
			t.Errorf("a credential of before counts: %v", err)
		}
	}
	if domain := r.issuer.TrustDomain(); domain == "" || len(r.issuer.Bundle().X509) == 0 {
		t.Error("there is no issuer any more")
	}
	for _, root := range r.issuer.Bundle().X509 {
		if slices.ContainsFunc(roots, func(old []byte) bool { return bytes.Equal(old, root) }) {
			t.Error("a document of before leads to a root of now")
		}
	}
	fresh, _, err := r.machines.Rotate(t.Context(), rootUser, "ci", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, r.book)
	r = identified(t, cfg)
	if _, err := r.machines.Authenticate(t.Context(), fresh.Secret, "192.0.2.1"); err != nil {
		t.Errorf("a credential of after: %v", err)
	}
	mustClose(t, r.book)
}

func TestAMachineThatIsRevokedKeepsNoPolicy(t *testing.T) {
	dir := t.TempDir()
	r := identified(t, Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept"), Keys: filepath.Join(dir, "keys")})
	defer r.book.close()
	only := authority.Request{Document: policy.Document{Name: "main", Format: policy.YAML, Body: []byte("bindings: [{role: admin, subjects: [machine:ci]}]\n")}, DryRun: true}
	locksOut := func() bool {
		res, err := r.policy.Apply(t.Context(), rootUser, only)
		if err != nil {
			t.Fatal(err)
		}
		return res.LocksOut
	}
	if !locksOut() {
		t.Error("a machine that is not there keeps the policy")
	}
	if _, _, err := r.machines.Create(t.Context(), rootUser, identity.NewMachine{Name: "ci", Owner: rootUser, Purpose: "builds", Stage: "testing", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if locksOut() {
		t.Error("one that is there does not")
	}
	if _, err := r.machines.Revoke(t.Context(), rootUser, "ci", ""); err != nil {
		t.Fatal(err)
	}
	if !locksOut() {
		t.Error("one that was revoked keeps it")
	}
}

func TestOnlyWhoHasANameOnTheMachineIsKnown(t *testing.T) {
	for who, want := range map[string]bool{"root": true, "daemon": true, "uid:0": true, "uid:4000000000": false, "nobody-of-that-name": false, "": false} {
		if known(who) != want {
			t.Errorf("%q", who)
		}
	}
}
