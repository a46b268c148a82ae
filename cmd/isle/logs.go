package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

func newLogs(a *app) *cobra.Command {
	var follow, times bool
	var tail int
	var services []string
	cmd := &cobra.Command{
		Use:   "logs ENV [-f] [-s SERVICE]",
		Short: "Show what services wrote",
		Example: `  isle logs shop --tail 20
  isle logs shop -s web -f`,
		Args: args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			if tail < 0 {
				return usagef("--tail %d: want a number of lines", tail)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Environments.Logs(cmd.Context(), connect.NewRequest(&islev1.LogsRequest{
				Environment: ref.String(), Services: services, Follow: follow, Tail: int32(min(tail, 1<<30)),
			}))
			if err != nil {
				return err
			}
			defer stream.Close()
			enc := json.NewEncoder(a.stdout)
			for stream.Receive() {
				l := stream.Msg()
				line := strings.TrimRight(string(l.GetData()), "\r\n")
				if a.output == "json" { // a stream: one object per line
					err = enc.Encode(struct {
						Service string    `json:"service"`
						Time    time.Time `json:"time"`
						Stderr  bool      `json:"stderr"`
						Line    string    `json:"line"`
					}{l.GetService(), l.GetTime().AsTime(), l.GetStderr(), line})
				} else {
					prefix := ""
					if times {
						prefix = l.GetTime().AsTime().Local().Format("2006-01-02T15:04:05.000Z07:00") + " "
					}
					if len(services) != 1 {
						prefix += l.GetService() + " | "
					}
					_, err = fmt.Fprintf(a.stdout, "%s%s\n", prefix, clean(line))
				}
				if err != nil {
					return exitError(exitFailed) // nobody reads any more
				}
			}
			if cmd.Context().Err() != nil && follow {
				return nil
			}
			return stream.Err()
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written")
	cmd.Flags().BoolVar(&times, "times", false, "show when each line was written")
	cmd.Flags().IntVar(&tail, "tail", 0, "only the last so many lines (default: all that is kept)")
	cmd.Flags().StringSliceVarP(&services, "service", "s", nil, "only this service (may be repeated)")
	return cmd
}
