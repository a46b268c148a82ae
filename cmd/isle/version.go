package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

// linked is the version that the linker is told (make build).
var linked string

// version is what this program calls itself.
func version() string {
	if linked != "" {
		return linked
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program, and of the server if one answers",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := struct {
				Version string `json:"version"`
				Server  string `json:"server,omitempty"`
				URL     string `json:"url,omitempty"`
				Listen  string `json:"listen,omitempty"`
				Pin     string `json:"pin,omitempty"`
				Gateway string `json:"gateway,omitempty"`
			}{Version: version()}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			if c, err := a.existing(ctx); err == nil {
				if info, err := c.Server.Info(ctx, connect.NewRequest(&islev1.InfoRequest{})); err == nil {
					out.Server, out.URL, out.Listen, out.Pin = info.Msg.GetVersion(), info.Msg.GetUrl(), info.Msg.GetListen(), info.Msg.GetPin()
					out.Gateway = info.Msg.GetGateway()
				}
			}
			if a.output == "json" {
				return a.json(out)
			}
			fmt.Fprintf(a.stdout, "isle %s\n", out.Version)
			if out.Server != "" {
				fmt.Fprintf(a.stdout, "server %s\n", clean(out.Server))
			}
			if out.URL != "" {
				fmt.Fprintf(a.stdout, "  from elsewhere: %s, listening at %s\n  key: %s\n", clean(out.URL), clean(out.Listen), clean(out.Pin))
			}
			if out.Gateway != "" {
				fmt.Fprintf(a.stdout, "  connections from outside: %s, over TLS\n", clean(out.Gateway))
			}
			return nil
		},
	}
}
