package api

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/policy"
)

// accessPath is where workloads ask for access for a time, on the socket of
// their Workload API: POST asks, and GET of accessPath/REQUEST says how that came
// out. It is HTTP with JSON, and takes the same header as the Workload API.
const accessPath = "/access"

// maxAccessBody bounds a request for access in bytes.
const maxAccessBody = 4 << 10

// A WorkloadAccess is what workloads ask for access by.
type WorkloadAccess struct {
	Policy    Policy
	Approvals interface {
		Access
		Get(id isle.ID) (approval.Request, error)
	}
	// Owner is who answers for an instance, as human:NAME, and what project it is
	// of; ok is false of one that is gone.
	Owner func(instance isle.ID) (owner, project string, ok bool)
	// Connection is which connection an instance finds by a name.
	Connection func(instance isle.ID, name string) string
	// Refused records that the policy does not let a caller ask.
	Refused func(caller WorkloadCaller, e audit.Entry)
}

// accessBody is what is asked for.
type accessBody struct {
	Door  string `json:"door"` // a connection, or
	Role  string `json:"role"`
	Write bool   `json:"write"`
	For   string `json:"for"` // a duration: "30m"; default an hour
	Why   string `json:"why"`
}

// accessAnswer is how far a request is.
type accessAnswer struct {
	Request isle.ID    `json:"request,omitempty"`
	State   string     `json:"state,omitempty"`
	Granted bool       `json:"granted"`
	Until   *time.Time `json:"until,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Code    isle.Code  `json:"code,omitempty"`
	Message string     `json:"message,omitempty"`
	Hint    string     `json:"hint,omitempty"`
}

// serve answers a request of a workload for access.
func (a *WorkloadAccess) serve(w http.ResponseWriter, r *http.Request, caller WorkloadCaller) {
	status, out := http.StatusOK, accessAnswer{}
	got, err := a.do(r, caller)
	if err != nil {
		flat := Flatten(err)
		out.Code, out.Message, out.Hint = flat.Code, flat.Message, flat.Hint
		status = map[isle.Code]int{
			isle.Invalid: http.StatusBadRequest, isle.NotFound: http.StatusNotFound, isle.Refused: http.StatusForbidden, isle.Conflict: http.StatusConflict,
			isle.Exhausted: http.StatusTooManyRequests, isle.Unavailable: http.StatusServiceUnavailable,
		}[flat.Code]
		if status == 0 {
			status = http.StatusInternalServerError
		}
	} else {
		out.Request, out.State, out.Granted, out.Reason = got.ID, got.State, got.Access.Granted, got.Ending
		if got.Access.Granted {
			out.Until = &got.Access.Until
		}
		for _, v := range got.Decisions {
			if !v.Approve && v.Reason != "" {
				out.Reason = v.Reason
			}
		}
		if got.State == approval.Pending {
			status = http.StatusAccepted
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(out)
}

func (a *WorkloadAccess) do(r *http.Request, caller WorkloadCaller) (approval.Request, error) {
	if id, ok := strings.CutPrefix(r.URL.Path, accessPath+"/"); ok && r.Method == http.MethodGet {
		got, err := a.Approvals.Get(isle.ID(id))
		if err != nil || got.Access == nil || got.Instance != caller.Instance {
			return got, isle.Errorf(isle.NotFound, "this environment has no such request")
		}
		return got, nil
	}
	if r.URL.Path != accessPath || r.Method != http.MethodPost {
		return approval.Request{}, isle.Errorf(isle.NotFound, "there is nothing here").WithHint("POST %s asks, GET %s/REQUEST says how it came out", accessPath, accessPath)
	}
	var m accessBody
	d := json.NewDecoder(io.LimitReader(r.Body, maxAccessBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return approval.Request{}, isle.Errorf(isle.Invalid, "the body is no request for access: %w", err).WithHint(`want {"door": "orders-db", "for": "30m", "why": "…"}, at most 4 KiB`)
	}
	req := &islev1.AccessRequest{What: approval.KindDoor, Name: m.Door, Write: m.Write, Why: m.Why, For: durationpb.New(time.Hour)}
	if m.Role != "" {
		if m.Door != "" {
			return approval.Request{}, isle.Errorf(isle.Invalid, "either a door or a role is asked for")
		}
		req.What, req.Name = approval.KindRole, m.Role
	}
	if m.For != "" {
		span, err := time.ParseDuration(m.For)
		if err != nil {
			return approval.Request{}, isle.Errorf(isle.Invalid, "for: %q is no duration; want 30m or 2h", clipped(m.For))
		}
		req.For = durationpb.New(span)
	}
	owner, project, ok := a.Owner(caller.Instance)
	if !ok {
		return approval.Request{}, isle.Errorf(isle.Refused, "this environment is to end")
	}
	if req.What == approval.KindDoor {
		req.Name = a.Connection(caller.Instance, req.Name)
	}
	ref := caller.Ref
	by := policy.Query{
		Actor: isle.Actor{Kind: isle.Workload, Name: ref.Name + "@" + ref.Stage}, Place: policy.Place{Project: project, Stage: ref.Stage, Environment: ref.Name},
		Action: isle.ActionAccessRequest,
	}
	got, no, err := newAccess(a.Policy, by, req, policy.Subject{Kind: string(isle.Workload), Project: project, Stage: ref.Stage, Environment: ref.Name})
	if no != nil {
		a.Refused(caller, entryOf(no.query, no.answer, "").In(ref, caller.Instance))
		return got, isle.Errorf(isle.Refused, "%s may not ask for it: %s", by.Actor, no.answer.Rule)
	}
	if err != nil {
		return got, err
	}
	got.Owner, got.Ref, got.Instance = owner, ref, caller.Instance
	return a.Approvals.Request(r.Context(), got)
}
