package api

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/session"
)

// Recordings are the sessions of the gateway; *session.Sessions implements it.
type Recordings interface {
	Past(ctx context.Context, f session.Filter, most int) ([]session.Info, error)
	List() []session.Info
	Get(id isle.ID) (session.Info, error)
	End(ctx context.Context, by isle.Actor, id isle.ID, reason string) error
	Events(ctx context.Context, id isle.ID, follow bool, emit func(session.Event) error) error
	Search(ctx context.Context, f session.Filter, q session.Query, emit func(session.Info, session.Event) error) error
}

// Bounds of what is listed and found.
const (
	listSessions   = 100
	mostSessions   = 10000
	searchedEvents = 1000
)

// recordings serves the SessionService.
type recordings struct{ Config }

// sessionRules are those of the SessionService.
func (cfg Config) sessionRules() map[string]rule {
	// Which of them the caller may see, and search, the handlers find out.
	some := func(context.Context, any) []ask {
		return []ask{{isle.ActionServerRead, isle.Resource{Kind: "server", Name: "server"}, ""}}
	}
	return map[string]rule{
		islev1connect.SessionServiceListSessionsProcedure:   some,
		islev1connect.SessionServiceSearchSessionsProcedure: some,
		islev1connect.SessionServiceGetSessionProcedure:     cfg.onSession(isle.ActionSessionRead),
		islev1connect.SessionServiceEndSessionProcedure:     cfg.onSession(isle.ActionSessionEnd),
		islev1connect.SessionServiceReplaySessionProcedure:  cfg.onSession(isle.ActionRecordingRead),
	}
}

// onSession is an action on the connection that a session is of.
func (cfg Config) onSession(action isle.Action) rule {
	return func(_ context.Context, msg any) []ask {
		id := msg.(interface{ GetId() string }).GetId()
		i, err := cfg.Recordings.Get(isle.ID(id))
		if err != nil { // found wrong by the handler, under the ID given
			return []ask{{action, isle.Resource{Kind: "connection", Name: clipped(id), Stage: isle.DefaultStage}, ""}}
		}
		return []ask{{action, i.Resource(), ""}}
	}
}

// sees says which sessions the caller may do something with, asked anew for
// each: a search may last longer than a grant.
func (cfg Config) sees(ctx context.Context, action isle.Action) func(session.Info) bool {
	return func(i session.Info) bool {
		who, _ := callerFrom(ctx)
		return cfg.Policy.Decide(queriesOf(who, ask{action, i.Resource(), ""})[0]).Allowed()
	}
}

// ListSessions implements the RPC.
func (s *recordings) ListSessions(ctx context.Context, req *connect.Request[islev1.ListSessionsRequest]) (*connect.Response[islev1.ListSessionsResponse], error) {
	m := req.Msg
	e := audit.NewEvent(actorOf(ctx), isle.ActionSessionRead, isle.Resource{Kind: "connection", Name: "*"}, isle.Allow, "list")
	if err := s.Audit.AppendSoon(ctx, e); err != nil {
		return nil, err
	}
	most := int(m.GetLimit())
	if most <= 0 {
		most = listSessions
	}
	most = min(most, mostSessions)
	f := session.Filter{Actor: m.GetActor(), Connection: m.GetConnection(), May: s.sees(ctx, isle.ActionSessionRead)}
	if m.GetSince() != nil {
		f.Since = m.GetSince().AsTime()
	}
	if m.GetUntil() != nil {
		f.Until = m.GetUntil().AsTime()
	}
	var list []session.Info
	if m.GetAll() {
		var err error
		if list, err = s.Recordings.Past(ctx, f, most); err != nil {
			return nil, err
		}
	} else {
		for _, i := range s.Recordings.List() {
			if len(list) < most && i.State != session.Ended && f.Match(i) {
				list = append(list, i)
			}
		}
	}
	res := &islev1.ListSessionsResponse{}
	for _, i := range list {
		res.Sessions = append(res.Sessions, sessionView(i))
	}
	return connect.NewResponse(res), nil
}

// GetSession implements the RPC.
func (s *recordings) GetSession(_ context.Context, req *connect.Request[islev1.GetSessionRequest]) (*connect.Response[islev1.GetSessionResponse], error) {
	i, err := s.Recordings.Get(isle.ID(req.Msg.GetId()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.GetSessionResponse{Session: sessionView(i)}), nil
}

// EndSession implements the RPC.
func (s *recordings) EndSession(ctx context.Context, req *connect.Request[islev1.EndSessionRequest]) (*connect.Response[islev1.EndSessionResponse], error) {
	if err := s.Recordings.End(ctx, actorOf(ctx), isle.ID(req.Msg.GetId()), req.Msg.GetReason()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.EndSessionResponse{}), nil
}

// ReplaySession implements the RPC.
func (s *recordings) ReplaySession(ctx context.Context, req *connect.Request[islev1.ReplaySessionRequest], stream *connect.ServerStream[islev1.ReplaySessionResponse]) error {
	return s.Recordings.Events(ctx, isle.ID(req.Msg.GetId()), req.Msg.GetFollow(), func(e session.Event) error {
		return stream.Send(&islev1.ReplaySessionResponse{Event: eventView(e)})
	})
}

// errEnough ends a search that has found as much as was asked for.
var errEnough = errors.New("enough")

// SearchSessions implements the RPC. That a connection's recordings are read is
// in the log before the first of them is.
func (s *recordings) SearchSessions(ctx context.Context, req *connect.Request[islev1.SearchSessionsRequest], stream *connect.ServerStream[islev1.SearchSessionsResponse]) error {
	m := req.Msg
	q := session.Query{Text: m.GetText(), Decision: isle.Decision(m.GetDecision()), Kind: m.GetKind()}
	switch q.Decision {
	case "", isle.Allow, isle.Deny, isle.Hold:
	default:
		return isle.Errorf(isle.Invalid, "decision %q: want %s, %s or %s", clipped(m.GetDecision()), isle.Allow, isle.Deny, isle.Hold)
	}
	may, told := s.sees(ctx, isle.ActionRecordingRead), map[isle.Resource]bool{}
	var failed error // to say so
	f := session.Filter{Actor: m.GetActor(), Connection: m.GetConnection(), May: func(i session.Info) bool {
		r := i.Resource()
		if failed != nil || !may(i) {
			return false
		}
		if !told[r] {
			failed = s.Audit.AppendSoon(ctx, audit.NewEvent(actorOf(ctx), isle.ActionRecordingRead, r, isle.Allow, "search"))
			told[r] = failed == nil
		}
		return failed == nil
	}}
	if m.GetSince() != nil {
		f.Since = m.GetSince().AsTime()
	}
	if m.GetUntil() != nil {
		f.Until = m.GetUntil().AsTime()
	}
	left := int(m.GetLimit())
	if left <= 0 {
		left = searchedEvents
	}
	var last isle.ID
	err := s.Recordings.Search(ctx, f, q, func(i session.Info, e session.Event) error {
		res := &islev1.SearchSessionsResponse{Event: eventView(e)}
		if i.ID != last {
			last, res.Session = i.ID, sessionView(i)
		}
		if err := stream.Send(res); err != nil {
			return err
		}
		if left--; left == 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, errEnough):
		return nil
	}
	return err
}

func sessionView(i session.Info) *islev1.Session {
	out := &islev1.Session{
		Id: string(i.ID), Actor: i.Actor.String(), Owner: i.Owner, Instance: string(i.Instance), Connection: i.Connection, Kind: i.Kind, Stage: i.Stage,
		Source: i.Source, Address: i.Address, Database: i.Database, Role: i.Role, Started: timestamppb.New(i.Started), State: i.State, Why: i.Why,
		Statements: i.Statements, Refused: i.Refused, Held: i.Held, Rows: i.Rows, BytesIn: i.BytesIn, BytesOut: i.BytesOut, Rate: i.Rate, Results: i.Results,
	}
	if i.Ref != (isle.Ref{}) {
		out.Environment = i.Ref.Name + "@" + i.Ref.Stage
	}
	if !i.Ended.IsZero() {
		out.Ended = timestamppb.New(i.Ended)
	}
	if !i.Last.IsZero() {
		out.Last = timestamppb.New(i.Last)
	}
	return out
}

func eventView(e session.Event) *islev1.SessionEvent {
	out := &islev1.SessionEvent{
		At: timestamppb.New(e.At), Kind: utf8Text(e.Kind), Text: e.Text, Shape: utf8Text(e.Shape), Decision: utf8Text(string(e.Decision)), Rule: utf8Text(e.Rule),
		Approval: utf8Text(string(e.Approval)), Tag: utf8Text(e.Tag), Rows: e.Rows, Bytes: e.Bytes, Error: utf8Text(e.Error), Data: e.Data, Cut: e.Cut, Digest: utf8Text(string(e.Digest)),
	}
	for _, p := range e.Params {
		out.Params = append(out.Params, utf8Text(p))
	}
	if e.Took > 0 {
		out.Took = durationpb.New(e.Took)
	}
	return out
}

// utf8Text is what protobuf takes as a string: what came over a wire need not be.
func utf8Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

var _ Recordings = (*session.Sessions)(nil)
