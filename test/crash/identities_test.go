package crash

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"isle"
)

// Identities are made, given new keys and revoked, tokens and secrets given, and
// the policy changed, by several at once, while the server is killed again and
// again. No effect is without its entry, none is there twice, what a client was
// told is so, and nothing that was revoked or used up counts again.
func TestKilledUnderLoadIdentitiesAreWhatTheLogSays(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	s := newSigner(t, "signer")
	f.mustMachine(t, s.name, s.jwk)
	ci := f.mustMachine(t, "ci", nil).GetSecret()
	d := &told{lines: map[string]int{}, secrets: map[string]string{}}
	random := rand.New(rand.NewPCG(20261122, 1))
	const kills = 8
	for round := range kills {
		ctx, cancel := context.WithCancel(t.Context())
		load := d.load(ctx, f, round, ci, s)
		time.Sleep(time.Duration(200+random.IntN(600)) * time.Millisecond)
		f.kill(t)
		cancel()
		load.Wait()
		f.verified(t) // as it was left
		f.start(t)
		f.verified(t)
		d.agree(t, f)
		web := f.asks()
		d.mu.Lock()
		for i := range min(4, len(d.ended)) { // refusals of one source are bounded
			if err := f.counts(t, d.ended[len(d.ended)-1-i]); isle.CodeOf(err) != isle.Refused {
				t.Errorf("round %d: what was revoked counts: %v", round, err)
			}
		}
		for name, secret := range d.secrets {
			if err := f.counts(t, secret); err != nil {
				t.Errorf("round %d: the key of %s counts no longer: %v", round, name, err)
			}
			break
		}
		for i := range min(3, len(d.assertions)) {
			if _, _, err := f.token(web, byAssertion(d.assertions[len(d.assertions)-1-i])); isle.CodeOf(err) != isle.Refused {
				t.Errorf("round %d: an assertion that was used gives another token: %v", round, err)
			}
		}
		d.mu.Unlock()
		web.CloseIdleConnections()
	}
	if len(d.ended) == 0 || len(d.assertions) == 0 || len(d.lines) < kills {
		t.Errorf("too little was done: %d answers, %d revocations, %d assertions", len(d.lines), len(d.ended), len(d.assertions))
	}
	t.Logf("%d calls were made and %d answered with a change, over %d kills; %d credentials were revoked, %d assertions used", d.tried, len(d.lines), kills, len(d.ended), len(d.assertions))
	f.must(t, "server", "stop")
}
