package api

import "sync"

// places bounds what is open at once: in all, and of each of those that it is
// told apart by.
type places struct {
	all, each int

	mu    sync.Mutex // guards what follows
	taken int
	of    map[string]int
}

// take reports whether there is a place; leave gives it back.
func (p *places) take(of string) bool { return p.takeAll(of, 1) }

func (p *places) leave(of string) { p.leaveAll(of, 1) }

// takeAll takes n places, or none.
func (p *places) takeAll(of string, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken+n > p.all || p.of[of]+n > p.each {
		return false
	}
	if p.of == nil {
		p.of = map[string]int{}
	}
	p.taken += n
	p.of[of] += n
	return true
}

func (p *places) leaveAll(of string, n int) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken -= n
	if p.of[of] -= n; p.of[of] == 0 {
		delete(p.of, of)
	}
}
