package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/compose"
	"isle/internal/spec"
)

type upOptions struct {
	name, stage, ttl, mirror string
	release                  string
	locked, noWait, watch    bool
	noFork, cold             bool
	profiles, secrets        []string
}

func newUp(a *app) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up [DIR|FILE]",
		Short: "Build what is needed, launch, wait for health",
		Long: `Make an environment what its file says: lock, build and launch what is needed and
wait until it is healthy. Again after a change, it replaces only the services that
changed, keeps volumes, and says why each was replaced.

The environment is called by --name, else after the project, with the git branch
unless that is the default one. One of a new branch begins as a copy of the running
environment of the branch that it was created from (else the default one), data
included, where they differ in copied files alone; else, and with --no-fork, it is
made from the file, without data.

The file may be a Compose file or a devcontainer.json (docs/compose.md): what of it is
done in another way is said, and what would make it something else is refused.

Where the file says warm: true, one that is not there yet begins with the ready state
that an earlier one of exactly the same left, in place of a start; with --cold it is started.

With --release it is made what was released, as it is: no file is read, and it is called
by --name, else after the project.`,
		Example: `  isle up
  isle up examples/shop --name try --ttl 2h
  isle up compose.yaml --profile debug
  isle up --watch
  isle up --release shop@production`,
		Args: args(0, 1, "at most one folder or file"),
		RunE: func(cmd *cobra.Command, given []string) error {
			return a.up(cmd.Context(), o, first(given))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "name of the environment")
	f.StringVar(&o.stage, "stage", isle.DefaultStage, "stage")
	f.StringVar(&o.ttl, "ttl", "", "end after this long (8h, 2d), or never; overrides the file")
	f.StringVar(&o.mirror, "mirror", "", "base URL of the Debian mirror (default: the server's)")
	f.BoolVar(&o.locked, "locked", false, "fail if the lock would change")
	f.BoolVar(&o.noWait, "no-wait", false, "do not wait for health")
	f.BoolVar(&o.noFork, "no-fork", false, "do not begin a new branch's environment as a copy of its parent's")
	f.BoolVar(&o.cold, "cold", false, "start services, where the environment could begin with a ready state (warm: true)")
	f.StringVar(&o.release, "release", "", "launch this release in place of a file: a digest, or PROJECT@STAGE")
	addProfiles(cmd, &o.profiles)
	addSecrets(cmd, &o.secrets)
	f.BoolVar(&o.watch, "watch", false, "do it again whenever a file changes, until Ctrl-C")
	return cmd
}

// first is the first of at most one argument, "" if there is none.
func first(given []string) string {
	if len(given) == 0 {
		return ""
	}
	return given[0]
}

type upJSON struct {
	Environment environmentJSON `json:"environment"`
	Changed     bool            `json:"changed"`
	Replaced    []string        `json:"replaced"`
	LockChanged bool            `json:"lock_changed"`
	Forked      string          `json:"forked,omitempty"`
	NotForked   string          `json:"not_forked,omitempty"`
	Warm        *warmStartJSON  `json:"warm_start,omitempty"`
	NotWarm     string          `json:"not_warm,omitempty"`
	Notes       []compose.Note  `json:"notes,omitempty"` // of a Compose file or devcontainer.json
}

// A warmStartJSON says which ready state an environment began with.
type warmStartJSON struct {
	Snapshot string  `json:"snapshot"`
	Took     float64 `json:"took"` // seconds
}

func (a *app) up(ctx context.Context, o upOptions, arg string) error {
	req, err := o.request()
	if err != nil {
		return err
	}
	if o.release != "" {
		return a.upRelease(ctx, o, req, arg)
	}
	p, err := readProject(arg, o.profiles...)
	if err != nil {
		return err
	}
	if p.secrets, err = parseSecrets(o.secrets); err != nil {
		return err
	}
	a.tell(p)
	p.noFork = o.noFork
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	seen := p.fingerprint() // before: a change while it goes up counts
	show := a.newProgress()
	res, err := upProject(ctx, c, p, req, show)
	show.close()
	if err == nil {
		err = a.showUp(res, p.notes)
	}
	if !o.watch {
		return err
	}
	return a.watch(ctx, c, p, req, seen, err)
}

// upRelease brings up what was released.
func (a *app) upRelease(ctx context.Context, o upOptions, req *islev1.UpRequest, arg string) error {
	if arg != "" || o.watch || o.locked || o.noFork || o.mirror != "" || len(o.secrets) > 0 {
		return usagef("--release launches what was built: it takes no folder or file, nor --watch, --locked, --no-fork, --secret or --mirror")
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req.Release = o.release
	if _, stage, ok := strings.Cut(o.release, "@"); ok { // it says where, too
		if o.stage != isle.DefaultStage && o.stage != stage {
			return usagef("--release %s is of stage %s, and --stage says %s", o.release, stage, o.stage)
		}
		req.Stage = stage
	}
	show := a.newProgress()
	res, _, err := upOnce(ctx, c, req, show)
	show.close()
	if err != nil {
		return err
	}
	if res == nil {
		return ended(nil)
	}
	return a.showUp(res, nil)
}

// request is what the flags say.
func (o upOptions) request() (*islev1.UpRequest, error) {
	req := &islev1.UpRequest{Name: o.name, Stage: o.stage, Locked: o.locked, NoWait: o.noWait, Mirror: o.mirror, Cold: o.cold}
	if o.name != "" && !isle.ValidName(o.name) {
		return nil, usagef("--name %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.name).WithHint("try --name %s", isle.Slug(o.name))
	}
	if !isle.ValidName(o.stage) {
		return nil, usagef("--stage %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.stage)
	}
	switch o.ttl {
	case "":
	case "never":
		req.Ttl = durationpb.New(0)
	default:
		d, err := spec.ParseDuration(o.ttl)
		if err != nil || d <= 0 {
			return nil, usagef("--ttl %q: want a duration such as 8h or 2d, or never", o.ttl)
		}
		req.Ttl = durationpb.New(d)
	}
	return req, nil
}

// upProject brings a project up as it is on disk and writes its lock.
func upProject(ctx context.Context, c *api.Client, p *project, req *islev1.UpRequest, show *progress) (*islev1.UpResult, error) {
	if req.Name == "" || req.DerivedName { // the branch may be another one by now
		var err error
		if req.Name, req.DerivedName, err = p.name(); err != nil {
			return nil, err
		}
	}
	if c := p.checkout; c != nil {
		req.Branch, req.Commit, req.Repository, req.Dirty = c.Branch, c.Commit, c.Repository(), p.dirty(ctx, show)
	}
	req.ParentBranches = p.parents(req, show)
	show.lock = p.writeLock
	for attempt := 0; ; attempt++ {
		h, err := p.hash(ctx)
		if err != nil {
			return nil, err
		}
		req.Source = h.source
		if req.Source.Secrets, err = p.secretValues(); err != nil {
			return nil, err
		}
		res, need, err := upOnce(ctx, c, req, show)
		if err != nil {
			return nil, err
		}
		if res != nil {
			return res, p.writeLock(res.GetLock())
		}
		if attempt == 3 {
			return nil, isle.Errorf(isle.Conflict, "the files go on changing while they are sent").WithHint("run `isle up` again when they are at rest")
		}
		if err := p.meet(ctx, c, h, need, show); err != nil {
			return nil, err
		}
	}
}

// parents are the branches whose environment a new one may begin as a copy of.
func (p *project) parents(req *islev1.UpRequest, show *progress) []string {
	if p.checkout == nil || p.noFork || !req.GetDerivedName() {
		return nil
	}
	names, err := p.checkout.Parents()
	if err != nil {
		show.note("cannot tell which branch %s was created from: %s", p.checkout.Branch, cleanLine(err.Error()))
	}
	return names
}

// lookLimit is how long `isle up` looks for changes that are not committed.
const lookLimit = 2 * time.Second

// dirty reports whether the files below the project's folder are not known to
// be the commit's. Where it cannot be told they are not, and that is said.
func (p *project) dirty(ctx context.Context, show *progress) bool {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	dirty, err := p.checkout.Dirty(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		show.note("git has too many files here to tell within %s whether they are as committed: taken as changed", span(lookLimit))
	} else if err != nil && !errors.Is(err, context.Canceled) {
		show.note("cannot tell whether files are as committed, taken as changed: %s", cleanLine(err.Error()))
	}
	return dirty || err != nil
}

// upOnce makes one call: it returns a result, or what the server needs first.
// The stream of a one-shot environment is left open, for ctx to end.
func upOnce(ctx context.Context, c *api.Client, req *islev1.UpRequest, show *progress) (*islev1.UpResult, *islev1.Need, error) {
	stream, err := c.Environments.Up(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, nil, err
	}
	m, err := conclusion(stream, req.GetOneShot(), show)
	if err == nil && m.GetNeed() != nil {
		return nil, m.GetNeed(), stream.Close()
	}
	return m.GetResult(), nil, err
}

// showUp prints what the user needs next.
func (a *app) showUp(res *islev1.UpResult, notes []compose.Note) error {
	e := res.GetEnvironment()
	if a.output == "json" {
		out := upJSON{
			Environment: environmentView(e), Changed: res.GetChanged(), Replaced: res.GetReplaced(), LockChanged: len(res.GetLock()) > 0,
			Forked: res.GetForked(), NotForked: res.GetNotForked(), NotWarm: res.GetNotWarm(), Notes: notes,
		}
		if res.GetWarm() != "" {
			out.Warm = &warmStartJSON{res.GetWarm(), res.GetWarmTook().AsDuration().Seconds()}
		}
		if out.Replaced == nil {
			out.Replaced = []string{}
		}
		return a.json(out)
	}
	w := a.stdout
	switch {
	case res.GetForked() != "":
		fmt.Fprintf(w, "forked %s, with its data: only copied files differ\n", clean(res.GetForked()))
	case res.GetNotForked() != "":
		fmt.Fprintf(w, "made anew, without data: %s\n", cleanLine(res.GetNotForked()))
	}
	switch {
	case res.GetWarm() != "":
		fmt.Fprintf(w, "warm start from %s (%.1fs)\n", shortDigest(res.GetWarm()), res.GetWarmTook().AsDuration().Seconds())
	case res.GetNotWarm() != "":
		fmt.Fprintf(w, "cold start: %s\n", cleanLine(res.GetNotWarm()))
	}
	for _, r := range res.GetReplaced() {
		fmt.Fprintln(w, clean(changeText(r)))
	}
	unchanged := ""
	if !res.GetChanged() {
		unchanged = ", nothing to do"
	}
	fmt.Fprintf(w, "%s is %s%s", refText(e), e.GetPhase(), unchanged)
	if e.GetExpires() != nil {
		fmt.Fprintf(w, ", for %s", left(e))
	}
	fmt.Fprintln(w)
	a.showPorts(e)
	ref := refText(e)
	fmt.Fprintf(w, "  next: isle exec %s -- CMD · isle shell %s · isle logs %s -f · isle down %s\n", ref, ref, ref, ref)
	return nil
}

// showPorts prints where published ports are reached.
func (a *app) showPorts(e *islev1.Environment) {
	w := a.stdout
	for _, s := range e.GetServices() {
		for _, p := range s.GetPorts() {
			if a.remote() { // they are published on the server's machine
				fmt.Fprintf(w, "  %-16s isle port-forward %s %d -s %s\n", s.GetName()+" "+p.GetName(), refText(e), p.GetNumber(), s.GetName())
				continue
			}
			fmt.Fprintf(w, "  %-16s 127.0.0.1:%d", s.GetName()+" "+p.GetName(), p.GetHost())
			if p.GetUrl() != "" {
				fmt.Fprintf(w, "   %s", p.GetUrl())
			}
			fmt.Fprintln(w)
		}
	}
}

// changeText says what a change did: some replace nothing.
func changeText(change string) string {
	if what, ok := strings.CutSuffix(change, ": applied in place"); ok {
		return "changed " + what + ", in place"
	}
	if what, why, ok := strings.Cut(change, ": removed, "); ok {
		return "removed " + what + ": " + why
	}
	return "replaced " + change
}

// watch brings the project up again whenever what it is made of is not what was
// seen, until ctx ends. Failures are shown and waited out.
func (a *app) watch(ctx context.Context, c *api.Client, p *project, req *islev1.UpRequest, seen [sha256.Size]byte, err error) error {
	const pause = 300 * time.Millisecond
	show := func(err error) {
		if err != nil && ctx.Err() == nil {
			a.finish(ctx, err)
		}
		if a.output != "json" {
			fmt.Fprintln(a.stderr, "watching for changes; end with Ctrl-C, the environment stays up")
		}
	}
	show(err)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		now := p.fingerprint()
		if now == seen {
			continue
		}
		for { // until the files are at rest
			seen = now
			time.Sleep(pause / 3)
			if now = p.fingerprint(); now == seen {
				break
			}
		}
		next, err := p.again()
		if err == nil {
			p = next
			seen = p.fingerprint() // the file may name other folders now
			progress := a.newProgress()
			var res *islev1.UpResult
			res, err = upProject(ctx, c, p, req, progress)
			progress.close()
			if err == nil {
				err = a.showUp(res, p.notes)
			}
		}
		show(err)
	}
}
