package authority

import (
	"context"
	"time"
)

// Now is the time that decisions are made as of. It never goes back, as that in
// the log does not: whoever sets the clock back revives no grant that has ended.
func (a *Authority) Now() time.Time {
	now := a.cfg.Now()
	for {
		last := a.latest.Load()
		if now.UnixNano() <= last {
			return time.Unix(0, last).UTC()
		}
		if a.latest.CompareAndSwap(last, now.UnixNano()) {
			return now
		}
	}
}

// lookAtClock is how long the end of a grant may go unnoticed where the clock
// jumps to it: timers do not jump with it.
const lookAtClock = 500 * time.Millisecond

// Await returns true once what was asked at a time may have another answer:
// another State than s is in force, a grant of s that counted then has ended, or
// also is closed (nil never is). It returns false if ctx is done first.
func (a *Authority) Await(ctx context.Context, s *State, asked time.Time, also <-chan struct{}) bool {
	next := s.Set.NextExpiry(asked)
	var look *time.Timer
	var tick <-chan time.Time
	for {
		if !next.IsZero() {
			left := next.Sub(a.Now())
			if left <= 0 {
				return true
			}
			if left = min(left, lookAtClock); look == nil {
				look = time.NewTimer(left)
				defer look.Stop()
				tick = look.C
			} else {
				look.Reset(left)
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-s.over:
			return true
		case <-also:
			return true
		case <-tick:
		}
	}
}
