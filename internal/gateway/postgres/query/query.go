// Package query reads SQL: what a text that goes to PostgreSQL does, as far as
// rules can speak of it.
//
// A text has statements, its Parts. Of each, and of all of them together, a
// Reader says Facts: which kinds of statements, which tables, columns and
// functions are named in it, whether it changes every row of a table, and the
// actions that somebody must be allowed for it. What cannot be read with
// certainty counts as postgres:admin, and says why.
//
// A text is cut into tokens first. Its shape is those tokens without the values
// of constants; texts of one shape have the same Facts, which are made once, of
// the tree that PostgreSQL's own grammar (package grammar) makes. Where a
// constant could matter to the Facts, as in SET, COPY, EXPLAIN or a call of
// set_config, the text itself is its shape.
//
// No reader of SQL sees inside functions, operators and casts of the user's own,
// views, triggers, rules, defaults and row security. Functions are allowed by
// name for that; the boundary is what the login role may do.
package query

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"
	"unicode/utf8"

	"isle"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
)

// Settings are those of the session that say how the server reads a text. The
// zero Settings are the strictest reading.
type Settings struct {
	// StandardConforming is standard_conforming_strings, which the server
	// reports. Where it is off, a text with a backslash in a plain string is not
	// read with certainty.
	StandardConforming bool
	// Encoding is client_encoding, and ServerEncoding server_encoding, which the
	// server reports. Where the first is not UTF8, only ASCII is read with
	// certainty; where the second is not, only ASCII names without quotes are.
	Encoding, ServerEncoding string
	// Version is the major version of the server; 0 if it isn't known.
	Version int
	// PathChanged says that search_path may name pg_catalog elsewhere than
	// first, so that the name of a built-in function can mean another.
	PathChanged bool
}

// Config is what a Reader needs.
type Config struct {
	// Grammar is shared by all Readers of a server; nil: one of its own.
	Grammar *grammar.Grammar
	// Functions are allowed beside the built-in ones: "f" where it is called so,
	// "s.f" where it is called with its schema or without; operators and types in
	// the same way. "set:NAME" is to change a setting. A "*" is any text.
	Functions []string
	// StatementTimeout is the bound that the connection sets; 0: none. A session
	// may set a smaller one itself.
	StatementTimeout time.Duration
}

// A Part is one statement of a text.
type Part struct {
	Start, End int // in bytes, without what is around it
	Facts      *policy.Facts
	// Kind is the statement as Facts.Statements has it, "empty" where there is
	// none. Facts of EXPLAIN, WITH and the like name more than this.
	Kind string
	// Name is of what a statement prepares, executes, declares, fetches from,
	// or closes: "prepare", "execute", "deallocate", "declare", "fetch", "close".
	// Empty for DEALLOCATE ALL and CLOSE ALL.
	Name string
	// Settings are the names of those that the statement changes, "*" if it could
	// be any. Where it is not empty, the next text must be read after the
	// server's answer.
	Settings []string
	// Transaction is of transaction control: "begin", "commit", "rollback",
	// "savepoint", "release", "rollback to", "prepare transaction".
	Transaction string

	arguments *policy.Facts // of EXECUTE: what its arguments do
}

// A Read is what a text says. It never changes.
type Read struct {
	// Facts are of the whole text: an action for one part is asked for all.
	Facts *policy.Facts
	// Parts are the statements; one with the whole text where it was not read
	// with certainty, none where it has no statement.
	Parts []Part

	text string
	r    *Reader
}

// Tree gives the tree of the text. It is made anew by each call.
func (r *Read) Tree(ctx context.Context) (*grammar.Tree, error) {
	return r.r.grammar.Parse(ctx, r.text)
}

// A Reader reads texts for one connection. It may be used by any number of
// goroutines at once.
type Reader struct {
	grammar *grammar.Grammar
	catalog *catalog
	allowed []string
	timeout time.Duration
	shapes  sync.Pool // of *shape, whose memory is used again

	mu    sync.Mutex
	cache cache
}

// New returns a Reader.
func New(c Config) *Reader {
	if c.Grammar == nil {
		c.Grammar = grammar.New()
	}
	return &Reader{grammar: c.Grammar, catalog: newCatalog(), allowed: c.Functions, timeout: c.StatementTimeout, cache: newCache()}
}

// Read says what a text does. The error is that of ctx or of a grammar that does
// not work, code isle.Unavailable; then nothing is known of the text.
func (r *Reader) Read(ctx context.Context, sql string, set Settings) (*Read, error) {
	out := &Read{text: sql, r: r}
	s, why := r.shape(sql, set)
	defer r.free(s)
	if why != "" {
		return out.uncertain(why), nil
	}
	r.mu.Lock()
	e := r.cache.get(s.key)
	r.mu.Unlock()
	if e == nil {
		var err error
		if e, err = r.make(ctx, sql, set, s); err != nil {
			return nil, err
		}
	}
	return out.from(e, s), nil
}

// make reads a text with the grammar, and keeps the result for its shape.
func (r *Reader) make(ctx context.Context, sql string, set Settings, s *shape) (*entry, error) {
	if len(s.cuts) > 0 {
		short := s.without(sql)
		of, why := r.shape(short, set)
		defer r.free(of)
		if why == "" && bytes.Equal(of.key, s.key) && len(of.statements) == len(s.statements) {
			sql, s = short, of
		}
	}
	tree, err := r.grammar.Parse(ctx, sql)
	var bad *grammar.SyntaxError
	switch {
	case errors.As(err, &bad):
		return unread("the grammar: " + bad.Message), nil
	case errors.Is(err, grammar.ErrExhausted):
		return unread("it is too large or too deep"), nil
	case ctx.Err() != nil:
		return nil, isle.Errorf(isle.Unavailable, "the statement was not read in time: %v", ctx.Err())
	case err != nil:
		return nil, isle.Errorf(isle.Unavailable, "no SQL can be read: %v", err)
	}
	e := r.entry(tree, sql, set, s)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cache.put(s.key, e), nil
}

// Execute gives the Facts of a part of kind "execute", once it is known what
// the name was prepared as. Those of the part alone are postgres:admin.
func (r *Reader) Execute(p Part, prepared *policy.Facts) *policy.Facts {
	if p.arguments == nil || prepared == nil {
		return p.Facts
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cache.joined(p.arguments, prepared)
}

// from fills a Read with what is known of its shape.
func (r *Read) from(e *entry, s *shape) *Read {
	r.Facts = e.facts
	if e.facts.Uncertain != "" && len(e.parts) == 0 {
		return r.uncertain(e.facts.Uncertain)
	}
	r.Parts = e.parts
	if s.plain { // the places are those of this text
		r.Parts = make([]Part, len(e.parts))
		copy(r.Parts, e.parts)
		for i := range r.Parts {
			r.Parts[i].Start, r.Parts[i].End = s.statements[i].start, s.statements[i].end
		}
	}
	return r
}

// uncertain fills a Read of a text that nothing certain is known of.
func (r *Read) uncertain(why string) *Read {
	r.Facts = &policy.Facts{Actions: []isle.Action{isle.ActionPostgresAdmin}, Statements: []string{"other"}, Uncertain: why, Shape: opaque(r.text)}
	r.Parts = []Part{{Start: 0, End: len(r.text), Facts: r.Facts, Kind: "other", Settings: []string{"*"}}}
	return r
}

// readable reports why the bytes of a text don't count as characters.
func readable(sql string, set Settings) string {
	if len(sql) > grammar.Longest {
		return "it is longer than 1 MiB"
	}
	ascii := true
	for i := range len(sql) {
		if sql[i] == 0 {
			return "it has a NUL byte"
		}
		ascii = ascii && sql[i] < utf8.RuneSelf
	}
	if ascii {
		return ""
	}
	if set.Encoding != "UTF8" {
		return "it has characters beyond ASCII, and client_encoding is not UTF8"
	}
	if !utf8.ValidString(sql) {
		return "it is not valid UTF-8"
	}
	return ""
}
