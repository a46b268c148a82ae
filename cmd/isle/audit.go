package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/problem"
)

func newAudit(a *app) *cobra.Command {
	var tail tailOptions
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read, prove and verify the audit log: who did what to what, and how it ended",
		Long: `The audit log has an entry for everything that is done, refused and read. It is a
Merkle tree that standard tools can follow and verify: nothing in it can be changed or
taken out unnoticed by who has seen it before. docs/audit.md says how.

Without a subcommand it is "isle audit tail".`,
		Example: `  isle audit tail -n 20
  isle audit search --environment shop --decision deny --since 1h
  isle audit verify`,
		Args: args(0, 0, "a subcommand"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.tail(cmd.Context(), tail) },
	}
	tail.flags(cmd)
	cmd.AddCommand(newAuditTail(a), newAuditSearch(a), newAuditShow(a), newAuditProve(a), newAuditVerify(a), newAuditExport(a), newAuditKey(a), newAuditAccept(a))
	return cmd
}

type tailOptions struct {
	lines  int32
	follow bool
}

func (o *tailOptions) flags(cmd *cobra.Command) {
	cmd.Flags().Int32VarP(&o.lines, "lines", "n", 50, "only the last so many entries")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on as more is written")
}

func (a *app) tail(ctx context.Context, o tailOptions) error {
	if o.lines < 1 {
		return usagef("-n %d: want at least 1", o.lines)
	}
	return a.entries(ctx, &islev1.AuditRequest{Tail: o.lines, Follow: o.follow})
}

func newAuditTail(a *app) *cobra.Command {
	var o tailOptions
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the last entries",
		Example: `  isle audit tail -n 20
  isle audit tail -f -o json     as they come, the canonical encoding, one entry per line`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.tail(cmd.Context(), o) },
	}
	o.flags(cmd)
	return cmd
}

func newAuditSearch(a *app) *cobra.Command {
	var req islev1.AuditRequest
	var since, until string
	cmd := &cobra.Command{
		Use:   "search",
		Short: "Show the entries that are about something, oldest first",
		Example: `  isle audit search --actor root --action environment:launch
  isle audit search --environment shop --decision deny --since 24h
  isle audit search --resource volume --since 2026-01-31 --until 2026-02-01T12:00:00Z
  isle audit search -o json                    all of it, one entry per line`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := known(req.Action, req.Decision); err != nil {
				return err
			}
			for _, bound := range []struct {
				flag, value string
				to          **timestamppb.Timestamp
			}{{"since", since, &req.Since}, {"until", until, &req.Until}} {
				if bound.value == "" {
					continue
				}
				t, err := moment(bound.value, time.Now())
				if err != nil {
					return usagef("--%s %s: %v", bound.flag, bound.value, err)
				}
				*bound.to = timestamppb.New(t)
			}
			return a.entries(cmd.Context(), &req)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Actor, "actor", "", "of this actor: KIND:NAME or NAME")
	f.StringVar(&req.Action, "action", "", "of this action: NOUN:VERB or NOUN")
	f.StringVar(&req.Environment, "environment", "", "about this environment: NAME[@STAGE]")
	f.StringVar(&req.Instance, "instance", "", "about this launch of one: an ID")
	f.StringVar(&req.Resource, "resource", "", "about this resource: KIND:NAME[@STAGE] or KIND")
	f.StringVar(&req.Decision, "decision", "", "allow, deny or hold")
	f.StringVar(&since, "since", "", "from then on: a time (RFC 3339), a day, or how long ago (24h)")
	f.StringVar(&until, "until", "", "before then")
	f.Uint64Var(&req.From, "from", 0, "from this sequence number on")
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on as more is written")
	return cmd
}

// known refuses an action and a decision that no entry has: to find nothing
// would say that it was never done.
func known(action, decision string) error {
	var actions []string
	for _, i := range isle.Actions() {
		noun, _, _ := strings.Cut(string(i.Action), ":")
		actions = append(actions, string(i.Action), noun)
	}
	decisions := []string{string(isle.Allow), string(isle.Deny), string(isle.Hold)}
	for _, w := range []struct {
		flag, value string
		of          []string
	}{{"action", action, actions}, {"decision", decision, decisions}} {
		if w.value == "" || slices.Contains(w.of, w.value) {
			continue
		}
		err := usagef("--%s %s: there is no such %s", w.flag, w.value, w.flag)
		if best, near := problem.Nearest(w.value, w.of); near {
			return err.WithHint("did you mean %s?", best)
		}
		return err.WithHint("docs/actions.md lists the actions; decisions are %s", strings.Join(decisions, ", "))
	}
	return nil
}

// moment reads a time, a day, or how long ago.
func moment(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, time.Local); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	return time.Time{}, errors.New("want 2026-01-31T12:00:00Z, 2026-01-31, or how long ago, such as 24h")
}

// entries shows what a request selects, as it comes.
func (a *app) entries(ctx context.Context, req *islev1.AuditRequest) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := c.Server.Audit(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		e, err := audit.Decode([]byte(stream.Msg().GetJson())) // one line, as nobody else can have written it
		if err != nil {
			return isle.Errorf(isle.Internal, "entry %d cannot be read: %w", stream.Msg().GetSequence(), err)
		}
		if a.output == "json" {
			fmt.Fprintf(a.stdout, "%s\n", stream.Msg().GetJson())
			continue
		}
		a.showEntry(e)
	}
	if req.Follow && ctx.Err() != nil {
		return nil
	}
	return stream.Err()
}

func (a *app) showEntry(e audit.Entry) {
	what := string(e.Kind)
	switch {
	case e.Decision != isle.Allow:
		what = string(e.Decision)
	case e.Result != "":
		what = e.Result
	}
	line := fmt.Sprintf("%6d  %s  %-28s %-18s %-32s %s", e.Sequence, e.Time.Local().Format(time.DateTime), e.Actor, e.Action, e.Resource, what)
	if e.Count > 1 {
		line += fmt.Sprintf(" ×%d", e.Count)
	}
	if e.Decision != isle.Allow && e.Rule != "" {
		line += " by " + e.Rule
	}
	if e.Summary != "" {
		line += "  " + e.Summary
	}
	fmt.Fprintln(a.stdout, cleanLine(line))
}

func newAuditShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show SEQ|ID",
		Short: "Show an entry in full, with its intent or outcome",
		Example: `  isle audit show 1234
  isle audit show 06j8ae3v1qk0g6mqk4v3hd2b5o`,
		Args: args(1, 1, "the sequence number or ID of an entry"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			id := isle.ID(given[0])
			if seq, err := strconv.ParseUint(given[0], 10, 62); err == nil && !id.Valid() {
				e, err := a.entryAt(ctx, seq)
				if err != nil {
					return err
				}
				id = e.ID
			}
			if !id.Valid() {
				return usagef("%q is neither a sequence number nor an ID", given[0])
			}
			related, err := a.collect(ctx, &islev1.AuditRequest{Id: string(id)})
			if err != nil {
				return err
			}
			if a.output == "json" {
				for i, e := range related {
					if e.ID == id { // it, and beside it what belongs to it
						return a.json(map[string]any{"entry": e, "related": append(related[:i:i], related[i+1:]...)})
					}
				}
			}
			for i, e := range related {
				if i > 0 {
					fmt.Fprintln(a.stdout)
				}
				a.showWhole(e)
			}
			return nil
		},
	}
}

// entryAt returns the entry of a sequence number.
func (a *app) entryAt(ctx context.Context, seq uint64) (audit.Entry, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return audit.Entry{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Server.Audit(ctx, connect.NewRequest(&islev1.AuditRequest{From: seq}))
	if err != nil {
		return audit.Entry{}, err
	}
	defer stream.Close()
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return audit.Entry{}, err
		}
		return audit.Entry{}, isle.Errorf(isle.NotFound, "the audit log has no entry %d", seq)
	}
	return audit.Decode([]byte(stream.Msg().GetJson()))
}

// collect returns all that a request selects.
func (a *app) collect(ctx context.Context, req *islev1.AuditRequest) ([]audit.Entry, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := c.Server.Audit(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var out []audit.Entry
	for stream.Receive() {
		e, err := audit.Decode([]byte(stream.Msg().GetJson()))
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, stream.Err()
}

// showWhole writes every field of an entry that is not empty.
func (a *app) showWhole(e audit.Entry) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(a.stdout, "%-14s %s\n", cleanLine(name), strings.ReplaceAll(clean(value), "\n", "\n"+strings.Repeat(" ", 15)))
		}
	}
	line("entry", strconv.FormatUint(e.Sequence, 10))
	line("id", string(e.ID))
	line("time", e.Time.Format(time.RFC3339Nano))
	line("kind", string(e.Kind))
	line("actor", e.Actor.String())
	for _, o := range e.OnBehalfOf {
		line("on behalf of", o.String())
	}
	for _, s := range e.Sessions {
		line("session", string(s))
	}
	line("environment", e.Environment)
	line("instance", string(e.Instance))
	line("release", string(e.Release))
	line("action", string(e.Action))
	line("resource", e.Resource.String())
	line("decision", string(e.Decision))
	line("rule", e.Rule)
	line("result", e.Result)
	line("summary", e.Summary)
	for _, k := range sortedKeys(e.Details) {
		line("  "+k, e.Details[k])
	}
	line("link", string(e.Link))
	line("recording", string(e.Recording))
	if e.Count > 0 {
		line("count", strconv.Itoa(e.Count))
	}
}
