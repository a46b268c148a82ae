package policy

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

// A Gate is what a promotion to some stages has to pass. It is the stage's and
// not the release's: whoever writes a release takes nothing of it away. People
// who have to agree are not named by it but by an Approval of release:promote.
type Gate struct {
	Stages   []string // to which is promoted
	Projects []string // empty: every one

	Soak    time.Duration // the release has served in the stage before for as long; 0: it need not
	Quiet   time.Duration // nothing was refused to it there in as long
	Fresh   time.Duration // it was released not longer ago
	Signers []string      // names of keys, of which one has signed it; empty: any that is trusted
	Checks  []GateCheck   // succeed in a fork of the stage before
	Watch   Watch         // once it serves
	At      Position
}

// A GateCheck is a command that runs in a fork of the stage before. Its outcome is
// what that environment says of itself.
type GateCheck struct {
	Service string // "": the first of the file
	Command []string
	Timeout time.Duration // default 5 minutes
}

// String is the check for people: what is run, and in which service where that is
// said.
func (c GateCheck) String() string {
	text := strings.Join(c.Command, " ")
	if len(c.Command) == 3 && c.Command[0] == "/bin/sh" && c.Command[1] == "-c" {
		text = c.Command[2]
	}
	if c.Service != "" {
		text = c.Service + ": " + text
	}
	return text
}

// A Watch says when a release that has begun to serve is rolled back from by
// itself.
type Watch struct {
	For    time.Duration // from when it serves; 0: it is not watched
	Errors float64       // the share of answers of HTTP that may be 500 and more, from 0 to 1
	// Health says that a service that ends, or has to be started again, is enough.
	Health bool
}

// Bounds of gates.
const (
	maxChecks       = 20 // of one gate
	maxArguments    = 64 // of one check
	defaultCheck    = 5 * time.Minute
	longestCheck    = time.Hour
	longestWatch    = 24 * time.Hour
	maxGates        = 1000 // of all documents
	firstNeedsNoOne = "stage %s is the first one: soak, quiet and checks are of the stage before, and there is none"
)

// String names the gate as it stands in the audit log.
func (g *Gate) String() string { return "gate at " + g.At.String() }

// of reports whether the gate is of promotions of a project to a stage.
func (g *Gate) of(project, stage string) bool {
	return slices.Contains(g.Stages, stage) && (len(g.Projects) == 0 || slices.Contains(g.Projects, project))
}

// Gates are those of promotions of a project to a stage, in the order of the
// files. Each has to be passed.
func (s *Set) Gates(project, stage string) (out []Gate) {
	for _, g := range s.gates {
		if g.of(project, stage) {
			out = append(out, g)
		}
	}
	return out
}

// Guarded reports whether something stands before a promotion of a project to a
// stage: a gate, or people who have to agree.
func (s *Set) Guarded(project, stage string) bool {
	q := Query{Action: isle.ActionReleasePromote, Resource: isle.Resource{Kind: "release", Name: project, Stage: stage}, Project: project}
	return len(s.Gates(project, stage)) > 0 || len(s.heldBy(q)) > 0
}

func (r *reader) readGate(n *yaml.Node) Gate {
	g := Gate{At: r.at(n)}
	name := func(to *[]string, what string) func(n *yaml.Node) {
		return r.words(to, "a "+what, func(s string) (string, error) {
			if s == "*" {
				return "", fmt.Errorf("a %s is named", what)
			}
			return nameOf(what)(s)
		})
	}
	r.mapping(n, "a gate",
		key{name: "stages", required: true, read: name(&g.Stages, "stage")},
		key{name: "projects", read: name(&g.Projects, "project")},
		key{name: "soak", read: into(r, &g.Soak, "a duration", parseSpan)},
		key{name: "quiet", read: into(r, &g.Quiet, "a duration", parseSpan)},
		key{name: "fresh", read: into(r, &g.Fresh, "a duration", parseSpan)},
		key{name: "signers", read: r.words(&g.Signers, "the name of a key", plain)},
		key{name: "checks", read: func(n *yaml.Node) {
			r.list(n, "a list of checks", func(n *yaml.Node) { g.Checks = append(g.Checks, r.readCheck(n)) })
		}},
		key{name: "watch", read: func(n *yaml.Node) { g.Watch = r.readWatch(n) }},
	)
	if g.empty() {
		r.Problem(n, "asks for nothing: name soak, quiet, fresh, signers, checks or watch; who has to agree an approval of release:promote says")
	}
	if len(g.Checks) > maxChecks {
		r.Problem(n, "has %d checks, at most %d", len(g.Checks), maxChecks)
	}
	return g
}

func (g *Gate) empty() bool {
	return !g.back() && g.Fresh == 0 && len(g.Signers) == 0 && g.Watch.For == 0
}

// back reports whether the gate asks about the stage before.
func (g *Gate) back() bool { return g.Soak != 0 || g.Quiet != 0 || len(g.Checks) > 0 }

func (r *reader) readCheck(n *yaml.Node) GateCheck {
	c := GateCheck{Timeout: defaultCheck}
	r.mapping(n, "a check",
		key{name: "service", read: into(r, &c.Service, "a service", func(s string) (string, error) {
			if s == "*" {
				return "", fmt.Errorf("one service is named")
			}
			return nameOf("service")(s)
		})},
		key{name: "run", required: true, read: func(n *yaml.Node) {
			if n.Kind == yaml.ScalarNode { // as in isle.yaml, for a shell
				if len(n.Value) > MaxCommand || strings.TrimSpace(n.Value) == "" {
					r.Problem(n, "want a command of at most %d bytes", MaxCommand)
					return
				}
				c.Command = []string{"/bin/sh", "-c", n.Value}
				return
			}
			r.words(&c.Command, "an argument", func(s string) (string, error) { return s, nil })(n)
		}},
		key{name: "timeout", read: into(r, &c.Timeout, "a duration", parseSpan)})
	switch {
	case len(c.Command) == 0 || len(c.Command) > maxArguments:
		r.Problem(n, "a check has a command of 1 to %d words", maxArguments)
	case c.Timeout > longestCheck:
		r.Problem(n, "a check may take %s, and not %s", longestCheck, c.Timeout)
	}
	return c
}

// MaxCommand bounds the command line of a check, in bytes.
const MaxCommand = 8 << 10

func (r *reader) readWatch(n *yaml.Node) Watch {
	w := Watch{Errors: 1}
	r.mapping(n, "a watch",
		key{name: "for", required: true, read: into(r, &w.For, "a duration", parseSpan)},
		key{name: "errors", read: into(r, &w.Errors, "a share", share)},
		key{name: "health", read: into(r, &w.Health, "true or false", strconv.ParseBool)})
	switch {
	case w.For > longestWatch:
		r.Problem(n, "is for %s; want at most %s", w.For, longestWatch)
	case w.For != 0 && w.Errors == 1 && !w.Health:
		r.Problem(n, "watches for nothing: say `errors: 5%%`, `health: true`, or both")
	}
	return w
}

// share reads 5% as 0.05.
func share(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || math.IsNaN(v) || v < 0 || v >= 100 {
		return 0, fmt.Errorf("%q is no share; want 5%% or 0.5%%, less than 100%%", problem.Clip(s))
	}
	return v / 100, nil
}

// mergeGates puts the gates of all files together. The order of stages is known.
func (s *Set) mergeGates(files []File, say func(at Position, format string, args ...any)) {
	for _, f := range files {
		for _, g := range f.Gates {
			for _, stage := range g.Stages {
				switch i := slices.Index(s.stages, stage); {
				case i < 0:
					say(g.At, "nothing is promoted to stage %s: the stages are %s", stage, strings.Join(s.stages, ", "))
				case i == 0 && g.back():
					say(g.At, firstNeedsNoOne, stage)
				}
			}
			if s.gates = append(s.gates, g); len(s.gates) == maxGates+1 {
				say(g.At, "there are more than %d gates", maxGates)
			}
		}
	}
}

// gatesTo says which gates come and go.
func (s *Set) gatesTo(next *Set) (out []Change) {
	for _, g := range next.gates {
		if !slices.ContainsFunc(s.gates, g.same) {
			out = append(out, Change{"everyone", false, "promotion to " + strings.Join(g.Stages, ", ") + " without " + g.what()})
		}
	}
	for _, g := range s.gates {
		if !slices.ContainsFunc(next.gates, g.same) {
			out = append(out, Change{"everyone", true, "promotion to " + strings.Join(g.Stages, ", ") + " without " + g.what()})
		}
	}
	return out
}

// same reports whether two gates ask for the same, wherever they stand.
func (g Gate) same(o Gate) bool {
	g.At, o.At = Position{}, Position{}
	return reflect.DeepEqual(g, o)
}

// what says for people what a gate asks for.
func (g Gate) what() string {
	var out []string
	for _, t := range []struct {
		what string
		d    time.Duration
	}{{"soak", g.Soak}, {"quiet", g.Quiet}, {"fresh", g.Fresh}, {"watch", g.Watch.For}} {
		if t.d != 0 {
			out = append(out, t.what+" "+t.d.String())
		}
	}
	if len(g.Signers) > 0 {
		out = append(out, "a signature of "+strings.Join(g.Signers, " or "))
	}
	for _, c := range g.Checks {
		out = append(out, "the check "+problem.Clip(c.String()))
	}
	text := strings.Join(out, ", ")
	if len(g.Projects) > 0 {
		text += " (of " + strings.Join(g.Projects, ", ") + ")"
	}
	return text
}
