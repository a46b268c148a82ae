package server

import (
	"context"
	"crypto/x509"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
	"isle/internal/store/sqlite"
)

// A clock is the machine's, and goes wrong by an offset.
type clock struct{ off atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.off.Load())) }
func (c *clock) jump(by time.Duration)    { c.off.Add(int64(by)) }
func (c *clock) set(offset time.Duration) { c.off.Store(int64(offset)) }

// chained says whether an SVID that is given now leads to the bundle of now, by
// the clock of whoever checks it.
func chained(t *testing.T, i *identity.Issuer, now time.Time) {
	t.Helper()
	id := i.ID(isle.Ref{Name: "shop", Stage: "testing"}, "shop", "web")
	svid, err := i.X509SVID(id)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	for _, der := range i.Bundle().X509 {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots.AddCert(c)
	}
	leaf, err := x509.ParseCertificate(svid.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("its chain does not hold: %v", err)
	}
	jwt, err := i.JWTSVID(id, []string{"billing"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := i.ValidateJWTSVID(jwt.Token, "billing"); err != nil {
		t.Errorf("a JWT-SVID of now does not count: %v", err)
	}
}

// A clock that jumps, in either direction and under a crash, brings nothing back
// that was revoked or has expired, breaks no SVID's chain, and lets no time of
// the log go back.
func TestAClockThatJumpsRevivesNothingAndBreaksNoChain(t *testing.T) {
	dir := t.TempDir()
	c := &clock{}
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept"), Keys: filepath.Join(dir, "keys"), Now: c.now}
	r := identified(t, cfg)
	ctx := t.Context()
	machine := func(name string, lives time.Duration) string {
		t.Helper()
		_, k, err := r.machines.Create(ctx, rootUser, identity.NewMachine{Name: name, Owner: rootUser, Purpose: "builds", Stage: "testing", Expires: r.policy.Now().Add(lives)})
		if err != nil {
			t.Fatal(err)
		}
		return k.Secret
	}
	short, long, revoked := machine("short", time.Hour), machine("long", 80*24*time.Hour), machine("revoked", 80*24*time.Hour)
	if _, err := r.machines.Revoke(ctx, rootUser, "revoked", "stolen"); err != nil {
		t.Fatal(err)
	}
	granted := "bindings: [{role: admin, subjects: [human:root]}, {role: developer, subjects: [human:ann], expires: \"" + c.now().Add(time.Hour).UTC().Format(time.RFC3339) + "\"}]\n"
	if _, err := r.policy.Apply(ctx, rootUser, authority.Request{Document: policy.Document{Name: "main", Format: policy.YAML, Body: []byte(granted)}}); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want map[string]bool, ann bool) {
		t.Helper()
		for secret, counts := range want {
			if _, err := r.machines.Authenticate(ctx, secret, "192.0.2.1"); (err == nil) != counts {
				t.Errorf("%s: a key counts: %v, want %v (%v)", when, err == nil, counts, err)
			}
		}
		q := policy.Query{Actor: isle.Actor{Kind: isle.Human, Name: "ann"}, Action: isle.ActionEnvironmentLogs, Resource: isle.Resource{Kind: "environment", Name: "shop", Stage: "testing"}, Stage: "testing"}
		if got := r.policy.Decide(q).Allowed(); got != ann {
			t.Errorf("%s: the grant counts: %v", when, got)
		}
		chained(t, r.issuer, c.now())
	}
	check("now", map[string]bool{short: true, long: true, revoked: false}, true)
	c.jump(-48 * time.Hour)
	check("two days back", map[string]bool{short: true, long: true, revoked: false}, true)
	c.set(3 * time.Hour)
	check("three hours on", map[string]bool{short: false, long: true, revoked: false}, false)
	c.set(0)
	check("set right", map[string]bool{short: false, long: true, revoked: false}, false)
	mustClose(t, r.book)
	r = identified(t, cfg)
	check("set right, after a crash", map[string]bool{short: false, long: true, revoked: false}, false)
	c.set(-10 * 365 * 24 * time.Hour)
	check("ten years back", map[string]bool{short: false, long: true, revoked: false}, false)
	mustClose(t, r.book)
	r = identified(t, cfg)
	check("ten years back, after a crash", map[string]bool{short: false, long: true, revoked: false}, false)
	c.set(10 * 365 * 24 * time.Hour)
	check("ten years on", map[string]bool{short: false, long: false, revoked: false}, false)
	c.set(0)
	check("set right again", map[string]bool{short: false, long: false, revoked: false}, false)
	fresh := machine("fresh", time.Hour)
	check("what is made now", map[string]bool{fresh: true}, false)
	mustClose(t, r.book)
	timesGoOn(t, LogPath(cfg.State))
}

// timesGoOn sees that no entry of a log is older than the one before it.
func timesGoOn(t *testing.T, path string) {
	t.Helper()
	s, err := sqlite.Open(path, sqlite.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Entries(t.Context(), 0, 1<<20)
	if err != nil || len(all) == 0 {
		t.Fatal(len(all), err)
	}
	for i, e := range all {
		if i > 0 && e.Time.Before(all[i-1].Time) {
			t.Errorf("entry %d is of %s, after one of %s", i, e.Time, all[i-1].Time)
		}
	}
}

// An access token that has ended stays so when the clock is set back; one that is
// given then counts, until its own end.
func TestAnAccessTokenThatHasEndedStaysEnded(t *testing.T) {
	dir := t.TempDir()
	c := &clock{}
	r := identified(t, Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept"), Keys: filepath.Join(dir, "keys"), Now: c.now})
	defer r.book.close()
	r.refusals = newRefusals(r.store, r.server.log, func(context.Context, isle.Ref) error { return nil })
	defer r.refusals.close()
	tokens, err := identity.OpenTokens(t.Context(), identity.TokensConfig{Issuer: r.issuer, Clients: r.machines, Store: r.store, Log: r.store, URL: func() string { return "https://isle.test" }, Now: c.now, Latest: r.policy.Now})
	if err != nil {
		t.Fatal(err)
	}
	_, k, err := r.machines.Create(t.Context(), rootUser, identity.NewMachine{Name: "ci", Owner: rootUser, Purpose: "builds", Stage: "testing", Expires: c.now().Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	grant := func() (identity.TokenResponse, error) {
		return tokens.Grant(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_secret": {k.Secret}}, "", "", false, "192.0.2.1")
	}
	// As the guard sees it.
	counts := func(token string) error {
		s, err := tokens.Verify(t.Context(), token, "")
		if err != nil {
			return err
		}
		return r.machines.Check(s)
	}
	old, err := grant()
	if err != nil {
		t.Fatal(err)
	}
	if err := counts(old.AccessToken); err != nil {
		t.Fatal(err)
	}
	c.set(time.Hour)
	if counts(old.AccessToken) == nil {
		t.Error("it outlives its end")
	}
	c.set(0)
	if counts(old.AccessToken) == nil {
		t.Error("it comes to life again")
	}
	fresh, err := grant()
	if err != nil {
		t.Fatal(err)
	}
	if err := counts(fresh.AccessToken); err != nil {
		t.Errorf("one of now does not count: %v", err)
	}
	c.set(identity.AccessToken + time.Second) // less than it was wrong by
	if counts(fresh.AccessToken) == nil {
		t.Error("one of now outlives its end")
	}
}
