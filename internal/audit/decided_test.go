package audit_test

import (
	"context"
	"testing"

	"isle"
	"isle/internal/audit"
)

func TestAnEntryNamesTheRuleThatAllowedIt(t *testing.T) {
	ann, bob := isle.Actor{Kind: isle.Human, Name: "ann"}, isle.Actor{Kind: isle.Human, Name: "bob"}
	environment := func(name string) isle.Resource {
		return isle.Resource{Kind: "environment", Name: name, Stage: "testing"}
	}
	a, b := isle.Ref{Name: "a", Stage: "testing"}, isle.Ref{Name: "b", Stage: "testing"}
	ctx := audit.WithDecisions(t.Context())
	audit.Allowed(ctx, ann, isle.ActionEnvironmentDown, environment("a"), "role one")
	audit.Allowed(ctx, ann, isle.ActionEnvironmentDown, environment("b"), "before")
	audit.Allowed(ctx, ann, isle.ActionEnvironmentDown, environment("b"), "role two")
	audit.Allowed(ctx, ann, isle.ActionImageBuild, isle.Resource{Kind: "image", Name: "a"}, "role three")
	service := isle.Resource{Kind: "service", Name: "b/web", Stage: "testing"}
	named := audit.NewIntent(ann, isle.ActionEnvironmentDown, environment("a"), "").In(a, "")
	named.Rule = "its own"
	for _, c := range []struct {
		entry audit.Entry
		want  string
	}{
		{audit.NewIntent(ann, isle.ActionEnvironmentDown, environment("a"), "").In(a, ""), "role one"},
		{audit.NewIntent(ann, isle.ActionEnvironmentDown, service, "").In(b, ""), "role two"},
		{audit.NewIntent(ann, isle.ActionEnvironmentDown, service, "").In(b, "").Outcome(nil), "role two"},
		{audit.NewIntent(ann, isle.ActionImageBuild, isle.Resource{Kind: "image", Name: "*"}, ""), "role three"},
		{audit.NewIntent(ann, isle.ActionEnvironmentDown, environment("c"), ""), ""}, // one of two, and which is not known
		{audit.NewIntent(bob, isle.ActionEnvironmentDown, environment("a"), "").In(a, ""), ""},
		{audit.NewIntent(ann, isle.ActionEnvironmentExec, environment("a"), "").In(a, ""), ""},
		{audit.NewEvent(ann, isle.ActionEnvironmentDown, environment("a"), isle.Deny, "").In(a, ""), ""},
		{named, "its own"},
	} {
		if got := audit.Explained(context.WithoutCancel(ctx), []audit.Entry{c.entry})[0].Rule; got != c.want {
			t.Errorf("%s %s %s by %s: rule %q, want %q", c.entry.Kind, c.entry.Action, c.entry.Resource, c.entry.Actor, got, c.want)
		}
	}
	if got := audit.Explained(t.Context(), []audit.Entry{named})[0]; got.Rule != "its own" {
		t.Errorf("%+v", got)
	}
}
