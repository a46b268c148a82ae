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
		Listen: i.Remote.Address, Url: i.Remote.URL, Pin: i.Remote.Pin, Gateway: i.Gateway,
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
		res.Layers, res.Blobs, res.Volumes, res.Warm, res.Freed = int32(c.Layers), int32(c.Blobs), int32(c.Volumes), int32(c.Warm), c.Freed
		res.Releases = int32(c.Releases)
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
	if id := isle.ID(req.Msg.GetId()); id != "" {
		return s.related(ctx, id, stream)
	}
	filter, err := filterOf(req.Msg)
	if err != nil {
		return err
	}
	from := req.Msg.GetFrom()
	if tail := req.Msg.GetTail(); tail > 0 {
		next, err := s.Config.Audit.Next(ctx)
		if err != nil {
			return err
		}
		from = max(from, next-min(next, uint64(tail)))
	}
	if !filter.Since.IsZero() {
		first, err := s.Config.Audit.FirstSince(ctx, filter.Since)
		if err != nil {
			return err
		}
		from = max(from, first)
	}
	for {
		page, err := s.Config.Audit.Encoded(ctx, from, auditPage)
		if err != nil {
			return err
		}
		over, err := sendMatching(stream, filter, from, page)
		if err != nil || over {
			return err
		}
		from += uint64(len(page))
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

// sendMatching sends those of a page that the filter selects. It is over once
// an entry is from after all that it can select.
func sendMatching(stream *connect.ServerStream[islev1.AuditEntry], filter audit.Filter, from uint64, page [][]byte) (over bool, err error) {
	for i, b := range page {
		if filter != (audit.Filter{}) {
			e, err := audit.Decode(b)
			if err != nil {
				return false, isle.Errorf(isle.Internal, "audit entry %d cannot be read: %w", from+uint64(i), err).WithHint("see `isle audit verify`")
			}
			if !filter.Until.IsZero() && !e.Time.Before(filter.Until) {
				return true, nil
			}
			if !filter.Match(e) {
				continue
			}
		}
		if err := stream.Send(&islev1.AuditEntry{Sequence: from + uint64(i), Json: string(b)}); err != nil {
			return false, err
		}
	}
	return false, nil
}

// filterOf is what a request selects.
func filterOf(m *islev1.AuditRequest) (audit.Filter, error) {
	f := audit.Filter{
		Actor: m.GetActor(), Action: m.GetAction(), Environment: m.GetEnvironment(), Instance: isle.ID(m.GetInstance()),
		Resource: m.GetResource(), Decision: isle.Decision(m.GetDecision()),
	}
	switch f.Decision {
	case "", isle.Allow, isle.Deny, isle.Hold:
	default:
		return f, isle.Errorf(isle.Invalid, "decision %q: want %s, %s or %s", f.Decision, isle.Allow, isle.Deny, isle.Hold)
	}
	if m.GetSince() != nil {
		f.Since = m.GetSince().AsTime()
	}
	if m.GetUntil() != nil {
		f.Until = m.GetUntil().AsTime()
	}
	return f, nil
}

// related sends an entry, the intent that it is the outcome of, and its
// outcomes, in the log's order.
func (s *host) related(ctx context.Context, id isle.ID, stream *connect.ServerStream[islev1.AuditEntry]) error {
	log := s.Config.Audit
	seq, links, err := log.ByID(ctx, id)
	if err != nil {
		return err
	}
	all := []uint64{seq}
	one, err := log.Encoded(ctx, seq, 1)
	if err != nil {
		return err
	}
	if len(one) == 1 {
		if e, err := audit.Decode(one[0]); err == nil && e.Link != "" {
			if of, _, err := log.ByID(ctx, e.Link); err == nil {
				all = []uint64{of, seq}
			}
		}
	}
	for _, n := range append(all, links...) {
		page, err := log.Encoded(ctx, n, 1)
		if err != nil {
			return err
		}
		if _, err := sendMatching(stream, audit.Filter{}, n, page); err != nil {
			return err
		}
	}
	return nil
}

// Checkpoint implements the RPC.
func (s *host) Checkpoint(ctx context.Context, req *connect.Request[islev1.CheckpointRequest]) (*connect.Response[islev1.CheckpointResponse], error) {
	head := s.Config.Audit.Head()
	c, err := s.Signer.Sign(head)
	if err != nil {
		return nil, err
	}
	proof, err := audit.ProveExtends(req.Msg.GetSince(), head.Size, s.Config.Audit.Hashes(ctx))
	if err != nil {
		return nil, err
	}
	res := &islev1.CheckpointResponse{Note: c.Note, Key: s.Signer.Key()}
	for _, h := range proof {
		res.Proof = append(res.Proof, h[:])
	}
	return connect.NewResponse(res), nil
}
