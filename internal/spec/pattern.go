package spec

import (
	"regexp"
	"sync"
)

// A pattern is a regular expression that is compiled when it is first used.
// Every program that knows this package would pay for all of them at its start
// otherwise, isle-init above all: 2 ms and 1 MB.
type pattern struct {
	text string
	max  int // bytes that what matches has at most; 0: any number

	once     sync.Once
	compiled *regexp.Regexp
}

func (p *pattern) regexp() *regexp.Regexp {
	p.once.Do(func() { p.compiled = regexp.MustCompile(p.text) })
	return p.compiled
}

func (p *pattern) matches(s string) bool {
	return (p.max == 0 || len(s) <= p.max) && p.regexp().MatchString(s)
}
