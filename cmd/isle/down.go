package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newDown(a *app) *cobra.Command {
	var all, volumes bool
	cmd := &cobra.Command{
		Use:   "down ENV… | --all",
		Short: "Tear environments down; volumes are kept",
		Example: `  isle down shop
  isle down shop shop-feature --volumes    delete their data too
  isle down --all`,
		RunE: func(cmd *cobra.Command, given []string) error {
			if all == (len(given) > 0) {
				return usagef("isle down takes environments, or --all").WithHint("see `isle ls`")
			}
			for _, g := range given {
				if _, err := reference(g); err != nil {
					return err
				}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.newProgress()
			defer p.close()
			if all {
				return down(cmd.Context(), c, p, &islev1.DownRequest{All: true, Volumes: volumes})
			}
			var first error
			for _, names := range byStage(given) {
				if err := down(cmd.Context(), c, p, &islev1.DownRequest{Environments: names, Volumes: volumes}); err != nil && first == nil {
					first = err
				}
			}
			return first
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every environment")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "delete volumes too")
	return cmd
}

// byStage puts the names of each stage together: a call is a session, and that
// is in one stage.
func byStage(names []string) (out [][]string) {
	place := map[string]int{}
	for _, n := range names {
		ref, err := isle.ParseRef(n)
		if err != nil {
			continue // it was looked at before
		}
		i, ok := place[ref.Stage]
		if !ok {
			i = len(out)
			place[ref.Stage] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], n)
	}
	return out
}

// down tears down and shows it.
func down(ctx context.Context, c *api.Client, p *progress, req *islev1.DownRequest) error {
	stream, err := c.Environments.Down(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		p.event(stream.Msg())
	}
	return stream.Err()
}
