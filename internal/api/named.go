package api

import (
	"bufio"
	"context"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/image"
	"isle/internal/image/registry"
)

// Images are the images that have names; *build.Builder implements it.
type Images interface {
	TreeNeeds(tree isle.Digest) []isle.Digest
	ImportImage(ctx context.Context, r build.ImageRequest, p build.Progress) (image.Name, error)
	ResolveImage(s string) (image.Name, image.Image, error)
	ListImages() ([]image.Name, []image.Image, error)
	PullImage(ctx context.Context, ref registry.Reference, o build.Options, p build.Progress) (image.Name, error)
	PushImage(ctx context.Context, name string, to registry.Reference, o build.Options, p build.Progress) (image.Name, error)
	ExportImage(ctx context.Context, name string, w io.Writer) error
	RemoveImage(s string) (image.Name, error)
}

var _ Images = (*build.Builder)(nil)

// named serves the ImageService.
type named struct{ Config }

// imageRules are those of the ImageService. An image is asked about under its
// name without a tag.
func (cfg Config) imageRules() map[string]rule {
	on := func(action isle.Action) rule {
		return func(_ context.Context, msg any) []ask {
			return []ask{cfg.onImage(action, msg.(interface{ GetImage() string }).GetImage())}
		}
	}
	return map[string]rule{
		islev1connect.ImageServiceImportImageProcedure: func(_ context.Context, msg any) []ask {
			return []ask{askImage(isle.ActionImageImport, build.ImportName(msg.(*islev1.ImportImageRequest).GetName()))}
		},
		islev1connect.ImageServicePullImageProcedure: func(_ context.Context, msg any) []ask {
			return []ask{askImage(isle.ActionImagePull, msg.(*islev1.PullImageRequest).GetImage())}
		},
		// What is pushed is taken out of the server too.
		islev1connect.ImageServicePushImageProcedure: func(_ context.Context, msg any) []ask {
			m := msg.(*islev1.PushImageRequest)
			return []ask{cfg.onImage(isle.ActionImageExport, m.GetImage()), askImage(isle.ActionImagePush, m.GetTo())}
		},
		islev1connect.ImageServiceExportImageProcedure: on(isle.ActionImageExport),
		islev1connect.ImageServiceListImagesProcedure: func(context.Context, any) []ask {
			return []ask{{isle.ActionImageRead, isle.Resource{Kind: "image", Name: "*"}, ""}}
		},
		islev1connect.ImageServiceGetImageProcedure:    on(isle.ActionImageRead),
		islev1connect.ImageServiceRemoveImageProcedure: on(isle.ActionImageRemove),
	}
}

// onImage is an action on an image of the store, by the name that it has. One
// that is not there is found so by the handler, under the name given.
func (cfg Config) onImage(action isle.Action, name string) ask {
	if n, _, err := cfg.Images.ResolveImage(name); err == nil && n.Name != "" {
		name = n.Name
	}
	return askImage(action, name)
}

// askImage is an action on the image of a name, of any where none is said.
func askImage(action isle.Action, name string) ask {
	if name == "" {
		name = "*"
	}
	return ask{action, isle.Resource{Kind: "image", Name: clipped(build.ImageResource(name))}, ""}
}

// ImportImage implements the RPC.
func (s *named) ImportImage(ctx context.Context, req *connect.Request[islev1.ImportImageRequest], stream *connect.ServerStream[islev1.ImageEvent]) error {
	m := req.Msg
	r := build.ImageRequest{Tree: isle.Digest(m.GetTree()), File: clipped(m.GetFile()), Pick: m.GetImage(), Name: m.GetName()}
	if !r.Tree.Valid() {
		return isle.Errorf(isle.Invalid, "%q is no digest", clipped(m.GetTree()))
	}
	defer s.Blobs.Hold()()
	if need := s.Images.TreeNeeds(r.Tree); len(need) > 0 {
		return stream.Send(&islev1.ImageEvent{Event: &islev1.ImageEvent_Need{Need: &islev1.Need{Digests: digestStrings(need)}}})
	}
	a := askImage(isle.ActionImageImport, build.ImportName(r.Name))
	return s.makeImage(ctx, audit.NewIntent(actorOf(ctx), a.action, a.resource, r.File), nil, stream, func(work context.Context, p build.Progress) (image.Name, error) {
		return s.Images.ImportImage(work, r, p)
	})
}

// PullImage implements the RPC.
func (s *named) PullImage(ctx context.Context, req *connect.Request[islev1.PullImageRequest], stream *connect.ServerStream[islev1.ImageEvent]) error {
	ref, err := registry.Parse(req.Msg.GetImage())
	if err != nil {
		return err
	}
	credentials, err := readCredentials(req.Msg.GetCredentials())
	if err != nil {
		return err
	}
	defer s.Blobs.Hold()()
	a := askImage(isle.ActionImagePull, ref.String())
	return s.makeImage(ctx, audit.NewIntent(actorOf(ctx), a.action, a.resource, ref.String()), credentials, stream, func(work context.Context, p build.Progress) (image.Name, error) {
		return s.Images.PullImage(work, ref, build.Options{Credentials: credentials}, p)
	})
}

// PushImage implements the RPC.
func (s *named) PushImage(ctx context.Context, req *connect.Request[islev1.PushImageRequest], stream *connect.ServerStream[islev1.ImageEvent]) error {
	to, err := registry.Parse(req.Msg.GetTo())
	if err != nil {
		return err
	}
	credentials, err := readCredentials(req.Msg.GetCredentials())
	if err != nil {
		return err
	}
	a := askImage(isle.ActionImagePush, to.String())
	intent := audit.NewIntent(actorOf(ctx), a.action, a.resource, to.String()).With("from", clipped(req.Msg.GetImage()))
	return s.makeImage(ctx, intent, credentials, stream, func(work context.Context, p build.Progress) (image.Name, error) {
		return s.Images.PushImage(work, req.Msg.GetImage(), to, build.Options{Credentials: credentials}, p)
	})
}

// ExportImage implements the RPC.
func (s *named) ExportImage(ctx context.Context, req *connect.Request[islev1.ExportImageRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	name := req.Msg.GetImage()
	if _, _, err := s.Images.ResolveImage(name); err != nil {
		return err
	}
	a := s.onImage(isle.ActionImageExport, name)
	return s.recorded(ctx, audit.NewIntent(actorOf(ctx), a.action, a.resource, ""), func() error {
		w := bufio.NewWriterSize(chunkWriter{stream}, maxChunk)
		if err := s.Images.ExportImage(ctx, name, w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// makeImage makes an image between its intent and its outcome, which names it,
// and tells of it.
func (s *named) makeImage(ctx context.Context, intent audit.Entry, have build.Credentials, stream *connect.ServerStream[islev1.ImageEvent], do func(ctx context.Context, p build.Progress) (image.Name, error)) error {
	tell, work := s.newTeller(ctx, intent.Action, intent.Resource, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.ImageEvent{Event: &islev1.ImageEvent_Progress{Progress: e}})
	})
	defer tell.done()
	if err := s.Audit.Append(ctx, intent); err != nil {
		return err
	}
	n, err := do(work, func(e build.Event) {
		tell.event(&islev1.ProgressEvent{Step: e.Step, State: e.State, Message: e.Message, Done: e.Done, Total: e.Total})
	})
	outcome := intent.Outcome(err)
	if err == nil {
		outcome = outcome.With("name", n.Name).With("image", string(n.Image))
	}
	if aerr := s.Audit.Append(context.WithoutCancel(ctx), outcome); aerr != nil {
		s.Log.Error("an outcome could not be recorded; recovery will close it as unknown", "action", intent.Action, "err", aerr)
	}
	tell.done()
	if err != nil {
		if need := wantsLogin(err, have); need != nil {
			return stream.Send(&islev1.ImageEvent{Event: &islev1.ImageEvent_Need{Need: need}})
		}
		return err
	}
	_, img, err := s.Images.ResolveImage(string(n.Image))
	if err != nil {
		return err
	}
	return stream.Send(&islev1.ImageEvent{Event: &islev1.ImageEvent_Image{Image: namedMessage(n, img)}})
}

// ListImages implements the RPC.
func (s *named) ListImages(context.Context, *connect.Request[islev1.ListImagesRequest]) (*connect.Response[islev1.ListImagesResponse], error) {
	names, images, err := s.Images.ListImages()
	if err != nil {
		return nil, err
	}
	res := &islev1.ListImagesResponse{}
	for i, n := range names {
		m := namedMessage(n, images[i])
		m.Layers, m.Config, m.LeftOut = nil, nil, nil
		res.Images = append(res.Images, m)
	}
	return connect.NewResponse(res), nil
}

// GetImage implements the RPC.
func (s *named) GetImage(_ context.Context, req *connect.Request[islev1.GetImageRequest]) (*connect.Response[islev1.GetImageResponse], error) {
	n, img, err := s.Images.ResolveImage(req.Msg.GetImage())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.GetImageResponse{Image: namedMessage(n, img)}), nil
}

// RemoveImage implements the RPC.
func (s *named) RemoveImage(ctx context.Context, req *connect.Request[islev1.RemoveImageRequest]) (*connect.Response[islev1.RemoveImageResponse], error) {
	n, img, err := s.Images.ResolveImage(req.Msg.GetImage())
	if err != nil {
		return nil, err
	}
	a := s.onImage(isle.ActionImageRemove, req.Msg.GetImage())
	err = s.recorded(ctx, audit.NewIntent(actorOf(ctx), a.action, a.resource, n.Name), func() error {
		_, err := s.Images.RemoveImage(req.Msg.GetImage())
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RemoveImageResponse{Image: namedMessage(n, img)}), nil
}

func namedMessage(n image.Name, m image.Image) *islev1.Image {
	out := &islev1.Image{
		Name: n.Name, Digest: string(m.Digest()), From: n.From, Source: string(n.Source), Architecture: m.Architecture,
		Size: m.Size(), Layers: imageMessage("", m).Layers, LeftOut: n.LeftOut,
	}
	if !n.Time.IsZero() {
		out.Time = timestamppb.New(n.Time)
	}
	if c := n.Runs(m); c != nil {
		out.Config = &islev1.ImageConfig{
			User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Workdir: c.Workdir, Volumes: c.Volumes, Ports: c.Ports,
			Labels: c.Labels, StopSignal: c.StopSignal,
		}
	}
	return out
}
