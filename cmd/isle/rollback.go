package main

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

type rollbackOptions struct {
	to, reason      string
	restore, dryRun bool
}

func newRollback(a *app) *cobra.Command {
	var o rollbackOptions
	cmd := &cobra.Command{
		Use:   "rollback [PROJECT@]STAGE",
		Short: "Point a stage at the release that it pointed at before",
		Long: `Point a stage at the release that it pointed at before the last promotion, or at an earlier one
with --to, and switch what runs there: where the instance of before is kept still it goes on as
it was, values and doors included; else it is launched, as isle promote does.

The release that is rolled back from is marked: nothing promotes it to this stage again until
a person clears that with isle release clear. A release that could not use the data as it is
now (schema in isle.yaml) is refused; --restore brings the snapshot of the data back too that
was taken when that release was left, and keeps another of what there is now.`,
		Example: `  isle rollback production
  isle rollback shop@production --to 3fa9c1 -m 'baskets are lost'
  isle rollback shop@production --restore`,
		Args: args(1, 1, "one stage, as PROJECT@STAGE"),
		RunE: func(cmd *cobra.Command, given []string) error { return a.rollback(cmd.Context(), given[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "the release (default: the last one before)")
	f.StringVarP(&o.reason, "message", "m", "", "why, for people and the log")
	f.BoolVar(&o.restore, "restore", false, "bring the data back too, as that release had left it")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

// stageOf reads PROJECT@STAGE, or a stage of the project in this folder.
func stageOf(arg string) (project, stage string, err error) {
	project, stage, ok := strings.Cut(arg, "@")
	if !ok {
		p, err := readProject("")
		if err != nil {
			return "", "", usagef("%q: want PROJECT@STAGE, or a stage where there is an isle.yaml", clean(arg))
		}
		project, stage = p.file.Name, arg
	}
	if !isle.ValidName(project) || !isle.ValidName(stage) {
		return "", "", usagef("%q: want PROJECT@STAGE, such as shop@production", clean(arg))
	}
	return project, stage, nil
}

type rollbackJSON struct {
	Project  string      `json:"project"`
	Stage    string      `json:"stage"`
	Release  string      `json:"release"`
	Before   string      `json:"before"`
	DryRun   bool        `json:"dry_run"`
	Values   []string    `json:"values"`
	Data     string      `json:"data,omitempty"`
	Restored string      `json:"restored,omitempty"`
	Saved    string      `json:"saved,omitempty"`
	Switch   *switchJSON `json:"switch,omitempty"`
}

func (a *app) rollback(ctx context.Context, arg string, o rollbackOptions) error {
	project, stage, err := stageOf(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	show := a.newProgress()
	res, err := rollbackOnce(ctx, c, &islev1.RollbackRequest{Project: project, Stage: stage, Release: o.to, Reason: o.reason, Restore: o.restore, DryRun: o.dryRun}, show)
	show.close()
	if err != nil {
		return err
	}
	if a.output == "json" {
		out := rollbackJSON{
			project, stage, res.GetRelease().GetDigest(), res.GetBefore(), o.dryRun, res.GetValues(), res.GetData(), res.GetRestored(), res.GetSaved(), switchView(res.GetSwitch()),
		}
		if out.Values == nil {
			out.Values = []string{}
		}
		return a.json(out)
	}
	a.showRollback(project, stage, res, o.dryRun)
	return nil
}

func rollbackOnce(ctx context.Context, c *api.Client, req *islev1.RollbackRequest, show *progress) (*islev1.RollbackResponse, error) {
	stream, err := c.Releases.Rollback(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	m, err := conclusion(stream, false, show)
	return m.GetResult(), err
}

func (a *app) showRollback(project, stage string, res *islev1.RollbackResponse, dryRun bool) {
	w := a.stdout
	was, is := shortDigest(res.GetBefore()), shortDigest(res.GetRelease().GetDigest())
	fmt.Fprintf(w, "%s, %s: release %s -> release %s (%s)\n", project, stage, was, is, clean(releaseView(res.GetRelease()).source()))
	for _, v := range res.GetValues() {
		fmt.Fprintf(w, "  value     %s\n", cleanLine(v))
	}
	if dryRun {
		if d := res.GetData(); d != "" {
			fmt.Fprintf(w, "  ! release %s could not use its data: %s\n", is, cleanLine(d))
		}
		fmt.Fprintln(w, "  nothing was changed: --dry-run")
		return
	}
	if s := res.GetSwitch(); s != nil {
		a.showSwitch(s)
	}
	if d := res.GetRestored(); d != "" {
		fmt.Fprintf(w, "  the data is that of snapshot %s; what was written since is in snapshot %s\n", shortDigest(d), shortDigest(res.GetSaved()))
	}
	if was != is {
		fmt.Fprintf(w, "  release %s is not promoted here again until a person clears it: isle release clear %s@%s %s\n", was, project, stage, was)
	}
}

func newReleaseClear(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "clear [PROJECT@]STAGE RELEASE",
		Short:   "Let a release be promoted again that a stage was rolled back from",
		Example: "  isle release clear shop@production 3fa9c1",
		Args:    args(2, 2, "a stage, as PROJECT@STAGE, and a release"),
		RunE: func(cmd *cobra.Command, given []string) error {
			project, stage, err := stageOf(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.ClearRelease(cmd.Context(), connect.NewRequest(&islev1.ClearReleaseRequest{Project: project, Stage: stage, Release: given[1]}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(struct {
					Release string `json:"release"`
				}{res.Msg.GetRelease()})
			}
			_, err = fmt.Fprintf(a.stdout, "release %s may be promoted to %s of %s again\n", shortDigest(res.Msg.GetRelease()), stage, project)
			return err
		},
	}
}
