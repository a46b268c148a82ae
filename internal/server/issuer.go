package server

import (
	"context"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
)

// openIssuer opens what gives workloads their documents, by the key of secrets.
// Where the issuer's keys cannot be opened, because that key is gone or somebody
// changed them, nobody has an identity, and everything that needs none goes on.
func (r *rooms) openIssuer(ctx context.Context) (err error) {
	cfg, log := r.server.cfg, r.server.log
	r.issuer, err = identity.OpenIssuer(ctx, identity.IssuerConfig{Store: r.store, Sealer: r.key, TrustDomain: cfg.TrustDomain, URL: r.server.URL, Now: cfg.Now, Renew: cfg.NewKey, Log: log})
	switch isle.CodeOf(err) {
	case isle.Unavailable, isle.Untrusted:
		log.Error("nobody has an identity: what runs inside gets no documents of it", "err", err)
		r.issuer, err = identity.ClosedIssuer(r.store, err), nil
	}
	if err != nil {
		return err
	}
	r.issues = newIssues(r.store)
	r.workloads = api.NewWorkloadAPI(api.WorkloadConfig{SVIDs: r.issuer, Issuing: r.issuing, Refused: r.refusedIdentity, Access: r.access, Log: log})
	return nil
}

// checkIssuer says whether identities can be issued.
func (r *rooms) checkIssuer() api.Check {
	c := api.Check{Name: "identities", State: api.CheckOK, Message: "trust domain " + r.issuer.TrustDomain()}
	if err := r.issuer.Err(); err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, "none can be issued: "+flat.Message, flat.Hint
	}
	return c
}
