package postgres

import (
	"time"

	"isle/internal/gateway"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/gateway/postgres/query"
)

// A statement is a prepared one.
type statement struct {
	text  []byte
	types []uint32 // of the parameters, as Parse gave them; 0 is the server's choice
	read  *query.Read
	plans []*mask.Plan // of its masked columns, where the connection has masks
}

// A portal is a statement bound to parameters, and asked for.
type portal struct {
	statement *statement
	run       *run // its execution; nil once the first Execute took it
	plans     []*mask.Plan
	rows      *mask.Rows // how its rows are rewritten, once it is described
}

// A name is what a prepared statement's or portal's name stands for, from one
// message on. The server may refuse that message, and then it stands for what it
// did before: previous, until it is known.
//
// While it is pending, messages of the same segment may use it: if it fails, the
// server skips them. A message of a later segment waits until it is known.
type name[T any] struct {
	value    *T // nil: nothing
	previous *name[T]
	pending  bool
	segment  uint64
}

// names are the statements or the portals of a session.
type names[T any] struct{ m map[string]*name[T] }

// define says what a name stands for from now on, if the server agrees.
func (n *names[T]) define(key string, value *T, segment uint64) *name[T] {
	if n.m == nil {
		n.m = make(map[string]*name[T])
	}
	d := &name[T]{value: value, previous: n.m[key], pending: true, segment: segment}
	n.m[key] = d
	return d
}

// agree is the server's yes.
func (n *names[T]) agree(key string, d *name[T]) {
	d.pending, d.previous = false, nil
	if d.value == nil && n.m[key] == d {
		delete(n.m, key)
	}
}

// undo is the server's no.
func (n *names[T]) undo(key string, d *name[T]) {
	current := n.m[key]
	if current == d {
		if d.previous == nil {
			delete(n.m, key)
		} else {
			n.m[key] = d.previous
		}
		return
	}
	for ; current != nil; current = current.previous {
		if current.previous == d {
			current.previous = d.previous
			return
		}
	}
}

// forget drops what the server has forgotten: all but what it has yet to answer.
func (n *names[T]) forget() {
	for key, d := range n.m {
		if !d.pending {
			delete(n.m, key)
		}
	}
}

// A run is one execution of a statement: of a Query all of its parts.
type run struct {
	text     []byte // until it is forwarded
	types    []uint32
	read     *query.Read
	plans    []*mask.Plan
	part     int // which part the server answers
	passes   []gateway.Pass
	one      [1]gateway.Pass // where passes are, mostly
	executes []executed
	began    time.Time
	rows     int64
	tag      string // of what is done, "; " between parts
	failure  string
	write    bool // it may change something
	epoch    int  // of the settings that it was asked for under
}

// executed is what an EXECUTE stood for when it was asked for.
type executed struct {
	name string
	what *name[statement]
}

// maxTag bounds what is kept of the tags of a run, in bytes.
const maxTag = 512

// did adds the tag of a part.
func (r *run) did(tag string, rows int64) {
	r.rows += rows
	switch {
	case r.tag == "":
		r.tag = tag
	case len(r.tag) < maxTag:
		r.tag += "; " + tag
	}
}
