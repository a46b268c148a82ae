package api

import (
	"sync"
	"time"

	"isle"
)

// What one environment may have of the server by its Workload API, whose work
// its own limits do not count: each call is a signature or the check of one, and
// each byte may be part of a small frame.
const (
	workloadCall  = time.Second / 200         // of a call: 200 a second
	workloadByte  = time.Second / (512 << 10) // of a byte received: 512 KiB a second
	workloadBurst = 2 * time.Second           // of both, at once
	maxShares     = 1000                      // kept before those at rest are forgotten

	// A call that is open (a stream stays so) costs the server about 25 KiB, a
	// connection about 100 KiB. One service may have as many calls, so that it
	// leaves some to the others of its environment.
	maxWorkloadCalls       = 1024 // of an environment
	maxWorkloadCallsOfOne  = 128  // of a service
	maxWorkloadConnections = 512  // of an environment
)

// workloadShares are those of all environments.
type workloadShares struct {
	mu sync.Mutex // guards what follows, and users of each
	of map[isle.ID]*workloadShare
}

// A workloadShare is one environment's.
type workloadShare struct {
	users int // connections
	calls pace
	bytes pace
	open  places // of calls, by service
}

// enter returns the share of an instance, until leave; nil where it has as many
// connections as it may.
func (s *workloadShares) enter(instance isle.ID) *workloadShare {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[instance]
	if one == nil {
		if len(s.of) >= maxShares {
			now := time.Now()
			for id, o := range s.of {
				if o.users == 0 && o.calls.rested(now) && o.bytes.rested(now) {
					delete(s.of, id)
				}
			}
		}
		one = &workloadShare{open: places{all: maxWorkloadCalls, each: maxWorkloadCallsOfOne}}
		s.of[instance] = one
	}
	if one.users >= maxWorkloadConnections {
		return nil
	}
	one.users++
	return one
}

func (s *workloadShares) leave(one *workloadShare) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one.users--
}

// A pace lets cost through at the speed of time, workloadBurst of it at once.
type pace struct {
	mu   sync.Mutex
	next time.Time // when all that was let through is paid for, less the burst
}

// wait returns true when what costs as much may go on, and false when end is
// closed first.
func (p *pace) wait(end <-chan struct{}, cost time.Duration) bool {
	now := time.Now()
	p.mu.Lock()
	if rested := now.Add(-workloadBurst); p.next.Before(rested) {
		p.next = rested
	}
	p.next = p.next.Add(cost)
	pause := p.next.Sub(now)
	p.mu.Unlock()
	if pause <= 0 {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-end:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.next = p.next.Add(-cost) // it took nothing
		return false
	}
}

// rested says whether nothing is left to pay for.
func (p *pace) rested(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.next.After(now.Add(-workloadBurst))
}
