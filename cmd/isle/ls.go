package main

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

func newLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list", "ps"},
		Short:   "List environments",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.List(cmd.Context(), connect.NewRequest(&islev1.ListRequest{}))
			if err != nil {
				return err
			}
			return showList(a, res.Msg.GetEnvironments(), environmentView, "name\tphase\tservices\tbranch\tcommit\tage\tleft\tports", func(e *islev1.Environment) []string {
				var services []string
				for _, s := range e.GetServices() {
					services = append(services, s.GetName())
				}
				return []string{refText(e), e.GetPhase(), strings.Join(services, ","), e.GetBranch(), commitText(e), age(e), left(e), strings.Join(urls(e), " ")}
			})
		},
	}
}

func environmentRef(e *islev1.Environment) isle.Ref {
	return isle.Ref{Name: e.GetName(), Stage: e.GetStage()}
}

func age(e *islev1.Environment) string {
	if e.GetCreated() == nil {
		return ""
	}
	return span(time.Since(e.GetCreated().AsTime()))
}

// left is how long the environment has to live, "" if for ever.
func left(e *islev1.Environment) string {
	if e.GetExpires() == nil {
		return ""
	}
	return span(time.Until(e.GetExpires().AsTime()))
}

// urls are the published ports, as addresses.
func urls(e *islev1.Environment) []string {
	var out []string
	for _, s := range e.GetServices() {
		for _, p := range s.GetPorts() {
			out = append(out, fmt.Sprintf("127.0.0.1:%d", p.GetHost()))
		}
	}
	return out
}
