package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

type changeJSON struct {
	Service string `json:"service"`
	Volume  string `json:"volume"`
	Path    string `json:"path"`
	Kind    string `json:"kind"`
	Size    int64  `json:"size"`
}

func newDiff(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "diff ENV [-s SERVICE]",
		Short: "List what changed in volumes since they were filled",
		Long: `List what changed in volumes since they were filled: against what
'isle run --copy' put there, or against an empty volume. Nothing else can change:
roots are read-only. Bring changes back out with 'isle cp'.`,
		Args: args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.Diff(cmd.Context(), connect.NewRequest(&islev1.DiffRequest{Environment: ref.String(), Service: service}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				out := []changeJSON{}
				for _, ch := range res.Msg.GetChanges() {
					out = append(out, changeJSON{ch.GetService(), ch.GetVolume(), ch.GetPath(), ch.GetKind(), ch.GetSize()})
				}
				return a.json(out)
			}
			marks := map[string]string{"added": "A", "modified": "M", "deleted": "D"}
			for _, ch := range res.Msg.GetChanges() {
				mark := marks[ch.GetKind()]
				if mark == "" {
					mark = "?"
				}
				fmt.Fprintf(a.stdout, "%s %s:%s/%s\n", mark, ch.GetService(), ch.GetVolume(), clean(ch.GetPath()))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&service, "service", "s", "", "only this service")
	return cmd
}
