package api

import (
	"strings"
	"testing"

	"isle/internal/release"
)

// Who approves reads what is promoted line by line: no value writes lines of its
// own into it.
func TestAValueDoesNotLookLikeMoreOfWhatIsAsked(t *testing.T) {
	values := release.Values{Env: map[string]map[string]string{"web": {"A": "x\nto stage testing", "B": "plain"}}}
	x := &passing{p: release.Promotion{Project: "shop", To: "production", BreakGlass: "down\nto stage testing"}, plan: release.Plan{To: "production", Values: values, Skips: "staging"}}
	text := string(x.text())
	if n := strings.Count(text, "\nto stage "); n != 1 {
		t.Errorf("%d lines name a stage:\n%s", n, text)
	}
	for _, want := range []string{"\nto stage production\n", "\nwith values " + string(values.Digest()) + "\n", `services.web.env.A=x\nto stage testing`, "\n  services.web.env.B=plain\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

// What a check wrote is its own, and is shown on one line.
func TestTheLastLineOfACheckIsFitToBeShown(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "\n\n": "", "one\ntwo\n": "two", "a\x1b[2Jb\n": "a [2Jb", "\xff": "\ufffd", strings.Repeat("x", 300): strings.Repeat("x", 200) + "…",
	} {
		if got := lastLine([]byte(in)); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}
