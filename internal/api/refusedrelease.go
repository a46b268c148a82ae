package api

import (
	"context"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
)

// The rules by which the room of releases refuses what roles allow.
const (
	notBroughtBack = "built in: nothing brings back what a stage was rolled back from, or passes a stage over, unasked"
	personsAlone   = "built in: what a stage was rolled back from is cleared by people"
	trustedAlone   = "built in: what is launched is what was sealed, by a key that is trusted"
)

// refused records what the room of releases refuses, as the guard records what
// roles refuse, and returns err. What failed otherwise is no refusal.
func (s *releases) refused(ctx context.Context, action isle.Action, project, stage string, d isle.Digest, rule string, err error) error {
	return s.refusedRelease(ctx, action, isle.Resource{Kind: "release", Name: clipped(project), Stage: clipped(stage)}, d, rule, err)
}

// refusedLaunch is refused of a launch of what is not what was sealed, or of a key
// that is not trusted.
func (s *environments) refusedLaunch(ctx context.Context, m *islev1.UpRequest, err error) error {
	if isle.CodeOf(err) != isle.Untrusted {
		return err
	}
	rel, lerr := s.Releases.Look(m.GetRelease())
	if lerr != nil {
		return err
	}
	ref, rerr := s.refOf(ctx, m, rel.Manifest.Project)
	if rerr != nil {
		return err
	}
	return s.refusedRelease(ctx, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: clipped(ref.Name), Stage: clipped(ref.Stage)}, rel.Digest, "", err)
}

func (cfg Config) refusedRelease(ctx context.Context, action isle.Action, on isle.Resource, d isle.Digest, rule string, err error) error {
	switch isle.CodeOf(err) {
	case isle.Refused:
	case isle.Untrusted:
		rule = trustedAlone
	default:
		return err
	}
	e := audit.NewEvent(actorOf(ctx), action, on, isle.Deny, Flatten(err).Message)
	e.Release, e.Rule = d, rule
	if cfg.Refused != nil {
		cfg.Refused(e)
	} else if aerr := cfg.Audit.Append(context.WithoutCancel(ctx), e); aerr != nil {
		cfg.Log.Error("a refusal could not be recorded", "actor", e.Actor, "action", e.Action, "resource", e.Resource, "err", aerr)
	}
	return err
}
