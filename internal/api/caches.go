package api

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
)

// ListCaches implements the RPC.
func (s *images) ListCaches(_ context.Context, req *connect.Request[islev1.ListCachesRequest]) (*connect.Response[islev1.ListCachesResponse], error) {
	if err := checkProject(req.Msg.GetProject()); err != nil {
		return nil, err
	}
	mounts, steps, err := s.Builder.Caches(req.Msg.GetProject())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ListCachesResponse{Mounts: cacheMessages(mounts), Steps: int32(steps)}), nil
}

// PruneCaches implements the RPC.
func (s *images) PruneCaches(ctx context.Context, req *connect.Request[islev1.PruneCachesRequest]) (*connect.Response[islev1.PruneCachesResponse], error) {
	m := req.Msg
	if err := checkProject(m.GetProject()); err != nil {
		return nil, err
	}
	var unused time.Duration
	if m.GetUnused() != nil {
		if unused = m.GetUnused().AsDuration(); unused < 0 {
			return nil, isle.Errorf(isle.Invalid, "unused for %s: want a time that has passed", unused)
		}
	}
	what, res := "cache mounts of every project", &islev1.PruneCachesResponse{}
	if m.GetProject() != "" {
		what = "cache mounts of " + m.GetProject()
	}
	if m.GetSteps() {
		what = "what build steps made"
	}
	err := s.recorded(ctx, audit.NewIntent(actorOf(ctx), isle.ActionServerCollect, isle.Resource{Kind: "server", Name: "server"}, what), func() error {
		if m.GetSteps() {
			n, err := s.Builder.ForgetSteps()
			res.Steps = int32(n)
			return err
		}
		gone, err := s.Builder.PruneCaches(m.GetProject(), unused)
		res.Mounts = cacheMessages(gone)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func checkProject(name string) error {
	if name != "" && !isle.ValidName(name) {
		return isle.Errorf(isle.Invalid, "%q is no project", clipped(name))
	}
	return nil
}

func cacheMessages(mounts []build.CacheMount) []*islev1.CacheMount {
	out := make([]*islev1.CacheMount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, &islev1.CacheMount{Project: m.Project, Id: m.ID, Size: m.Size, Used: timestamp(m.Used)})
	}
	return out
}
