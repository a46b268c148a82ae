package main

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	islev1 "isle/internal/api/isle/v1"
	"isle/internal/policy"
)

func newReleaseKeep(a *app) *cobra.Command {
	var span string
	var off bool
	cmd := &cobra.Command{
		Use:   "keep RELEASE --for TIME|--off",
		Short: "Keep a release for a time, whatever rules say",
		Long: `Keep a release for a time from now: neither isle release rm nor isle gc removes it. A release
that a stage points at, goes back to or has marked, or that runs, is kept without; rules of
what else is kept are in the policy, under keep.`,
		Example: "  isle release keep 3fa9c1 --for 90d\n  isle release keep 3fa9c1 --off",
		Args:    args(1, 1, "one release"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req := &islev1.KeepReleaseRequest{Release: given[0]}
			switch {
			case off == (span != ""):
				return usagef("say --for with a time, or --off")
			case span != "":
				d, err := policy.ParseDays(span)
				if err != nil {
					return usagef("--for: %v", err)
				}
				req.For = durationpb.New(d)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.KeepRelease(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			until := at(res.Msg.GetUntil())
			if a.output == "json" {
				return a.json(struct {
					Release string     `json:"release"`
					Until   *time.Time `json:"until"`
				}{res.Msg.GetRelease(), until})
			}
			text := "is kept by what names it, and by rules, alone"
			if until != nil {
				text = "is kept until " + until.Local().Format(time.DateTime)
			}
			_, err = fmt.Fprintf(a.stdout, "release %s %s\n", shortDigest(res.Msg.GetRelease()), text)
			return err
		},
	}
	cmd.Flags().StringVar(&span, "for", "", "for how long, as 90d or 36h")
	cmd.Flags().BoolVar(&off, "off", false, "keep it no more")
	return cmd
}
