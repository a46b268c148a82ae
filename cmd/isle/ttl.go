package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	islev1 "isle/internal/api/isle/v1"
	"isle/internal/spec"
)

func newTTL(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ttl ENV +DURATION|-DURATION|never",
		Short: "Move the end of an environment's life",
		Example: `  isle ttl shop +8h
  isle ttl shop never`,
		Args: args(2, 2, "an environment and a duration"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			req := &islev1.ExtendRequest{Environment: ref.String(), Never: given[1] == "never"}
			if !req.Never {
				by, signed := strings.CutPrefix(given[1], "+")
				d, err := duration(by)
				if err != nil || !signed {
					return usagef("%q: want +DURATION, -DURATION or never, for example +8h", given[1])
				}
				req.By = durationpb.New(d)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.Extend(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(struct {
					Expires *time.Time `json:"expires"`
				}{at(res.Msg.GetExpires())})
			}
			if t := at(res.Msg.GetExpires()); t != nil {
				fmt.Fprintf(a.stdout, "%s ends %s (in %s)\n", ref, t.Local().Format(time.DateTime), span(time.Until(*t)))
			} else {
				fmt.Fprintf(a.stdout, "%s has no end\n", ref)
			}
			return nil
		},
	}
}

// duration reads a duration as isle.yaml writes it, with a sign.
func duration(s string) (time.Duration, error) {
	rest, negative := strings.CutPrefix(s, "-")
	d, err := spec.ParseDuration(rest)
	if negative {
		d = -d
	}
	return d, err
}

// subtractions lets `isle ttl ENV -1h` mean what it says: to the flag parser
// "-1h" would be a flag. It becomes "+-1h".
func subtractions(args []string) []string {
	if !slices.Contains(args, "ttl") {
		return args
	}
	out := slices.Clone(args)
	for i, s := range out {
		if len(s) > 1 && s[0] == '-' && s[1] >= '0' && s[1] <= '9' {
			out[i] = "+" + s
		}
	}
	return out
}
