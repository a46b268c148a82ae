package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

func newGC(a *app) *cobra.Command {
	req := &islev1.CollectRequest{}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free what nothing names",
		Long: `Remove layers and files that no environment and no cached build step names, and
volumes whose time is over. What is removed and needed again is built again; locked
packages stay, for a mirror may have dropped them.`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Server.Collect(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			m := res.Msg
			if a.output == "json" {
				return a.json(struct {
					DryRun  bool  `json:"dry_run"`
					Layers  int32 `json:"layers"`
					Blobs   int32 `json:"blobs"`
					Volumes int32 `json:"volumes"`
					Freed   int64 `json:"freed"`
				}{req.DryRun, m.GetLayers(), m.GetBlobs(), m.GetVolumes(), m.GetFreed()})
			}
			verb := "freed"
			if req.DryRun {
				verb = "would free"
			}
			fmt.Fprintf(a.stdout, "%s %s: %d layers, %d files, %d volumes\n", verb, bytesText(m.GetFreed()), m.GetLayers(), m.GetBlobs(), m.GetVolumes())
			return nil
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be freed")
	return cmd
}
