package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/environment"
	"isle/internal/spec"
)

// environments serves the EnvironmentService.
type environments struct{ Config }

// Up implements the RPC: lock, build, launch. A one-shot environment lives as
// long as the call.
func (s *environments) Up(ctx context.Context, req *connect.Request[islev1.UpRequest], stream *connect.ServerStream[islev1.UpEvent]) error {
	m := req.Msg
	if err := checkCheckout(m); err != nil {
		return err
	}
	if m.GetRelease() != "" {
		return s.upRelease(ctx, m, stream)
	}
	r, err := readSource(m.GetSource())
	if err != nil {
		return err
	}
	if m.GetOneShot() && !spec.Says(m.GetSource().GetSpec(), "isolation") {
		if r.file, err = r.file.Sandboxed(); err != nil { // what runs once is what nobody has read
			return err
		}
	}
	ref, err := s.refOf(ctx, m, r.file.Name)
	if err != nil {
		return err
	}
	if err := s.allowed(ctx, launchOf(ref, r.file.Name)); err != nil { // a derived name may be another by now
		return err
	}
	if m.GetOneShot() {
		if _, err := s.Environments.Get(ctx, ref); err == nil {
			return isle.Errorf(isle.Conflict, "environment %s is there already", ref).WithHint("choose another --name, or end it with: isle down %s", ref)
		}
	}
	tell, work := s.newTeller(ctx, isle.ActionImageBuild, isle.Resource{Kind: "image", Name: r.file.Name}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Progress{Progress: e}})
	})
	defer tell.done()
	release := s.Blobs.Hold() // what is built has no name before it is launched
	defer release()
	b, err := s.prepare(work, r, prepareOptions{lock: build.LockOptions{Mirror: m.GetMirror(), Locked: m.GetLocked()}, keep: tell.event}, tell.build)
	if err = tell.end(work, err); err != nil {
		if need := wantsLogin(err, r.credentials); need != nil {
			return stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Need{Need: need}})
		}
		return err
	}
	if len(b.need) > 0 {
		return stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Need{Need: &islev1.Need{Digests: digestStrings(b.need)}}})
	}
	up := environment.UpRequest{
		Ref: ref, Project: r.file.Name, Spec: r.file, Images: b.result.Images, Reasons: b.result.Reasons,
		OneShot: m.GetOneShot(), NoWait: m.GetNoWait(), Cold: m.GetCold(),
		Branch: m.GetBranch(), Commit: m.GetCommit(), Repository: m.GetRepository(),
		// A lock that changes here is not the commit's.
		Dirty: m.GetDirty() || m.GetCommit() != "" && len(b.changed) > 0,
	}
	if m.GetTtl() != nil {
		d := m.GetTtl().AsDuration()
		up.TTL = &d
	}
	if up.OneShot {
		defer s.endOneShot(ctx, ref)
	}
	launch, launching := s.newTeller(ctx, isle.ActionEnvironmentLaunch, isle.Resource{}, tell.send)
	defer launch.done()
	forked, why, err := s.forkParent(launching, &up, m.GetParentBranches(), func(p environment.Progress) { launch.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	res, err := s.Environments.Up(launching, actorOf(ctx), up, func(p environment.Progress) { launch.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	release()
	out := upMessage(res)
	out.Lock, out.Forked, out.NotForked = b.changed, forked, why
	launch.done()
	err = stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Result{Result: out}})
	if err == nil && up.OneShot {
		<-ctx.Done() // the client hung up, or the server ends
	}
	return err
}

func upMessage(res environment.UpResult) *islev1.UpResult {
	out := &islev1.UpResult{
		Environment: environmentMessage(res.Environment), Changed: res.Changed, Replaced: res.Replaced, Warm: string(res.Warm), NotWarm: res.NotWarm,
	}
	if res.Warm != "" {
		out.WarmTook = durationpb.New(res.Took)
	}
	return out
}

// forkParent makes what is asked for a copy of the environment of the branch
// that its own has grown from, where there is one and copied files alone differ:
// its data comes along, and Up then replaces what differs. It returns what it
// copied, or why nothing; neither where it was not to.
func (s *environments) forkParent(ctx context.Context, up *environment.UpRequest, branches []string, progress func(environment.Progress)) (forked, why string, err error) {
	if _, gone := s.Environments.Get(ctx, up.Ref); len(branches) == 0 || up.OneShot || up.Branch == "" || gone == nil {
		return "", "", nil
	}
	parent, ok := s.Environments.Parent(*up, branches)
	if ok { // it is nobody's to know of who may not copy it
		who, _ := callerFrom(ctx)
		ok = s.Policy.Decide(queriesOf(who, s.asksToBegin(parent, up.Ref)...)[0]).Allowed()
	}
	if !ok {
		return "", "no environment of branch " + strings.Join(branches, " or ") + " runs here that could be copied", nil
	}
	if why := s.Environments.Unlike(parent, *up); why != "" {
		return "", fmt.Sprintf("%s of branch %s is not copied: %s", parent.Ref, parent.Branch, why), nil
	}
	if err := s.allowed(ctx, s.asksToBegin(parent, up.Ref)...); err != nil {
		return "", "", err
	}
	req := environment.ForkRequest{From: parent.Ref, Name: up.Ref.Name, TTL: up.TTL, Branch: up.Branch}
	req.May = func(p environment.ForkPlan) error { // what was looked at may be gone, and another there
		if p.Instance != parent.Instance {
			return isle.Errorf(isle.Conflict, "%s is another environment by now", parent.Ref).WithHint("run isle up again")
		}
		return nil
	}
	if _, err := s.Environments.Fork(ctx, actorOf(ctx), req, progress); err != nil {
		return "", "", isle.Errorf(isle.CodeOf(err), "%s could not begin as a copy of %s: %w", up.Ref, parent.Ref, err).
			WithHint("mend it and run isle up again, or begin without the data of %s: isle down %s --volumes, then isle up --no-fork", parent.Ref, up.Ref)
	}
	up.TTL = nil // it counts from the copy
	return parent.Ref.String(), "", nil
}

// asksToBegin is what it takes to begin as a copy: to copy, and to launch.
func (s *environments) asksToBegin(parent environment.Environment, ref isle.Ref) []ask {
	source := isle.Resource{Kind: "environment", Name: parent.Ref.Name, Stage: parent.Ref.Stage}
	return []ask{{isle.ActionEnvironmentFork, source, parent.Project}, launchOf(ref, parent.Project)}
}

// checkCheckout bounds what a client says of git: it is kept and shown to
// others.
func checkCheckout(m *islev1.UpRequest) error {
	hexadecimal := func(s string, lengths ...int) bool {
		return s == "" || slices.Contains(lengths, len(s)) && strings.Trim(s, "0123456789abcdef") == ""
	}
	if len(m.GetParentBranches()) > maxParents {
		return isle.Errorf(isle.Invalid, "%d branches that it may have grown from: at most %d are possible", len(m.GetParentBranches()), maxParents)
	}
	for _, name := range m.GetParentBranches() {
		if name == "" || !branchName(name) {
			return isle.Errorf(isle.Invalid, notABranch, clipped(name), maxBranch)
		}
	}
	switch {
	case !branchName(m.GetBranch()):
		return isle.Errorf(isle.Invalid, notABranch, clipped(m.GetBranch()), maxBranch)
	case !hexadecimal(m.GetCommit(), 40, 64):
		return isle.Errorf(isle.Invalid, "%q is no commit: want its full hash, 40 or 64 lower-case hexadecimal characters", clipped(m.GetCommit()))
	case !hexadecimal(m.GetRepository(), 32):
		return isle.Errorf(isle.Invalid, "%q names no repository: want 32 lower-case hexadecimal characters", clipped(m.GetRepository()))
	}
	return nil
}

const notABranch = "%q is no branch of git: at most %d bytes are possible, and no control characters"

func branchName(s string) bool {
	return len(s) <= maxBranch && !strings.ContainsFunc(s, unicode.IsControl)
}

// maxParents is how many branches one may have grown from.
const maxParents = 8

// maxBranch is how many bytes the name of a branch has at most, as the client
// bounds it too.
const maxBranch = 1024

// endsWithCall is the rule by which a one-shot environment is torn down: nobody
// was asked, since who may launch one may only do so for as long as a call lasts.
const endsWithCall = "built in: a one-shot environment ends with its call"

// endOneShot tears down what belongs to a call that has ended. The environment
// room does the same at the next start, should the server die first.
func (s *environments) endOneShot(ctx context.Context, ref isle.Ref) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	e, err := s.Environments.Get(ctx, ref)
	if err != nil || !e.OneShot || e.Owner != actorOf(ctx) {
		return // torn down already, and another's by now
	}
	for _, action := range []isle.Action{isle.ActionEnvironmentDown, isle.ActionVolumeDelete} {
		audit.Allowed(ctx, actorOf(ctx), action, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, endsWithCall)
	}
	err = s.Environments.Down(ctx, actorOf(ctx), ref, true, func(environment.Progress) {})
	if _, gone := s.Environments.Get(ctx, ref); err != nil && gone == nil { // another Down may have been first
		s.Log.Error("a one-shot environment could not be torn down", "environment", ref, "err", err)
	}
}

// refOf is the environment that is meant. A name that the client derived from
// project and branch gets a hash suffix where another project or branch has it.
func (s *environments) refOf(ctx context.Context, m *islev1.UpRequest, project string) (isle.Ref, error) {
	name, stage := m.GetName(), m.GetStage()
	if name == "" {
		name = project
	}
	if stage == "" {
		stage = isle.DefaultStage
	}
	ref, err := isle.ParseRef(name + "@" + stage)
	if err != nil || !m.GetDerivedName() {
		return ref, err
	}
	hash := isle.DigestOf([]byte(project + "\x00" + m.GetBranch())).Hex()[:8]
	other := isle.Ref{Name: isle.Slug(name[:min(len(name), 31)] + "-" + hash), Stage: stage}
	if e, err := s.Environments.Get(ctx, other); err == nil && e.Project == project && e.Branch == m.GetBranch() {
		return other, nil
	}
	e, err := s.Environments.Get(ctx, ref)
	if err == nil && (e.Project != project || e.Branch != m.GetBranch()) {
		return other, nil
	}
	return ref, nil
}

// Down implements the RPC. It goes on after one that fails and returns the
// first error.
func (s *environments) Down(ctx context.Context, req *connect.Request[islev1.DownRequest], stream *connect.ServerStream[islev1.ProgressEvent]) error {
	var refs []isle.Ref
	if req.Msg.GetAll() {
		all, err := s.visible(ctx, req.Msg.GetVolumes())
		if err != nil {
			return err
		}
		for _, ref := range all {
			if err := s.allowed(ctx, s.asksToEnd(ctx, ref.String(), req.Msg.GetVolumes())...); err != nil { // it may be new
				return err
			}
		}
		refs = all
	}
	for _, name := range req.Msg.GetEnvironments() {
		ref, err := isle.ParseRef(name)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	if len(refs) == 0 && !req.Msg.GetAll() {
		return isle.Errorf(isle.Invalid, "no environment is named").WithHint("name some, or set all")
	}
	tell, work := s.newTeller(ctx, isle.ActionEnvironmentDown, isle.Resource{}, stream.Send)
	defer tell.done()
	return eachAtOnce(refs, func(ref isle.Ref) error {
		label := ref.String()
		tell.event(&islev1.ProgressEvent{Service: label, Step: "down", State: "start"})
		err := s.Environments.Down(work, actorOf(ctx), ref, req.Msg.GetVolumes(), func(p environment.Progress) {
			if p.State == "progress" || p.State == "log" {
				tell.event(progressMessage(p))
			}
		})
		if err != nil {
			tell.event(&islev1.ProgressEvent{Service: label, Step: "down", State: "failed", Message: Flatten(err).Message})
			return err
		}
		tell.event(&islev1.ProgressEvent{Service: label, Step: "down", State: "done"})
		return nil
	})
}

// downAtOnce is how many environments one call tears down side by side.
const downAtOnce = 8

// eachAtOnce calls do for every ref, several side by side, and returns the
// first error in their order.
func eachAtOnce(refs []isle.Ref, do func(isle.Ref) error) error {
	errs := make([]error, len(refs))
	slots := make(chan struct{}, downAtOnce)
	done := make(chan struct{})
	for i, ref := range refs {
		go func() {
			slots <- struct{}{}
			errs[i] = do(ref)
			<-slots
			done <- struct{}{}
		}()
	}
	for range refs {
		<-done
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
