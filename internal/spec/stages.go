package spec

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle/internal/document"
)

const (
	// maxStageValues and maxChecks bound what a file asks of stages.
	maxStageValues = 1000
	maxChecks      = 20
	defaultCheck   = 5 * time.Minute
	longestCheck   = time.Hour
	// valuePattern is how a value of a stage is named: by the keys that lead to it
	// in values.STAGE.yaml.
	valuePattern = `^(limits\.(cpus|memory|pids)|uses\.[a-z]([a-z0-9-]{0,38}[a-z0-9])?|env\.[a-z]([a-z0-9-]{0,38}[a-z0-9])?\.[A-Za-z_][A-Za-z0-9_]{0,255})$`
)

// Stages is what a release asks of the stages that it goes through. It adds to
// what a stage asks of releases, and is no part of what is launched.
type Stages struct {
	// Values are those that every stage has to give: "env.web.HOST",
	// "uses.orders-db", "limits.memory".
	Values []string `json:"values,omitempty"`
	// Checks have to succeed in a copy of the stage before.
	Checks []Check `json:"checks,omitempty"`
}

// A Check is a command that runs in a copy of a stage before a release is
// promoted from it.
type Check struct {
	Service string        `json:"service,omitempty"` // "": the first one
	Command []string      `json:"command"`
	Timeout time.Duration `json:"timeout"`
}

func stagesShape() shape[Stages] {
	check := object("a check",
		must(key("command", "", "What has to exit with 0. A string is run with /bin/sh -c.", commandShape(), func(c *Check) *[]string { return &c.Command })),
		key("service", "", "The service that it runs in; the first one unless said.", text("a service", namePattern, parseName), func(c *Check) *string { return &c.Service }),
		key("timeout", "5m", "How long it may take. What takes longer is ended, and has failed.", durationShape(time.Second, longestCheck), func(c *Check) *time.Duration { return &c.Timeout }),
	)
	inner := check.read
	check.read = func(r *reader, n *yaml.Node, into *Check) {
		into.Timeout = defaultCheck
		inner(r, n, into)
	}
	return object("what is asked of stages",
		key("values", "", "Values that each stage has to give in its values.STAGE.yaml, by the keys that lead to them there: `env.SERVICE.NAME`, `uses.NAME`, `limits.memory`. A promotion to a stage without one is refused.",
			list("a list of values", maxStageValues, text("a value of a stage", valuePattern, func(s string) (string, error) {
				if !valueRegexp.matches(s) {
					return "", fmt.Errorf("%q names no value of a stage; want env.SERVICE.NAME, uses.CONNECTION or limits.cpus, memory, pids", clip(s))
				}
				return s, nil
			})), func(s *Stages) *[]string { return &s.Values }),
		key("checks", "", "Commands that have to succeed in a copy of the stage before, at each promotion but the first (docs/releases.md).",
			list("a list of checks", maxChecks, check), func(s *Stages) *[]Check { return &s.Checks }),
	)
}

// checkStages refuses to ask for what the file does not have.
func (r *reader) checkStages(f *File) {
	if f.Stages == nil {
		return
	}
	for i, v := range f.Stages.Values {
		if why := f.lacks(v); why != "" {
			r.problemFor(document.Path("stages", "values", fmt.Sprintf("[%d]", i)), "%s: a value of a stage replaces what the file says", why)
		} else if slices.Index(f.Stages.Values, v) < i {
			r.problemFor(document.Path("stages", "values", fmt.Sprintf("[%d]", i)), "%s is here a second time; remove one", v)
		}
	}
	for i, c := range f.Stages.Checks {
		if _, ok := f.Service(c.Service); !ok && c.Service != "" {
			r.problemFor(document.Path("stages", "checks", fmt.Sprintf("[%d]", i), "service"), "there is no service %s", clip(c.Service))
		}
	}
}

// lacks says why a value of a stage replaces nothing of the file; "" if it does.
func (f *File) lacks(value string) string {
	kind, name, _ := strings.Cut(value, ".")
	switch kind {
	case "uses":
		if !slices.Contains(f.Uses, name) {
			return "the connection " + name + " is not used"
		}
	case "env":
		service, variable, _ := strings.Cut(name, ".")
		s, ok := f.Service(service)
		if !ok {
			return "there is no service " + service
		}
		if _, ok := s.Env[variable]; !ok {
			return "service " + service + " has no variable " + variable + " in its env"
		}
	}
	return ""
}

// node is what is asked of stages as a file says it; nil where nothing is.
func (s *Stages) node() mapping {
	m := newMapping()
	if s == nil {
		return m
	}
	m.texts("values", s.Values)
	m.list("checks", len(s.Checks), func(i int) *yaml.Node {
		c := s.Checks[i]
		return newMapping().texts("command", c.Command).text("service", c.Service).duration("timeout", c.Timeout).Node
	})
	return m
}
