package identity

import (
	"testing"
	"time"

	"isle"
)

// A machine may have a key and nothing else that it may do. By asking for tokens
// it puts no more into the log than there is use for.
func TestAMachineThatAsksForTokensOnAndOnHasToWait(t *testing.T) {
	o := newOffice(t)
	for n := range tokenRate.Burst {
		if _, err := o.grant(form()); err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
	}
	before := len(o.store.Entries())
	_, err := o.grant(form())
	o.refused("one more", err, TemporarilyUnavailable)
	if isle.CodeOf(err) != isle.Exhausted || len(o.store.Entries()) != before {
		t.Errorf("%v; %d more entries", err, len(o.store.Entries())-before)
	}
	// Others do not, and it does not for long.
	o.clients.add(isle.Actor{Kind: isle.Machine, Name: "other"}, APIKey, "isle_secret-of-other")
	if _, err := o.grant(form("client_id", "other", "client_secret", "isle_secret-of-other")); err != nil {
		t.Error(err)
	}
	o.now = o.now.Add(2 * tokenRate.Every)
	if _, err := o.grant(form()); err != nil {
		t.Error(err)
	}
	// Nor is there no end to whom is remembered.
	for n := range 10 * maxPaced {
		o.tokens.pace.Take(string(isle.NewID()), o.now.Add(time.Duration(n)*time.Second))
	}
	if n := o.tokens.pace.Len(); n > maxPaced {
		t.Errorf("%d machines are remembered", n)
	}
}
