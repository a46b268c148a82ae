package api

import (
	"bufio"
	"context"
	"io"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/spec"
)

// images serves the BuildService.
type images struct{ Config }

// Lock implements the RPC.
func (s *images) Lock(ctx context.Context, req *connect.Request[islev1.LockRequest], stream *connect.ServerStream[islev1.LockEvent]) error {
	r, err := readSource(req.Msg.GetSource())
	if err != nil {
		return err
	}
	if need := s.Builder.LockNeeds(r.file, r.copies); len(need) > 0 {
		return stream.Send(&islev1.LockEvent{Event: &islev1.LockEvent_Need{Need: &islev1.Need{Digests: digestStrings(need)}}})
	}
	tell, work := s.newTeller(ctx, isle.ActionImageLock, isle.Resource{Kind: "image", Name: r.file.Name}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.LockEvent{Event: &islev1.LockEvent_Progress{Progress: e}})
	})
	defer tell.done()
	o := build.LockOptions{Update: req.Msg.GetUpdate(), Mirror: req.Msg.GetMirror()}
	if o.Mirror == "" {
		o.Mirror = s.Mirror
	}
	o.Credentials, o.Pull = r.credentials, s.mayPull(ctx)
	lock, changes, err := s.Builder.Lock(work, r.file, r.lock, r.copies, o, tell.build)
	if err = tell.end(work, err); err != nil {
		if need := wantsLogin(err, r.credentials); need != nil {
			return stream.Send(&islev1.LockEvent{Event: &islev1.LockEvent_Need{Need: need}})
		}
		return err
	}
	res := &islev1.LockResult{Lock: lock.Encode(), Changes: changes}
	res.Changed = string(res.Lock) != string(req.Msg.GetSource().GetLock())
	return stream.Send(&islev1.LockEvent{Event: &islev1.LockEvent_Result{Result: res}})
}

// Build implements the RPC.
func (s *images) Build(ctx context.Context, req *connect.Request[islev1.BuildRequest], stream *connect.ServerStream[islev1.BuildEvent]) error {
	m := req.Msg
	r, err := readSource(m.GetSource())
	if err != nil {
		return err
	}
	tell, work := s.newTeller(ctx, isle.ActionImageBuild, isle.Resource{Kind: "image", Name: r.file.Name}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.BuildEvent{Event: &islev1.BuildEvent_Progress{Progress: e}})
	})
	defer tell.done()
	defer s.Blobs.Hold()()
	b, err := s.prepare(work, r, prepareOptions{
		lock: build.LockOptions{Mirror: m.GetMirror(), Locked: m.GetLocked()}, build: build.Options{NoCache: m.GetNoCache()}, verify: m.GetVerify(), keep: tell.event,
	}, tell.build)
	if err = tell.end(work, err); err != nil {
		if need := wantsLogin(err, r.credentials); need != nil {
			return stream.Send(&islev1.BuildEvent{Event: &islev1.BuildEvent_Need{Need: need}})
		}
		return err
	}
	if len(b.need) > 0 {
		return stream.Send(&islev1.BuildEvent{Event: &islev1.BuildEvent_Need{Need: &islev1.Need{Digests: digestStrings(b.need)}}})
	}
	res := &islev1.BuildResult{Lock: b.changed}
	for _, svc := range r.file.Services {
		if img, ok := b.result.Images[svc.Name]; ok {
			res.Images = append(res.Images, imageMessage(svc.Name, img))
		}
	}
	return stream.Send(&islev1.BuildEvent{Event: &islev1.BuildEvent_Result{Result: res}})
}

// Missing implements the RPC.
func (s *images) Missing(_ context.Context, req *connect.Request[islev1.MissingRequest]) (*connect.Response[islev1.MissingResponse], error) {
	ds := make([]isle.Digest, 0, len(req.Msg.GetDigests()))
	for _, d := range req.Msg.GetDigests() {
		if !isle.Digest(d).Valid() {
			return nil, isle.Errorf(isle.Invalid, "%q is no digest", d)
		}
		ds = append(ds, isle.Digest(d))
	}
	return connect.NewResponse(&islev1.MissingResponse{Digests: digestStrings(s.Blobs.Missing(ds))}), nil
}

// Put implements the RPC. Blobs are named by their content and do nothing
// until a lock names them, so there is no audit entry for each: there is one for
// the call, and where it cannot be written nothing is stored.
func (s *images) Put(ctx context.Context, stream *connect.ClientStream[islev1.PutRequest]) (*connect.Response[islev1.PutResponse], error) {
	defer s.Blobs.Hold()()
	var blobs int32
	more := stream.Receive()
	if more {
		e := audit.NewEvent(actorOf(ctx), isle.ActionImageImport, isle.Resource{Kind: "image", Name: "*"}, isle.Allow, "files sent, the first of them "+clipped(stream.Msg().GetDigest()))
		if err := s.Audit.AppendSoon(ctx, e); err != nil {
			return nil, err
		}
	}
	for more {
		d := isle.Digest(stream.Msg().GetDigest())
		if !d.Valid() {
			return nil, isle.Errorf(isle.Invalid, "%q is no digest", d)
		}
		first, ended := true, false
		body := &chunkReader{next: func() ([]byte, error) {
			if first {
				first = false
				return stream.Msg().GetData(), nil
			}
			if more = stream.Receive(); !more {
				ended = true
				if err := stream.Err(); err != nil {
					return nil, err
				}
				return nil, io.EOF
			}
			if stream.Msg().GetDigest() != "" {
				ended = true
				return nil, io.EOF
			}
			return stream.Msg().GetData(), nil
		}}
		if err := s.Blobs.PutBlob(ctx, d, body); err != nil {
			return nil, err
		}
		for !ended { // the store had it and did not read on
			if _, err := body.next(); err != nil && err != io.EOF {
				return nil, err
			}
		}
		blobs++
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.PutResponse{Blobs: blobs}), nil
}

// Export implements the RPC.
func (s *images) Export(ctx context.Context, req *connect.Request[islev1.ExportRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	lock, err := spec.ParseLock("isle.lock", req.Msg.GetLock())
	if err != nil {
		return err
	}
	defer s.Blobs.Hold()()
	e := audit.NewIntent(actorOf(ctx), isle.ActionImageExport, isle.Resource{Kind: "image", Name: string(isle.DigestOf(req.Msg.GetLock()))}, "")
	return s.recorded(ctx, e, func() error {
		w := bufio.NewWriterSize(chunkWriter{stream}, maxChunk)
		if err := s.Builder.Export(ctx, lock, w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// Import implements the RPC.
func (s *images) Import(ctx context.Context, stream *connect.ClientStream[islev1.Chunk]) (*connect.Response[islev1.ImportResponse], error) {
	if !stream.Receive() {
		return nil, streamEnd(stream.Err(), "import")
	}
	defer s.Blobs.Hold()()
	body := received(stream)
	res := &islev1.ImportResponse{}
	e := audit.NewIntent(actorOf(ctx), isle.ActionImageImport, isle.Resource{Kind: "image", Name: "*"}, "")
	err := s.recorded(ctx, e, func() error {
		n, size, err := s.Builder.Import(ctx, body)
		res.Packages, res.Size = int32(n), size
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}
