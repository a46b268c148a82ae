package identity_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

// works checks that the issuer gives SVIDs which count by the bundle, and
// returns them. The time of go-spiffe's JWT verification is the real one, so
// those are checked by the issuer where the clock is set.
func works(t *testing.T, i *identity.Issuer, now time.Time, b *spiffebundle.Bundle) (identity.X509SVID, identity.JWTSVID) {
	t.Helper()
	x, err := i.X509SVID(web(i))
	if err != nil {
		t.Fatalf("at %s: %v", now, err)
	}
	if _, _, err := x509svid.ParseAndVerify(x.Chain, b, x509svid.WithTime(now)); err != nil {
		t.Fatalf("at %s: %v", now, err)
	}
	j, err := i.JWTSVID(web(i), []string{"db"})
	if err != nil {
		t.Fatalf("at %s: %v", now, err)
	}
	if _, _, err := i.ValidateJWTSVID(j.Token, "db"); err != nil {
		t.Fatalf("at %s: %v", now, err)
	}
	return x, j
}

// TestNobodyMeetsAnUnknownKey goes through nine days in steps of the refresh
// hint: what is issued counts by the bundle that others read one hint ago, and
// what was issued counts to its end by the bundle of then.
func TestNobodyMeetsAnUnknownKey(t *testing.T) {
	c := newSetClock()
	store := ledgertest.New()
	sealer := identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Now: c.Now, Store: store, Sealer: sealer})
	var last identity.X509SVID
	var lastKid string
	before, sequence := bundles(t, i), i.Bundle().Sequence
	for step := range 9 * 24 * 12 {
		c.Add(identity.RefreshHint)
		if step%400 == 399 { // a restart changes nothing
			i = openIssuer(t, identity.IssuerConfig{Now: c.Now, Store: store, Sealer: sealer})
		} else if err := i.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := bundles(t, i)
		if last.Chain != nil {
			if _, _, err := x509svid.ParseAndVerify(last.Chain, now, x509svid.WithTime(last.Expires)); err != nil {
				t.Fatalf("step %d: the SVID of before, in its last second: %v", step, err)
			}
			if !now.HasJWTAuthority(lastKid) {
				t.Fatalf("step %d: the key of a JWT-SVID that counts has left the bundle", step)
			}
		}
		x, j := works(t, i, c.Now(), before)
		kid := kidOf(t, j.Token)
		if !before.HasJWTAuthority(kid) {
			t.Fatalf("step %d: others do not know the key of a JWT-SVID", step)
		}
		if n := len(now.X509Authorities()) + len(now.JWTAuthorities()); n > 6 {
			t.Fatalf("step %d: the bundle has %d keys", step, n)
		}
		if s := i.Bundle().Sequence; s < sequence {
			t.Fatalf("step %d: the bundle's number went back from %d to %d", step, sequence, s)
		} else {
			sequence = s
		}
		last, lastKid, before = x, kid, now
	}
	rotations := 0
	for _, e := range store.Entries() {
		if e.Action == isle.ActionIssuerRotate && e.Bound != nil {
			rotations++
		}
	}
	if rotations < 18 {
		t.Errorf("%d rotations in nine days", rotations)
	}
}

func kidOf(t *testing.T, token string) string {
	t.Helper()
	header, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
	if err != nil {
		t.Fatal(err)
	}
	var h struct{ Kid string }
	if err := json.Unmarshal(header, &h); err != nil {
		t.Fatal(err)
	}
	return h.Kid
}

func TestAClockThatJumpsLeavesNobodyWithoutAKey(t *testing.T) {
	c := newSetClock()
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Now: c.Now, Store: store, Sealer: sealer})
	day := 24 * time.Hour
	for n, jump := range []time.Duration{
		time.Hour, -2 * time.Hour, 10 * 365 * day, -10 * 365 * day, -20 * 365 * day, 20 * 365 * day, 3 * day, -3 * day, 7 * day, -time.Minute, time.Minute,
		-day, -day, -day, -day, -day, -day, -day, -day, -day, -day, 30 * day,
	} {
		c.Add(jump)
		// Even where nobody has called Rotate since.
		x, _ := works(t, i, c.Now(), bundlesAfter(t, i))
		if !x.Expires.After(c.Now()) || x.Expires.After(c.Now().Add(identity.MaxSVID)) {
			t.Errorf("jump %d to %s: an SVID that ends at %s", n, c.Now(), x.Expires)
		}
		if err := i.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		works(t, i, c.Now(), bundles(t, i))
		if b := bundles(t, i); len(b.X509Authorities()) > 8 || len(b.JWTAuthorities()) > 8 {
			t.Errorf("jump %d: the bundle has %d and %d keys", n, len(b.X509Authorities()), len(b.JWTAuthorities()))
		}
		i = openIssuer(t, identity.IssuerConfig{Now: c.Now, Store: store, Sealer: sealer})
		works(t, i, c.Now(), bundles(t, i))
	}
}

func TestAKeyOfAnotherTimeIsGivenUpOnceTheClockHasSettled(t *testing.T) {
	c := newSetClock()
	i := openIssuer(t, identity.IssuerConfig{Now: c.Now})
	true1 := i.Bundle()
	c.Add(-5 * 365 * 24 * time.Hour)
	works(t, i, c.Now(), bundlesAfter(t, i))
	c.Add(5*365*24*time.Hour + time.Minute) // it was wrong for a minute
	if err := i.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b := i.Bundle(); !bytes.Equal(b.JWKS, true1.JWKS) || len(b.X509) != 1 || !bytes.Equal(b.X509[0], true1.X509[0]) {
		t.Error("a clock that was wrong for a minute has lost the keys")
	}
	c.Add(-5 * 365 * 24 * time.Hour) // it had been wrong before
	for range 4 * 3 {
		c.Add(6 * time.Hour)
		if err := i.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		works(t, i, c.Now(), bundles(t, i))
	}
	if b := i.Bundle(); slices.ContainsFunc(b.X509, func(der []byte) bool { return bytes.Equal(der, true1.X509[0]) }) {
		t.Error("a key of five years ahead is in the bundle for five years")
	}
}

// bundlesAfter is the bundle once something was issued.
func bundlesAfter(t *testing.T, i *identity.Issuer) *spiffebundle.Bundle {
	t.Helper()
	if _, err := i.X509SVID(web(i)); err != nil {
		t.Fatal(err)
	}
	return bundles(t, i)
}

func TestKeysOutliveARestartAndStandNowhereInTheClear(t *testing.T) {
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	x, j := works(t, i, time.Now(), bundles(t, i))
	again := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	if again.TrustDomain() != i.TrustDomain() || !bytes.Equal(again.Bundle().Document, i.Bundle().Document) {
		t.Error("a restart changed the bundle")
	}
	if _, _, err := again.ValidateJWTSVID(j.Token, "db"); err != nil {
		t.Error(err)
	}
	if _, _, err := x509svid.ParseAndVerify(x.Chain, bundles(t, again)); err != nil {
		t.Error(err)
	}
	if n := len(store.Entries()); n != 1 {
		t.Errorf("a restart in time wrote entries: %d", n)
	}
	records, _, err := store.Ledger(t.Context(), "issuer")
	if err != nil || len(records) != 4 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	for _, r := range records {
		if bytes.Contains(r.Body, []byte("PRIVATE")) || bytes.Contains(r.Body, []byte(`"d"`)) {
			t.Errorf("record %s has a private key in the clear", r.Key)
		}
	}
}

func TestKeysThatTheSealerDoesNotOpenSayWhatToDo(t *testing.T) {
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	_, j := works(t, i, time.Now(), bundles(t, i))
	other := identity.IssuerConfig{Store: store, Sealer: identitytest.NewSealer()}
	_, err := identity.OpenIssuer(t.Context(), other)
	if isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "put the key of secrets back") || !strings.Contains(err.Error(), "--new-key") {
		t.Fatalf("%v", err)
	}
	// Where none can be sealed those that are stay.
	other.Renew, other.Sealer = true, &sealing{other.Sealer, 0}
	if _, err := identity.OpenIssuer(t.Context(), other); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("%v", err)
	}
	openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	other.Sealer = identitytest.NewSealer()
	renewed := openIssuer(t, other)
	if renewed.TrustDomain() != i.TrustDomain() || renewed.Bundle().Sequence <= i.Bundle().Sequence {
		t.Error("other keys made another trust domain, or an older bundle")
	}
	if _, _, err := renewed.ValidateJWTSVID(j.Token, "db"); err == nil {
		t.Error("what the lost keys signed counts")
	}
	works(t, renewed, time.Now(), bundles(t, renewed))
	entries := store.Entries()
	if e := entries[len(entries)-1]; e.Action != isle.ActionIssuerRotate || !strings.Contains(e.Summary, "could not be opened") || e.Details["removed"] == "" {
		t.Errorf("the log says %+v", e)
	}
	// Keys that can be opened stay.
	if again := openIssuer(t, other); !bytes.Equal(again.Bundle().Document, renewed.Bundle().Document) {
		t.Error("keys that can be opened were renewed")
	}
}

func TestARecordThatWasChangedBehindTheLogSignsNothing(t *testing.T) {
	for name, edit := range map[string]func([]ledger.Record) []ledger.Record{
		"a key removed":    func(r []ledger.Record) []ledger.Record { return r[:len(r)-1] },
		"the trust domain": func(r []ledger.Record) []ledger.Record { r[1].Body = []byte(`{"trust_domain":"evil.test"}`); return r },
		"a key that signs on": func(r []ledger.Record) []ledger.Record {
			r[0].Body = bytes.Replace(r[0].Body, []byte(`"until":"20`), []byte(`"until":"21`), 1)
			return r
		},
		"two sealed parts mixed": func(r []ledger.Record) []ledger.Record { r[0].Body, r[2].Body = r[2].Body, r[0].Body; return r },
	} {
		store, sealer := ledgertest.New(), identitytest.NewSealer()
		openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
		store.Edit("issuer", edit)
		_, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: store, Sealer: sealer})
		if err == nil || !strings.Contains(err.Error(), "behind the log") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestATrustDomainNeverChanges(t *testing.T) {
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	random := openIssuer(t, identity.IssuerConfig{}).TrustDomain()
	if !strings.HasPrefix(random, "isle-") || !strings.HasSuffix(random, ".internal") || random == openIssuer(t, identity.IssuerConfig{}).TrustDomain() {
		t.Errorf("the trust domain that nobody chose is %s", random)
	}
	for _, bad := range []string{"Isle.test", "isle.test/x", "spiffe://isle.test", "isle test", "isle..test", ".test", strings.Repeat("a", 256), "isle:8080", "i\u00e4sle"} {
		if _, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: store, Sealer: sealer, TrustDomain: bad}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q is a trust domain: %v", bad, err)
		}
	}
	openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer, TrustDomain: "isle.test"})
	if got := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer}).TrustDomain(); got != "isle.test" {
		t.Errorf("it became %s", got)
	}
	_, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: store, Sealer: sealer, TrustDomain: "other.test"})
	if isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "isle.test") {
		t.Errorf("another one: %v", err)
	}
}

func TestEndAllEndsWhatWasSignedBefore(t *testing.T) {
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	old := bundles(t, i)
	x, j := works(t, i, time.Now(), old)
	over := i.Over()
	if err := i.EndAll(t.Context(), "an older state was accepted"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	default:
		t.Error("who waits on the keys was not woken")
	}
	if _, _, err := i.ValidateJWTSVID(j.Token, "db"); err == nil {
		t.Error("a JWT-SVID of before counts")
	}
	now := bundles(t, i)
	if _, _, err := x509svid.ParseAndVerify(x.Chain, now); err == nil {
		t.Error("an X.509-SVID of before counts")
	}
	for kid := range old.JWTAuthorities() {
		if now.HasJWTAuthority(kid) {
			t.Error("a key of before is in the bundle")
		}
	}
	works(t, i, time.Now(), now)
	entries := store.Entries()
	if e := entries[len(entries)-1]; e.Summary != "an older state was accepted" || e.Bound == nil {
		t.Errorf("the log says %+v", e)
	}
	works(t, openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer}), time.Now(), now)
}

func TestAStoreThatTakesNothingLeavesTheKeysThatAre(t *testing.T) {
	c := newSetClock()
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	i := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer, Now: c.Now})
	document := i.Bundle().Document
	full := errors.New("no space left on device")
	store.Fail(full)
	c.Add(20 * time.Hour)
	if err := i.Rotate(t.Context()); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if err := i.EndAll(t.Context(), "x"); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if !bytes.Equal(i.Bundle().Document, document) {
		t.Error("the bundle has keys that are not durable")
	}
	works(t, i, c.Now(), bundles(t, i))
	// Beyond their end nothing is signed by anything.
	c.Add(10 * 24 * time.Hour)
	if _, err := i.X509SVID(web(i)); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	store.Fail(nil)
	works(t, i, c.Now(), bundlesAfter(t, i))
}

func TestAClosedIssuerSaysWhyAndVouchesForNobody(t *testing.T) {
	open := openIssuer(t, identity.IssuerConfig{})
	_, right := works(t, open, time.Now(), bundles(t, open))
	why := isle.Errorf(isle.Unavailable, "the key is gone")
	store, sealer := ledgertest.New(), identitytest.NewSealer()
	before := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	i := identity.ClosedIssuer(store, why)
	if i.Err() != why || len(i.Bundle().X509) != 0 || i.TrustDomain() != "" {
		t.Errorf("%+v", i.Bundle())
	}
	_, errX := i.X509SVID(web(i))
	_, errJ := i.JWTSVID(web(i), []string{"db"})
	for _, err := range []error{errX, errJ, i.Rotate(t.Context())} {
		if err != why {
			t.Errorf("%v", err)
		}
	}
	if _, _, err := i.ValidateJWTSVID(right.Token, "db"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i.Run(ctx)
	// What is to end does not come back with the key.
	if err := i.EndAll(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	after := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: sealer})
	for _, root := range after.Bundle().X509 {
		if slices.ContainsFunc(before.Bundle().X509, func(old []byte) bool { return bytes.Equal(old, root) }) {
			t.Error("a key of before counts again")
		}
	}
}

// sealing is a Sealer that fails from some seal on.
type sealing struct {
	identity.Sealer
	left int
}

func (s *sealing) Seal(purpose string, plain []byte) ([]byte, error) {
	if s.left--; s.left < 0 {
		return nil, errors.New("the key is gone")
	}
	return s.Sealer.Seal(purpose, plain)
}

func TestAKeyThatCannotBeSealedIsNotUsed(t *testing.T) {
	store := ledgertest.New()
	if _, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: store, Sealer: &sealing{identitytest.NewSealer(), 2}}); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("%v", err)
	}
	if len(store.Entries()) != 0 {
		t.Error("half of a first start is in the store")
	}
}

// TestRunRotatesInTimeAndTells runs for three weeks of a clock that is not real.
func TestRunRotatesInTimeAndTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := ledgertest.New()
		i, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: store, Sealer: identitytest.NewSealer()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { i.Run(ctx); close(done) }()
		var told int
		sequences := []uint64{i.Bundle().Sequence}
		for end := time.Now().Add(21 * 24 * time.Hour); time.Now().Before(end); {
			select {
			case <-i.Over():
				told++
				if s := i.Bundle().Sequence; s != sequences[len(sequences)-1] {
					sequences = append(sequences, s)
				}
			case <-time.After(time.Hour):
			}
			works(t, i, time.Now(), bundles(t, i))
		}
		cancel()
		<-done
		if !slices.IsSorted(sequences) || len(sequences) < 36 || told < len(sequences) {
			t.Errorf("told %d times, %d bundles in three weeks", told, len(sequences))
		}
		if n := len(slices.DeleteFunc(store.Entries(), func(e audit.Entry) bool { return e.Action != isle.ActionIssuerRotate })); n > 200 {
			t.Errorf("%d entries in three weeks", n)
		}
	})
}

// TestAJumpOfTheClockIsTold: who holds documents for others gets new ones.
func TestAJumpOfTheClockIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var jump atomic.Int64
		i, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{
			Store: ledgertest.New(), Sealer: identitytest.NewSealer(), Now: func() time.Time { return time.Now().Add(time.Duration(jump.Load())) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { i.Run(ctx); close(done) }()
		over := i.Over()
		time.Sleep(time.Minute)
		select {
		case <-over:
			t.Error("told of nothing")
		default:
		}
		synctest.Wait()
		jump.Store(int64(10 * time.Minute))
		time.Sleep(time.Minute)
		select {
		case <-over:
		default:
			t.Error("not told of a jump by ten minutes")
		}
		cancel()
		<-done
	})
}
