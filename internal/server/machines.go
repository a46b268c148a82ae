package server

import (
	"context"
	"errors"
	"os/user"
	"strings"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
)

// openIdentities opens what the server knows of machines and tokens. Where an
// older state was accepted, every credential of before ends first: what was
// revoked since would count again in it.
func (r *rooms) openIdentities() (err error) {
	ctx := context.Background()
	r.machines, err = identity.OpenRegistry(ctx, identity.RegistryConfig{
		Store: r.store, Log: r.store, Known: known, Groups: api.GroupsOf, Now: r.policy.Now, Slog: r.server.log,
	})
	if err != nil {
		return err
	}
	fault := r.server.cfg.fault()
	if fault == nil {
		fault = func(string) {}
	}
	return r.book.endCredentials(ctx, fault, r.machines.EndAll, r.issuer.EndAll)
}

// known reports whether a person is a user of the machine. Where the machine's
// files cannot be read nobody is said to be gone.
func known(person string) bool {
	if person == api.Root {
		return true
	}
	if uid, ok := strings.CutPrefix(person, "uid:"); ok {
		_, err := user.LookupId(uid)
		return err == nil // then they have a name, and are called by it
	}
	_, err := user.Lookup(person)
	_, unknown := errors.AsType[user.UnknownUserError](err)
	return !unknown
}

// reaches is the package's, and of machines says whether they count.
func (r *rooms) reaches(group string) func(subject string) bool {
	people := reaches(group)
	return func(subject string) bool {
		name, ok := strings.CutPrefix(subject, string(isle.Machine)+":")
		if !ok {
			return people(subject)
		}
		m, ok := r.machines.Machine(name)
		return ok && r.machines.StateOf(m) == identity.Active
	}
}
