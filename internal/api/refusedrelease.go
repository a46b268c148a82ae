package api

import (
	"context"

	"isle"
	"isle/internal/audit"
)

// The rules by which the room of releases refuses what roles allow.
const (
	notBroughtBack = "built in: nothing brings back what a stage was rolled back from, or passes a stage over, unasked"
	personsAlone   = "built in: what a stage was rolled back from is cleared by people"
)

// refused records what the room of releases refuses, as the guard records what
// roles refuse, and returns err. What failed otherwise is no refusal.
func (s *releases) refused(ctx context.Context, action isle.Action, project, stage string, d isle.Digest, rule string, err error) error {
	if err == nil || isle.CodeOf(err) != isle.Refused {
		return err
	}
	e := audit.NewEvent(actorOf(ctx), action, isle.Resource{Kind: "release", Name: clipped(project), Stage: clipped(stage)}, isle.Deny, Flatten(err).Message)
	e.Release, e.Rule = d, rule
	if s.Refused != nil {
		s.Refused(e)
	} else if aerr := s.Config.Audit.Append(context.WithoutCancel(ctx), e); aerr != nil {
		s.Log.Error("a refusal could not be recorded", "actor", e.Actor, "action", e.Action, "resource", e.Resource, "err", aerr)
	}
	return err
}
