// Package allowance bounds how often something may happen.
//
// A Rate is a burst, which may happen at once, and one more each time that Every
// has passed. An Allowance is what somebody has left of it, and a Table holds
// those of many, so many at most.
package allowance

import "time"

// A Rate is how often something may happen.
type Rate struct {
	Burst int
	Every time.Duration // for one more, up to the burst
}

// An Allowance is what is left of a rate, which is the same in every call. The
// zero Allowance is full. It is guarded by whoever has it.
type Allowance struct {
	at   time.Time // when left was true
	left float64
}

// fill takes what has come since the last call. A clock that is put back gives
// nothing, and takes nothing away.
func (a *Allowance) fill(now time.Time, r Rate) {
	if a.at.IsZero() {
		a.left = float64(r.Burst)
	} else {
		a.left = min(float64(r.Burst), a.left+max(now.Sub(a.at), 0).Seconds()/r.Every.Seconds())
	}
	a.at = now
}

// Has says whether one is left.
func (a *Allowance) Has(now time.Time, r Rate) bool {
	a.fill(now, r)
	return a.left >= 1
}

// Take takes one, if one is left.
func (a *Allowance) Take(now time.Time, r Rate) bool {
	if !a.Has(now, r) {
		return false
	}
	a.left--
	return true
}

// Spend takes n, whether they are left or not, and says whether they were.
func (a *Allowance) Spend(now time.Time, r Rate, n int) bool {
	a.fill(now, r)
	a.left -= float64(n)
	return a.left >= 0
}

// Full says whether all is left again: nothing is lost by forgetting it.
func (a *Allowance) Full(now time.Time, r Rate) bool {
	a.fill(now, r)
	return a.left >= float64(r.Burst)
}
