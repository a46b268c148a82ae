package identity

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"isle"
)

func TestUsesAreWrittenOnceAnHourAndForEachNewSource(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	uses := func() (n int) {
		for _, e := range d.store.Entries() {
			if e.Action == isle.ActionIdentityUse && e.Decision == isle.Allow {
				n++
			}
		}
		return n
	}
	show := func(source string) {
		t.Helper()
		if _, err := d.Authenticate(t.Context(), k.Secret, source); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		show("192.0.2.1:1000")
		show("[2001:db8::1]:7")
		show("[::ffff:192.0.2.1]:9") // the first again
		d.pass(time.Second)
	}
	if n := uses(); n != 2 {
		t.Errorf("%d entries of two sources", n)
	}
	if got, _ := d.Key(k.ID); !got.LastUsed.Equal(start.Add(99*time.Second)) || got.LastSource != here {
		t.Errorf("%+v", got)
	}
	d.reopen(t)
	show(here)
	d.pass(2 * time.Hour)
	show(here)
	show(here)
	if n := uses(); n > 4 {
		t.Errorf("%d entries", n)
	}
	for i := range 1000 {
		show(fmt.Sprintf("198.51.100.%d", i))
	}
	if n := uses(); n > 4+maxSources {
		t.Errorf("%d entries: a key that is used from everywhere fills the log", n)
	}
	d.store.Fail(errors.New("the disk is full"))
	d.pass(2 * time.Hour)
	if _, err := d.Authenticate(t.Context(), k.Secret, here); err == nil {
		t.Error("a use that cannot be written down went on")
	}
	d.store.Fail(nil)
	show(here)
}

func TestWrongCredentialsDoNotFillTheLog(t *testing.T) {
	d := newDesk(t)
	wrong := []string{"", "x", strings.Repeat("a", 10000), "isle_" + strings.Repeat("a", 46)}
	for i := range 5000 {
		if _, err := d.Authenticate(t.Context(), wrong[i%len(wrong)], fmt.Sprintf("[2001:db8::%x]:1", i)); isle.CodeOf(err) != isle.Refused {
			t.Fatal(err)
		}
	}
	if n := len(d.store.Entries()); n != refusedBurst {
		t.Errorf("%d entries of one network", n)
	}
	for i := range 5000 {
		d.Authenticate(t.Context(), "x", fmt.Sprintf("198.51.%d.%d", i/256, i%256))
	}
	if n := len(d.store.Entries()); n > refusedAll {
		t.Errorf("%d entries of 5,000 networks", n)
	}
	k := d.create(t, "ci")
	d.Revoke(t.Context(), root, "ci", "")
	for i := range 3 * refusedBurst {
		d.Authenticate(t.Context(), k.Secret, "203.0.113.9") // from an address that had its share
		if entries := d.store.Entries(); i == 0 && entries[len(entries)-1].Details["key"] != string(k.ID) {
			t.Errorf("a flood hides a key that was revoked: %+v", entries[len(entries)-1])
		}
	}
	if e, ok := d.ended.together(d.now(), true); !ok || e.Count != 2*refusedBurst {
		t.Errorf("%v %+v", ok, e)
	}
	e, ok := d.unknown.together(d.now(), true)
	if !ok || e.Count+refusedAll != 10_000 || e.Decision != isle.Deny {
		t.Errorf("%v %+v", ok, e)
	}
	if n := d.unknown.each.Len(); n > maxShares {
		t.Errorf("%d sources are remembered", n)
	}
	if _, err := e.Encode(); err != nil {
		t.Error(err)
	}
}

// With 10,000 keys a check and a use take what they take with one.
func BenchmarkAuthenticate(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("%d keys", n), func(b *testing.B) {
			d := newDesk(b)
			k := d.create(b, "m0")
			next := *d.state.Load()
			for i := 1; i < n; i++ { // not through the ledger: what is measured reads memory
				m := d.machine(fmt.Sprintf("m%d", i))
				machine, err := d.plan(root, m)
				if err != nil {
					b.Fatal(err)
				}
				key, err := d.newKey(machine, nil)
				if err != nil {
					b.Fatal(err)
				}
				next.machines[m.Name], next.keys[key.ID] = machine, &key.Key
			}
			next.index()
			d.state.Store(&next)
			s, err := d.Authenticate(b.Context(), k.Secret, here)
			if err != nil {
				b.Fatal(err)
			}
			b.Run("authenticate", func(b *testing.B) {
				for b.Loop() {
					if _, err := d.Authenticate(b.Context(), k.Secret, here); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("check", func(b *testing.B) {
				for b.Loop() {
					if err := d.Check(s); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
