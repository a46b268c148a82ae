package server

import (
	"context"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/release"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// sealed is the digest of all that decides what is in the memory of an environment
// that is ready: its release, and the isle-init that runs in it. The build of
// isle-runsc is not among it: a snapshot says which it needs, so that another is a
// reason that can be told.
func (r *rooms) sealed(f spec.File, images map[string]image.Image) (isle.Digest, error) {
	m, err := release.New(f, images)
	if err != nil {
		return "", err
	}
	b, err := m.Encode()
	if err != nil {
		return "", err
	}
	inside, err := r.builds.Of(r.server.cfg.Init)
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "isle-init cannot be read: %w", err)
	}
	return isle.DigestOf([]byte(string(isle.DigestOf(b)) + " " + string(inside))), nil
}

// collectWarm removes the ready states that nothing has begun with for long.
func (r *rooms) collectWarm(ctx context.Context, dryRun bool) (snapshot.Cooled, error) {
	return r.snapshots.Collect(ctx, isle.Actor{Kind: isle.System, Name: "gc"}, time.Now().Add(-r.server.cfg.WarmKeep), dryRun)
}
