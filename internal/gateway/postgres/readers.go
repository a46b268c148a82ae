package postgres

import (
	"slices"
	"sync"
	"time"

	"isle/internal/gateway/postgres/query"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
)

// maxReaders is how many connections' readers are kept.
const maxReaders = 1000

// readers are what the connections' statements are read by: one for each, which
// remembers the shapes that it has read.
type readers struct {
	grammar *grammar.Grammar

	mu   sync.Mutex // guards what follows
	each map[string]reads
}

type reads struct {
	reader    *query.Reader
	functions []string
	timeout   time.Duration
}

// of is a connection's reader. It is made anew where the connection has changed.
func (r *readers) of(c policy.Connection) *query.Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, ok := r.each[c.Name]
	if ok && have.timeout == c.StatementTimeout && slices.Equal(have.functions, c.Functions) {
		return have.reader
	}
	if r.each == nil || len(r.each) >= maxReaders {
		r.each = make(map[string]reads)
	}
	n := query.New(query.Config{Grammar: r.grammar, Functions: c.Functions, StatementTimeout: c.StatementTimeout})
	r.each[c.Name] = reads{n, c.Functions, c.StatementTimeout}
	return n
}
