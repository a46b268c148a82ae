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
	"isle/internal/server"
)

type checkJSON struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

func newDoctor(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what the machine lacks, and the command that mends it",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := a.examine(cmd.Context())
			missing := 0
			for _, c := range checks {
				if c.State == api.CheckMissing {
					missing++
				}
			}
			var err error
			if a.output == "json" {
				err = a.json(checks)
			} else {
				a.showChecks(checks)
			}
			if err == nil && missing > 0 {
				err = exitError(exitFailed)
			}
			return err
		},
	}
}

// examine asks the server, which sees what it sees, or looks for itself where
// there is none: the reason may be what is looked for.
func (a *app) examine(ctx context.Context) []checkJSON {
	var out []checkJSON
	c, err := a.existing(ctx)
	if err == nil {
		res, rerr := c.Server.Doctor(ctx, connect.NewRequest(&islev1.DoctorRequest{}))
		if err = rerr; err == nil {
			out = append(out, checkJSON{"server", api.CheckOK, "answers at " + c.Address(), ""})
			for _, ch := range res.Msg.GetChecks() {
				out = append(out, checkJSON{ch.GetName(), ch.GetState(), ch.GetMessage(), ch.GetRemedy()})
			}
			return out
		}
	}
	flat := api.Flatten(err)
	switch {
	case flat.Code == isle.NotFound && a.address == "":
		out = append(out, checkJSON{"server", api.CheckOK, "none answers at " + a.socket() + "; one is started when it is needed", ""})
	default:
		out = append(out, checkJSON{"server", api.CheckMissing, flat.Message, flat.Hint})
	}
	if a.remote() { // this machine does not matter
		return out
	}
	for _, ch := range server.Doctor(server.Config{State: a.state}) {
		out = append(out, checkJSON{ch.Name, ch.State, ch.Message, ch.Remedy})
	}
	return out
}

func (a *app) showChecks(checks []checkJSON) {
	marks := map[string]string{api.CheckOK: "✓", api.CheckWarning: "!", api.CheckMissing: "✗"}
	for _, c := range checks {
		fmt.Fprintf(a.stdout, "%s %-14s %s\n", marks[c.State], c.Name, strings.ReplaceAll(clean(c.Message), "\n", " "))
		if c.Remedy != "" && c.State != api.CheckOK {
			fmt.Fprintf(a.stdout, "  %-14s %s\n", "", clean(c.Remedy))
		}
	}
}
