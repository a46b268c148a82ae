package api

import (
	"context"

	"connectrpc.com/connect"

	islev1 "isle/internal/api/isle/v1"
)

// WhoAmI implements the RPC.
func (s *identities) WhoAmI(ctx context.Context, _ *connect.Request[islev1.WhoAmIRequest]) (*connect.Response[islev1.WhoAmIResponse], error) {
	who, _ := callerFrom(ctx)
	res := &islev1.WhoAmIResponse{Actor: who.actor.String(), Stage: who.stage(), Groups: who.groups}
	if who.subject != nil {
		res.Expires = timestamp(who.subject.Expires)
	}
	if s.TrustDomain != nil {
		res.TrustDomain = s.TrustDomain()
	}
	return connect.NewResponse(res), nil
}
