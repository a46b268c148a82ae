package query

import (
	"container/list"
	"slices"

	"isle"
	"isle/internal/policy"
)

// An entry is what is known of a shape.
type entry struct {
	key   string
	facts *policy.Facts
	parts []Part
}

// The cache is bounded by how many shapes it has, and by their length.
const (
	mostEntries = 4096
	mostBytes   = 16 << 20
)

// A cache keeps what was read last.
type cache struct {
	by    map[string]*list.Element // of *entry
	order *list.List               // the one used last is first
	bytes int
	pairs map[[2]*policy.Facts]*policy.Facts // what joined gave
}

func newCache() cache {
	return cache{by: map[string]*list.Element{}, order: list.New(), pairs: map[[2]*policy.Facts]*policy.Facts{}}
}

func (c *cache) get(key []byte) *entry {
	e, ok := c.by[string(key)]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry)
}

// put keeps an entry, unless it is there already, and gives the one that is kept:
// a shape has the same Facts for as long as it is here.
func (c *cache) put(key []byte, e *entry) *entry {
	if len(key) > longestKey {
		return e
	}
	if there := c.get(key); there != nil {
		return there
	}
	e.key = string(key)
	c.by[e.key] = c.order.PushFront(e)
	for c.bytes += len(key); c.order.Len() > mostEntries || c.bytes > mostBytes; {
		last := c.order.Remove(c.order.Back()).(*entry)
		delete(c.by, last.key)
		c.bytes -= len(last.key)
	}
	return e
}

// joined gives the Facts of two together, the same for the same two.
func (c *cache) joined(a, b *policy.Facts) *policy.Facts {
	pair := [2]*policy.Facts{a, b}
	if f, ok := c.pairs[pair]; ok {
		return f
	}
	if len(c.pairs) >= mostEntries {
		clear(c.pairs)
	}
	f := join(b.Shape, a, b)
	c.pairs[pair] = f
	return f
}

// join gives what statements do together.
func join(shape string, facts ...*policy.Facts) *policy.Facts {
	if len(facts) == 1 {
		return facts[0]
	}
	out := &policy.Facts{Shape: shape}
	for _, f := range facts {
		out.Actions = append(out.Actions, f.Actions...)
		out.Statements = append(out.Statements, f.Statements...)
		out.Tables = append(out.Tables, f.Tables...)
		out.Columns = append(out.Columns, f.Columns...)
		out.Functions = append(out.Functions, f.Functions...)
		out.Unbounded = out.Unbounded || f.Unbounded
		if out.Uncertain == "" {
			out.Uncertain = f.Uncertain
		}
	}
	out.Actions = unique(out.Actions)
	for _, l := range []*[]string{&out.Statements, &out.Tables, &out.Columns, &out.Functions} {
		*l = unique(*l)
	}
	return out
}

// unique is a list sorted, each once, of its own memory.
func unique[S ~string](list []S) []S {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Clip(slices.Compact(list))
}

// unread is of a text that the grammar does not read.
func unread(why string) *entry {
	return &entry{facts: &policy.Facts{Actions: []isle.Action{isle.ActionPostgresAdmin}, Statements: []string{"other"}, Uncertain: why}}
}
