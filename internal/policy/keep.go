package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle/internal/problem"
)

// A Keep says which releases are kept though nothing runs them and no stage points
// at them. Of a project of which a Keep speaks what none of them keeps is removed
// by the next collection; of others nothing is.
type Keep struct {
	Projects []string // empty: every one
	// Stages makes Last count what these stages pointed at, in place of what was
	// made.
	Stages []string
	Last   int           // the last so many; 0: none by number
	For    time.Duration // those made not longer ago; 0: none by age
	At     Position
}

const (
	maxKeeps   = 1000 // of all documents
	maxLast    = 10_000
	longestFor = 10 * 365 * 24 * time.Hour
)

// of reports whether the rule speaks of a project.
func (k Keep) of(project string) bool {
	return len(k.Projects) == 0 || slices.Contains(k.Projects, project)
}

// Keeps are the rules that speak of a project.
func (s *Set) Keeps(project string) (out []Keep) {
	for _, k := range s.keeps {
		if k.of(project) {
			out = append(out, k)
		}
	}
	return out
}

// ParseDays reads a time as people say it of what is kept: 90d, or as Go does,
// 36h.
func ParseDays(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n <= int(longestFor/(24*time.Hour)) {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d <= 0 || d > longestFor {
		return 0, fmt.Errorf("%q is no time; want 90d or 36h, at most 3650d", problem.Clip(s))
	}
	return d, nil
}

func (r *reader) readKeep(n *yaml.Node) Keep {
	k := Keep{At: r.at(n)}
	name := func(to *[]string, what string) func(n *yaml.Node) {
		return r.words(to, "a "+what, nameOf(what))
	}
	r.mapping(n, "a rule of what is kept",
		key{name: "projects", read: name(&k.Projects, "project")},
		key{name: "stages", read: name(&k.Stages, "stage")},
		key{name: "last", read: into(r, &k.Last, "a number", func(s string) (int, error) {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 || n > maxLast {
				return 0, fmt.Errorf("%q is no number of releases; want 1 to %d", problem.Clip(s), maxLast)
			}
			return n, nil
		})},
		key{name: "for", read: into(r, &k.For, "a time", ParseDays)})
	switch {
	case k.Last == 0 && k.For == 0:
		r.Problem(n, "keeps nothing: say `last: 10`, `for: 90d`, or both")
	case len(k.Stages) > 0 && k.Last == 0:
		r.Problem(n, "stages are what `last` counts: say `last: 10`")
	}
	return k
}

// mergeKeeps puts the rules of all files together. The order of stages is known.
func (s *Set) mergeKeeps(files []File, say func(at Position, format string, args ...any)) {
	for _, f := range files {
		for _, k := range f.Keeps {
			for _, stage := range k.Stages {
				if !slices.Contains(s.stages, stage) {
					say(k.At, "nothing is promoted to stage %s: the stages are %s", stage, strings.Join(s.stages, ", "))
				}
			}
			if s.keeps = append(s.keeps, k); len(s.keeps) == maxKeeps+1 {
				say(k.At, "there are more than %d rules of what is kept", maxKeeps)
			}
		}
	}
}

// keepsTo says which rules come and go.
func (s *Set) keepsTo(next *Set) (out []Change) {
	diff := func(is, was []Keep, gains bool) {
		for _, k := range is {
			if !slices.ContainsFunc(was, k.same) {
				out = append(out, Change{"everyone", gains, "releases kept: " + k.what()})
			}
		}
	}
	diff(next.keeps, s.keeps, true)
	diff(s.keeps, next.keeps, false)
	return out
}

// same reports whether two rules keep the same, wherever they stand.
func (k Keep) same(o Keep) bool {
	return k.Last == o.Last && k.For == o.For && slices.Equal(k.Projects, o.Projects) && slices.Equal(k.Stages, o.Stages)
}

// what says for people what a rule keeps.
func (k Keep) what() string {
	var out []string
	if k.Last > 0 {
		text := "the last " + strconv.Itoa(k.Last)
		if len(k.Stages) > 0 {
			text += " of " + strings.Join(k.Stages, ", ")
		}
		out = append(out, text)
	}
	if k.For > 0 {
		out = append(out, "those of "+k.For.String())
	}
	of := "every project"
	if len(k.Projects) > 0 {
		of = strings.Join(k.Projects, ", ")
	}
	return strings.Join(out, ", ") + " (of " + of + ")"
}
