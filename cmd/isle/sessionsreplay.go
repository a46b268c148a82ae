package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/server"
	"isle/internal/session"
	"isle/internal/spec"
	"isle/internal/store/sqlite"
)

// longestPause bounds how long a replay shows nothing.
const longestPause = 3 * time.Second

type replayOptions struct {
	speed, from string
	follow      bool
}

func newSessionsReplay(a *app) *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay ID",
		Short: "Show what happened in a session, event by event",
		Long: `Show what was recorded of a session: statements with when they were made, what was decided
by which rule, holds, results with rows and time, and rows where the connection records
them. With --speed it takes its time: 1 is as it was, 2 twice as fast; no pause is longer
than 3 seconds. Control characters and those that turn text around are shown as dots.`,
		Example: `  isle sessions replay 06j8ae3v1qk0g6mqk4v3hd2b5o
  isle sessions replay 06j8ae3v1qk0g6mqk4v3hd2b5o --speed 2 --from 5m
  isle sessions replay 06j8ae3v1qk0g6mqk4v3hd2b5o -f          goes on while the session does
  isle sessions replay 06j8ae3v1qk0g6mqk4v3hd2b5o -o json     one event per line`,
		Args: args(1, 1, "the ID of a session"),
		RunE: func(cmd *cobra.Command, given []string) error { return a.replay(cmd.Context(), given[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.speed, "speed", "max", "how fast: a number, 1 is as it was, or max")
	f.StringVar(&o.from, "from", "", "begin there: a time (RFC 3339), or how long after the start (5m)")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on to the session's end, if it is live")
	return cmd
}

func (a *app) replay(ctx context.Context, id string, o replayOptions) error {
	speed := 0.0
	if o.speed != "max" {
		var err error
		if speed, err = strconv.ParseFloat(o.speed, 64); err != nil || speed <= 0 || speed > 1e6 {
			return usagef("--speed %s: want a number above 0, or max", o.speed)
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Sessions.GetSession(ctx, connect.NewRequest(&islev1.GetSessionRequest{Id: id}))
	if err != nil {
		return err
	}
	s := res.Msg.GetSession()
	began := s.GetStarted().AsTime()
	from := began
	if o.from != "" {
		if from, err = time.Parse(time.RFC3339Nano, o.from); err != nil {
			d, derr := spec.ParseDuration(o.from)
			if derr != nil {
				return usagef("--from %s: want a time such as 2026-01-31T12:00:00Z, or how long after the start, such as 5m", o.from)
			}
			from = began.Add(d)
		}
	}
	stream, err := c.Sessions.ReplaySession(ctx, connect.NewRequest(&islev1.ReplaySessionRequest{Id: id, Follow: o.follow}))
	if err != nil {
		return err
	}
	defer stream.Close()
	if a.output != "json" {
		fmt.Fprintf(a.stdout, "%s on %s@%s, from %s\n", cleanLine(s.GetActor()), cleanLine(s.GetConnection()), cleanLine(s.GetStage()), began.Local().Format(time.DateTime))
	}
	var before time.Time
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		when := e.GetAt().AsTime()
		if when.Before(from) {
			continue
		}
		if speed > 0 && !before.IsZero() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(time.Duration(float64(when.Sub(before))/speed), longestPause)):
			}
		}
		before = when
		if a.output == "json" {
			err = a.line(sessionEvent(e))
		} else {
			err = a.showEvent(when.Sub(began), e)
		}
		if err != nil {
			return err
		}
	}
	if o.follow && ctx.Err() != nil {
		return nil
	}
	return stream.Err()
}

// showEvent writes an event for people. Nothing in it begins a line that looks
// like another one.
func (a *app) showEvent(after time.Duration, e *islev1.SessionEvent) error {
	head := fmt.Sprintf("%+10.3fs  %-9s ", after.Seconds(), cleanLine(e.GetKind()))
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if e.GetTag() != "" {
		add("%s", e.GetTag())
	}
	if n := e.GetRows(); n == 1 {
		add("1 row")
	} else if n > 0 {
		add("%d rows", n)
	}
	if e.GetBytes() > 0 {
		add("%s", bytesText(e.GetBytes()))
	}
	if e.GetTook() != nil {
		add("in %s", e.GetTook().AsDuration())
	}
	if e.GetDecision() != "" {
		add("%s", e.GetDecision())
	}
	if e.GetRule() != "" {
		add("by %s", e.GetRule())
	}
	if e.GetApproval() != "" {
		add("approval %s", e.GetApproval())
	}
	if e.GetError() != "" {
		add("%s", e.GetError())
	}
	if e.GetCut() > 0 {
		add("cut, it had %s", bytesText(e.GetCut()))
	}
	about := cleanLine(strings.Join(parts, ", "))
	indent := "\n" + strings.Repeat(" ", len(head)) + "| "
	text := strings.ReplaceAll(clean(string(e.GetText())), "\n", indent)
	if len(e.GetData()) > 0 {
		text += cleanLine(string(e.GetData()))
	}
	for i, p := range e.GetParams() {
		text += indent + "$" + strconv.Itoa(i+1) + " = " + cleanLine(p)
	}
	switch {
	case text == "":
		text = about
	case about != "":
		text += indent + about
	}
	_, err := fmt.Fprintln(a.stdout, head+text)
	return err
}

func newSessionsSearch(a *app) *cobra.Command {
	var req islev1.SearchSessionsRequest
	var o spanOptions
	cmd := &cobra.Command{
		Use:   "search [TEXT]",
		Short: "Find what was done or refused in sessions, the last session first",
		Long: `Find events in the recordings of sessions, live ones too: those with a text in a statement
or an error, in any case of letters, and those that were decided in some way. Each
connection whose recordings are read is an entry in the audit log.`,
		Example: `  isle sessions search "delete from orders" --since 24h
  isle sessions search --decision deny --connection orders-db
  isle sessions search --actor shop@testing -o json`,
		Args: args(0, 1, "a text"),
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			req.Text = strings.Join(given, "")
			switch req.Decision {
			case "refused", "denied":
				req.Decision = string(isle.Deny)
			case "held":
				req.Decision = string(isle.Hold)
			}
			if err := known("", req.Decision); err != nil {
				return err
			}
			if req.Limit < 1 {
				return usagef("-n %d: want at least 1", req.Limit)
			}
			if req.Since, req.Until, err = o.bounds(); err != nil {
				return err
			}
			return a.searchSessions(cmd.Context(), &req)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Actor, "actor", "", "of this actor: KIND:NAME or NAME")
	f.StringVar(&req.Connection, "connection", "", "of this connection: NAME[@STAGE]")
	f.StringVar(&req.Decision, "decision", "", "allow, deny (or refused) or hold (or held)")
	f.StringVar(&req.Kind, "kind", "", "of this kind of event: statement, result, refused, held, error …")
	f.Int32VarP(&req.Limit, "lines", "n", 1000, "no more than so many events")
	o.flags(cmd)
	return cmd
}

func (a *app) searchSessions(ctx context.Context, req *islev1.SearchSessionsRequest) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := c.Sessions.SearchSessions(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	var of *islev1.Session
	for stream.Receive() {
		if s := stream.Msg().GetSession(); s != nil {
			of = s
			if a.output != "json" {
				fmt.Fprintf(a.stdout, "%s  %s on %s@%s, from %s\n", cleanLine(s.GetId()), cleanLine(s.GetActor()), cleanLine(s.GetConnection()), cleanLine(s.GetStage()), s.GetStarted().AsTime().Local().Format(time.DateTime))
			}
		}
		e := stream.Msg().GetEvent()
		if a.output == "json" {
			err = a.line(struct {
				Session    string `json:"session"`
				Actor      string `json:"actor"`
				Connection string `json:"connection"`
				Stage      string `json:"stage"`
				eventJSON
			}{of.GetId(), of.GetActor(), of.GetConnection(), of.GetStage(), sessionEvent(e)})
		} else {
			err = a.showEvent(e.GetAt().AsTime().Sub(of.GetStarted().AsTime()), e)
		}
		if err != nil {
			return err
		}
	}
	return stream.Err()
}

func newSessionsVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [ID…]",
		Short: "Verify recordings against the audit log of a state folder, without a server",
		Long: `Verify that the recordings in a state folder are those that its audit log vouches for: that
no byte was changed, nothing was cut off, put in or exchanged, and none is missing that
the log does not say was deleted. Without an ID it is all of them. It needs no key, and a
server may be running. "isle audit verify" verifies the log itself.`,
		Example: `  isle sessions verify 06j8ae3v1qk0g6mqk4v3hd2b5o
  isle sessions verify --state /backup/isle`,
		RunE: func(cmd *cobra.Command, given []string) error {
			var ids []isle.ID
			for _, id := range given {
				if !isle.ID(id).Valid() {
					return usagef("%q is no session's ID", id)
				}
				ids = append(ids, isle.ID(id))
			}
			return a.verifySessions(cmd.Context(), ids)
		},
	}
}

func (a *app) verifySessions(ctx context.Context, ids []isle.ID) error {
	v := session.NewVerifier(server.RecordingsPath(a.state), ids...)
	log, err := sqlite.OpenReader(server.LogPath(a.state))
	if err != nil {
		return err
	}
	defer log.Close()
	for row, err := range log.Rows(ctx, 0, 1<<62) {
		if err != nil {
			return err
		}
		if !session.Concerns(row.Entry) {
			continue
		}
		e, err := audit.Decode(row.Entry)
		if err != nil {
			return isle.Errorf(isle.Untrusted, "audit entry %d cannot be read: %w", row.Sequence, err).WithHint("see `isle audit verify`")
		}
		v.Entry(e)
	}
	reports, err := v.All()
	if err != nil {
		return err
	}
	wrong := 0
	counts := map[string]int{}
	for _, r := range reports {
		counts[r.State]++
		if r.State == session.Wrong {
			wrong++
		}
		if a.output == "json" || r.State != session.Wrong && len(ids) == 0 {
			continue
		}
		about := r.Note
		if r.State == session.Wrong {
			about = strings.Join(r.Wrong, "; ")
		}
		fmt.Fprintf(a.stdout, "%s  %s", r.ID, r.State)
		if about != "" {
			fmt.Fprintf(a.stdout, ": %s", cleanLine(about))
		}
		fmt.Fprintln(a.stdout)
	}
	if a.output == "json" {
		if reports == nil {
			reports = []session.Report{}
		}
		if err := a.json(reports); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "recordings: %d whole, %d of sessions that go on, %d deleted by a rule, %d wrong\n",
			counts[session.Whole], counts[session.Growing], counts[session.Deleted], wrong)
	}
	if wrong > 0 {
		return isle.Errorf(isle.Untrusted, "recordings are not what the audit log vouches for: %d of %d", wrong, len(reports)).WithHint("keep the state folder as it is, and look into who could write to it")
	}
	return nil
}

func newSessionsExport(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "export ID",
		Short: "Write a session and its events as lines of JSON, in the clear",
		Long: `Write what is known of a session, and then each event, as a line of JSON, in the clear: the
recording itself can be read with the state's key only.`,
		Example: `  isle sessions export 06j8ae3v1qk0g6mqk4v3hd2b5o --file session.jsonl`,
		Args:    args(1, 1, "the ID of a session"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if name == "" {
				return a.exportSession(cmd.Context(), given[0], a.stdout)
			}
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return isle.Errorf(isle.Unavailable, "cannot write the export: %w", err)
			}
			err = a.exportSession(cmd.Context(), given[0], f)
			if cerr := f.Close(); err == nil && cerr != nil {
				err = isle.Errorf(isle.Unavailable, "cannot write the export: %w", cerr)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "file", "", "file to write, for its owner only (default: standard output)")
	return cmd
}

func (a *app) exportSession(ctx context.Context, id string, to io.Writer) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Sessions.GetSession(ctx, connect.NewRequest(&islev1.GetSessionRequest{Id: id}))
	if err != nil {
		return err
	}
	stream, err := c.Sessions.ReplaySession(ctx, connect.NewRequest(&islev1.ReplaySessionRequest{Id: id}))
	if err != nil {
		return err
	}
	defer stream.Close()
	out := &app{stdout: to}
	if err := out.line(sessionView(res.Msg.GetSession())); err != nil {
		return err
	}
	for stream.Receive() {
		if err := out.line(sessionEvent(stream.Msg().GetEvent())); err != nil {
			return err
		}
	}
	return stream.Err()
}
