package server

import (
	"context"
	"path/filepath"

	"isle"
	"isle/internal/api"
	"isle/internal/environment"
	"isle/internal/seal"
	"isle/internal/snapshot"
)

// SnapshotsPath is the folder with the snapshots of a state folder.
func SnapshotsPath(state string) string { return filepath.Join(state, "snapshots") }

// openSnapshots opens the snapshots. Without the server's key none can be made,
// and those that are there are not trusted: what needs none goes on.
func (r *rooms) openSnapshots(ctx context.Context) (err error) {
	cfg := r.server.cfg
	files, ok := r.driver.Volumes().(snapshot.Volumes)
	if !ok {
		return isle.Errorf(isle.Internal, "the driver's volumes cannot be filled")
	}
	var key *seal.Key
	if seed, err := r.key.Derive("snapshots"); err == nil {
		// Its name says whose it is: a server's trust domain never changes.
		if key, err = seal.NewKey("isle-snapshots/"+r.issuer.TrustDomain(), seed); err != nil {
			return err
		}
		clear(seed)
	}
	r.snapshots, err = snapshot.Open(ctx, snapshot.Config{
		Dir: SnapshotsPath(cfg.State), Volumes: files, Store: r.store, Key: key, InUse: r.cameOf,
		WarmCount: cfg.WarmCount, WarmBytes: cfg.WarmMax, Now: cfg.Now, Slog: r.server.log, Fault: cfg.fault(),
	})
	return err
}

// cameOf names the environments that were made of a snapshot.
func (r *rooms) cameOf(d isle.Digest) (names []string) {
	return r.named(func(e environment.Environment) bool { return e.Origin == d })
}

// named are the names of the environments that are of interest.
func (r *rooms) named(of func(environment.Environment) bool) (names []string) {
	if r.manager == nil {
		return nil // nothing runs yet
	}
	all, err := r.manager.List(context.Background())
	if err != nil {
		return nil
	}
	for _, e := range all {
		if of(e) {
			names = append(names, e.Ref.String())
		}
	}
	return names
}

// checkSnapshots says whether snapshots can be used.
func (r *rooms) checkSnapshots() api.Check {
	return checkKept("snapshots", "snapshot", SnapshotsPath(r.server.cfg.State), r.snapshots.Err())
}

// checkKept says whether sealed things of a kind can be used: err is why not.
func checkKept(name, one, path string, err error) api.Check {
	c := api.Check{Name: name, State: api.CheckOK, Message: "in " + path}
	if err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, "no "+one+" can be used: "+flat.Message, flat.Hint
	}
	return c
}
