package api

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/image"
	"isle/internal/policy"
	"isle/internal/release"
	"isle/internal/seal"
	"isle/internal/spec"
)

// Releases are what was released; *release.Releases implements it.
type Releases interface {
	ReleaseReader
	ReleaseWriter
}

// A ReleaseReader tells of releases.
type ReleaseReader interface {
	List() ([]release.Release, error)
	Look(name string) (release.Release, error)
	Use(name string) (release.Release, error)
	Launch(ctx context.Context, name string) (release.Release, map[string]image.Image, error)
	Verify(ctx context.Context, name string) (release.Verified, error)
	Statement(d isle.Digest, a release.Attestation) ([]byte, error)
	Export(ctx context.Context, name string, layers bool, w io.Writer) error
	Keys() ([]seal.TrustedKey, error)
	// Ring is the keys whose signatures count.
	Ring() (*seal.Ring, error)
	StagesOf(d isle.Digest) []release.Stage
	Stage(project, stage string) (release.Stage, bool)
	// Reach is what was recorded of a stage's doors, by its digest.
	Reach(d isle.Digest) (policy.Reach, bool)
	At(rel release.Release, stage string, must bool) (release.Values, error)
	Plan(ctx context.Context, p release.Promotion) (release.Plan, error)
	Drift(ctx context.Context, run release.Running, full bool) ([]release.Finding, error)
	PlanRollback(ctx context.Context, b release.Rollback) (release.Return, error)
	// Gates are how the conditions of a plan stand that are known without asking
	// anybody.
	Gates(g policy.Gate, plan release.Plan, s release.Serving) []release.Gate
}

// A ReleaseWriter changes which there are.
type ReleaseWriter interface {
	Create(ctx context.Context, actor isle.Actor, req release.Request) (rel release.Release, made bool, err error)
	Promote(ctx context.Context, actor isle.Actor, p release.Promotion, seen isle.Digest) (release.Plan, error)
	Rollback(ctx context.Context, actor isle.Actor, b release.Rollback, seen isle.Digest) error
	// Agree records what a stage may do and reach now.
	Agree(ctx context.Context, actor isle.Actor, rule, project, stage string, d isle.Digest) error
	Clear(ctx context.Context, actor isle.Actor, project, stage, name string) (release.Stage, error)
	Import(ctx context.Context, actor isle.Actor, r io.Reader, allow func(project string) error) (release.Release, error)
	Remove(ctx context.Context, actor isle.Actor, name string) (isle.Digest, error)
	// Keep keeps one until a time; the zero time: not any more.
	Keep(ctx context.Context, actor isle.Actor, name string, until time.Time) (isle.Digest, error)
	Trust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error)
	Distrust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error)
}

// releases serves the ReleaseService.
type releases struct {
	Config
	// histories is full while a history is read: each reads much of the log, and
	// whoever comes meanwhile waits.
	histories chan struct{}
}

// releaseRules are those of the ReleaseService. A release is of its project, and
// of no stage.
func (cfg Config) releaseRules() map[string]rule {
	server := isle.Resource{Kind: "server", Name: "server"}
	on := func(action isle.Action) rule {
		return func(_ context.Context, msg any) []ask {
			return []ask{cfg.onRelease(action, msg.(interface{ GetRelease() string }).GetRelease())}
		}
	}
	always := func(action isle.Action) rule {
		return func(context.Context, any) []ask { return []ask{{action, server, ""}} }
	}
	return map[string]rule{
		islev1connect.ReleaseServiceCreateReleaseProcedure: func(_ context.Context, msg any) []ask {
			return []ask{releaseOf(isle.ActionReleaseCreate, projectOf(msg.(*islev1.CreateReleaseRequest).GetSource()))}
		},
		// Which ones are shown the handler finds out.
		islev1connect.ReleaseServiceListReleasesProcedure:   always(isle.ActionServerRead),
		islev1connect.ReleaseServiceGetReleaseProcedure:     on(isle.ActionReleaseRead),
		islev1connect.ReleaseServiceVerifyReleaseProcedure:  on(isle.ActionReleaseRead),
		islev1connect.ReleaseServiceGetAttestationProcedure: on(isle.ActionReleaseRead),
		islev1connect.ReleaseServiceExportReleaseProcedure:  on(isle.ActionReleaseExport),
		// Of which project one is that comes in a file the handler finds out.
		islev1connect.ReleaseServiceImportReleaseProcedure: always(isle.ActionServerRead),
		islev1connect.ReleaseServiceRemoveReleaseProcedure: on(isle.ActionReleaseRemove),
		islev1connect.ReleaseServiceKeepReleaseProcedure:   on(isle.ActionReleaseKeep),
		islev1connect.ReleaseServicePromoteProcedure:       cfg.asksOfPromote,
		islev1connect.ReleaseServiceRollbackProcedure:      cfg.asksOfRollback,
		// Which ones are looked at, of all, the handler finds out.
		islev1connect.ReleaseServiceDriftProcedure: func(ctx context.Context, msg any) []ask {
			name := msg.(*islev1.DriftRequest).GetEnvironment()
			if name == "" {
				return []ask{{isle.ActionServerRead, server, ""}}
			}
			return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentRead, name)}
		},
		islev1connect.ReleaseServiceHistoryProcedure: cfg.asksOfHistory,
		islev1connect.ReleaseServiceClearReleaseProcedure: func(_ context.Context, msg any) []ask {
			m := msg.(*islev1.ClearReleaseRequest)
			project := clipped(m.GetProject())
			return []ask{{isle.ActionReleaseClear, isle.Resource{Kind: "release", Name: project, Stage: clipped(m.GetStage())}, project}}
		},
		islev1connect.ReleaseServiceListStagesProcedure:      always(isle.ActionServerRead),
		islev1connect.ReleaseServiceListReleaseKeysProcedure: always(isle.ActionServerRead),
		islev1connect.ReleaseServiceTrustReleaseKeyProcedure: always(isle.ActionReleaseTrust),
	}
}

// releaseOf is an action on the releases of a project.
func releaseOf(action isle.Action, project string) ask {
	return ask{action, isle.Resource{Kind: "release", Name: project}, project}
}

// onRelease is an action on the release of a name. One that is not there is found
// so by the handler, under the name given.
func (cfg Config) onRelease(action isle.Action, name string) ask {
	rel, err := cfg.Releases.Look(name)
	if err != nil {
		return ask{action, isle.Resource{Kind: "release", Name: clipped(name)}, ""}
	}
	return releaseOf(action, rel.Manifest.Project)
}

// projectOfUp is the project of what is to be launched: a release's, or a file's.
func (cfg Config) projectOfUp(m *islev1.UpRequest) string {
	if m.GetRelease() == "" {
		return projectOf(m.GetSource())
	}
	rel, err := cfg.Releases.Look(m.GetRelease())
	if err != nil { // found wrong by the handler
		return "?"
	}
	return rel.Manifest.Project
}

// ofRelease says in queries that what is launched is a release.
func ofRelease(queries []policy.Query) {
	for i := range queries {
		queries[i].Release = queries[i].Action == isle.ActionEnvironmentLaunch
	}
}

// CreateRelease implements the RPC: build what the lock pins, and seal it.
func (s *releases) CreateRelease(ctx context.Context, req *connect.Request[islev1.CreateReleaseRequest], stream *connect.ServerStream[islev1.CreateReleaseEvent]) error {
	m := req.Msg
	if err := checkCheckout(&islev1.UpRequest{Branch: m.GetBranch(), Commit: m.GetCommit(), Repository: m.GetRepository()}); err != nil {
		return err
	}
	r, err := readSource(m.GetSource())
	if err != nil {
		return err
	}
	if r.lock == nil {
		return isle.Errorf(isle.Invalid, "there is no isle.lock: a release is of what a lock pins").WithHint("`isle lock` writes it; commit it beside the file")
	}
	tell, work := s.newTeller(ctx, isle.ActionImageBuild, isle.Resource{Kind: "image", Name: r.file.Name}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.CreateReleaseEvent{Event: &islev1.CreateReleaseEvent_Progress{Progress: e}})
	})
	defer tell.done()
	defer s.Blobs.Hold()() // what is built has no name before it is released
	b, err := s.prepare(work, r, prepareOptions{lock: build.LockOptions{Mirror: m.GetMirror(), Locked: true}}, tell.build)
	if err = tell.end(work, err); err != nil {
		return err
	}
	if len(b.need) > 0 {
		return stream.Send(&islev1.CreateReleaseEvent{Event: &islev1.CreateReleaseEvent_Need{Need: &islev1.Need{Digests: digestStrings(b.need)}}})
	}
	rel, made, err := s.Releases.Create(ctx, actorOf(ctx), release.Request{
		Spec: r.file, Lock: b.lock, Images: b.result.Images,
		Source: release.Source{Branch: m.GetBranch(), Commit: m.GetCommit(), Dirty: m.GetDirty(), Repository: m.GetRepository()},
	})
	if err != nil {
		return err
	}
	return stream.Send(&islev1.CreateReleaseEvent{Event: &islev1.CreateReleaseEvent_Result{Result: &islev1.CreateReleaseResult{Release: s.message(rel), Made: made}}})
}

// ListReleases implements the RPC.
func (s *releases) ListReleases(ctx context.Context, req *connect.Request[islev1.ListReleasesRequest]) (*connect.Response[islev1.ListReleasesResponse], error) {
	list, err := s.Releases.List()
	if err != nil {
		return nil, err
	}
	who, _ := callerFrom(ctx)
	res := &islev1.ListReleasesResponse{}
	for _, rel := range list {
		project := rel.Manifest.Project
		if of := req.Msg.GetProject(); of != "" && of != project {
			continue
		}
		if q := queriesOf(who, releaseOf(isle.ActionReleaseRead, project)); s.Policy.Decide(q[0]).Allowed() {
			res.Releases = append(res.Releases, s.message(rel))
		}
	}
	return connect.NewResponse(res), nil
}

// GetRelease implements the RPC.
func (s *releases) GetRelease(_ context.Context, req *connect.Request[islev1.GetReleaseRequest]) (*connect.Response[islev1.GetReleaseResponse], error) {
	rel, err := s.Releases.Look(req.Msg.GetRelease())
	if err != nil {
		return nil, err
	}
	out := s.message(rel)
	if rel.Broken == nil {
		if out.Manifest, err = rel.Manifest.Encode(); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&islev1.GetReleaseResponse{Release: out}), nil
}

// VerifyRelease implements the RPC.
func (s *releases) VerifyRelease(ctx context.Context, req *connect.Request[islev1.VerifyReleaseRequest], stream *connect.ServerStream[islev1.VerifyReleaseEvent]) error {
	v, err := s.Releases.Verify(ctx, req.Msg.GetRelease())
	if err != nil {
		return err
	}
	return stream.Send(&islev1.VerifyReleaseEvent{Release: s.message(v.Release), Layers: int32(v.Layers), Bytes: v.Bytes})
}

// RemoveRelease implements the RPC.
func (s *releases) RemoveRelease(ctx context.Context, req *connect.Request[islev1.RemoveReleaseRequest]) (*connect.Response[islev1.RemoveReleaseResponse], error) {
	d, err := s.Releases.Remove(ctx, actorOf(ctx), req.Msg.GetRelease())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RemoveReleaseResponse{Digest: string(d)}), nil
}

// longestKeep bounds for how long a release is kept by hand.
const longestKeep = 10 * 365 * 24 * time.Hour

// KeepRelease implements the RPC.
func (s *releases) KeepRelease(ctx context.Context, req *connect.Request[islev1.KeepReleaseRequest]) (*connect.Response[islev1.KeepReleaseResponse], error) {
	var until time.Time
	if span := req.Msg.GetFor(); span != nil {
		d := span.AsDuration()
		if d <= 0 || d > longestKeep {
			return nil, isle.Errorf(isle.Invalid, "a release is kept for %v: want more than 0 and at most %v", d, longestKeep)
		}
		until = s.Policy.Now().Add(d)
	}
	d, err := s.Releases.Keep(ctx, actorOf(ctx), req.Msg.GetRelease(), until)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.KeepReleaseResponse{Release: string(d), Until: timestamp(until)}), nil
}

// GetAttestation implements the RPC.
func (s *releases) GetAttestation(_ context.Context, req *connect.Request[islev1.GetAttestationRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	rel, err := s.Releases.Look(req.Msg.GetRelease())
	if err != nil {
		return err
	}
	want := req.Msg.GetAttestation()
	i := len(rel.Attestations) - 1
	for i >= 0 && rel.Attestations[i].Kind != want && string(rel.Attestations[i].Digest) != want {
		i--
	}
	if i < 0 {
		return isle.Errorf(isle.NotFound, "release %s has no attestation %q", rel.Digest.Short(), clipped(want)).WithHint("say provenance, sbom, or a digest that isle release inspect shows")
	}
	b, err := s.Releases.Statement(rel.Digest, rel.Attestations[i])
	if err != nil {
		return err
	}
	_, err = io.Copy(chunkWriter{stream}, bytes.NewReader(b))
	return err
}

// ExportRelease implements the RPC.
func (s *releases) ExportRelease(ctx context.Context, req *connect.Request[islev1.ExportReleaseRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	rel, err := s.Releases.Look(req.Msg.GetRelease())
	if err != nil {
		return err
	}
	defer s.Blobs.Hold()()
	e := audit.NewIntent(actorOf(ctx), isle.ActionReleaseExport, isle.Resource{Kind: "release", Name: rel.Manifest.Project}, "").With("layers", strconv.FormatBool(req.Msg.GetLayers()))
	e.Release = rel.Digest
	return s.recorded(ctx, e, func() error {
		w := bufio.NewWriterSize(chunkWriter{stream}, maxChunk)
		if err := s.Releases.Export(ctx, string(rel.Digest), req.Msg.GetLayers(), w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// ImportRelease implements the RPC.
func (s *releases) ImportRelease(ctx context.Context, stream *connect.ClientStream[islev1.Chunk]) (*connect.Response[islev1.ImportReleaseResponse], error) {
	if !stream.Receive() {
		return nil, streamEnd(stream.Err(), "import")
	}
	body, letGo := received(stream), func() {}
	defer func() { letGo() }()
	rel, err := s.Releases.Import(ctx, actorOf(ctx), body, func(project string) error {
		if err := s.allowed(ctx, releaseOf(isle.ActionReleaseImport, project)); err != nil {
			return err
		}
		letGo = s.Blobs.Hold() // layers have no name before the release is there; who may not import keeps nothing from being collected
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ImportReleaseResponse{Release: s.message(rel)}), nil
}

// ListReleaseKeys implements the RPC.
func (s *releases) ListReleaseKeys(context.Context, *connect.Request[islev1.ListReleaseKeysRequest]) (*connect.Response[islev1.ListReleaseKeysResponse], error) {
	keys, err := s.Releases.Keys()
	if err != nil {
		return nil, err
	}
	res := &islev1.ListReleaseKeysResponse{}
	for _, k := range keys {
		res.Keys = append(res.Keys, releaseKeyMessage(k))
	}
	return connect.NewResponse(res), nil
}

// TrustReleaseKey implements the RPC.
func (s *releases) TrustReleaseKey(ctx context.Context, req *connect.Request[islev1.TrustReleaseKeyRequest]) (*connect.Response[islev1.TrustReleaseKeyResponse], error) {
	change := s.Releases.Trust
	if req.Msg.GetRemove() {
		change = s.Releases.Distrust
	}
	k, err := change(ctx, actorOf(ctx), req.Msg.GetKey())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.TrustReleaseKeyResponse{Key: releaseKeyMessage(k)}), nil
}

func releaseKeyMessage(k seal.TrustedKey) *islev1.ReleaseKey {
	return &islev1.ReleaseKey{Name: k.Name, Key: k.Key, Own: k.Own}
}

// message is a release with the stages that point at it.
func (s *releases) message(r release.Release) *islev1.Release {
	out := releaseMessage(r)
	for _, st := range s.Releases.StagesOf(r.Digest) {
		out.Stages = append(out.Stages, st.Name)
	}
	return out
}

func releaseMessage(r release.Release) *islev1.Release {
	out := &islev1.Release{
		Digest: string(r.Digest), Project: r.Manifest.Project, Created: timestamppb.New(r.Created), Author: r.By.String(),
		Branch: r.Source.Branch, Commit: r.Source.Commit, Dirty: r.Source.Dirty, Signer: r.Signer, Trusted: r.Trusted, Imported: r.Imported, Keep: timestamp(r.Keep),
		Isolation: r.Manifest.Spec.Isolation, Doors: doorsOf(r.Manifest.Spec),
	}
	if r.Broken != nil {
		out.Broken = Flatten(r.Broken).Message
	}
	for _, s := range r.Manifest.Services {
		out.Images = append(out.Images, &islev1.ReleaseImage{Service: s.Name, Digest: string(s.Digest), Size: s.Image.Size()})
	}
	for _, a := range r.Attestations {
		out.Attestations = append(out.Attestations, &islev1.Attestation{
			Kind: a.Kind, Digest: string(a.Digest), Added: timestamppb.New(a.Added), Commit: a.Source.Commit, Dirty: a.Source.Dirty,
		})
	}
	return out
}

// doorsOf is what a file asks to reach, as resources are called.
func doorsOf(f spec.File) (out []string) {
	for _, name := range f.Uses {
		out = append(out, "connection:"+name)
	}
	for _, e := range f.Egress {
		out = append(out, "egress:"+e.Host+":"+strconv.Itoa(e.Port))
	}
	slices.Sort(out)
	return out
}
