package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

type gcOptions struct {
	dryRun, branches, volumes, yes bool
	stage                          string
}

func newGC(a *app) *cobra.Command {
	var o gcOptions
	cmd := &cobra.Command{
		Use:   "gc [--branches [DIR|FILE]]",
		Short: "Free what nothing names",
		Long: `Remove layers and files that no environment and no cached build step names, and
volumes whose time is over. What is removed and needed again is built again; locked
packages stay, for a mirror may have dropped them. So do releases, but those of projects of
which a rule of the policy says which are kept, that no rule keeps and nothing names.

With --branches: tear down this project's environments whose git branch is gone. That is
one which the repository has neither as its own nor as one that it last saw at a remote
(git fetch --prune forgets those that a remote has no more). Environments without a
branch, of other projects, and of other repositories and clones are left alone.`,
		Example: `  isle gc --dry-run
  isle gc --branches --dry-run       which environments would end
  isle gc --branches --volumes       delete their data too, after a question`,
		RunE: func(cmd *cobra.Command, given []string) error {
			if o.branches {
				if err := args(0, 1, "at most one folder or file")(cmd, given); err != nil {
					return err
				}
				if !isle.ValidName(o.stage) {
					return usagef("--stage %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.stage)
				}
				return a.collectBranches(cmd.Context(), o, first(given))
			}
			for _, name := range []string{"volumes", "yes", "stage"} {
				if cmd.Flags().Changed(name) {
					return usagef("--%s belongs to --branches", name).WithHint("see `isle gc --help`")
				}
			}
			if err := args(0, 0, "no arguments without --branches")(cmd, given); err != nil {
				return err
			}
			return a.collectUnused(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&o.branches, "branches", false, "tear down environments whose git branch is gone, and nothing else")
	f.BoolVar(&o.volumes, "volumes", false, "with --branches: delete their volumes too")
	f.BoolVar(&o.yes, "yes", false, "with --volumes: without a question")
	f.StringVar(&o.stage, "stage", isle.DefaultStage, "with --branches: the stage whose environments are looked at")
	return cmd
}

// collectUnused frees what nothing names.
func (a *app) collectUnused(ctx context.Context, o gcOptions) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Server.Collect(ctx, connect.NewRequest(&islev1.CollectRequest{DryRun: o.dryRun}))
	if err != nil {
		return err
	}
	m := res.Msg
	if a.output == "json" {
		return a.json(struct {
			DryRun   bool  `json:"dry_run"`
			Layers   int32 `json:"layers"`
			Blobs    int32 `json:"blobs"`
			Volumes  int32 `json:"volumes"`
			Warm     int32 `json:"warm"`
			Releases int32 `json:"releases"`
			Freed    int64 `json:"freed"`
		}{o.dryRun, m.GetLayers(), m.GetBlobs(), m.GetVolumes(), m.GetWarm(), m.GetReleases(), m.GetFreed()})
	}
	verb := "freed"
	if o.dryRun {
		verb = "would free"
	}
	fmt.Fprintf(a.stdout, "%s %s: %d layers, %d files, %d volumes, %d ready states, %d releases\n", verb, bytesText(m.GetFreed()), m.GetLayers(), m.GetBlobs(), m.GetVolumes(), m.GetWarm(), m.GetReleases())
	return nil
}
