package release

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/policy"
)

// The kinds of gate.
const (
	GateSoak      = "soak"
	GateQuiet     = "quiet"
	GateFresh     = "fresh"
	GateSigners   = "signers"
	GateCheck     = "check"
	GateApprovals = "approvals"
)

// The states of a Gate.
const (
	GateMet     = "met"
	GateUnmet   = "not met"
	GateAwaits  = "awaits approval"
	GatePending = "not asked yet" // a check that a promotion runs
)

// A Gate is one condition of a promotion, and how it stands.
type Gate struct {
	Kind   string
	Name   string // of a check: its command
	Rule   string // where the policy says so
	State  string
	Text   string // how it stands, and why
	Remedy string // what would have it pass; "" of one that is met
	// Claim says that an environment said so of itself: nobody else has seen it.
	Claim bool
}

// A Serving is what is known of the stage before.
type Serving struct {
	Stage string
	// Since is from when the release serves there without a break; zero: it does
	// not, and Why says what is otherwise.
	Since time.Time
	Why   string
	// Refused is the last thing that was refused to it there, and At when; the zero
	// time: nothing was.
	Refused string
	At      time.Time
}

// Gates are the conditions of a plan by what a gate of the policy asks for, but
// for its checks, which somebody has to run.
func (r *Releases) Gates(g policy.Gate, plan Plan, s Serving) (out []Gate) {
	now := r.cfg.Now()
	project, d := plan.Release.Manifest.Project, plan.Release.Digest.Short()
	add := func(kind string, met bool, text, remedy string) {
		o := Gate{Kind: kind, Rule: g.String(), State: GateMet, Text: text}
		if !met {
			o.State, o.Remedy = GateUnmet, remedy
		}
		out = append(out, o)
	}
	serves := !s.Since.IsZero()
	run := fmt.Sprintf("isle up --release %s@%s runs it there", project, s.Stage)
	if g.Soak > 0 {
		text, remedy := fmt.Sprintf("release %s does not serve in %s: %s", d, s.Stage, s.Why), run
		served := max(now.Sub(s.Since), 0)
		if serves {
			text = fmt.Sprintf("release %s has served in %s for %s of %s", d, s.Stage, served.Truncate(time.Second), g.Soak)
			remedy = fmt.Sprintf("wait until %s", s.Since.Add(g.Soak).UTC().Format(time.RFC3339))
		}
		add(GateSoak, serves && served >= g.Soak, text, remedy)
	}
	if g.Quiet > 0 {
		text, remedy := fmt.Sprintf("release %s does not serve in %s, so nothing is known of it: %s", d, s.Stage, s.Why), run
		loud := serves && !s.At.IsZero() && now.Sub(s.At) < g.Quiet
		switch {
		case loud:
			text = fmt.Sprintf("the last thing that was refused to it in %s was %s ago, within %s: %s", s.Stage, now.Sub(s.At).Truncate(time.Second), g.Quiet, s.Refused)
			remedy = fmt.Sprintf("isle audit search --environment %s@%s --decision deny shows it; grant what it needs, or wait until %s", project, s.Stage, s.At.Add(g.Quiet).UTC().Format(time.RFC3339))
		case serves:
			text = fmt.Sprintf("nothing was refused to it in %s within %s", s.Stage, g.Quiet)
		}
		add(GateQuiet, serves && !loud, text, remedy)
	}
	if g.Fresh > 0 {
		age := max(now.Sub(lastMade(plan.Release)), 0).Truncate(time.Second)
		add(GateFresh, age <= g.Fresh, fmt.Sprintf("release %s was made %s ago, and may be %s old", d, age, g.Fresh), "make it anew, with the packages of today: isle lock, a commit, isle release create")
	}
	if len(g.Signers) > 0 {
		signer := plan.Release.Signer
		add(GateSigners, plan.Release.Trusted && slices.Contains(g.Signers, signer),
			fmt.Sprintf("release %s is signed by %s, and has to be by %s", d, clip(signer), strings.Join(g.Signers, " or ")), "release it on that server, and bring it here: isle release export, isle release import")
	}
	return out
}

// lastMade is when a release was last made: what its youngest provenance says, but not
// later than that came here, and where there is none when the release did.
func lastMade(rel Release) time.Time {
	youngest := time.Time{}
	for _, a := range rel.Attestations {
		if a.Kind == Provenance && a.Added.After(youngest) {
			youngest = a.Added
		}
	}
	if youngest.IsZero() {
		return rel.Created
	}
	return youngest
}

// Shut is the error of a promotion whose gates are not all met: Refused, or Held
// where people alone have to say yes. nil: it may go on. A check that was not run
// is no reason.
func Shut(plan Plan, gates []Gate) error {
	project := plan.Release.Manifest.Project
	var unmet, awaits []Gate
	for _, g := range gates {
		switch g.State {
		case GateUnmet:
			unmet = append(unmet, g)
		case GateAwaits:
			awaits = append(awaits, g)
		}
	}
	code, shut := isle.Refused, unmet
	if len(unmet) == 0 {
		code, shut = isle.Held, awaits
	}
	if len(shut) == 0 {
		return nil
	}
	var why, remedies []string
	for _, g := range shut {
		why = append(why, g.String())
		if g.Remedy != "" && !slices.Contains(remedies, g.Remedy) {
			remedies = append(remedies, g.Remedy)
		}
	}
	return isle.Errorf(code, "release %s is not promoted to stage %s of %s: %s", plan.Release.Digest.Short(), plan.To, project, strings.Join(why, "; ")).
		WithHint("%s", strings.Join(remedies, "; "))
}

// String is the gate for people.
func (g Gate) String() string {
	s := g.Kind
	if g.Name != "" {
		s += " " + g.Name
	}
	s += ": " + g.Text
	if g.Claim {
		s += " (the environment's own claim)"
	}
	return s
}

// PassedOver names the gates that are not met, for people; "" if all are.
func PassedOver(gates []Gate) string {
	var out []string
	for _, state := range []string{GateUnmet, GateAwaits, GatePending} {
		if s := recorded(gates, state); s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

// recorded is how gates stand, for the log: "soak, check true (claimed), fresh".
func recorded(gates []Gate, state string) string {
	var out []string
	for _, g := range gates {
		if g.State != state {
			continue
		}
		s := g.Kind
		if g.Name != "" {
			s += " `" + strings.ReplaceAll(clip(g.Name), "`", "'") + "`"
		}
		if g.Claim {
			s += " (the environment's own claim)"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
