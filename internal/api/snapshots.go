package api

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/seal"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// Snapshots are captured states; *snapshot.Snapshots implements it.
type Snapshots interface {
	SnapshotReader
	SnapshotWriter
}

// A SnapshotReader tells of snapshots.
type SnapshotReader interface {
	List() ([]snapshot.Snapshot, error)
	Look(name string) (snapshot.Snapshot, error)
	Verify(ctx context.Context, name string) (snapshot.Verified, error)
	Export(ctx context.Context, name string, w io.Writer) error
	Files(ctx context.Context, d isle.Digest, service string) (map[string]spec.Tree, error)
	Keys() ([]seal.TrustedKey, error)
}

// A SnapshotWriter changes which there are, and what they are called.
type SnapshotWriter interface {
	Import(ctx context.Context, actor isle.Actor, r io.Reader, allow func(snapshot.Manifest) error) (snapshot.Snapshot, error)
	Tag(ctx context.Context, actor isle.Actor, name, tag string, move bool) (snapshot.Snapshot, error)
	Untag(ctx context.Context, actor isle.Actor, tag string) error
	Remove(ctx context.Context, actor isle.Actor, name string, force bool) (isle.Digest, error)
	Trust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error)
	Distrust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error)
}

// snapshots serves the SnapshotService.
type snapshots struct{ Config }

// snapshotRules are those of the SnapshotService. What is done to a snapshot is
// done in the stage of the environment that it was of.
func (cfg Config) snapshotRules() map[string]rule {
	server := isle.Resource{Kind: "server", Name: "server"}
	on := func(action isle.Action, name func(any) string) rule {
		return func(_ context.Context, msg any) []ask { return []ask{cfg.onSnapshot(action, name(msg))} }
	}
	named := func(msg any) string { return msg.(interface{ GetSnapshot() string }).GetSnapshot() }
	always := func(action isle.Action) rule {
		return func(context.Context, any) []ask { return []ask{{action, server, ""}} }
	}
	return map[string]rule{
		islev1connect.SnapshotServiceCreateSnapshotProcedure: func(ctx context.Context, msg any) []ask {
			a := cfg.onEnvironment(ctx, isle.ActionSnapshotCreate, msg.(*islev1.CreateSnapshotRequest).GetEnvironment())
			a.resource.Kind = "snapshot"
			return []ask{a}
		},
		// Which ones are shown the handler finds out, and of which stage one is that
		// comes in a file: they are of several stages, each a session of its own.
		islev1connect.SnapshotServiceListSnapshotsProcedure:  always(isle.ActionEnvironmentList),
		islev1connect.SnapshotServiceImportSnapshotProcedure: always(isle.ActionEnvironmentList),

		islev1connect.SnapshotServiceGetSnapshotProcedure:    on(isle.ActionSnapshotRead, named),
		islev1connect.SnapshotServiceVerifySnapshotProcedure: on(isle.ActionSnapshotRead, named),
		islev1connect.SnapshotServiceTagSnapshotProcedure:    on(isle.ActionSnapshotTag, named),
		islev1connect.SnapshotServiceRemoveSnapshotProcedure: on(isle.ActionSnapshotRemove, named),
		islev1connect.SnapshotServiceExportSnapshotProcedure: on(isle.ActionSnapshotExport, named),
		islev1connect.SnapshotServiceUntagSnapshotProcedure: on(isle.ActionSnapshotTag, func(msg any) string {
			return msg.(*islev1.UntagSnapshotRequest).GetTag()
		}),
		islev1connect.SnapshotServiceCompareProcedure:  cfg.asksOfCompare,
		islev1connect.SnapshotServiceListKeysProcedure: always(isle.ActionServerRead),
		islev1connect.SnapshotServiceTrustKeyProcedure: always(isle.ActionSnapshotTrust),
	}
}

// onSnapshot is an action on the snapshot of a name. One that is not there is
// found so by the handler, under the name given.
func (cfg Config) onSnapshot(action isle.Action, name string) ask {
	s, err := cfg.Snapshots.Look(name)
	if err != nil {
		return ask{action, isle.Resource{Kind: "snapshot", Name: clipped(name), Stage: isle.DefaultStage}, ""}
	}
	return askOf(action, s.Manifest)
}

func askOf(action isle.Action, m snapshot.Manifest) ask {
	return ask{action, isle.Resource{Kind: "snapshot", Name: m.Ref.Name, Stage: m.Ref.Stage}, m.Project}
}

// find returns the snapshot that a name is of now, once it is sure that the
// caller may: a tag may have moved since the call's rule was asked.
func (s *snapshots) find(ctx context.Context, action isle.Action, name string) (snapshot.Snapshot, error) {
	snap, err := s.Snapshots.Look(name)
	if err != nil {
		return snap, err
	}
	return snap, s.allowed(ctx, askOf(action, snap.Manifest))
}

// CreateSnapshot implements the RPC.
func (s *snapshots) CreateSnapshot(ctx context.Context, req *connect.Request[islev1.CreateSnapshotRequest], stream *connect.ServerStream[islev1.CreateSnapshotEvent]) error {
	m := req.Msg
	ref, err := isle.ParseRef(m.GetEnvironment())
	if err != nil {
		return err
	}
	if err := snapshot.CheckMessage(m.GetMessage()); err != nil {
		return err
	}
	if m.GetTag() != "" {
		if err := snapshot.CheckTag(m.GetTag()); err != nil {
			return err
		}
	}
	snap, err := s.Capture(ctx, actorOf(ctx), ref, environment.SnapshotRequest{Message: m.GetMessage(), Tag: m.GetTag(), NoMemory: m.GetNoMemory()})
	if err != nil {
		return err
	}
	return stream.Send(&islev1.CreateSnapshotEvent{Snapshot: snapshotMessage(snap)})
}

// ListSnapshots implements the RPC.
func (s *snapshots) ListSnapshots(ctx context.Context, req *connect.Request[islev1.ListSnapshotsRequest]) (*connect.Response[islev1.ListSnapshotsResponse], error) {
	var of isle.Ref
	if name := req.Msg.GetEnvironment(); name != "" {
		var err error
		if of, err = isle.ParseRef(name); err != nil {
			return nil, err
		}
	}
	list, err := s.Snapshots.List()
	if err != nil {
		return nil, err
	}
	who, _ := callerFrom(ctx)
	res := &islev1.ListSnapshotsResponse{}
	for _, snap := range list {
		if of != (isle.Ref{}) && snap.Manifest.Ref != of {
			continue
		}
		if q := queriesOf(who, askOf(isle.ActionSnapshotRead, snap.Manifest)); s.Policy.Decide(q[0]).Allowed() {
			res.Snapshots = append(res.Snapshots, snapshotMessage(snap))
		}
	}
	return connect.NewResponse(res), nil
}

// GetSnapshot implements the RPC.
func (s *snapshots) GetSnapshot(ctx context.Context, req *connect.Request[islev1.GetSnapshotRequest]) (*connect.Response[islev1.GetSnapshotResponse], error) {
	snap, err := s.find(ctx, isle.ActionSnapshotRead, req.Msg.GetSnapshot())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.GetSnapshotResponse{Snapshot: s.whole(snap)}), nil
}

// TagSnapshot implements the RPC.
func (s *snapshots) TagSnapshot(ctx context.Context, req *connect.Request[islev1.TagSnapshotRequest]) (*connect.Response[islev1.TagSnapshotResponse], error) {
	m := req.Msg
	snap, err := s.find(ctx, isle.ActionSnapshotTag, m.GetSnapshot())
	if err != nil {
		return nil, err
	}
	if other, err := s.Snapshots.Look(m.GetTag()); m.GetMove() && err == nil { // it is taken away there
		if err := s.allowed(ctx, askOf(isle.ActionSnapshotTag, other.Manifest)); err != nil {
			return nil, err
		}
	}
	if snap, err = s.Snapshots.Tag(ctx, actorOf(ctx), string(snap.Digest), m.GetTag(), m.GetMove()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.TagSnapshotResponse{Snapshot: snapshotMessage(snap)}), nil
}

// UntagSnapshot implements the RPC.
func (s *snapshots) UntagSnapshot(ctx context.Context, req *connect.Request[islev1.UntagSnapshotRequest]) (*connect.Response[islev1.UntagSnapshotResponse], error) {
	if err := s.Snapshots.Untag(ctx, actorOf(ctx), req.Msg.GetTag()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.UntagSnapshotResponse{}), nil
}

// RemoveSnapshot implements the RPC.
func (s *snapshots) RemoveSnapshot(ctx context.Context, req *connect.Request[islev1.RemoveSnapshotRequest]) (*connect.Response[islev1.RemoveSnapshotResponse], error) {
	snap, err := s.find(ctx, isle.ActionSnapshotRemove, req.Msg.GetSnapshot())
	if err != nil {
		return nil, err
	}
	d, err := s.Snapshots.Remove(ctx, actorOf(ctx), string(snap.Digest), req.Msg.GetForce())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RemoveSnapshotResponse{Digest: string(d)}), nil
}

// VerifySnapshot implements the RPC.
func (s *snapshots) VerifySnapshot(ctx context.Context, req *connect.Request[islev1.VerifySnapshotRequest], stream *connect.ServerStream[islev1.VerifySnapshotEvent]) error {
	snap, err := s.find(ctx, isle.ActionSnapshotRead, req.Msg.GetSnapshot())
	if err != nil {
		return err
	}
	v, err := s.Snapshots.Verify(ctx, string(snap.Digest))
	if err != nil {
		return err
	}
	return stream.Send(&islev1.VerifySnapshotEvent{Snapshot: snapshotMessage(v.Snapshot), Bytes: v.Bytes, Parents: digestStrings(v.Parents), Gone: string(v.Gone)})
}

// ExportSnapshot implements the RPC.
func (s *snapshots) ExportSnapshot(ctx context.Context, req *connect.Request[islev1.ExportSnapshotRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	snap, err := s.find(ctx, isle.ActionSnapshotExport, req.Msg.GetSnapshot())
	if err != nil {
		return err
	}
	ref := snap.Manifest.Ref
	e := audit.NewIntent(actorOf(ctx), isle.ActionSnapshotExport, isle.Resource{Kind: "snapshot", Name: ref.Name, Stage: ref.Stage}, "").
		In(ref, snap.Manifest.Instance).With("snapshot", string(snap.Digest))
	return s.recorded(ctx, e, func() error {
		w := bufio.NewWriterSize(chunkWriter{stream}, maxChunk)
		if err := s.Snapshots.Export(ctx, string(snap.Digest), w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// ImportSnapshot implements the RPC.
func (s *snapshots) ImportSnapshot(ctx context.Context, stream *connect.ClientStream[islev1.Chunk]) (*connect.Response[islev1.ImportSnapshotResponse], error) {
	if !stream.Receive() {
		return nil, streamEnd(stream.Err(), "import")
	}
	body := received(stream)
	snap, err := s.Snapshots.Import(ctx, actorOf(ctx), body, func(m snapshot.Manifest) error {
		return s.allowed(ctx, askOf(isle.ActionSnapshotImport, m))
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ImportSnapshotResponse{Snapshot: s.whole(snap)}), nil
}

// ListKeys implements the RPC.
func (s *snapshots) ListKeys(context.Context, *connect.Request[islev1.ListKeysRequest]) (*connect.Response[islev1.ListKeysResponse], error) {
	keys, err := s.Snapshots.Keys()
	if err != nil {
		return nil, err
	}
	res := &islev1.ListKeysResponse{}
	for _, k := range keys {
		res.Keys = append(res.Keys, keyMessage(k))
	}
	return connect.NewResponse(res), nil
}

// TrustKey implements the RPC.
func (s *snapshots) TrustKey(ctx context.Context, req *connect.Request[islev1.TrustKeyRequest]) (*connect.Response[islev1.TrustKeyResponse], error) {
	change := s.Snapshots.Trust
	if req.Msg.GetRemove() {
		change = s.Snapshots.Distrust
	}
	k, err := change(ctx, actorOf(ctx), req.Msg.GetKey())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.TrustKeyResponse{Key: keyMessage(k)}), nil
}

func keyMessage(k seal.TrustedKey) *islev1.SnapshotKey {
	return &islev1.SnapshotKey{Name: k.Name, Key: k.Key, Own: k.Own}
}

// whole is a snapshot with what nothing can be made of it without: images come
// from builds, and are not in a file that comes from elsewhere.
func (s *snapshots) whole(snap snapshot.Snapshot) *islev1.Snapshot {
	out := snapshotMessage(snap)
	for i, svc := range snap.Manifest.Services {
		out.Images[i].Missing = slices.ContainsFunc(svc.Image.Layers, func(l image.Layer) bool { return !s.Blobs.HasLayer(l.Digest) })
	}
	return out
}

func snapshotMessage(s snapshot.Snapshot) *islev1.Snapshot {
	m := s.Manifest
	out := &islev1.Snapshot{
		Digest: string(s.Digest), Tags: s.Tags, Environment: m.Ref.String(), Stage: m.Ref.Stage, Project: m.Project, Instance: string(m.Instance),
		Isolation: m.Isolation, Author: m.Author.String(), Created: timestamppb.New(m.Created), Message: m.Message, Parent: string(m.Parent),
		Release: m.Release, Generation: m.Generation, Used: s.Used, Signer: s.Signer, Trusted: s.Trusted, Imported: s.Imported, NoMemory: s.NoMemory,
	}
	if s.Broken != nil {
		out.Broken = Flatten(s.Broken).Message
	}
	if w := s.Warm; w != nil {
		out.Warm = &islev1.SnapshotWarm{Key: string(w.Key), Owner: ownerText(w.Owner), Used: timestamppb.New(w.Used)}
	}
	if m.Memory != nil {
		out.Memory, out.Runtime = true, string(m.Memory.Runtime)
		for _, f := range m.Memory.Files {
			out.MemoryBytes += f.Size
		}
	}
	for _, v := range m.Volumes {
		out.Volumes = append(out.Volumes, &islev1.SnapshotVolume{Service: v.Service, Path: v.Path, Size: v.Size, Bytes: v.Bytes, Digest: string(v.Digest)})
	}
	for _, svc := range m.Services {
		out.Images = append(out.Images, &islev1.SnapshotImage{Service: svc.Name, Digest: string(svc.Image.Digest())})
	}
	return out
}

// A side is one of two states that are compared: an environment, a snapshot or a
// release.
type side struct {
	ref  isle.Ref
	snap *snapshot.Snapshot
	rel  *released
}

// meansSnapshot is what the name of a snapshot may begin with where an environment
// is called so too.
const meansSnapshot = "snapshot:"

// sideOf finds out what a name means: an environment's, or, where there is none
// of that name, a snapshot's or a release's.
func (cfg Config) sideOf(ctx context.Context, name string) (side, error) {
	if given, ok := strings.CutPrefix(name, meansRelease); ok {
		rel, err := cfg.releasedAs(given)
		return side{rel: rel}, err
	}
	given, only := strings.CutPrefix(name, meansSnapshot)
	ref, err := isle.ParseRef(given)
	if err == nil && !only {
		if _, err = cfg.Environments.Get(ctx, ref); err == nil {
			return side{ref: ref}, nil
		}
	}
	snap, serr := cfg.Snapshots.Look(given)
	var rel *released
	rerr := serr
	if !only {
		rel, rerr = cfg.releasedAs(given)
	}
	switch {
	case serr == nil && rerr == nil && rel != nil:
		return side{}, isle.Errorf(isle.Conflict, "%q could be snapshot %s or release %s", clipped(name), snap.Digest.Short(), rel.Digest.Short()).
			WithHint("say which one: %s%s or %s%s", meansSnapshot, given, meansRelease, given)
	case serr == nil:
		return side{ref: snap.Manifest.Ref, snap: &snap}, nil
	case rerr == nil && rel != nil && isle.CodeOf(serr) == isle.NotFound:
		return side{rel: rel}, nil
	case only || isle.CodeOf(serr) != isle.NotFound:
		return side{}, serr
	case isle.CodeOf(rerr) != isle.NotFound:
		return side{}, rerr
	case isle.CodeOf(err) == isle.NotFound:
		return side{}, isle.Errorf(isle.NotFound, "there is no environment, no snapshot and no release %q", clipped(name)).WithHint("see `isle ls`, `isle snapshot ls` and `isle release ls`")
	}
	return side{}, err
}

// asksOfSide is whether the caller may see the files of a side.
func (cfg Config) asksOfSide(ctx context.Context, s side) ask {
	if s.rel != nil {
		return releaseOf(isle.ActionReleaseRead, s.rel.Manifest.Project)
	}
	if s.snap != nil {
		a := askOf(isle.ActionEnvironmentDiff, s.snap.Manifest)
		a.resource.Kind = "environment"
		return a
	}
	return cfg.onEnvironment(ctx, isle.ActionEnvironmentDiff, s.ref.String())
}

// asksOfCompare is to see the files of the first state; the second may be of
// another stage, which is a session of its own, and the handler asks about it.
func (cfg Config) asksOfCompare(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.CompareRequest)
	sides, err := cfg.sidesOf(ctx, m.GetFrom(), m.GetTo())
	if err != nil { // found wrong by the handler, under the name given
		return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentDiff, m.GetFrom())}
	}
	return []ask{cfg.asksOfSide(ctx, sides[0])}
}

// Compare implements the RPC.
func (s *snapshots) Compare(ctx context.Context, req *connect.Request[islev1.CompareRequest], stream *connect.ServerStream[islev1.CompareEvent]) error {
	sides, err := s.sidesOf(ctx, req.Msg.GetFrom(), req.Msg.GetTo())
	if err != nil {
		return err
	}
	defer s.Blobs.Hold()()
	var states [2]snapshot.State
	var images [2]map[string]image.Image
	released := sides[0].rel != nil || sides[1].rel != nil // one has nothing in volumes
	for i, what := range sides {
		if err := s.allowed(ctx, s.asksOfSide(ctx, what)); err != nil {
			return err
		}
		if states[i], images[i], err = s.state(ctx, what, req.Msg.GetService(), !released); err != nil {
			return err
		}
	}
	res := &islev1.CompareEvent{}
	if released {
		if res.Images, err = s.imagesDiffer(ctx, images[0], images[1]); err != nil {
			return err
		}
	}
	d, err := snapshot.Compare(states[0], states[1])
	if err != nil {
		return err
	}
	for _, c := range d.Files {
		res.Files = append(res.Files, &islev1.Change{Service: c.Service, Volume: c.Volume, Path: c.Path, Kind: c.Kind, Size: c.Size})
	}
	for _, c := range d.Packages {
		res.Packages = append(res.Packages, &islev1.PackageChange{Service: c.Service, Name: c.Name, From: c.From, To: c.To})
	}
	for _, c := range d.Configuration {
		res.Configuration = append(res.Configuration, &islev1.SettingChange{Key: c.Key, From: c.From, To: c.To})
	}
	return stream.Send(res)
}

// state reads one side, with its images. Files of volumes are read where they are
// to be compared.
func (s *snapshots) state(ctx context.Context, what side, service string, files bool) (out snapshot.State, images map[string]image.Image, err error) {
	images = map[string]image.Image{}
	take := func(name string, img image.Image) {
		if service == "" || name == service {
			images[name] = img
		}
	}
	switch {
	case what.rel != nil:
		for _, svc := range what.rel.Manifest.Services {
			take(svc.Name, svc.Image)
		}
		out, err = what.rel.state(ctx, s.Blobs, service)
		return out, images, err
	case what.snap != nil:
		if what.snap.Broken != nil {
			return out, nil, what.snap.Broken
		}
		m := what.snap.Manifest
		e := audit.NewEvent(actorOf(ctx), isle.ActionEnvironmentDiff, isle.Resource{Kind: "environment", Name: m.Ref.Name, Stage: m.Ref.Stage}, isle.Allow, "").
			In(m.Ref, m.Instance).With("snapshot", string(what.snap.Digest))
		if err := s.Audit.AppendSoon(ctx, e); err != nil {
			return out, nil, err
		}
		if files {
			if out.Files, err = s.Snapshots.Files(ctx, what.snap.Digest, service); err != nil {
				return out, nil, err
			}
		}
		out.Spec = m.Spec
		for _, svc := range m.Services {
			take(svc.Name, svc.Image)
		}
	default:
		e, err := s.Environments.Get(ctx, what.ref)
		if err != nil {
			return out, nil, err
		}
		if files {
			if out.Files, err = s.Environments.Files(ctx, actorOf(ctx), what.ref, service); err != nil {
				return out, nil, err
			}
		}
		out.Spec = e.Spec
		for _, svc := range e.Services {
			take(svc.Name, svc.Image)
		}
	}
	out.Packages = map[string]map[string]string{}
	for name, img := range images {
		if out.Packages[name], err = s.Blobs.Packages(ctx, img); err != nil {
			return out, nil, err
		}
	}
	return out, images, nil
}
