package api

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
)

// List implements the RPC.
func (s *environments) List(ctx context.Context, _ *connect.Request[islev1.ListRequest]) (*connect.Response[islev1.ListResponse], error) {
	list, err := s.Environments.List(ctx)
	if err != nil {
		return nil, err
	}
	res := &islev1.ListResponse{}
	who, _ := callerFrom(ctx)
	for _, e := range list {
		q := queriesOf(who, ask{isle.ActionEnvironmentRead, isle.Resource{Kind: "environment", Name: e.Ref.Name, Stage: e.Ref.Stage}, e.Project})
		if s.Policy.Decide(q[0]).Allowed() {
			res.Environments = append(res.Environments, environmentMessage(e))
		}
	}
	return connect.NewResponse(res), nil
}

// Get implements the RPC.
func (s *environments) Get(ctx context.Context, req *connect.Request[islev1.GetRequest]) (*connect.Response[islev1.GetResponse], error) {
	ref, err := isle.ParseRef(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	e, err := s.Environments.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	m := environmentMessage(e)
	if u, err := s.Environments.Usage(ctx, ref); err == nil { // an environment that is half down has none
		m.Usage = &islev1.Usage{Memory: u.Memory, Pids: int32(u.PIDs), Cpu: durationpb.New(u.CPU), OomKills: int32(u.OOMKill)}
	}
	volumes, err := s.Environments.VolumesOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		used, err := s.Environments.VolumeUsed(v.ID)
		if err != nil {
			used = 0 // not made yet
		}
		m.Volumes = append(m.Volumes, &islev1.Volume{
			Id: string(v.ID), Service: v.Service, Path: v.Path, Size: v.Size, Used: used, DeleteAfter: timestamp(v.DeleteAfter),
		})
	}
	for _, a := range s.Environments.Asides(ctx, ref) {
		m.Asides = append(m.Asides, &islev1.Aside{Instance: string(a.Instance), Release: string(a.Release), Since: timestamp(a.Aside.Since), Until: timestamp(a.Aside.Until)})
	}
	if s.Drifting != nil {
		m.Drift = s.Drifting(e.Instance)
	}
	m.Watched, m.Breach = s.watchedFor(e)
	return connect.NewResponse(&islev1.GetResponse{Environment: m}), nil
}

// Extend implements the RPC.
func (s *environments) Extend(ctx context.Context, req *connect.Request[islev1.ExtendRequest]) (*connect.Response[islev1.ExtendResponse], error) {
	ref, err := isle.ParseRef(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if req.Msg.GetBy() == nil && !req.Msg.GetNever() {
		return nil, isle.Errorf(isle.Invalid, "the request says neither by how much nor never")
	}
	t, err := s.Environments.Extend(ctx, actorOf(ctx), ref, req.Msg.GetBy().AsDuration(), req.Msg.GetNever())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ExtendResponse{Expires: timestamp(t)}), nil
}

// Diff implements the RPC.
func (s *environments) Diff(ctx context.Context, req *connect.Request[islev1.DiffRequest]) (*connect.Response[islev1.DiffResponse], error) {
	ref, err := isle.ParseRef(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	changes, err := s.Environments.Diff(ctx, actorOf(ctx), ref, req.Msg.GetService())
	if err != nil {
		return nil, err
	}
	res := &islev1.DiffResponse{}
	for _, c := range changes {
		res.Changes = append(res.Changes, &islev1.Change{Service: c.Service, Volume: c.Volume, Path: c.Path, Kind: c.Kind, Size: c.Size})
	}
	return connect.NewResponse(res), nil
}

// Doors implements the RPC.
func (s *environments) Doors(ctx context.Context, req *connect.Request[islev1.DoorsRequest]) (*connect.Response[islev1.DoorsResponse], error) {
	ref, err := isle.ParseRef(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	doors, err := s.Environments.Doors(ctx, actorOf(ctx), ref)
	if err != nil {
		return nil, err
	}
	res := &islev1.DoorsResponse{}
	for _, d := range doors {
		res.Doors = append(res.Doors, &islev1.Door{
			Destination: d.Destination, Protocol: d.Protocol, State: d.State, Reason: d.Reason,
			Count: int32(d.Count), Active: int32(d.Active), First: timestamp(d.First), Last: timestamp(d.Last),
			Kind: d.Kind, Stage: d.Stage, Held: int32(d.Held),
		})
	}
	return connect.NewResponse(res), nil
}

// Logs implements the RPC.
func (s *environments) Logs(ctx context.Context, req *connect.Request[islev1.LogsRequest], stream *connect.ServerStream[islev1.LogLine]) error {
	ref, err := isle.ParseRef(req.Msg.GetEnvironment())
	if err != nil {
		return err
	}
	o := environment.LogOptions{Services: req.Msg.GetServices(), Follow: req.Msg.GetFollow(), Tail: int(req.Msg.GetTail())}
	if o.Tail < 0 {
		return isle.Errorf(isle.Invalid, "tail %d: want a number of lines", o.Tail)
	}
	return s.Environments.Logs(ctx, actorOf(ctx), ref, o, func(l environment.LogLine) error {
		return stream.Send(&islev1.LogLine{Service: l.Service, Time: timestamp(l.Time), Stderr: l.Stderr, Data: l.Data})
	})
}
