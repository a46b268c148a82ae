package main

import (
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	islev1 "isle/internal/api/isle/v1"
	"isle/internal/spec"
)

type cacheJSON struct {
	Project string     `json:"project"`
	ID      string     `json:"id"`
	Size    int64      `json:"size"`
	Used    *time.Time `json:"used,omitempty"`
}

func cacheView(m *islev1.CacheMount) cacheJSON {
	return cacheJSON{m.GetProject(), m.GetId(), m.GetSize(), at(m.GetUsed())}
}

func newCache(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "What builds keep for the next one",
		Long: `What builds keep for the next one: the folders of RUN --mount=type=cache, of each
project, and what each step made of which inputs. What steps made is layers, which
isle gc frees when nothing needs them; isle build --explain says what is found, and
isle cache export and import take them to another machine.`,
		Args: args(0, 0, "a command: ls, prune, export, import"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCacheLs(a), newCachePrune(a), newCacheExport(a), newCacheImport(a))
	return cmd
}

func newCacheLs(a *app) *cobra.Command {
	var project string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the folders of cache mounts",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Images.ListCaches(cmd.Context(), connect.NewRequest(&islev1.ListCachesRequest{Project: project}))
			if err != nil {
				return err
			}
			if err := a.showCaches(res.Msg.GetMounts()); err != nil || a.output == "json" {
				return err
			}
			fmt.Fprintf(a.stdout, "%s steps' results are known\n", strconv.Itoa(int(res.Msg.GetSteps())))
			return nil
		},
	}
	cmd.Flags().StringVar(&project, "project", "", "of this project only")
	return cmd
}

func newCachePrune(a *app) *cobra.Command {
	req := &islev1.PruneCachesRequest{}
	var unused string
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the folders of cache mounts, or forget what steps made",
		Example: `  isle cache prune --unused 7d
  isle cache prune --project shop
  isle cache prune --steps         the next build makes every step again`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Steps && (unused != "" || req.Project != "") {
				return usagef("--steps stands alone: what steps made is shared by all projects")
			}
			if unused != "" {
				d, err := spec.ParseDuration(unused)
				if err != nil {
					return usagef("--unused: %v", err)
				}
				req.Unused = durationpb.New(d)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Images.PruneCaches(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if req.Steps && a.output != "json" {
				fmt.Fprintf(a.stdout, "%d steps are forgotten\n", res.Msg.GetSteps())
				return nil
			}
			return a.showCaches(res.Msg.GetMounts())
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Project, "project", "", "of this project only")
	f.StringVar(&unused, "unused", "", "only what no step used for so long, such as 7d")
	f.BoolVar(&req.Steps, "steps", false, "forget what steps made, of all projects")
	return cmd
}

func (a *app) showCaches(mounts []*islev1.CacheMount) error {
	return showList(a, mounts, cacheView, "project\tcache\tsize\tused", func(m *islev1.CacheMount) []string {
		return []string{m.GetProject(), clean(m.GetId()), bytesText(m.GetSize()), ago(at(m.GetUsed()))}
	})
}
