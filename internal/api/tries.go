package api

import (
	"sync"
	"time"
)

// How often a source may show a credential that counts for nothing before it is
// told to wait.
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
	sources map[string]*bucket
	forgot  time.Time // when forget last looked through all of them
}

// A bucket is what one source has left.
type bucket struct {
	at   time.Time
	left float64
}

func newTries() *tries { return &tries{now: time.Now, sources: map[string]*bucket{}} }

// take reports whether the source may have another one.
func (t *tries) take(source string) bool {
	source = Neighbours(source)
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
		b = &bucket{at: now, left: triesBurst}
		t.sources[source] = b
	}
	b.left = min(triesBurst, b.left+max(now.Sub(b.at), 0).Seconds()/triesEvery.Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// forget drops who has been quiet for long enough to have all of it again; mu
// is held.
func (t *tries) forget(now time.Time) {
	if passed := now.Sub(t.forgot); passed >= 0 && passed < time.Second {
		return
	}
	t.forgot = now
	for s, b := range t.sources {
		if now.Sub(b.at) > triesBurst*triesEvery {
			delete(t.sources, s)
		}
	}
}
