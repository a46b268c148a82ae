package server

import (
	"context"
	"path/filepath"

	"isle/internal/api"
	"isle/internal/session"
)

// RecordingsPath is the folder with the recordings of a state folder's sessions.
func RecordingsPath(state string) string { return filepath.Join(state, "recordings") }

// openSessions opens the recordings of what passes through the gateway.
func (r *rooms) openSessions(ctx context.Context) (err error) {
	cfg := r.server.cfg
	r.sessions, err = session.Open(ctx, session.Config{
		Dir: RecordingsPath(cfg.State), Log: r.store, Sealer: r.key, Slog: r.server.log, Now: cfg.Now,
		Keep: cfg.RecordingsKeep, Max: cfg.RecordingsMax,
	})
	return err
}

// checkSessions says whether what passes through the gateway can be recorded.
func (r *rooms) checkSessions() api.Check {
	c := api.Check{Name: "recordings", State: api.CheckOK, Message: "of sessions, in " + RecordingsPath(r.server.cfg.State)}
	if err := r.sessions.Err(); err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, "no connection can be used: "+flat.Message, flat.Hint
	}
	return c
}
