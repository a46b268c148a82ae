package environment

import (
	"context"
	"slices"
	"strings"
	"time"

	"isle"
)

// The kinds of what is in a lineage.
const (
	KindEnvironment = "environment"
	KindSnapshot    = "snapshot"
)

// A Relation is an environment or a snapshot, and what it was made of.
type Relation struct {
	ID      string // of an environment its instance, of a snapshot its digest
	Parent  string // the ID of what it was made of; "": of nothing
	Kind    string
	Ref     isle.Ref // of a snapshot that of what it was taken of
	Project string
	Gone    bool // it is known by what was made of it
	Phase   Phase
	Created time.Time // zero: not known
	Tags    []string  // of a snapshot
	Message string    // of a snapshot
}

// Lineage returns every environment and snapshot that is visible, and those that
// are gone and of which others were made, each after what it was made of. What
// is not visible, or not known any more, is left out, and what was made of it
// begins a lineage.
func (m *Manager) Lineage(_ context.Context, visible func(kind string, ref isle.Ref, project string) bool) ([]Relation, error) {
	f := family{all: map[string]Relation{}, visible: visible}
	var envs []Environment
	for _, l := range m.all() {
		if e := l.snapshot(); !e.Staged {
			envs = append(envs, e)
			f.add(Relation{ID: string(e.Instance), Parent: e.madeOf(), Kind: KindEnvironment, Ref: e.Ref, Project: e.Project, Phase: e.Phase, Created: e.Created})
		}
	}
	if m.cfg.Snapshots != nil {
		snapshots, err := m.cfg.Snapshots.List()
		if err != nil {
			return nil, err
		}
		for _, s := range snapshots {
			x := s.Manifest
			if isForeign(s) { // it comes of nothing here, whatever it says
				x.Instance = ""
			}
			f.add(Relation{
				ID: string(s.Digest), Parent: string(x.Instance), Kind: KindSnapshot, Ref: x.Ref, Project: x.Project, Created: x.Created, Tags: s.Tags, Message: x.Message,
			})
			if x.Instance != "" {
				f.gone(string(x.Instance), "", KindEnvironment, x.Ref, x.Project)
			}
		}
	}
	for _, e := range envs {
		f.addAncestors(e)
	}
	return f.sorted(), nil
}

// madeOf is the ID of what an environment was made of.
func (e *Environment) madeOf() string {
	if e.Origin != "" {
		return string(e.Origin)
	}
	return string(e.Parent)
}

// A family is a lineage that is being put together.
type family struct {
	all     map[string]Relation
	visible func(kind string, ref isle.Ref, project string) bool
}

func (f *family) add(r Relation) {
	if f.visible(r.Kind, r.Ref, r.Project) {
		f.all[r.ID] = r
	}
}

// gone adds what is known of by its descendants alone; what is there already
// learns at most its parent.
func (f *family) gone(id, parent, kind string, ref isle.Ref, project string) {
	have, ok := f.all[id]
	switch {
	case !ok:
		f.add(Relation{ID: id, Parent: parent, Kind: kind, Ref: ref, Project: project, Gone: true})
	case have.Gone && have.Parent == "":
		have.Parent = parent
		f.all[id] = have
	}
}

// addAncestors adds the line that an environment came by, as far as that is gone.
func (f *family) addAncestors(e Environment) {
	if e.Parent == "" {
		return
	}
	line := append([]Ancestor{{e.Parent, e.ParentRef, e.Origin}}, e.Ancestors...)
	for i, a := range line {
		of := "" // what this one was made of
		if i+1 < len(line) {
			if of = string(line[i+1].Origin); of == "" {
				of = string(line[i+1].Instance)
			}
		}
		f.gone(string(a.Instance), of, KindEnvironment, a.Ref, e.Project)
		if a.Origin != "" {
			f.gone(string(a.Origin), string(a.Instance), KindSnapshot, a.Ref, e.Project)
		}
	}
}

// sorted is the family with each one after what it was made of, the children of
// one in the order in which they came; those whose time is not known come first.
func (f *family) sorted() []Relation {
	children := map[string][]Relation{}
	for _, r := range f.all {
		if _, ok := f.all[r.Parent]; !ok {
			r.Parent = ""
		}
		children[r.Parent] = append(children[r.Parent], r)
	}
	out := make([]Relation, 0, len(f.all))
	var walk func(id string)
	walk = func(id string) {
		slices.SortFunc(children[id], func(a, b Relation) int {
			if c := a.Created.Compare(b.Created); c != 0 {
				return c
			}
			return strings.Compare(a.ID, b.ID)
		})
		for _, r := range children[id] {
			out = append(out, r)
			walk(r.ID)
		}
	}
	walk("")
	return out
}
