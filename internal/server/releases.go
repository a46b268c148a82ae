package server

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"isle"
	"isle/internal/api"
	"isle/internal/environment"
	"isle/internal/policy"
	"isle/internal/release"
	"isle/internal/seal"
	"isle/internal/spec"
)

// ReleasesPath is the folder with the releases of a state folder.
func ReleasesPath(state string) string { return filepath.Join(state, "releases") }

// openReleases opens the releases. Without the server's key none can be made, and
// those that are there are not trusted: what needs none goes on.
func (r *rooms) openReleases(ctx context.Context) (err error) {
	cfg := r.server.cfg
	domain := r.issuer.TrustDomain()
	var key *seal.Key
	if seed, err := r.key.Derive("releases"); err == nil {
		// Its name says whose it is: a server's trust domain never changes.
		if key, err = seal.NewKey("isle-releases/"+domain, seed); err != nil {
			return err
		}
		clear(seed)
	}
	r.releases, err = release.Open(ctx, release.Config{
		Dir: ReleasesPath(cfg.State), Store: r.store, Key: key, Builder: "spiffe://" + domain, BuilderVersion: cfg.Version,
		Images: r.images, InUse: r.runs, Reach: r.reach, Now: cfg.Now, Slog: r.server.log, Fault: cfg.fault(),
	})
	return err
}

// reach is what the environment of a project in a stage may do through its doors.
func (r *rooms) reach(project, stage string, f spec.File) policy.Reach {
	var egress []policy.EgressDoor
	for _, e := range f.Egress {
		egress = append(egress, policy.EgressDoor{Destination: e.Host + ":" + strconv.Itoa(e.Port), Networks: e.Addresses, Inspect: e.Inspect})
	}
	return r.policy.State().Set.Reach(project, stage, f.Uses, egress, r.policy.Now())
}

// runs names the environments that run a release, or keep an instance of it that
// they can go back to.
func (r *rooms) runs(d isle.Digest) (names []string) {
	return r.named(func(e environment.Environment) bool {
		return e.Release == d || slices.ContainsFunc(r.manager.Asides(context.Background(), e.Ref), func(a environment.Environment) bool { return a.Release == d })
	})
}

// checkReleases says whether releases can be used, and which stages serve what did
// not do as it should while it was watched.
func (r *rooms) checkReleases() api.Check {
	c := checkKept("releases", "release", ReleasesPath(r.server.cfg.State), r.releases.Err())
	if c.State != api.CheckOK {
		return c
	}
	var failed []string
	for _, s := range r.releases.StagesOf("") {
		if s.Breach != "" {
			failed = append(failed, s.Project+"@"+s.Name+": "+s.Breach)
			c.Remedy = "promote another release there; or, once it is known why: isle release clear " + s.Project + "@" + s.Name + " " + s.Release.Short()
		}
	}
	if len(failed) > 0 {
		c.State, c.Message = api.CheckWarning, strings.Join(failed[:min(len(failed), maxSaid)], "; ")
	}
	return c
}
