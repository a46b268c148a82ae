package identity

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

var (
	root  = isle.Actor{Kind: isle.Human, Name: "root"}
	ann   = isle.Actor{Kind: isle.Human, Name: "ann"}
	theCI = isle.Actor{Kind: isle.Machine, Name: "ci"}
)

const here = "192.0.2.1"

// A desk is a registry with what stands around it.
type desk struct {
	*Registry
	store *ledgertest.Memory
	clock atomic.Int64 // seconds since start
	gone  sync.Map     // people whom the operating system does not know
}

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{store: ledgertest.New()}
	d.reopen(t)
	return d
}

func (d *desk) config() RegistryConfig {
	return RegistryConfig{
		Store: d.store, Log: d.store,
		Now:    func() time.Time { return start.Add(time.Duration(d.clock.Load()) * time.Second) },
		Known:  func(p string) bool { _, gone := d.gone.Load(p); return !gone },
		Groups: func(p string) []string { return []string{p + "s"} },
	}
}

func (d *desk) reopen(t testing.TB) {
	t.Helper()
	r, err := OpenRegistry(t.Context(), d.config())
	if err != nil {
		t.Fatal(err)
	}
	d.Registry = r
}

func (d *desk) pass(by time.Duration) { d.clock.Add(int64(by / time.Second)) }

func (d *desk) machine(name string) NewMachine {
	return NewMachine{Name: name, Owner: ann, Purpose: "builds the shop", Stage: "testing", Expires: d.now().Add(180 * 24 * time.Hour)}
}

func (d *desk) create(t testing.TB, name string) NewKey {
	t.Helper()
	_, k, err := d.Create(t.Context(), root, d.machine(name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (d *desk) counts(t testing.TB, secret string) bool {
	t.Helper()
	s, err := d.Authenticate(t.Context(), secret, here)
	if err != nil && isle.CodeOf(err) != isle.Refused {
		t.Fatal(err)
	}
	return err == nil && d.Check(s) == nil
}

func TestAKeyIsKnownByItsShapeAndChecksum(t *testing.T) {
	pattern := regexp.MustCompile(SecretPattern)
	seen := map[string]bool{}
	for _, kind := range []string{APIKey, Personal} {
		for range 500 {
			secret, hash, hint := newSecret(kind)
			got, shape := shapeOf(secret)
			if got != kind || shape != whole || hash != isle.DigestOf([]byte(secret)) || !strings.HasPrefix(secret, hint) || pattern.FindString("a "+secret+".") != secret || seen[secret] {
				t.Fatalf("%s %v %s", kind, shape, hint)
			}
			seen[secret] = true
			for i := len(secret) - 46; i < len(secret); i += 7 { // another character anywhere
				c := byte('a')
				if secret[i] == c {
					c = 'b'
				}
				if _, shape := shapeOf(secret[:i] + string(c) + secret[i+1:]); shape != mistyped {
					t.Fatalf("a wrong character at %d is %v", i, shape)
				}
			}
		}
	}
	for _, s := range []string{"", "isle", "isle-" + strings.Repeat("a", 46), "ghp_" + strings.Repeat("a", 46), "eyJhbGciOiJub25lIn0.e30."} {
		if _, shape := shapeOf(s); shape != shapeless {
			t.Errorf("%q is %v", s, shape)
		}
	}
	for _, s := range []string{"isle_", "isle_" + strings.Repeat("a", 46), "islep_" + strings.Repeat("é", 23), "isle_" + strings.Repeat("0", 47)} {
		if _, shape := shapeOf(s); shape != mistyped {
			t.Errorf("%q is %v", s, shape)
		}
	}
	// Fixed, so that scanners can count on it: the checksum is over the prefix too.
	if got := checksum("isle_" + strings.Repeat("0", 40)); got != "0fcGkq" {
		t.Errorf("the checksum is %q", got)
	}
}

func TestAKeyProvesItsMachineAndOnlyItsHashIsKept(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	s, err := d.Authenticate(t.Context(), k.Secret, "192.0.2.1:4711")
	if err != nil {
		t.Fatal(err)
	}
	if s.Actor != theCI || s.Stage != "testing" || s.Key != k.ID || s.Owner != ann || !s.Expires.Equal(start.Add(MaxKey)) || s.Groups != nil {
		t.Errorf("%+v", s)
	}
	d.reopen(t)
	if !d.counts(t, k.Secret) {
		t.Error("it does not count after a restart")
	}
	records, _, _ := d.store.Ledger(t.Context(), RegistryLedger)
	everything := fmt.Sprint(d.store.Entries())
	for _, r := range records {
		everything += string(r.Body)
	}
	if strings.Contains(everything, k.Secret[len("isle_")+hintLength:]) {
		t.Error("the key is kept")
	}
	if strings.Contains(fmt.Sprint(d.store.Entries()), k.Hash.Hex()) {
		t.Error("its hash is in the log")
	}
}

func TestNothingIsMadeWithoutAnOwnerAPurposeAndAnEnd(t *testing.T) {
	d := newDesk(t)
	d.gone.Store("nobody", true)
	for what, change := range map[string]func(*NewMachine){
		"owner":        func(n *NewMachine) { n.Owner = isle.Actor{} },
		"only a pers":  func(n *NewMachine) { n.Owner = theCI },
		"knows nobody": func(n *NewMachine) { n.Owner.Name = "nobody" },
		"needs a purp": func(n *NewMachine) { n.Purpose = " \t" },
		"one line":     func(n *NewMachine) { n.Purpose = "a\nb" },
		"of at most":   func(n *NewMachine) { n.Purpose = strings.Repeat("a", 201) },
		"credential":   func(n *NewMachine) { s, _, _ := newSecret(Personal); n.Purpose = "with KEY=" + s + "." },
		"needs an end": func(n *NewMachine) { n.Expires = time.Time{} },
		"has passed":   func(n *NewMachine) { n.Expires = start },
		"a year ahead": func(n *NewMachine) { n.Expires = start.Add(MaxMachine + time.Hour) },
		"no stage":     func(n *NewMachine) { n.Stage = "" },
		"no name":      func(n *NewMachine) { n.Name = "CI" },
		"private key": func(n *NewMachine) {
			n.PublicKey = []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----")
		},
	} {
		n := d.machine("ci")
		change(&n)
		_, _, err := d.Create(t.Context(), root, n)
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if perr := d.Plan(root, n); fmt.Sprint(perr) != fmt.Sprint(err) {
			t.Errorf("planned: %v", perr)
		}
	}
	for what, n := range map[string]NewToken{
		"needs a purp": {Expires: start.Add(time.Hour)},
		"needs an end": {Purpose: "laptop"},
		"90 days":      {Purpose: "laptop", Expires: start.Add(MaxPersonal + time.Second)},
		"has passed":   {Purpose: "laptop", Expires: start.Add(-time.Second)},
		"no stage":     {Purpose: "laptop", Expires: start.Add(time.Hour), Stage: "A"},
	} {
		if _, err := d.CreateToken(t.Context(), ann, n); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := d.CreateToken(t.Context(), theCI, NewToken{Purpose: "x", Expires: start.Add(time.Hour)}); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("a machine got a personal token: %v", err)
	}
	if n := len(d.store.Entries()); n != 0 {
		t.Errorf("%d entries of what was not done", n)
	}
}

func TestANameIsNeverUsedAgain(t *testing.T) {
	d := newDesk(t)
	d.create(t, "ci")
	for range 2 {
		_, _, err := d.Create(t.Context(), root, d.machine("ci"))
		if isle.CodeOf(err) != isle.Conflict {
			t.Fatal(err)
		}
		if _, err := d.Revoke(t.Context(), root, "ci", ""); err != nil {
			t.Fatal(err)
		}
		d.reopen(t)
	}
}

func TestWhatEndsIsFeltAtOnceAndSaysWhyOnlyInTheLog(t *testing.T) {
	for what, end := range map[string]struct {
		do  func(d *desk, k NewKey) error
		why string
	}{
		"the key is revoked":     {func(d *desk, k NewKey) error { _, err := d.RevokeKey(t.Context(), root, k.ID, "found"); return err }, keyRevoked},
		"the machine is revoked": {func(d *desk, k NewKey) error { _, err := d.Revoke(t.Context(), root, "ci", ""); return err }, keyRevoked},
		"the key expires":        {func(d *desk, k NewKey) error { d.pass(MaxKey); return nil }, keyExpired},
		"all end":                {func(d *desk, k NewKey) error { return d.EndAll(t.Context(), "rolled back") }, keyRevoked},
		"the owner left": {func(d *desk, k NewKey) error {
			_, _, err := d.OwnerLeft(t.Context(), root, ann, time.Hour, false, nil)
			d.pass(time.Hour)
			return err
		}, ownerLeft},
		"rotated without an overlap": {func(d *desk, k NewKey) error { _, _, err := d.Rotate(t.Context(), root, "ci", 0, nil); return err }, keyExpired},
	} {
		t.Run(what, func(t *testing.T) {
			d := newDesk(t)
			k := d.create(t, "ci")
			s, err := d.Authenticate(t.Context(), k.Secret, here)
			if err != nil {
				t.Fatal(err)
			}
			over := d.Over()
			if err := end.do(d, k); err != nil {
				t.Fatal(err)
			}
			if err := d.Check(s); isle.CodeOf(err) != isle.Refused {
				t.Errorf("Check: %v", err)
			}
			if what != "the key expires" {
				select {
				case <-over:
				default:
					t.Error("nobody is woken")
				}
			}
			for range 2 {
				_, err = d.Authenticate(t.Context(), k.Secret, here)
				unknown, _, _ := newSecret(APIKey)
				_, other := d.Authenticate(t.Context(), unknown, here)
				if err == nil || err.Error() != other.Error() {
					t.Errorf("%v, and of an unknown one %v", err, other)
				}
				entries := d.store.Entries()
				if e := entries[len(entries)-2]; e.Actor != theCI || e.Decision != isle.Deny || !strings.HasSuffix(e.Summary, end.why) || e.Details["source"] != here || e.Details["key"] != string(k.ID) {
					t.Errorf("%+v", e)
				}
				if e := entries[len(entries)-1]; e.Actor.Name != "?" || !strings.HasSuffix(e.Summary, unknownKey) {
					t.Errorf("%+v", e)
				}
				if _, err := d.Subject(k.ID); err == nil {
					t.Error("it has a subject")
				}
				d.reopen(t)
			}
		})
	}
}

func TestAClockThatJumpsBackBringsNothingBack(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	s, err := d.Authenticate(t.Context(), k.Secret, here)
	if err != nil {
		t.Fatal(err)
	}
	d.pass(MaxKey)
	if d.Check(s) == nil {
		t.Fatal("it counts after its end")
	}
	d.pass(-MaxKey)
	if d.Check(s) == nil || d.counts(t, k.Secret) {
		t.Error("the clock was put back, and it counts again")
	}
}

func TestKeysRotateWithAnOverlap(t *testing.T) {
	d := newDesk(t)
	first := d.create(t, "ci")
	second, end, err := d.Rotate(t.Context(), root, "ci", 24*time.Hour, nil)
	if err != nil || !end.Equal(start.Add(24*time.Hour)) {
		t.Fatal(end, err)
	}
	if !d.counts(t, first.Secret) || !d.counts(t, second.Secret) {
		t.Error("not both count within the overlap")
	}
	d.pass(24 * time.Hour)
	if d.counts(t, first.Secret) || !d.counts(t, second.Secret) {
		t.Error("the wrong ones count after it")
	}
	d.pass(150 * 24 * time.Hour) // the second has expired, the machine has not
	third, _, err := d.Rotate(t.Context(), root, "ci", 0, nil)
	if err != nil || !d.counts(t, third.Secret) {
		t.Fatal(err)
	}
	if m, _ := d.Machine("ci"); third.Expires.After(m.Expires) {
		t.Errorf("the key ends %s, its machine %s", third.Expires, m.Expires)
	}
	if n := len(d.Keys(theCI)); n != 2 {
		t.Errorf("%d keys are kept; the first ended long ago", n)
	}
	for range maxLiveKeys - 1 {
		if _, _, err := d.Rotate(t.Context(), root, "ci", time.Hour, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := d.Rotate(t.Context(), root, "ci", time.Hour, nil); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	d.pass(100 * 24 * time.Hour)
	if _, _, err := d.Rotate(t.Context(), root, "ci", 0, nil); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("a machine that has expired got a key: %v", err)
	}
}

func TestNoCallFailsWhileKeysRotate(t *testing.T) {
	d := newDesk(t)
	var current atomic.Pointer[string]
	k := d.create(t, "ci")
	current.Store(&k.Secret)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var passing sync.RWMutex // time passes between calls: a call takes less than an overlap
	call := func(i int) bool {
		passing.RLock()
		defer passing.RUnlock()
		s, err := d.Authenticate(t.Context(), *current.Load(), fmt.Sprintf("192.0.2.%d", i))
		if err == nil {
			err = d.Check(s)
		}
		if err != nil {
			t.Error(err)
		}
		return err == nil
	}
	for i := range 4 {
		wg.Go(func() {
			for ctx.Err() == nil && call(i) {
			}
		})
	}
	for range 60 {
		k, _, err := d.Rotate(t.Context(), root, "ci", time.Minute, nil)
		if err != nil {
			t.Error(err)
			break
		}
		current.Store(&k.Secret)
		passing.Lock()
		d.pass(20 * time.Second)
		passing.Unlock()
	}
	cancel()
	wg.Wait()
}

func TestAnOwnerWhoLeavesTakesTheirMachinesWithThem(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	token, err := d.CreateToken(t.Context(), ann, NewToken{Purpose: "laptop", Expires: start.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if machines, tokens, err := d.OwnerLeft(t.Context(), root, ann, time.Hour, true, nil); len(machines) != 1 || len(tokens) != 1 || err != nil || !d.counts(t, token.Secret) {
		t.Fatalf("%v %v %v", machines, tokens, err)
	}
	if _, _, err := d.OwnerLeft(t.Context(), root, ann, time.Hour, false, nil); err != nil {
		t.Fatal(err)
	}
	if d.counts(t, token.Secret) || !d.counts(t, k.Secret) {
		t.Error("the token ends at once, the machine after the grace")
	}
	d.pass(30 * time.Minute)
	if machines, _, _ := d.OwnerLeft(t.Context(), root, ann, time.Hour, false, nil); len(machines) != 0 {
		t.Error("to say it again gave more time")
	}
	d.pass(30 * time.Minute)
	if m, _ := d.Machine("ci"); d.counts(t, k.Secret) || d.StateOf(m) != Stopped {
		t.Errorf("it goes on after the grace: %s", d.StateOf(m))
	}
	if _, _, err := d.Rotate(t.Context(), root, "ci", 0, nil); isle.CodeOf(err) != isle.Conflict {
		t.Error(err)
	}
	if _, err := d.SetOwner(t.Context(), root, "ci", root); err != nil || !d.counts(t, k.Secret) {
		t.Errorf("with another owner it does not go on: %v", err)
	}
}

func TestWhomTheSystemDoesNotKnowHasLeft(t *testing.T) {
	d := newDesk(t)
	d.create(t, "ci")
	token, err := d.CreateToken(t.Context(), ann, NewToken{Purpose: "laptop", Expires: start.Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	d.gone.Store("ann", true)
	if d.counts(t, token.Secret) {
		t.Error("the token of nobody counts")
	}
	d.lookForOwners(t.Context())
	if m, _ := d.Machine("ci"); !m.OwnerLeft.IsZero() {
		t.Error("one look was enough")
	}
	d.gone.Delete("ann")
	d.lookForOwners(t.Context())
	if !d.counts(t, token.Secret) {
		t.Error("a file that could not be read for a moment ended a token")
	}
	d.gone.Store("ann", true)
	d.lookForOwners(t.Context())
	d.lookForOwners(t.Context())
	if m, _ := d.Machine("ci"); !m.Stops.Equal(start.Add(DefaultGrace)) {
		t.Errorf("%+v", m)
	}
	d.gone.Delete("ann") // another ann
	if d.counts(t, token.Secret) {
		t.Error("another ann has the token of the one who left")
	}
}

func TestRunWakesAtAnEndAndTellsOfWhatWasCounted(t *testing.T) {
	store := ledgertest.New()
	r, err := OpenRegistry(t.Context(), RegistryConfig{Store: store, Log: store})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	_, k, err := r.Create(ctx, root, NewMachine{Name: "ci", Owner: ann, Purpose: "p", Stage: "testing", Expires: time.Now().Add(300 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Authenticate(ctx, k.Secret, here)
	if err != nil {
		t.Fatal(err)
	}
	for {
		over := r.Over()
		if r.Check(s) != nil {
			break
		}
		<-over // or the test never ends
	}
	for range refusedBurst + 5 {
		r.Authenticate(ctx, "x", here)
	}
	cancel()
	<-done
	entries := store.Entries()
	if e := entries[len(entries)-1]; e.Count != 5 {
		t.Errorf("%+v", e)
	}
}

func TestALedgerThatWasEditedIsNotUsed(t *testing.T) {
	for what, edit := range map[string]func([]ledger.Record) []ledger.Record{
		"a hash": func(r []ledger.Record) []ledger.Record {
			_, hash, _ := newSecret(APIKey)
			r[0].Body = regexp.MustCompile(`sha256:[0-9a-f]{64}`).ReplaceAll(r[0].Body, []byte(hash))
			return r
		},
		"an end": func(r []ledger.Record) []ledger.Record {
			r[0].Body = []byte(strings.ReplaceAll(string(r[0].Body), "2030", "2040"))
			return r
		},
		"a deletion": func(r []ledger.Record) []ledger.Record { return r[1:] },
	} {
		d := newDesk(t)
		d.create(t, "ci")
		d.store.Edit(RegistryLedger, edit)
		if _, err := OpenRegistry(t.Context(), d.config()); err == nil {
			t.Errorf("%s: it is used", what)
		}
	}
}

func TestAFailedChangeChangesNothing(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	d.counts(t, k.Secret)
	d.store.Fail(errors.New("the disk is full"))
	if _, err := d.Revoke(t.Context(), root, "ci", ""); err == nil {
		t.Fatal("revoked")
	}
	if _, _, err := d.Create(t.Context(), root, d.machine("other")); err == nil {
		t.Fatal("made")
	}
	if _, ok := d.Machine("other"); ok || !d.counts(t, k.Secret) {
		t.Error("what failed counts")
	}
	d.store.Fail(nil)
	if _, err := d.Revoke(t.Context(), root, "ci", ""); err != nil || d.counts(t, k.Secret) {
		t.Error(err)
	}
}

func TestEndAllKeepsMachinesAndNothingElse(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	token, err := d.CreateToken(t.Context(), ann, NewToken{Purpose: "laptop", Expires: start.Add(time.Hour), Stage: "staging"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Authenticate(t.Context(), token.Secret, here)
	if err != nil || s.Actor != ann || s.Stage != "staging" || len(s.Groups) != 1 {
		t.Fatalf("%+v %v", s, err)
	}
	if err := d.EndAll(t.Context(), "an older state was accepted"); err != nil {
		t.Fatal(err)
	}
	if d.counts(t, k.Secret) || d.counts(t, token.Secret) || d.Check(s) == nil {
		t.Error("a credential of before counts")
	}
	fresh, _, err := d.Rotate(t.Context(), root, "ci", 0, nil)
	if err != nil || !d.counts(t, fresh.Secret) {
		t.Error(err)
	}
	n := len(d.store.Entries())
	if err := newDesk(t).EndAll(t.Context(), "nothing there"); err != nil {
		t.Error(err)
	}
	for _, e := range d.store.Entries()[:n] {
		if e.Action == isle.ActionIdentityEndAll && e.Details["keys"] != "2" {
			t.Errorf("%+v", e)
		}
	}
}

func TestOnlyTheirHolderRevokesAToken(t *testing.T) {
	d := newDesk(t)
	token, err := d.CreateToken(t.Context(), ann, NewToken{Purpose: "laptop", Expires: start.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	k := d.create(t, "ci")
	for _, id := range []isle.ID{token.ID, k.ID, "x"} {
		if _, err := d.RevokeToken(t.Context(), root, id); isle.CodeOf(err) != isle.NotFound {
			t.Error(err)
		}
	}
	if _, err := d.RevokeToken(t.Context(), ann, token.ID); err != nil || d.counts(t, token.Secret) {
		t.Error(err)
	}
}

func TestEveryChangeHasItsEntry(t *testing.T) {
	d := newDesk(t)
	d.create(t, "ci")
	d.Rotate(t.Context(), root, "ci", time.Hour, nil)
	d.SetOwner(t.Context(), root, "ci", root)
	d.OwnerLeft(t.Context(), root, root, time.Hour, false, nil)
	d.Revoke(t.Context(), root, "ci", "done")
	var actions []string
	for _, e := range d.store.Entries() {
		actions = append(actions, string(e.Action))
		if e.Kind != audit.Event || e.Bound == nil || e.Resource != (isle.Resource{Kind: "identity", Name: "ci", Stage: "testing"}) {
			t.Errorf("%+v", e)
		}
	}
	if got := strings.Join(actions, " "); got != "identity:create identity:rotate identity:transfer identity:transfer identity:revoke" {
		t.Error(got)
	}
}
