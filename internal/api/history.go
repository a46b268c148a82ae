package api

import (
	"bufio"
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/release"
	"isle/internal/seal"
)

// defaultLines is how many lines a history has where nothing is said.
const defaultLines = 100

// historyOf is the reading of what the log says of a project in a stage.
func historyOf(project, stage string) ask {
	return ask{isle.ActionReleaseHistory, isle.Resource{Kind: "release", Name: project, Stage: stage}, project}
}

// asksOfHistory is the reading of the subject's history. Each entry is asked about
// again by the handler: a name may have been another project's before, and an
// image is of many.
func (cfg Config) asksOfHistory(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.HistoryRequest)
	of, err := cfg.subjectOf(ctx, m.GetOf(), m.GetProject())
	switch {
	case err != nil: // found wrong by the handler
		return []ask{historyOf(clipped(m.GetOf()), "")}
	case of.Ref.Name != "":
		project := cfg.onEnvironment(ctx, isle.ActionReleaseHistory, of.Ref.String()).project
		if project == "" {
			project = of.Ref.Name
		}
		return []ask{historyOf(project, of.Ref.Stage)}
	case of.Release != "":
		if rel, err := cfg.Releases.Look(string(of.Release)); err == nil {
			return []ask{historyOf(rel.Manifest.Project, "")}
		}
	}
	return []ask{{isle.ActionServerRead, isle.Resource{Kind: "server", Name: "server"}, ""}}
}

// subjectOf is what a name is of. A name that could be several things is a
// Conflict that says how each is called.
func (cfg Config) subjectOf(ctx context.Context, name, project string) (of release.Subject, err error) {
	if strings.Contains(name, "@") {
		of.Ref, err = isle.ParseRef(name)
		return of, err
	}
	var found []release.Subject
	var called []string
	take := func(s release.Subject, as string) { found, called = append(found, s), append(called, as) }
	if slices.Contains(cfg.Policy.State().Set.Stages(), name) && isle.ValidName(project) {
		take(release.Subject{Ref: isle.Ref{Name: project, Stage: name}}, project+"@"+name)
	}
	ref := isle.Ref{Name: name, Stage: isle.DefaultStage}
	if isle.ValidName(name) {
		_, err := cfg.Environments.Get(ctx, ref)
		if kept, verr := cfg.Environments.VolumesOf(ctx, ref); err == nil || verr == nil && len(kept) > 0 {
			take(release.Subject{Ref: ref}, name+"@"+isle.DefaultStage)
		}
	}
	digests, err := cfg.digestsOf(ctx, name)
	if err != nil {
		return of, err
	}
	for _, d := range digests {
		kind := "release "
		if d.Release == "" {
			kind = "image "
		}
		take(d, kind+string(d.Release+d.Image))
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return of, isle.Errorf(isle.Conflict, "%q could be %s", clipped(name), strings.Join(called[:min(len(called), 10)], ", ")).WithHint("say which one, by its whole name or digest")
	}
	whole := isle.Digest("sha256:" + strings.TrimPrefix(name, "sha256:"))
	switch {
	case whole.Valid(): // it was removed; the log may know it
		return release.Subject{Release: whole, Image: whole}, nil
	case isle.ValidName(name): // it was ended
		return release.Subject{Ref: ref}, nil
	}
	return of, isle.Errorf(isle.NotFound, "nothing is called %q", clipped(name)).WithHint("say an environment or a stage as NAME@STAGE, or at least %d characters of the digest of a release or an image", seal.MinPrefix)
}

// digestsOf are the releases, and the images of releases and of what runs, whose
// digest begins so.
func (cfg Config) digestsOf(ctx context.Context, name string) (out []release.Subject, err error) {
	if !seal.LooksLikeDigest(strings.TrimPrefix(name, "sha256:")) {
		return nil, nil
	}
	list, err := cfg.Releases.List()
	if err != nil {
		return nil, err
	}
	known := map[isle.Digest][]isle.Digest{} // by image, the releases that have it
	releases := map[isle.Digest]bool{}
	for _, rel := range list {
		releases[rel.Digest] = true
		for _, s := range rel.Manifest.Services {
			known[s.Digest] = append(known[s.Digest], rel.Digest)
		}
	}
	envs, err := cfg.Environments.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range envs {
		for _, s := range e.Services {
			known[s.Digest] = append(known[s.Digest], "")
		}
	}
	for _, d := range seal.Begun(releases, name) {
		out = append(out, release.Subject{Release: d})
	}
	for _, d := range seal.Begun(known, name) {
		of := slices.Compact(slices.Sorted(slices.Values(known[d])))
		out = append(out, release.Subject{Image: d, Releases: slices.DeleteFunc(of, func(d isle.Digest) bool { return d == "" })})
	}
	return out, nil
}

// History implements the RPC.
func (s *releases) History(ctx context.Context, req *connect.Request[islev1.HistoryRequest], stream *connect.ServerStream[islev1.HistoryEvent]) error {
	m := req.Msg
	limit := int(m.GetLimit())
	switch {
	case limit == 0:
		limit = defaultLines
	case limit < 0 || limit > release.MaxLines:
		return isle.Errorf(isle.Invalid, "%d lines: want 1 to %d", limit, release.MaxLines)
	}
	of, err := s.subjectOf(ctx, m.GetOf(), m.GetProject())
	if err != nil {
		return err
	}
	at := s.Config.Audit.Head() // what is durable: proofs are of that
	h, err := s.readHistory(ctx, of, at.Size, limit)
	if err != nil {
		return err
	}
	head := &islev1.HistoryHead{Cut: h.Cut, From: h.From, Size: h.Size}
	switch {
	case of.Ref.Name != "":
		head.Kind, head.Name = "environment", of.Ref.Name+"@"+of.Ref.Stage
	case of.Release != "":
		head.Kind, head.Name = "release", string(of.Release)
	default:
		head.Kind, head.Name = "image", string(of.Image)
	}
	named := s.namedIn(ctx, of, h)
	for _, rel := range named {
		head.Releases = append(head.Releases, s.message(rel))
	}
	for _, r := range h.Runs {
		run := &islev1.HistoryRun{Environment: r.Environment, Instance: string(r.Instance), Release: string(r.Release), Began: timestamppb.New(r.From), BeganEntry: r.Began, EndedEntry: r.Ended}
		if !r.To.IsZero() {
			run.Ended = timestamppb.New(r.To)
		}
		head.Runs = append(head.Runs, run)
	}
	if m.GetProve() {
		c, err := s.Signer.Sign(at)
		if err != nil {
			return err
		}
		head.Checkpoint, head.Key = c.Note, s.Signer.Key()
	}
	if err := stream.Send(&islev1.HistoryEvent{Event: &islev1.HistoryEvent_Head{Head: head}}); err != nil {
		return err
	}
	if err := s.sendLines(ctx, h, at, m.GetProve(), stream); err != nil || !m.GetProve() {
		return err
	}
	for _, rel := range s.exportable(ctx, named) {
		w := bufio.NewWriterSize(releaseWriter{stream, rel.Digest}, maxChunk)
		if err := s.Releases.Export(ctx, string(rel.Digest), false, w); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// readHistory reads the log, one caller after the other.
func (s *releases) readHistory(ctx context.Context, of release.Subject, size uint64, limit int) (release.History, error) {
	select {
	case s.histories <- struct{}{}:
	case <-ctx.Done():
		return release.History{}, context.Cause(ctx)
	}
	defer func() { <-s.histories }()
	return release.ReadHistory(ctx, of, release.Reading{
		Log: s.Config.Audit, Size: size, Limit: limit, May: s.mayReadHistory(ctx),
		ProjectOf: func(d isle.Digest) string {
			rel, err := s.Releases.Look(string(d))
			if err != nil {
				return ""
			}
			return rel.Manifest.Project
		},
	})
}

// mayReadHistory says which entries the caller may read: all, for whoever reads
// the log, else those of projects and stages whose history is theirs to read.
func (s *releases) mayReadHistory(ctx context.Context) func(project, stage string) bool {
	who, _ := callerFrom(ctx)
	decide := func(a ask) bool { return s.Policy.Decide(queriesOf(who, a)[0]).Allowed() }
	all := decide(ask{isle.ActionAuditRead, isle.Resource{Kind: "audit", Name: "log"}, ""})
	return func(project, stage string) bool {
		return all || isle.ValidName(project) && decide(historyOf(project, stage))
	}
}

// maxNamed bounds how many releases a history tells of.
const maxNamed = 100

// namedIn are the releases that a history names and that the caller may see; those
// that cannot be used any more are left out.
func (s *releases) namedIn(ctx context.Context, of release.Subject, h release.History) (out []release.Release) {
	who, _ := callerFrom(ctx)
	seen := map[isle.Digest]bool{"": true}
	take := func(d isle.Digest) {
		if seen[d] || len(out) >= maxNamed {
			return
		}
		seen[d] = true
		rel, err := s.Releases.Look(string(d))
		if err != nil || rel.Broken != nil {
			return
		}
		if q := queriesOf(who, releaseOf(isle.ActionReleaseRead, rel.Manifest.Project)); s.Policy.Decide(q[0]).Allowed() {
			out = append(out, rel)
		}
	}
	take(of.Release)
	for _, d := range of.Releases {
		take(d)
	}
	for _, r := range h.Runs {
		take(r.Release)
	}
	for _, l := range h.Lines {
		take(l.Entry.Release)
	}
	return out
}

// exportable are those releases that the caller may take with them: a history brings
// out what isle release export does, and takes the same leave.
func (s *releases) exportable(ctx context.Context, all []release.Release) (out []release.Release) {
	who, _ := callerFrom(ctx)
	for _, rel := range all {
		if q := queriesOf(who, releaseOf(isle.ActionReleaseExport, rel.Manifest.Project)); s.Policy.Decide(q[0]).Allowed() {
			out = append(out, rel)
		}
	}
	return out
}

// sendLines sends what happened, with proofs where they are asked for.
func (s *releases) sendLines(ctx context.Context, h release.History, at audit.Head, prove bool, stream *connect.ServerStream[islev1.HistoryEvent]) error {
	hashes := s.Config.Audit.Hashes(ctx)
	message := func(p *release.Proven) (*islev1.HistoryEntry, error) {
		if p == nil {
			return nil, nil
		}
		out := &islev1.HistoryEntry{Sequence: p.Sequence, Json: string(p.Bytes)}
		if !prove {
			return out, nil
		}
		path, err := tlog.ProveRecord(int64(at.Size), int64(p.Sequence), hashes)
		for _, hash := range path {
			out.Path = append(out.Path, hash[:])
		}
		return out, err
	}
	for _, l := range h.Lines {
		entry, err := message(&l.Proven)
		if err != nil {
			return err
		}
		intent, err := message(l.Intent)
		if err != nil {
			return err
		}
		if err := stream.Send(&islev1.HistoryEvent{Event: &islev1.HistoryEvent_Line{Line: &islev1.HistoryLine{Entry: entry, Intent: intent}}}); err != nil {
			return err
		}
	}
	return nil
}

// A releaseWriter sends the file of a release.
type releaseWriter struct {
	stream *connect.ServerStream[islev1.HistoryEvent]
	digest isle.Digest
}

// Write implements io.Writer.
func (w releaseWriter) Write(b []byte) (int, error) {
	for part := range slices.Chunk(b, maxChunk) {
		if err := w.stream.Send(&islev1.HistoryEvent{Event: &islev1.HistoryEvent_Release{Release: &islev1.HistoryRelease{Digest: string(w.digest), Data: part}}}); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
