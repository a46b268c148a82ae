package mcp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
)

// yearMinutes bounds what is asked for a time.
const yearMinutes = 366 * 24 * 60

// waitMost is how long a call waits for a human at most.
const waitMost = 24 * time.Hour

func (s *Server) addAccess() {
	add(s, tool{
		name: "request", title: "Ask a human for access", hint: adds, outside: true,
		description: "Ask for a door to a connection, or for a role, for a time. A human decides, and reads why: say plainly what you need it for. Until then nothing changes. Call request_status to see or to wait for how it comes out. Do not ask again for what was denied.",
		tune: func(in map[string]*jsonschema.Schema) {
			in["what"].Enum = []any{approval.KindDoor, approval.KindRole}
		},
	}, s.request)
	add(s, tool{
		name: "request_status", title: "See whether access was granted", hint: reads,
		description: "Say how a request stands, and with wait: wait until a human has decided.",
	}, s.requestStatus)
}

type requestIn struct {
	What        string  `json:"what" jsonschema:"door (to a connection) or role"`
	Name        string  `json:"name" jsonschema:"of the connection, as doors and isle.yaml have it, or of the role"`
	Write       bool    `json:"write,omitempty" jsonschema:"of a door: to change something too, and not only to read"`
	Minutes     float64 `json:"minutes,omitempty" jsonschema:"for how long; left out, it is 60"`
	Why         string  `json:"why" jsonschema:"what for; the human who decides reads it"`
	Environment string  `json:"environment,omitempty" jsonschema:"NAME or NAME@STAGE of the environment that is to have it, in whose file the connection stands under uses; left out, it is the user"`
	Wait        float64 `json:"wait,omitempty" jsonschema:"seconds to wait for the decision; left out, it does not wait"`
}

// A requested is how a request stands.
type requested struct {
	Approval  string `json:"approval" jsonschema:"the request's ID, for request_status"`
	State     string `json:"state" jsonschema:"pending, approved, denied, expired, withdrawn or spent"`
	Granted   bool   `json:"granted" jsonschema:"the access is there"`
	What      string `json:"what,omitempty"`
	Name      string `json:"name,omitempty"`
	For       string `json:"for,omitempty" jsonschema:"who is to have it"`
	Until     string `json:"until,omitempty" jsonschema:"when the access ends"`
	Expires   string `json:"expires,omitempty" jsonschema:"when the request ends by itself if nobody decides"`
	Why       string `json:"why,omitempty"`
	Ending    string `json:"ending,omitempty" jsonschema:"why it ended"`
	Reason    string `json:"reason,omitempty" jsonschema:"what whoever denied it said"`
	Approvers string `json:"approvers,omitempty" jsonschema:"who may decide"`
}

func (v requested) text() string {
	switch {
	case v.Granted:
		return fmt.Sprintf("granted: %s %s for %s until %s", v.What, oneLine(v.Name), oneLine(v.For), v.Until)
	case v.State == approval.Pending:
		who := ""
		if v.Approvers != "" {
			who = " by " + oneLine(v.Approvers)
		}
		return fmt.Sprintf("held: request %s awaits approval%s, until %s\nnext: go on with something else, tell the user, or wait with request_status and wait; the user sees it with: isle approvals show %s", v.Approval, who, v.Expires, v.Approval)
	}
	text := fmt.Sprintf("request %s is %s", v.Approval, v.State)
	if v.Ending != "" {
		text += ": " + oneLine(v.Ending)
	}
	if v.Reason != "" {
		text += ": " + oneLine(v.Reason)
	}
	return text
}

func requestedOf(r *islev1.Approval) requested {
	v := requested{
		Approval: r.GetId(), State: r.GetState(), Granted: r.GetAccess().GetGranted(), What: r.GetAccess().GetWhat(), Name: r.GetAccess().GetName(),
		For: r.GetAccess().GetSubject(), Why: clip(r.GetWhy(), 500), Ending: clip(r.GetEnding(), 500), Approvers: clip(strings.Join(r.GetApprovers(), ", "), 500),
	}
	if t := r.GetAccess().GetUntil(); t != nil && v.Granted {
		v.Until = t.AsTime().Format(time.RFC3339)
	}
	if t := r.GetExpires(); t != nil && v.State == approval.Pending {
		v.Expires = t.AsTime().Format(time.RFC3339)
	}
	for _, d := range r.GetDecisions() {
		if !d.GetApprove() && d.GetReason() != "" {
			v.Reason = clip(d.GetReason(), 500)
		}
	}
	return v
}

func (s *Server) request(ctx context.Context, c *call, in requestIn) (requested, error) {
	if in.Minutes == 0 {
		in.Minutes = 60
	}
	if in.Minutes < 0 || in.Minutes > yearMinutes {
		return requested{}, isle.Errorf(isle.Invalid, "for %g minutes: want more than 0, and a year at most", in.Minutes)
	}
	wait, err := seconds(in.Wait, 0, waitMost)
	if err != nil {
		return requested{}, err
	}
	r, err := s.cfg.Access.Request(ctx, &islev1.AccessRequest{
		What: in.What, Name: in.Name, Write: in.Write, For: durationpb.New(time.Duration(in.Minutes * float64(time.Minute))), Why: in.Why, Environment: in.Environment,
	})
	if err != nil {
		return requested{}, err
	}
	return s.await(ctx, c, r, wait)
}

type requestStatusIn struct {
	Approval string  `json:"approval" jsonschema:"the request's ID, as request or an error has it"`
	Wait     float64 `json:"wait,omitempty" jsonschema:"seconds to wait for the decision; left out, it does not wait"`
}

func (s *Server) requestStatus(ctx context.Context, c *call, in requestStatusIn) (requested, error) {
	wait, err := seconds(in.Wait, 0, waitMost)
	if err != nil {
		return requested{}, err
	}
	r, err := s.cfg.Access.Approval(ctx, in.Approval)
	if err != nil {
		return requested{}, err
	}
	return s.await(ctx, c, r, wait)
}

// await waits for a decision, if there is none yet. That none came in time is no
// failure: the request still waits.
func (s *Server) await(ctx context.Context, c *call, r *islev1.Approval, wait time.Duration) (requested, error) {
	if r.GetState() != approval.Pending || wait == 0 {
		return requestedOf(r), nil
	}
	c.say("request %s awaits approval", r.GetId())
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	now, err := s.cfg.Access.Decided(waiting, r.GetId())
	switch {
	case err == nil:
		return requestedOf(now), nil
	case errors.Is(waiting.Err(), context.DeadlineExceeded) && ctx.Err() == nil:
		return requestedOf(r), nil
	}
	return requested{}, err
}
