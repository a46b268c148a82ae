package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newCacheExport(a *app) *cobra.Command {
	req := &islev1.ExportCacheRequest{}
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write what the steps of last builds made as one file",
		Long: `Write what the steps of each project's last build made as one file, signed by this server:
their results, what they were made of, arguments and variables among it, and the images that
they begin with. Cache mounts are not in it.`,
		Example: `  isle cache export --project shop shop.cache`,
		Args:    args(1, 1, "one file to write"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Images.ExportCache(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.saveFile(stream, given[0], "read it elsewhere with: isle cache import")
		},
	}
	cmd.Flags().StringVar(&req.Project, "project", "", "of this project only")
	return cmd
}

func newCacheImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Read what isle cache export wrote",
		Long: `Read what steps made elsewhere: the next builds of the same files make none of it again.
What a step made can only be checked by making it again, so nothing of the file is taken in
unless a key signed it that this server trusts with releases (isle release trust): whoever has
that key decides what is in the images that are built here.`,
		Args: args(1, 1, "one file to read"),
		RunE: func(cmd *cobra.Command, given []string) error {
			res, err := sendGiven(cmd.Context(), a, given[0], func(c *api.Client) *connect.ClientStreamForClient[islev1.Chunk, islev1.ImportCacheResponse] {
				return c.Images.ImportCache(cmd.Context())
			})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"steps": res.GetSteps(), "layers": res.GetLayers(), "size": res.GetSize(), "signer": res.GetSigner()})
			}
			_, err = fmt.Fprintf(a.stdout, "%d results of steps are known, %d layers of %s are new, signed by %s\n",
				res.GetSteps(), res.GetLayers(), bytesText(res.GetSize()), clean(res.GetSigner()))
			return err
		},
	}
}
