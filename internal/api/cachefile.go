package api

import (
	"bufio"
	"context"
	"strconv"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/seal"
)

// ExportCache implements the RPC.
func (s *images) ExportCache(ctx context.Context, req *connect.Request[islev1.ExportCacheRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	project := req.Msg.GetProject()
	if err := checkProject(project); err != nil {
		return err
	}
	keys, err := s.ring()
	if err != nil {
		return err
	}
	of := project
	if of == "" {
		of = "*"
	}
	return s.recorded(ctx, audit.NewIntent(actorOf(ctx), isle.ActionImageExport, isle.Resource{Kind: "image", Name: of}, "what build steps made"), func() error {
		w := bufio.NewWriterSize(chunkWriter{stream}, maxChunk)
		if _, err := s.Builder.ExportCache(ctx, keys, project, w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// ring is the keys whose signatures count; nil where there are no releases.
func (s *images) ring() (*seal.Ring, error) {
	if s.Releases == nil {
		return nil, nil
	}
	return s.Releases.Ring()
}

// ImportCache implements the RPC.
func (s *images) ImportCache(ctx context.Context, stream *connect.ClientStream[islev1.Chunk]) (*connect.Response[islev1.ImportCacheResponse], error) {
	if !stream.Receive() {
		return nil, streamEnd(stream.Err(), "import")
	}
	keys, err := s.ring()
	if err != nil {
		return nil, err
	}
	body := received(stream)
	var f build.CacheFile
	e := audit.NewIntent(actorOf(ctx), isle.ActionImageImport, isle.Resource{Kind: "image", Name: "*"}, "what build steps made")
	if err := s.Audit.Append(ctx, e); err != nil {
		return nil, err
	}
	f, err = s.Builder.ImportCache(ctx, keys, body)
	// Whose results builds are made of from now on is known once it is read.
	outcome := e.Outcome(err)
	if err == nil {
		outcome = outcome.With("signer", f.Signer).With("steps", strconv.Itoa(f.Steps)).With("layers", strconv.Itoa(f.Layers))
	}
	if aerr := s.Audit.Append(context.WithoutCancel(ctx), outcome); aerr != nil {
		s.Log.Error("an outcome could not be recorded; recovery will close it as unknown", "action", e.Action, "err", aerr)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ImportCacheResponse{Steps: int32(f.Steps), Layers: int32(f.Layers), Size: f.Size, Signer: f.Signer}), nil
}
