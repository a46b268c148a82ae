package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	islev1 "isle/internal/api/isle/v1"
)

func newSessions(a *app) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "See, end, replay and verify what passes through the gateway",
		Long: `A session is one use of a connection by one actor. It is recorded: statements with their
decisions, holds and results. docs/sessions.md says what is recorded, and what is not.

Without a subcommand it is "isle sessions ls".`,
		Example: `  isle sessions                                    those that go on
  isle sessions replay 06j8ae3v1qk0g6mqk4v3hd2b5o
  isle sessions search "delete from" --since 24h`,
		Args: args(0, 0, "a subcommand"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listSessions(cmd.Context(), &o) },
	}
	o.flags(cmd)
	cmd.AddCommand(newSessionsLs(a), newSessionsShow(a), newSessionsReplay(a), newSessionsSearch(a), newSessionsEnd(a), newSessionsVerify(a), newSessionsExport(a))
	return cmd
}

// sessionJSON is a session as -o json has it.
type sessionJSON struct {
	ID          string     `json:"id"`
	Actor       string     `json:"actor"`
	Owner       string     `json:"owner,omitempty"`
	Environment string     `json:"environment,omitempty"`
	Instance    string     `json:"instance,omitempty"`
	Connection  string     `json:"connection"`
	Kind        string     `json:"kind"`
	Stage       string     `json:"stage"`
	Source      string     `json:"source,omitempty"`
	Address     string     `json:"address,omitempty"`
	Database    string     `json:"database,omitempty"`
	Role        string     `json:"role,omitempty"`
	Started     *time.Time `json:"started"`
	Ended       *time.Time `json:"ended,omitempty"`
	Last        *time.Time `json:"last,omitempty"`
	State       string     `json:"state"`
	Why         string     `json:"why,omitempty"`
	Statements  int64      `json:"statements"`
	Refused     int64      `json:"refused"`
	Held        int64      `json:"held"`
	Rows        int64      `json:"rows"`
	BytesIn     int64      `json:"bytes_in"`
	BytesOut    int64      `json:"bytes_out"`
	Rate        float64    `json:"rate"`
	Results     bool       `json:"results"`
}

func sessionView(s *islev1.Session) sessionJSON {
	return sessionJSON{
		s.GetId(), s.GetActor(), s.GetOwner(), s.GetEnvironment(), s.GetInstance(), s.GetConnection(), s.GetKind(), s.GetStage(), s.GetSource(), s.GetAddress(),
		s.GetDatabase(), s.GetRole(), at(s.GetStarted()), at(s.GetEnded()), at(s.GetLast()), s.GetState(), s.GetWhy(), s.GetStatements(), s.GetRefused(), s.GetHeld(),
		s.GetRows(), s.GetBytesIn(), s.GetBytesOut(), s.GetRate(), s.GetResults(),
	}
}

// eventJSON is an event as -o json has it. A text that is no UTF-8 is there as it
// is, in base64, beside what can be shown of it.
type eventJSON struct {
	At       *time.Time `json:"at"`
	Kind     string     `json:"kind"`
	Text     string     `json:"text,omitempty"`
	RawText  []byte     `json:"text_base64,omitempty"`
	Params   []string   `json:"params,omitempty"`
	Shape    string     `json:"shape,omitempty"`
	Decision string     `json:"decision,omitempty"`
	Rule     string     `json:"rule,omitempty"`
	Approval string     `json:"approval,omitempty"`
	Tag      string     `json:"tag,omitempty"`
	Rows     int64      `json:"rows,omitempty"`
	Bytes    int64      `json:"bytes,omitempty"`
	Took     float64    `json:"took,omitempty"`
	Error    string     `json:"error,omitempty"`
	Data     string     `json:"data,omitempty"`
	RawData  []byte     `json:"data_base64,omitempty"`
	Cut      int64      `json:"cut,omitempty"`
	Digest   string     `json:"digest,omitempty"`
}

func sessionEvent(e *islev1.SessionEvent) eventJSON {
	out := eventJSON{
		At: at(e.GetAt()), Kind: e.GetKind(), Text: string(e.GetText()), Params: e.GetParams(), Shape: e.GetShape(), Decision: e.GetDecision(), Rule: e.GetRule(),
		Approval: e.GetApproval(), Tag: e.GetTag(), Rows: e.GetRows(), Bytes: e.GetBytes(), Took: e.GetTook().AsDuration().Seconds(), Error: e.GetError(),
		Data: string(e.GetData()), Cut: e.GetCut(), Digest: e.GetDigest(),
	}
	if !utf8.Valid(e.GetText()) {
		out.Text, out.RawText = strings.ToValidUTF8(out.Text, "\uFFFD"), e.GetText()
	}
	if !utf8.Valid(e.GetData()) {
		out.Data, out.RawData = strings.ToValidUTF8(out.Data, "\uFFFD"), e.GetData()
	}
	return out
}

// line writes v as one line of JSON.
func (a *app) line(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// spanOptions bound the start of sessions.
type spanOptions struct{ since, until string }

func (o *spanOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.since, "since", "", "that began then or later: a time (RFC 3339), a day, or how long ago (24h)")
	cmd.Flags().StringVar(&o.until, "until", "", "that began before then")
}

func (o *spanOptions) bounds() (since, until *timestamppb.Timestamp, err error) {
	for _, b := range []struct {
		flag, value string
		to          **timestamppb.Timestamp
	}{{"since", o.since, &since}, {"until", o.until, &until}} {
		if b.value == "" {
			continue
		}
		t, err := moment(b.value, time.Now())
		if err != nil {
			return nil, nil, usagef("--%s %s: %v", b.flag, b.value, err)
		}
		*b.to = timestamppb.New(t)
	}
	return since, until, nil
}

type listOptions struct {
	req  islev1.ListSessionsRequest
	span spanOptions
}

func (o *listOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.req.All, "all", "a", false, "those that have ended too")
	f.StringVar(&o.req.Actor, "actor", "", "of this actor: KIND:NAME or NAME")
	f.StringVar(&o.req.Connection, "connection", "", "of this connection: NAME[@STAGE]")
	f.Int32VarP(&o.req.Limit, "lines", "n", 100, "only so many, those that began last")
	o.span.flags(cmd)
}

func newSessionsLs(a *app) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List sessions, those that began last first",
		Example: `  isle sessions ls --connection orders-db
  isle sessions ls --all --since 24h`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listSessions(cmd.Context(), &o) },
	}
	o.flags(cmd)
	return cmd
}

func (a *app) listSessions(ctx context.Context, o *listOptions) error {
	if o.req.Limit < 1 {
		return usagef("-n %d: want at least 1", o.req.Limit)
	}
	var err error
	if o.req.Since, o.req.Until, err = o.span.bounds(); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Sessions.ListSessions(ctx, connect.NewRequest(&o.req))
	if err != nil {
		return err
	}
	const heading = "session\tconnection\tactor\tstate\tbegan\tlasts\tstatements\tper second\trefused\trows\tin/out"
	return showList(a, res.Msg.GetSessions(), sessionView, heading, func(s *islev1.Session) []string {
		lasted := time.Since(s.GetStarted().AsTime())
		if s.GetEnded() != nil {
			lasted = s.GetEnded().AsTime().Sub(s.GetStarted().AsTime())
		}
		return []string{
			s.GetId(), s.GetConnection() + "@" + s.GetStage(), s.GetActor(), s.GetState(), s.GetStarted().AsTime().Local().Format(time.DateTime), span(lasted),
			strconv.FormatInt(s.GetStatements(), 10), strconv.FormatFloat(s.GetRate(), 'f', 1, 64), strconv.FormatInt(s.GetRefused(), 10), strconv.FormatInt(s.GetRows(), 10),
			bytesText(s.GetBytesIn()) + "/" + bytesText(s.GetBytesOut()),
		}
	})
}

func newSessionsShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show what is known of one session",
		Args:  args(1, 1, "the ID of a session"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Sessions.GetSession(cmd.Context(), connect.NewRequest(&islev1.GetSessionRequest{Id: given[0]}))
			if err != nil {
				return err
			}
			v := sessionView(res.Msg.GetSession())
			if a.output == "json" {
				return a.json(v)
			}
			line := func(name, value string) {
				if value != "" {
					fmt.Fprintf(a.stdout, "%-12s %s\n", name, cleanLine(value))
				}
			}
			when := func(t *time.Time) string {
				if t == nil {
					return ""
				}
				return t.Local().Format(time.DateTime) + " (" + ago(t) + ")"
			}
			line("session", v.ID)
			line("state", v.State)
			line("ended", when(v.Ended))
			line("why", v.Why)
			line("began", when(v.Started))
			line("last event", when(v.Last))
			line("actor", v.Actor)
			line("owner", v.Owner)
			line("environment", v.Environment)
			line("instance", v.Instance)
			line("source", v.Source)
			line("connection", v.Connection+"@"+v.Stage+" ("+v.Kind+")")
			line("address", v.Address)
			line("database", v.Database)
			line("role", v.Role)
			line("statements", fmt.Sprintf("%d, %d refused, %d held", v.Statements, v.Refused, v.Held))
			line("rows", strconv.FormatInt(v.Rows, 10))
			line("bytes", bytesText(v.BytesIn)+" in, "+bytesText(v.BytesOut)+" out")
			if v.Results {
				line("recording", "holds results, masked")
			}
			return nil
		},
	}
}

func newSessionsEnd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "end ID…",
		Short: "End sessions at once",
		Long: `End sessions at once: their clients are told who did it and why, where the protocol can.
What a statement that was running did is unknown.`,
		Example: `  isle sessions end 06j8ae3v1qk0g6mqk4v3hd2b5o --reason "it locks the orders"`,
		Args:    args(1, -1, "the IDs of sessions"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			for _, id := range given {
				if _, err := c.Sessions.EndSession(cmd.Context(), connect.NewRequest(&islev1.EndSessionRequest{Id: id, Reason: reason})); err != nil {
					return err
				}
				if a.output != "json" {
					fmt.Fprintf(a.stdout, "session %s is ended\n", cleanLine(id))
				}
			}
			if a.output == "json" {
				return a.json(map[string]any{"ended": given})
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the client and the log")
	return cmd
}
