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
func (p *places) take(of string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.all || p.of[of] >= p.each {
		return false
	}
	if p.of == nil {
		p.of = map[string]int{}
	}
	p.taken++
	p.of[of]++
	return true
}

func (p *places) leave(of string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.of[of]--; p.of[of] == 0 {
		delete(p.of, of)
	}
}
