package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newRestore(a *app) *cobra.Command {
	var at string
	var cold bool
	cmd := &cobra.Command{
		Use:   "restore ENV --at SNAPSHOT",
		Short: "Bring an environment back to a snapshot",
		Long: `Bring an environment back to a snapshot, under its name: services, configuration and
volumes as they were, and running processes where the snapshot has memory. What runs goes on until the replacement is up, and is gone then,
with its volumes; if the replacement does not come up, nothing has changed. To keep what
is there now, take a snapshot of it first, or use 'isle fork --at'.`,
		Example: `  isle restore shop --at before-migration`,
		Args:    args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			if at == "" {
				return usagef("isle restore takes --at SNAPSHOT")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			e, err := restore(cmd.Context(), c, &islev1.RestoreRequest{Environment: ref.String(), At: at, Cold: cold}, show)
			show.close()
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(environmentView(e))
			}
			fmt.Fprintf(a.stdout, "%s is %s, as it was in snapshot %s\n", refText(e), e.GetPhase(), shortDigest(e.GetOrigin()))
			a.showPorts(e)
			return nil
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "the snapshot: its digest or a tag")
	cmd.Flags().BoolVar(&cold, "cold", false, "start services anew on the volumes, where the snapshot has memory")
	return cmd
}

// restore makes the call.
func restore(ctx context.Context, c *api.Client, req *islev1.RestoreRequest, show *progress) (*islev1.Environment, error) {
	stream, err := c.Forks.Restore(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	m, err := conclusion(stream, false, show)
	return m.GetResult(), err
}
