package postgres

import (
	"reflect"
	"slices"
	"sync"
	"time"

	"isle/internal/gateway"
	"isle/internal/gateway/postgres/mask"
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

// disguises are the masks of connections: one for each, which remembers what was
// masked.
type disguises struct {
	grammar *grammar.Grammar
	key     func() ([]byte, error)

	mu   sync.Mutex // guards what follows
	each map[string]disguise
}

type disguise struct {
	masks *mask.Masks
	of    policy.Connection // what it was made for
}

// of are a connection's masks, nil if it has none. They are made anew where the
// connection has changed.
func (d *disguises) of(c policy.Connection) (*mask.Masks, error) {
	plain := policy.Connection{Name: c.Name, Address: c.Address, Environment: c.Environment, Service: c.Service, Port: c.Port, Database: c.Database, Credential: c.Credential, Mask: c.Mask, Detect: c.Detect}
	if len(c.Mask) == 0 && len(c.Detect) == 0 {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.each[c.Name]; ok && reflect.DeepEqual(have.of, plain) {
		return have.masks, nil
	}
	key, err := d.key()
	if err != nil {
		return nil, err
	}
	m, err := mask.New(mask.Config{Connection: c, Key: gateway.MaskKey(key, c.Name), Parse: d.grammar.Parse})
	if err != nil {
		return nil, err
	}
	if d.each == nil || len(d.each) >= maxReaders {
		d.each = make(map[string]disguise)
	}
	d.each[c.Name] = disguise{m, plain}
	return m, nil
}
