package release

import (
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/policy"
)

// compiled are the gates of a policy.
func compiled(t *testing.T, gates string) []policy.Gate {
	t.Helper()
	s, err := policy.Compile(policy.Document{Name: "gates.yaml", Format: policy.YAML, Body: []byte("gates:\n" + gates)})
	if err != nil {
		t.Fatal(err)
	}
	return append(s.Gates("shop", "staging"), s.Gates("shop", "production")...)
}

func TestAGateSaysHowItStandsAndWhatWouldHaveItPass(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	if _, err := w.promote("testing", string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	plan, err := w.Plan(t.Context(), Promotion{Project: "shop", To: "staging", Order: order})
	if err != nil {
		t.Fatal(err)
	}
	now := w.config.Now()
	w.config.Now = func() time.Time { return now }
	w.open()
	since := func(d time.Duration) Serving { return Serving{Stage: "testing", Since: now.Add(-d)} }
	refused := since(time.Hour)
	refused.Refused, refused.At = "egress:connect of egress:a.example:443, by default", now.Add(-10*time.Minute)
	not := Serving{Stage: "testing", Why: "no release runs there"}
	for name, c := range map[string]struct {
		gate   string
		s      Serving
		state  string
		text   string
		remedy string
	}{
		"it has soaked":          {"soak: 1h", since(time.Hour), GateMet, "for 1h0m0s of 1h0m0s", ""},
		"not yet":                {"soak: 1h", since(59 * time.Minute), GateUnmet, "for 59m0s of 1h0m0s", "wait until 2026-11-22T06:01:00Z"},
		"a clock that went back": {"soak: 1h", since(-time.Hour), GateUnmet, "for 0s of 1h0m0s", "wait until"},
		"it does not serve":      {"soak: 1h", not, GateUnmet, "does not serve in testing: no release runs there", "isle up --release shop@testing"},
		"nothing was refused":    {"quiet: 5m", since(time.Hour), GateMet, "nothing was refused", ""},
		"long ago":               {"quiet: 5m", refused, GateMet, "nothing was refused", ""},
		"lately":                 {"quiet: 15m", refused, GateUnmet, "10m0s ago, within 15m0s: egress:connect", "wait until 2026-11-22T06:05:00Z"},
		"who does not serve":     {"quiet: 5m", not, GateUnmet, "nothing is known of it", "isle up"},
		"fresh":                  {"fresh: 1h", not, GateMet, "was made 0s ago", ""},
		"its signer":             {"signers: [other, here]", not, GateMet, "is signed by here", ""},
		"another signer":         {"signers: [other]", not, GateUnmet, "is signed by here, and has to be by other", "isle release import"},
	} {
		t.Run(name, func(t *testing.T) {
			g := compiled(t, "  - {stages: [staging], "+c.gate+"}")[0]
			got := w.Gates(g, plan, c.s)
			if len(got) != 1 || got[0].State != c.state || !strings.Contains(got[0].Text, c.text) || !strings.Contains(got[0].Remedy, c.remedy) || got[0].Rule != "gate at gates.yaml:2:5" {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A release grows old by its youngest provenance, wherever it came in.
func TestAReleaseIsAsOldAsItsYoungestProvenance(t *testing.T) {
	w := newWorld(t, "here")
	made := w.config.Now()
	now := made
	w.config.Now = func() time.Time { return now }
	w.open()
	rel := w.create(shop(t, ""))
	now = made.Add(48 * time.Hour)
	age := func() Gate {
		t.Helper()
		rel, err := w.Look(string(rel.Digest))
		if err != nil {
			t.Fatal(err)
		}
		return w.Gates(compiled(t, "  - {stages: [staging], fresh: 24h}")[0], Plan{To: "staging", Release: rel}, Serving{})[0]
	}
	if g := age(); g.State != GateUnmet || !strings.Contains(g.Text, "48h0m0s ago") {
		t.Errorf("%+v", g)
	}
	again := shop(t, "")
	again.Source.Commit = strings.Repeat("9", 40)
	if other := w.create(again); other.Digest != rel.Digest {
		t.Fatal("made again it is another")
	}
	if g := age(); g.State != GateMet {
		t.Errorf("%+v", g)
	}
}

func TestAPromotionWithAGateThatIsShutChangesNothing(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	p := Promotion{Project: "shop", To: "testing", Order: order, Release: string(rel.Digest)}
	unmet := Gate{Kind: GateSoak, State: GateUnmet, Text: "too short", Remedy: "wait", Rule: "gate at a:1:1"}
	awaits := Gate{Kind: GateApprovals, State: GateAwaits, Text: "request 1 waits", Remedy: "ask ann"}
	claim := Gate{Kind: GateCheck, Name: "true", State: GateMet, Text: "exit code 0", Claim: true}
	for _, c := range []struct {
		gates []Gate
		code  isle.Code
		says  string
	}{
		{[]Gate{claim, unmet, awaits}, isle.Refused, "soak: too short"},
		{[]Gate{claim, awaits}, isle.Held, "approvals: request 1 waits"},
	} {
		p.Gates = c.gates
		if _, err := w.Promote(t.Context(), alice, p, ""); code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %s", err, c.code)
		}
		if _, ok := w.Stage("shop", "testing"); ok {
			t.Fatal("the stage points at it")
		}
	}
	p.Gates, p.BreakGlass = []Gate{claim, unmet}, "the site is down"
	if _, err := w.Promote(t.Context(), alice, p, ""); err != nil {
		t.Fatal(err)
	}
	s, _ := w.Stage("shop", "testing")
	if s.Passed != "the site is down" {
		t.Errorf("%+v", s)
	}
	var e audit.Entry
	for _, e = range w.store.Entries() {
	}
	if e.Details["gates_passed_over"] != "soak" || e.Details["gates"] != "check `true` (the environment's own claim)" || e.Details["break_glass"] != "the site is down" {
		t.Errorf("%+v", e.Details)
	}
}
