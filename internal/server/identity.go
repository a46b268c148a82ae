package server

import (
	"context"

	"isle/internal/api"
	"isle/internal/identity"
)

// identities is what tells who somebody is that is no person here.
type identities struct {
	issuer    *identity.Issuer
	workloads *api.WorkloadAPI
	issues    *issues
}

// openIdentity opens what stands on the key of secrets.
func (r *rooms) openIdentity(ctx context.Context) (err error) {
	log := r.server.log
	if r.issuer, err = identity.OpenIssuer(ctx, identity.IssuerConfig{Store: r.store, Sealer: r.key, Log: log}); err != nil {
		return err
	}
	r.issues = newIssues(r.store)
	r.workloads = api.NewWorkloadAPI(api.WorkloadConfig{SVIDs: r.issuer, Issuing: r.issuing, Refused: r.refusedIdentity, Log: log})
	return nil
}
