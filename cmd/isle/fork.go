package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/spec"
)

type forkOptions struct {
	name, at, toStage, ttl, timeout string
	n                               int
	cold                            bool
}

func newFork(a *app) *cobra.Command {
	var o forkOptions
	cmd := &cobra.Command{
		Use:   "fork ENV|SNAPSHOT",
		Short: "Make independent running copies",
		Long: `Make copies of an environment as it is now, or of a snapshot, each with volumes, an
airlock and an identity of its own. All copies of one call are of the same instant; the
environment goes on. In the class gvisor a copy goes on from memory: processes, open files
and connections between services are as they were. In the class container services start on
the copied volumes. A copy is shut, its published ports too, until on_fork has succeeded in
every service that has one.`,
		Example: `  isle fork shop
  isle fork shop -n 3
  isle fork shop --name try --ttl 2h
  isle fork shop --at before-migration
  isle fork shop@production --to-stage testing`,
		Args: args(1, 1, "one environment or snapshot"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req, err := o.request(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			res, err := fork(cmd.Context(), c, req, show)
			show.close()
			if err != nil {
				return err
			}
			return a.showForks(res)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "name of the copy; of several, NAME-1 to NAME-N (default: free names, ENV-f1 and so on)")
	f.IntVarP(&o.n, "count", "n", 1, "how many copies")
	f.StringVar(&o.at, "at", "", "copy this snapshot of ENV instead of what runs: its digest or a tag")
	f.StringVar(&o.toStage, "to-stage", "", "take the volumes into another stage, which policy must grant (default: the stage of ENV)")
	f.StringVar(&o.ttl, "ttl", "", "end after this long (8h, 2d), or never; overrides the file")
	f.BoolVar(&o.cold, "cold", false, "start services anew on the volumes, where the copy could go on from memory")
	f.StringVar(&o.timeout, "timeout", "", "how long each on_fork may take (default 5m)")
	return cmd
}

// request is what the flags say.
func (o forkOptions) request(from string) (*islev1.ForkRequest, error) {
	req := &islev1.ForkRequest{From: from, At: o.at, Name: o.name, Count: int32(o.n), ToStage: o.toStage, Cold: o.cold}
	if o.name != "" && !isle.ValidName(o.name) {
		return nil, usagef("--name %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.name).WithHint("try --name %s", isle.Slug(o.name))
	}
	if o.toStage != "" && !isle.ValidName(o.toStage) {
		return nil, usagef("--to-stage %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.toStage)
	}
	if o.n < 1 || o.n > 64 {
		return nil, usagef("-n %d: want 1 to 64", o.n)
	}
	switch o.ttl {
	case "":
	case "never":
		req.Ttl = durationpb.New(0)
	default:
		d, err := spec.ParseDuration(o.ttl)
		if err != nil || d <= 0 {
			return nil, usagef("--ttl %q: want a duration such as 8h or 2d, or never", o.ttl)
		}
		req.Ttl = durationpb.New(d)
	}
	if o.timeout != "" {
		d, err := spec.ParseDuration(o.timeout)
		if err != nil || d <= 0 {
			return nil, usagef("--timeout %q: want a duration such as 90s or 10m", o.timeout)
		}
		req.Timeout = durationpb.New(d)
	}
	return req, nil
}

// fork makes the call. The stream of one-shot forks is left open, for ctx to end.
func fork(ctx context.Context, c *api.Client, req *islev1.ForkRequest, show *progress) (*islev1.ForkResult, error) {
	stream, err := c.Forks.Fork(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	m, err := conclusion(stream, req.GetOneShot(), show)
	return m.GetResult(), err
}

// showForks prints the copies.
func (a *app) showForks(res *islev1.ForkResult) error {
	if a.output == "json" {
		out := []environmentJSON{}
		for _, e := range res.GetEnvironments() {
			out = append(out, environmentView(e))
		}
		return a.json(out)
	}
	for _, e := range res.GetEnvironments() {
		fmt.Fprintf(a.stdout, "%s is %s", refText(e), e.GetPhase())
		if e.GetExpires() != nil {
			fmt.Fprintf(a.stdout, ", for %s", left(e))
		}
		fmt.Fprintln(a.stdout)
		a.showPorts(e)
	}
	if len(res.GetEnvironments()) > 0 {
		ref := refText(res.GetEnvironments()[0])
		fmt.Fprintf(a.stdout, "  next: isle exec %s -- CMD · isle tree · isle down %s --volumes\n", ref, ref)
	}
	return nil
}
