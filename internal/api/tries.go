package api

import (
	"sync"
	"time"

	"isle/internal/allowance"
	"isle/internal/identity"
)

// How often a source may show a credential that counts for nothing before it is
// told to wait.
var triesRate = allowance.Rate{Burst: triesBurst, Every: triesEvery}

const (
	triesBurst = 20
	triesEvery = 2 * time.Second
	// maxTriers is how many sources are remembered; beyond it those that are
	// new share what one has.
	maxTriers = 10_000
)

// tries counts refused credentials by source.
type tries struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[string]*allowance.Allowance
	forgot  time.Time // when forget last looked through all of them
}

func newTries() *tries { return &tries{now: time.Now, sources: map[string]*allowance.Allowance{}} }

// take reports whether the source may have another one.
func (t *tries) take(source string) bool {
	source = identity.Neighbours(source)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b := t.sources[source]
	if b == nil && len(t.sources) >= maxTriers {
		t.forget(now)
		if len(t.sources) >= maxTriers {
			source = ""
			b = t.sources[source]
		}
	}
	if b == nil {
		b = &allowance.Allowance{}
		t.sources[source] = b
	}
	return b.Take(now, triesRate)
}

// forget drops who has been quiet for long enough to have all of it again; mu
// is held.
func (t *tries) forget(now time.Time) {
	if passed := now.Sub(t.forgot); passed >= 0 && passed < time.Second {
		return
	}
	t.forgot = now
	for s, b := range t.sources {
		if b.Full(now, triesRate) {
			delete(t.sources, s)
		}
	}
}
