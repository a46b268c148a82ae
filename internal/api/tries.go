package api

import (
	"time"

	"isle/internal/allowance"
	"isle/internal/identity"
)

const (
	// triesBurst is how often in a row a source may show a credential that counts
	// for nothing before it is told to wait; one more it may each triesEvery.
	triesBurst = 20
	triesEvery = 2 * time.Second
	// maxTriers is how many sources are remembered; beyond it those that are
	// new share what one has.
	maxTriers = 10_000
)

// Tries counts refused credentials by source. It is safe for concurrent use.
type Tries struct {
	now   func() time.Time
	table allowance.Table
}

// NewTries returns one that has counted none.
func NewTries() *Tries {
	return &Tries{now: time.Now, table: allowance.Table{Rate: allowance.Rate{Burst: triesBurst, Every: triesEvery}, Max: maxTriers}}
}

// Take counts one of a source, an address without its port, and reports whether
// it may have another one.
func (t *Tries) Take(source string) bool {
	return t.table.Take(identity.Neighbours(source), t.now())
}
