package main

import (
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

type doorJSON struct {
	Destination string     `json:"destination"`
	Kind        string     `json:"kind"`     // connection, egress
	Protocol    string     `json:"protocol"` // of a connection its kind: postgres, http, tcp
	Stage       string     `json:"stage,omitempty"`
	State       string     `json:"state"`
	Reason      string     `json:"reason"`
	Count       int32      `json:"count"`
	Active      int32      `json:"active"`
	Held        int32      `json:"held,omitempty"`
	First       *time.Time `json:"first,omitempty"`
	Last        *time.Time `json:"last,omitempty"`
}

func newDoors(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doors ENV",
		Short: "List what an environment may reach, and what it tried",
		Args:  args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.Doors(cmd.Context(), connect.NewRequest(&islev1.DoorsRequest{Environment: ref.String()}))
			if err != nil {
				return err
			}
			if len(res.Msg.GetDoors()) == 0 && a.output != "json" {
				fmt.Fprintf(a.stdout, "%s may reach nothing outside, and has not tried\n", ref)
				return nil
			}
			return showList(a, res.Msg.GetDoors(), doorView, "state\tdestination\tprotocol\tcount\tactive\tlast\treason", func(d *islev1.Door) []string {
				last := ""
				if t := d.GetLast(); t != nil && !t.AsTime().IsZero() {
					last = span(time.Since(t.AsTime())) + " ago"
				}
				destination := d.GetDestination()
				if d.GetStage() != "" {
					destination += "@" + d.GetStage()
				}
				return []string{d.GetState(), destination, d.GetProtocol(), strconv.Itoa(int(d.GetCount())), strconv.Itoa(int(d.GetActive())), last, d.GetReason()}
			})
		},
	}
}

func doorView(d *islev1.Door) doorJSON {
	return doorJSON{d.GetDestination(), d.GetKind(), d.GetProtocol(), d.GetStage(), d.GetState(), d.GetReason(), d.GetCount(), d.GetActive(), d.GetHeld(), at(d.GetFirst()), at(d.GetLast())}
}
