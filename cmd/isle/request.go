package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/approval"
)

// accessFlags are those of isle request and isle break-glass.
type accessFlags struct {
	req  islev1.AccessRequest
	span time.Duration
	wait bool
}

func (o *accessFlags) add(cmd *cobra.Command, span time.Duration) {
	cmd.Flags().DurationVar(&o.span, "for", span, "how long")
	cmd.Flags().StringVar(&o.req.Why, "why", "", "why; whoever decides or reviews reads it")
	cmd.MarkFlagRequired("why")
}

// send asks for door NAME or role NAME, in one of two ways.
func (o *accessFlags) send(ctx context.Context, a *app, given []string, way accessWay) (*islev1.Approval, error) {
	if given[0] != approval.KindDoor && given[0] != approval.KindRole {
		return nil, usagef("%q: want door CONNECTION or role ROLE", given[0])
	}
	o.req.What, o.req.Name, o.req.For = given[0], given[1], durationpb.New(o.span)
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	res, err := way(c.Approvals, ctx, connect.NewRequest(&o.req))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetApproval(), nil
}

// An accessWay is a procedure that gets access: by asking for it, or at once.
type accessWay func(islev1connect.ApprovalServiceClient, context.Context, *connect.Request[islev1.AccessRequest]) (*connect.Response[islev1.AccessResponse], error)

func newRequest(a *app) *cobra.Command {
	var o accessFlags
	cmd := &cobra.Command{
		Use:   "request door|role NAME",
		Short: "Ask for a door to a connection, or a role, for a time",
		Long: `Ask for access for a time. Somebody has to approve it: whom the policy's approvals of
access:request name, else whoever keeps the policy. It ends by itself, and is listed and
taken back with isle approvals.

A door lets one open the connection and read, and with --write change something. A role
can be asked for if it is of connections alone. With --environment an environment gets
it, in whose file the connection stands under uses.

It exits with 4 while nobody has decided; with --wait it waits for that.`,
		Example: `  isle request door orders-db --for 1h --why 'ticket 1234'
  isle request role orders-reader --for 30m --why 'looking into the failed import' --wait
  isle request door orders-db --environment shop@production --write --why 'one-off migration'`,
		Args: args(2, 2, "door or role, and a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			r, err := o.send(cmd.Context(), a, given, islev1connect.ApprovalServiceClient.RequestAccess)
			if err != nil {
				return err
			}
			if o.wait {
				return a.awaitAccess(cmd.Context(), r)
			}
			if a.output == "json" {
				if err := a.json(approvalView(r)); err != nil {
					return err
				}
				return exitError(exitAwaiting)
			}
			return isle.Errorf(isle.Held, "request %s awaits approval, until %s", r.GetId(), r.GetExpires().AsTime().Format(time.RFC3339)).
				WithHint("see how it comes out: isle approvals show %s", r.GetId())
		},
	}
	o.add(cmd, time.Hour)
	cmd.Flags().BoolVar(&o.req.Write, "write", false, "of a door: to change something too")
	cmd.Flags().StringVar(&o.req.Environment, "environment", "", "the environment that is to have it (default: you)")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "wait until somebody has decided")
	return cmd
}

// awaitAccess waits until somebody has decided about a request.
func (a *app) awaitAccess(ctx context.Context, r *islev1.Approval) error {
	fmt.Fprintf(a.stderr, "request %s awaits approval\n", cleanLine(r.GetId()))
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	now, err := decided(ctx, c, r.GetId())
	switch {
	case err != nil:
		return err
	case now.GetAccess().GetGranted():
		return a.showDecided(now, approvalState(now))
	}
	why := now.GetEnding()
	for _, d := range now.GetDecisions() {
		if !d.GetApprove() && d.GetReason() != "" {
			why += ": " + d.GetReason()
		}
	}
	return isle.Errorf(isle.Refused, "request %s was not granted: %s", r.GetId(), why)
}

// decided returns a request once somebody has decided about it.
func decided(ctx context.Context, c *api.Client, id string) (*islev1.Approval, error) {
	stream, err := c.Approvals.WatchApprovals(ctx, connect.NewRequest(&islev1.WatchApprovalsRequest{}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	// It may have been decided before the watch began.
	res, err := c.Approvals.GetApproval(ctx, connect.NewRequest(&islev1.GetApprovalRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	for now := res.Msg.GetApproval(); ; now = stream.Msg() {
		if now.GetId() == id && now.GetState() != approval.Pending {
			return now, nil
		}
		if !stream.Receive() {
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, isle.Errorf(isle.Unavailable, "the server ended the call without a decision").WithHint("see how it comes out: isle approvals show %s", id)
		}
	}
}

func newBreakGlass(a *app) *cobra.Command {
	var o accessFlags
	cmd := &cobra.Command{
		Use:   "break-glass door|role NAME",
		Short: "Take access at once, loudly; somebody else reviews it afterwards",
		Long: `Take access at once, for an emergency, without anybody's approval. The policy says who may
(access:break-glass). It is told to every webhook and in the server's log, everything that
is done by it is in the audit log under the rule break-glass, and it is listed by isle
approvals until somebody else has reviewed it.

A door that was broken open lets one read and write, and what an approval would hold there
passes; what is denied stays denied.`,
		Example: `  isle break-glass door orders-db --for 15m --why 'orders are lost, incident 77'`,
		Args:    args(2, 2, "door or role, and a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			r, err := o.send(cmd.Context(), a, given, islev1connect.ApprovalServiceClient.BreakGlass)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(approvalView(r))
			}
			_, err = fmt.Fprintf(a.stdout, "you have %s %s until %s; request %s is to be reviewed by somebody else\n",
				r.GetAccess().GetWhat(), cleanLine(r.GetAccess().GetName()), r.GetAccess().GetUntil().AsTime().Format(time.RFC3339), r.GetId())
			return err
		},
	}
	o.add(cmd, 15*time.Minute)
	return cmd
}
