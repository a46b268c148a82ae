package api

import (
	"bytes"
	"context"
	"fmt"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/spec"
)

// Bounds of what one call gives build steps.
const (
	MaxBuildSecret      = build.MaxSecret // bytes of one
	maxBuildSecrets     = 64
	maxBuildSecretBytes = 8 << 20
)

// buildSecrets are what a client gives build steps in one call, by service ("" is
// every one) and id.
type buildSecrets map[[2]string][]byte

// readBuildSecrets are those that a client sent, with their bounds kept.
func readBuildSecrets(list []*islev1.BuildSecret) (buildSecrets, error) {
	if len(list) > maxBuildSecrets {
		return nil, isle.Errorf(isle.Invalid, "%d secrets for build steps; at most %d are possible", len(list), maxBuildSecrets)
	}
	out, size := buildSecrets{}, 0
	for _, s := range list {
		switch size += len(s.GetValue()); {
		case s.GetId() == "" || len(s.GetId()) > 128:
			return nil, isle.Errorf(isle.Invalid, "a secret for build steps without an id, or with one of more than 128 bytes")
		case len(s.GetValue()) > MaxBuildSecret:
			return nil, isle.Errorf(isle.Invalid, "the secret %s has more than %d KiB", clipped(s.GetId()), MaxBuildSecret>>10)
		case size > maxBuildSecretBytes:
			return nil, isle.Errorf(isle.Invalid, "the secrets for build steps have more than %d MiB", maxBuildSecretBytes>>20)
		}
		out[[2]string{s.GetService(), s.GetId()}] = s.GetValue()
	}
	return out, nil
}

// forget overwrites the values: the call is over.
func (s buildSecrets) forget() {
	for _, v := range s {
		clear(v)
	}
}

// secretsOf gives the steps of a file's builds what the client sent, and else what
// the file names of what the server keeps, if the caller may have it used so: that
// is recorded before the step has it. Who writes a step can have it tell the value.
func (cfg Config) secretsOf(r request) build.Secrets {
	return func(ctx context.Context, service, id string) ([]byte, bool, error) {
		for _, of := range []string{service, ""} {
			if v, ok := r.secrets[[2]string{of, id}]; ok {
				return bytes.Clone(v), true, nil
			}
		}
		name := keptSecret(r.file, service, id)
		if name == "" || cfg.Secrets == nil {
			return nil, false, nil
		}
		a := ask{isle.ActionSecretBuild, isle.Resource{Kind: "secret", Name: name}, ""}
		if err := cfg.allowed(ctx, a); err != nil {
			return nil, false, err
		}
		e := audit.NewEvent(actorOf(ctx), a.action, a.resource, isle.Allow, fmt.Sprintf("given to a build step of %s of project %s, as %s", service, r.file.Name, clipped(id))).
			With("project", r.file.Name).With("service", service)
		v, err := cfg.Secrets.Resolve(ctx, name)
		e.Result = audit.Result(err)
		if lerr := cfg.Audit.Append(context.WithoutCancel(ctx), e); err == nil {
			err = lerr
		}
		if err != nil {
			v.Destroy()
			return nil, false, err
		}
		return v.Reveal(), true, nil // the step overwrites it
	}
}

// keptSecret is the name under which the server keeps what a service's build calls
// id; "" if the file names none.
func keptSecret(f spec.File, service, id string) string {
	for _, s := range f.Services {
		if s.Name == service && s.Build != nil {
			return s.Build.Secrets[id]
		}
	}
	return ""
}
