package api

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/policy"
	"isle/internal/secret"
)

// Secrets are what connections are opened with; *secret.Secrets implements it.
type Secrets interface {
	Set(ctx context.Context, actor isle.Actor, name string, value []byte) (secret.Secret, error)
	Refer(ctx context.Context, actor isle.Actor, name, backend, reference string) (secret.Secret, error)
	List() ([]secret.Secret, error)
	Delete(ctx context.Context, actor isle.Actor, name string, used []string) error
	Check(ctx context.Context, actor isle.Actor, name string) (version, size int, err error)
	// Resolve takes a value. Who calls it destroys it soon, and says in the log what
	// it was for.
	Resolve(ctx context.Context, name string) (secret.Value, error)
}

// secrets serves the SecretService.
type secrets struct{ Config }

// SetSecret implements the RPC.
func (s *secrets) SetSecret(ctx context.Context, req *connect.Request[islev1.SetSecretRequest]) (*connect.Response[islev1.SetSecretResponse], error) {
	m := req.Msg
	defer clear(m.GetValue()) // it is not needed any more, whatever comes
	var v secret.Secret
	var err error
	switch {
	case m.GetBackend() == "" || m.GetBackend() == secret.Stored:
		if m.GetReference() != "" {
			return nil, isle.Errorf(isle.Invalid, "a stored secret has a value, and no reference")
		}
		v, err = s.Secrets.Set(ctx, actorOf(ctx), m.GetName(), m.GetValue())
	case len(m.GetValue()) > 0:
		return nil, isle.Errorf(isle.Invalid, "a secret of the backend %s has a reference, and no value", m.GetBackend())
	default:
		v, err = s.Secrets.Refer(ctx, actorOf(ctx), m.GetName(), m.GetBackend(), m.GetReference())
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.SetSecretResponse{Secret: s.view(v)}), nil
}

// ListSecrets implements the RPC.
func (s *secrets) ListSecrets(context.Context, *connect.Request[islev1.ListSecretsRequest]) (*connect.Response[islev1.ListSecretsResponse], error) {
	list, err := s.Secrets.List()
	if err != nil {
		return nil, err
	}
	res := &islev1.ListSecretsResponse{}
	for _, v := range list {
		res.Secrets = append(res.Secrets, s.view(v))
	}
	return connect.NewResponse(res), nil
}

// DeleteSecret implements the RPC.
func (s *secrets) DeleteSecret(ctx context.Context, req *connect.Request[islev1.DeleteSecretRequest]) (*connect.Response[islev1.DeleteSecretResponse], error) {
	name := req.Msg.GetName()
	list, err := s.Secrets.List()
	if err != nil {
		return nil, err
	}
	used := s.usedBy(name)
	if len(used) > 0 && !req.Msg.GetForce() && known(list, name) {
		return nil, isle.Errorf(isle.Conflict, "the secret %s is used by %s", name, strings.Join(used, ", ")).
			WithHint("take it out of the policy first, or remove it all the same with --force: what uses it then fails")
	}
	if err := s.Secrets.Delete(ctx, actorOf(ctx), name, used); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.DeleteSecretResponse{}), nil
}

// CheckSecret implements the RPC.
func (s *secrets) CheckSecret(ctx context.Context, req *connect.Request[islev1.CheckSecretRequest]) (*connect.Response[islev1.CheckSecretResponse], error) {
	version, size, err := s.Secrets.Check(ctx, actorOf(ctx), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.CheckSecretResponse{Version: int32(version), Size: int32(size)}), nil
}

// usedBy are the connections of the policy in force that name a secret.
func (s *secrets) usedBy(name string) (out []string) {
	for _, c := range s.Policy.State().Set.Connections() {
		if c.Credential.Secret == name {
			out = append(out, "connection:"+c.Name+"@"+c.Stage)
		}
	}
	return out
}

func (s *secrets) view(v secret.Secret) *islev1.Secret {
	last := v.Last()
	out := &islev1.Secret{Name: v.Name, Backend: last.Backend, Reference: last.Reference, Version: int32(last.Number), UsedBy: s.usedBy(v.Name)}
	for _, n := range v.Versions {
		out.Versions = append(out.Versions, &islev1.SecretVersion{
			Version: int32(n.Number), Created: timestamppb.New(n.Created), CreatedBy: n.CreatedBy.String(), Destroyed: n.Destroyed,
			Backend: n.Backend, Reference: n.Reference,
		})
	}
	return out
}

// unknownSecrets warns of connections of a document that name a secret which is
// not there. It says nothing where it cannot know.
func (cfg Config) unknownSecrets(d policy.Document) (warnings []string) {
	if d.Format != policy.YAML || cfg.Secrets == nil {
		return nil
	}
	list, err := cfg.Secrets.List()
	f, perr := policy.Parse(d.Name, d.Body)
	if err != nil || perr != nil {
		return nil
	}
	for _, c := range f.Connections {
		if c.Credential.Secret != "" && !known(list, c.Credential.Secret) {
			warnings = append(warnings, "connection "+c.Name+" names the secret "+c.Credential.Secret+", which is not there: isle secret set "+c.Credential.Secret)
		}
	}
	return warnings
}

func known(list []secret.Secret, name string) bool {
	return slices.ContainsFunc(list, func(s secret.Secret) bool { return s.Name == name })
}

var _ Secrets = (*secret.Secrets)(nil)
