package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/release"
)

type promoteOptions struct {
	to, release, values, breakGlass string
	dryRun                          bool
}

func newPromote(a *app) *cobra.Command {
	var o promoteOptions
	cmd := &cobra.Command{
		Use:   "promote PROJECT --to STAGE",
		Short: "Point a stage at the release of the stage before it",
		Long: `Point a stage at exactly the release that the stage before it points at; the first stage is
given one with --release. What changes is shown: images, packages, settings and doors, and
the values of the stage. Those are in values.STAGE.yaml beside the isle.yaml of the project,
or in the file that --values names; without a file the stage keeps its own.

Where a release runs in the stage, as PROJECT@STAGE, it is switched: the other one starts
beside it, becomes healthy, and takes over its ports without a failed request; what served
before is kept for a time, frozen. If it does not become healthy nothing changes. Where
none runs, isle up --release PROJECT@STAGE launches it.

What stands before it, by the gates and approvals of the policy, is shown with the plan and has
to be passed: time in the stage before, checks in a copy of it, people who agree. A gate that
is not met says why, and what would have it pass. Where people have to agree they are asked,
and the same command promotes once they have.

No stage and no gate is passed over, but in an emergency with --break-glass and a reason, where
policy grants it; somebody else has to review that. Of two people who promote at once one is told that the other was first.`,
		Example: `  isle promote shop --to testing --release 3fa9c1
  isle promote shop --to staging --dry-run
  isle promote shop --to staging`,
		Args: args(1, 1, "one project"),
		RunE: func(cmd *cobra.Command, given []string) error { return a.promote(cmd.Context(), given[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "the stage")
	f.StringVar(&o.release, "release", "", "the release (default: that of the stage before)")
	f.StringVar(&o.values, "values", "", "file of the stage's values, - for none (default: values.STAGE.yaml, where there is one)")
	f.StringVar(&o.breakGlass, "break-glass", "", "why stages or gates are passed over")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

type promoteJSON struct {
	Project    string              `json:"project"`
	Stage      string              `json:"stage"`
	From       string              `json:"from,omitempty"`
	Release    string              `json:"release"`
	Before     string              `json:"before,omitempty"`
	Changed    bool                `json:"changed"`
	DryRun     bool                `json:"dry_run"`
	PassedOver string              `json:"passed_over,omitempty"`
	Values     []string            `json:"values"`
	Images     []string            `json:"images"`
	Packages   []packageChangeJSON `json:"packages"`
	Settings   []settingChangeJSON `json:"configuration"`
	Difference *imagesJSON         `json:"difference,omitempty"` // of images, in a dry run
	Switch     *switchJSON         `json:"switch,omitempty"`
	Gates      []gateJSON          `json:"gates"`
	ReviewedAs string              `json:"reviewed_as,omitempty"`
	Doors      []string            `json:"doors"` // with what may be done at each, by the policy of now
	Reach      []string            `json:"reach"` // what differs in that from when it was promoted last
}

func (a *app) promote(ctx context.Context, project string, o promoteOptions) error {
	if !isle.ValidName(o.to) {
		return usagef("--to %q: want a stage, such as staging", o.to)
	}
	req := &islev1.PromoteRequest{Project: project, Stage: o.to, Release: o.release, BreakGlass: o.breakGlass, DryRun: true, Files: o.dryRun}
	if err := o.readValues(project, req); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	plan, err := promoteOnce(ctx, c, req, nil)
	if err != nil {
		return err
	}
	res := plan
	if !o.dryRun { // exactly what was shown
		if a.output != "json" {
			a.showPlan(project, o.to, res)
		}
		req.DryRun, req.Release, req.Seen = false, res.GetRelease().GetDigest(), res.GetBefore()
		show := a.newProgress()
		res, err = promoteOnce(ctx, c, req, show)
		show.close()
		if err != nil {
			return err
		}
	}
	if a.output == "json" {
		return a.json(promotion(project, o, res))
	}
	if o.dryRun {
		a.showPlan(project, o.to, res)
		fmt.Fprintln(a.stdout, "  nothing was changed: --dry-run")
		return nil
	}
	if !res.GetChanged() {
		fmt.Fprintln(a.stdout, "  nothing to do")
	} else {
		fmt.Fprintf(a.stdout, "stage %s of %s points at release %s\n", o.to, clean(project), shortDigest(res.GetRelease().GetDigest()))
	}
	if id := res.GetReviewedAs(); id != "" {
		fmt.Fprintf(a.stdout, "  ! the glass was broken; until somebody else says isle approvals review %s it is listed as unreviewed\n", id)
	}
	if s := res.GetSwitch(); s != nil {
		a.showSwitch(s)
		return nil
	}
	_, err = fmt.Fprintf(a.stdout, "  next: isle up --release %s@%s\n", clean(project), o.to)
	return err
}

// promoteOnce makes one call.
func promoteOnce(ctx context.Context, c *api.Client, req *islev1.PromoteRequest, show *progress) (*islev1.PromoteResponse, error) {
	stream, err := c.Releases.Promote(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	m, err := conclusion(stream, false, show)
	return m.GetResult(), err
}

// readValues finds the file of the stage's values.
func (o promoteOptions) readValues(project string, req *islev1.PromoteRequest) error {
	path := o.values
	switch path {
	case "-":
		return nil
	case "":
		p, err := readProject("")
		if isle.CodeOf(err) == isle.NotFound || err == nil && p.file.Name != project {
			req.KeepValues = true
			return nil
		} else if err != nil {
			return err
		}
		path = filepath.Join(p.dir, "values."+o.to+".yaml")
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && o.values == "" {
		req.KeepValues = true
		return nil
	} else if err != nil {
		return isle.Errorf(isle.NotFound, "cannot read %s: %w", path, cause(err))
	}
	defer f.Close()
	if req.Values, err = io.ReadAll(io.LimitReader(f, release.MaxValues+1)); err != nil {
		return isle.Errorf(isle.NotFound, "cannot read %s: %w", path, cause(err))
	}
	req.ValuesName = filepath.Base(path)
	_, err = release.ParseValues(path, req.Values)
	return err
}

func promotion(project string, o promoteOptions, res *islev1.PromoteResponse) promoteJSON {
	out := promoteJSON{
		Project: project, Stage: o.to, From: res.GetFrom(), Release: res.GetRelease().GetDigest(), Before: res.GetBefore(), Changed: res.GetChanged(), DryRun: o.dryRun,
		PassedOver: res.GetPassedOver(), Values: res.GetValues(), Images: res.GetImages(), Packages: []packageChangeJSON{}, Settings: []settingChangeJSON{},
		Difference: imagesView(res.GetDifference()), Switch: switchView(res.GetSwitch()), Gates: gateViews(res.GetGates()), ReviewedAs: res.GetReviewedAs(),
		Doors: append([]string{}, res.GetDoors()...), Reach: append([]string{}, res.GetReach()...),
	}
	if out.Values == nil {
		out.Values = []string{}
	}
	if out.Images == nil {
		out.Images = []string{}
	}
	for _, c := range res.GetPackages() {
		out.Packages = append(out.Packages, packageChangeJSON{c.GetService(), c.GetName(), c.GetFrom(), c.GetTo()})
	}
	for _, c := range res.GetConfiguration() {
		out.Settings = append(out.Settings, settingChangeJSON{c.GetKey(), c.GetFrom(), c.GetTo()})
	}
	return out
}

// showPlan says what a promotion changes.
func (a *app) showPlan(project, stage string, res *islev1.PromoteResponse) {
	w := a.stdout
	before := "no release"
	if d := res.GetBefore(); d != "" {
		before = "release " + shortDigest(d)
	}
	fmt.Fprintf(w, "%s, %s: %s -> release %s (%s)\n", clean(project), stage, before, shortDigest(res.GetRelease().GetDigest()), clean(releaseView(res.GetRelease()).source()))
	if s := res.GetPassedOver(); s != "" {
		fmt.Fprintf(w, "  ! stage %s is passed over\n", s)
	}
	if len(res.GetImages()) > 0 {
		fmt.Fprintf(w, "  images    %s\n", clean(strings.Join(res.GetImages(), ", ")))
	}
	for _, c := range res.GetPackages() {
		fmt.Fprintf(w, "  package   %s: %s %s -> %s\n", clean(c.GetService()), clean(c.GetName()), orNone(c.GetFrom()), orNone(c.GetTo()))
	}
	for _, c := range res.GetConfiguration() {
		fmt.Fprintf(w, "  setting   %s: %s -> %s\n", clean(c.GetKey()), orNone(c.GetFrom()), orNone(c.GetTo()))
	}
	for _, v := range res.GetValues() {
		fmt.Fprintf(w, "  value     %s\n", cleanLine(v))
	}
	for _, l := range res.GetReach() {
		fmt.Fprintf(w, "  door      %s\n", cleanLine(l))
	}
	a.showImages(res.GetDifference(), "  ")
	a.showGates(res.GetGates())
}

// orNone is a value for people, where there is one.
func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return cleanLine(s)
}

type stageJSON struct {
	Project string      `json:"project"`
	Stage   string      `json:"stage"`
	Release string      `json:"release"`
	Since   *time.Time  `json:"since"`
	By      string      `json:"by"`
	Before  string      `json:"before,omitempty"`
	Values  []string    `json:"values"`
	Passed  string      `json:"passed,omitempty"`
	Earlier []string    `json:"earlier"` // the last one last
	Marks   []markJSON  `json:"marks"`   // what it was rolled back from
	Watches []watchJSON `json:"watches"`
	Breach  string      `json:"breach,omitempty"` // why it should have been rolled back, and was not
	Doors   []string    `json:"doors"`            // with what might be done at each when it was promoted
}

type watchJSON struct {
	Rule   string     `json:"rule"`
	Until  *time.Time `json:"until"`
	Errors float64    `json:"errors"`
	Health bool       `json:"health"`
}

type markJSON struct {
	Release string     `json:"release"`
	By      string     `json:"by"`
	Time    *time.Time `json:"time"`
	Reason  string     `json:"reason,omitempty"`
}

func stageView(s *islev1.Stage) stageJSON {
	out := stageJSON{s.GetProject(), s.GetName(), s.GetRelease(), at(s.GetSince()), s.GetBy(), s.GetBefore(), s.GetValues(), s.GetPassed(), s.GetEarlier(), []markJSON{}, []watchJSON{}, s.GetBreach(), append([]string{}, s.GetDoors()...)}
	for _, w := range s.GetWatches() {
		out.Watches = append(out.Watches, watchJSON{w.GetRule(), at(w.GetUntil()), w.GetErrors(), w.GetHealth()})
	}
	if out.Earlier == nil {
		out.Earlier = []string{}
	}
	for _, m := range s.GetMarks() {
		out.Marks = append(out.Marks, markJSON{m.GetRelease(), m.GetBy(), at(m.GetTime()), m.GetReason()})
	}
	if out.Values == nil {
		out.Values = []string{}
	}
	return out
}

func newReleaseStages(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stages [PROJECT]",
		Short: "List the releases that stages point at",
		Args:  args(0, 1, "at most one project"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.ListStages(cmd.Context(), connect.NewRequest(&islev1.ListStagesRequest{Project: first(given)}))
			if err != nil {
				return err
			}
			return showList(a, res.Msg.GetStages(), stageView, "project\tstage\trelease\tsince\tby\trolled back from\twatched\tvalues", func(m *islev1.Stage) []string {
				s := stageView(m)
				var marks []string
				for _, m := range s.Marks {
					marks = append(marks, shortDigest(m.Release))
				}
				return []string{s.Project, s.Stage, shortDigest(s.Release), ago(s.Since), s.By, strings.Join(marks, ", "), watchedText(m), strings.Join(s.Values, ", ")}
			})
		},
	}
}

// watchedText says how long a stage is watched, or that it should have been rolled
// back.
func watchedText(s *islev1.Stage) string {
	var out []string
	for _, w := range s.GetWatches() {
		if w.GetUntil() == nil {
			out = append(out, w.GetText())
			continue
		}
		out = append(out, "until "+w.GetUntil().AsTime().Local().Format(time.DateTime)+" for "+w.GetText())
	}
	if s.GetBreach() != "" {
		out = append(out, "NOT ROLLED BACK: "+s.GetBreach())
	}
	return strings.Join(out, "; ")
}
