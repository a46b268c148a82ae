package allowance

import (
	"sync"
	"time"
)

// lookEvery is how often a full Table looks through all that it remembers: not
// for each of a flood of newcomers.
const lookEvery = time.Second

// A Table has an allowance for each of those whom a key tells apart. It remembers
// Max of them, and forgets those first who have all of it again. Whoever comes
// when it can forget nobody has one allowance together with the others who do, so
// that many can do no more harm than one. Rate and Max stay as they are once it
// is used. It is safe for concurrent use.
type Table struct {
	Rate Rate
	Max  int

	mu     sync.Mutex // guards what follows
	of     map[string]*Allowance
	shared Allowance
	looked time.Time // when it last looked whom to forget
}

// Take takes one of a key's, if one is left.
func (t *Table) Take(key string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.of[key]
	if a == nil && len(t.of) >= t.Max {
		t.forget(now)
	}
	switch {
	case a != nil:
	case len(t.of) >= t.Max:
		a = &t.shared
	default:
		if t.of == nil {
			t.of = map[string]*Allowance{}
		}
		a = &Allowance{}
		t.of[key] = a
	}
	return a.Take(now, t.Rate)
}

// forget drops who has all of it again; mu is held.
func (t *Table) forget(now time.Time) {
	if passed := now.Sub(t.looked); passed >= 0 && passed < lookEvery {
		return
	}
	t.looked = now
	for key, a := range t.of {
		if a.Full(now, t.Rate) {
			delete(t.of, key)
		}
	}
}

// Len is how many are remembered.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.of)
}
