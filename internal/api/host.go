package api

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
)

// host serves the ServerService.
type host struct{ Config }

// Info implements the RPC.
func (s *host) Info(ctx context.Context, _ *connect.Request[islev1.InfoRequest]) (*connect.Response[islev1.InfoResponse], error) {
	list, err := s.Environments.List(ctx)
	if err != nil {
		return nil, err
	}
	i := s.Host.Info()
	return connect.NewResponse(&islev1.InfoResponse{
		Version: i.Version, State: i.State, Pid: int32(i.PID), Started: timestamp(i.Started), Environments: int32(len(list)),
	}), nil
}

// Doctor implements the RPC.
func (s *host) Doctor(ctx context.Context, _ *connect.Request[islev1.DoctorRequest]) (*connect.Response[islev1.DoctorResponse], error) {
	res := &islev1.DoctorResponse{}
	for _, c := range s.Host.Doctor(ctx) {
		res.Checks = append(res.Checks, &islev1.Check{Name: c.Name, State: c.State, Message: c.Message, Remedy: c.Remedy})
	}
	return connect.NewResponse(res), nil
}

// Collect implements the RPC.
func (s *host) Collect(ctx context.Context, req *connect.Request[islev1.CollectRequest]) (*connect.Response[islev1.CollectResponse], error) {
	res := &islev1.CollectResponse{}
	collect := func() error {
		c, err := s.Host.Collect(ctx, req.Msg.GetDryRun())
		res.Layers, res.Blobs, res.Volumes, res.Freed = int32(c.Layers), int32(c.Blobs), int32(c.Volumes), c.Freed
		return err
	}
	var err error
	if req.Msg.GetDryRun() {
		err = collect()
	} else {
		err = s.recorded(ctx, audit.NewIntent(actorOf(ctx), isle.ActionServerCollect, isle.Resource{Kind: "server", Name: "server"}, ""), collect)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// Stop implements the RPC.
func (s *host) Stop(ctx context.Context, _ *connect.Request[islev1.StopRequest]) (*connect.Response[islev1.StopResponse], error) {
	e := audit.NewEvent(actorOf(ctx), isle.ActionServerStop, isle.Resource{Kind: "server", Name: "server"}, isle.Allow, "")
	if err := s.Config.Audit.Append(ctx, e); err != nil {
		return nil, err
	}
	s.Host.Stop()
	return connect.NewResponse(&islev1.StopResponse{}), nil
}

// auditPage is how many entries are read at a time, and auditPoll how long a
// follower waits where there are no more.
const (
	auditPage = 500
	auditPoll = 250 * time.Millisecond
)

// Audit implements the RPC.
func (s *host) Audit(ctx context.Context, req *connect.Request[islev1.AuditRequest], stream *connect.ServerStream[islev1.AuditEntry]) error {
	from := req.Msg.GetFrom()
	if tail := req.Msg.GetTail(); tail > 0 {
		next, err := s.Config.Audit.Next(ctx)
		if err != nil {
			return err
		}
		from = max(from, next-min(next, uint64(tail)))
	}
	for {
		page, err := s.Config.Audit.Encoded(ctx, from, auditPage)
		if err != nil {
			return err
		}
		for _, b := range page {
			if err := stream.Send(&islev1.AuditEntry{Sequence: from, Json: string(b)}); err != nil {
				return err
			}
			from++
		}
		if len(page) == auditPage {
			continue
		}
		if !req.Msg.GetFollow() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(auditPoll):
		}
	}
}
