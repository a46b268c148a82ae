package main

import (
	"encoding/json"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
)

func newAudit(a *app) *cobra.Command {
	var lines int32
	var follow bool
	var from uint64
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show the audit log: who did what to what, and how it ended",
		Example: `  isle audit -n 20
  isle audit --from 0 -o json      all of it, the canonical encoding, one entry per line`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			req := &islev1.AuditRequest{Tail: lines, Follow: follow}
			if cmd.Flags().Changed("from") {
				req.From, req.Tail = from, 0
			}
			stream, err := c.Server.Audit(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				if a.output == "json" {
					fmt.Fprintf(a.stdout, "%s\n", stream.Msg().GetJson())
					continue
				}
				var e audit.Entry
				if err := json.Unmarshal([]byte(stream.Msg().GetJson()), &e); err != nil {
					return isle.Errorf(isle.Internal, "entry %d cannot be read: %w", stream.Msg().GetSequence(), err)
				}
				a.showEntry(e)
			}
			if follow && cmd.Context().Err() != nil {
				return nil
			}
			return stream.Err()
		},
	}
	f := cmd.Flags()
	f.Int32VarP(&lines, "lines", "n", 50, "only the last so many entries")
	f.Uint64Var(&from, "from", 0, "every entry from this sequence number on")
	f.BoolVarP(&follow, "follow", "f", false, "go on as more is written")
	return cmd
}

func (a *app) showEntry(e audit.Entry) {
	what := string(e.Kind)
	switch {
	case e.Decision != isle.Allow:
		what = string(e.Decision)
	case e.Result != "":
		what = e.Result
	}
	line := fmt.Sprintf("%6d  %s  %-12s %-24s %-32s %s", e.Sequence, e.Time.Local().Format(time.DateTime), e.Actor, e.Action, e.Resource, what)
	if e.Count > 1 {
		line += fmt.Sprintf(" ×%d", e.Count)
	}
	if e.Decision != isle.Allow && e.Rule != "" {
		line += " by " + e.Rule
	}
	if e.Summary != "" {
		line += "  " + e.Summary
	}
	fmt.Fprintln(a.stdout, clean(line))
}
