package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
)

type approvalJSON struct {
	ID          string        `json:"id"`
	State       string        `json:"state"`
	Asked       *time.Time    `json:"asked,omitempty"`
	Expires     *time.Time    `json:"expires,omitempty"`
	Actor       string        `json:"actor"`
	Owner       string        `json:"owner,omitempty"`
	Chain       []string      `json:"chain,omitempty"`
	Environment string        `json:"environment,omitempty"`
	Instance    string        `json:"instance,omitempty"`
	Session     string        `json:"session,omitempty"`
	Source      string        `json:"source,omitempty"`
	Connection  string        `json:"connection"`
	Kind        string        `json:"kind"`
	Stage       string        `json:"stage"`
	Address     string        `json:"address,omitempty"`
	Database    string        `json:"database,omitempty"`
	Role        string        `json:"role,omitempty"`
	Actions     []string      `json:"actions"`
	Rule        string        `json:"rule"`
	Text        *string       `json:"text,omitempty"`        // what is no UTF-8 is replaced
	TextBytes   []byte        `json:"text_base64,omitempty"` // exact, where Text is not
	Shown       string        `json:"shown,omitempty"`       // with what is not seen made visible
	Warnings    []string      `json:"warnings,omitempty"`
	Params      []paramJSON   `json:"params,omitempty"`
	Settings    []settingJSON `json:"settings,omitempty"`
	Shape       string        `json:"shape,omitempty"`
	Estimate    string        `json:"estimate,omitempty"`
	Why         string        `json:"why,omitempty"`
	Hash        string        `json:"hash"`
	Approvers   []string      `json:"approvers"`
	Quorum      int32         `json:"quorum"`
	Separate    bool          `json:"separate,omitempty"`
	NoWait      bool          `json:"no_wait,omitempty"`
	ValidFor    float64       `json:"valid_for"`
	Uses        int32         `json:"uses"`
	Used        int32         `json:"used"`
	Count       int32         `json:"count"`
	Decisions   []verdictJSON `json:"decisions,omitempty"`
	Until       *time.Time    `json:"until,omitempty"`
	Ended       *time.Time    `json:"ended,omitempty"`
	Ending      string        `json:"ending,omitempty"`
	Access      *accessJSON   `json:"access,omitempty"`
}

type paramJSON struct {
	Type   string `json:"type"`
	Value  []byte `json:"value_base64,omitempty"`
	Null   bool   `json:"null,omitempty"`
	Binary bool   `json:"binary,omitempty"`
	Shown  string `json:"shown"`
}

type settingJSON struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type verdictJSON struct {
	Actor   string     `json:"actor"`
	At      *time.Time `json:"at,omitempty"`
	Approve bool       `json:"approve"`
	Reason  string     `json:"reason,omitempty"`
	Via     string     `json:"via,omitempty"`
}

type accessJSON struct {
	What       string       `json:"what"`
	Name       string       `json:"name"`
	Actions    []string     `json:"actions,omitempty"`
	Subject    string       `json:"subject"`
	For        float64      `json:"for"`
	Until      *time.Time   `json:"until,omitempty"`
	Granted    bool         `json:"granted"`
	BreakGlass bool         `json:"break_glass,omitempty"`
	Review     *verdictJSON `json:"review,omitempty"`
}

func verdictView(v *islev1.ApprovalVerdict) verdictJSON {
	return verdictJSON{v.GetActor(), at(v.GetAt()), v.GetApprove(), v.GetReason(), v.GetVia()}
}

func paramOf(p *islev1.ApprovalParam) approval.Param {
	return approval.Param{Type: p.GetType(), Value: p.GetValue(), Null: p.GetNull(), Binary: p.GetBinary()}
}

func approvalView(r *islev1.Approval) approvalJSON {
	v := approvalJSON{
		ID: r.GetId(), State: r.GetState(), Asked: at(r.GetAsked()), Expires: at(r.GetExpires()), Actor: r.GetActor(), Owner: r.GetOwner(), Chain: r.GetChain(),
		Environment: r.GetEnvironment(), Instance: r.GetInstance(), Session: r.GetSession(), Source: r.GetSource(), Connection: r.GetConnection(), Kind: r.GetKind(),
		Stage: r.GetStage(), Address: r.GetAddress(), Database: r.GetDatabase(), Role: r.GetRole(), Actions: append([]string{}, r.GetActions()...), Rule: r.GetRule(),
		Shape: r.GetShape(), Estimate: r.GetEstimate(), Why: r.GetWhy(), Hash: r.GetHash(), Approvers: append([]string{}, r.GetApprovers()...), Quorum: r.GetQuorum(),
		Separate: r.GetSeparate(), NoWait: r.GetNoWait(), ValidFor: r.GetValidFor().AsDuration().Seconds(), Uses: r.GetUses(), Used: r.GetUsed(), Count: r.GetCount(),
		Until: at(r.GetUntil()), Ended: at(r.GetEnded()), Ending: r.GetEnding(),
	}
	if t := r.GetText(); len(t) > 0 {
		text := strings.ToValidUTF8(string(t), "\ufffd")
		v.Text = &text
		v.Shown, v.Warnings = approval.Reveal(t)
		if !utf8.Valid(t) {
			v.TextBytes = t
		}
	}
	for _, p := range r.GetParams() {
		shown, _ := paramOf(p).Show()
		v.Params = append(v.Params, paramJSON{p.GetType(), p.GetValue(), p.GetNull(), p.GetBinary(), shown})
	}
	for _, s := range r.GetSettings() {
		v.Settings = append(v.Settings, settingJSON{s.GetKey(), s.GetValue()})
	}
	for _, d := range r.GetDecisions() {
		v.Decisions = append(v.Decisions, verdictView(d))
	}
	if x := r.GetAccess(); x != nil {
		v.Access = &accessJSON{x.GetWhat(), x.GetName(), x.GetActions(), x.GetSubject(), x.GetFor().AsDuration().Seconds(), at(x.GetUntil()), x.GetGranted(), x.GetBreakGlass(), nil}
		if x.GetReview() != nil {
			review := verdictView(x.GetReview())
			v.Access.Review = &review
		}
	}
	return v
}

func newApprovals(a *app) *cobra.Command {
	var all bool
	list := func(cmd *cobra.Command, _ []string) error { return a.listApprovals(cmd.Context(), all) }
	cmd := &cobra.Command{
		Use:   "approvals",
		Short: "See and decide what waits for a human",
		Long: `See what waits for a human's approval, approve or deny it, and see what access was given
for a time. Without a command it lists.

An approval is of one hash: of the exact text, its parameters, and every setting that
changes what they mean. It holds for the time and the uses that the policy's rule says.`,
		Example: `  isle approvals
  isle approvals watch
  isle approvals show 06h02av97g1jqhfhft3lgoj9cg
  isle approvals approve 06h02av97g1jqhfhft3lgoj9cg
  isle approvals deny 06h02av97g1jqhfhft3lgoj9cg --reason 'not on a Friday'`,
		Args: cobra.NoArgs,
		RunE: list,
	}
	cmd.Flags().BoolVar(&all, "all", false, "those that have ended as well")
	ls := &cobra.Command{Use: "ls", Short: "List what waits, what is approved, and access for a time", Args: args(0, 0, "no arguments"), RunE: list}
	ls.Flags().BoolVar(&all, "all", false, "those that have ended as well")
	cmd.AddCommand(ls, newApprovalsWatch(a), newApprovalsShow(a), newApprovalsApprove(a), newApprovalsDeny(a), newApprovalsReview(a))
	return cmd
}

func (a *app) listApprovals(ctx context.Context, all bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Approvals.ListApprovals(ctx, connect.NewRequest(&islev1.ListApprovalsRequest{All: all}))
	if err != nil {
		return err
	}
	return showList(a, res.Msg.GetApprovals(), approvalView, "request\tstate\twho\tconnection\twhat\tcount\tasked", approvalRow)
}

// approvalRow is a request as one line.
func approvalRow(r *islev1.Approval) []string {
	who := r.GetActor()
	if r.GetOwner() != "" && r.GetOwner() != who {
		who += " of " + r.GetOwner()
	}
	what := r.GetShape()
	if what == "" {
		what = strings.Join(r.GetActions(), ", ")
	}
	return []string{r.GetId(), approvalState(r), who, r.GetConnection() + "@" + r.GetStage(), shorten(what, 80), fmt.Sprint(r.GetCount()), ago(at(r.GetAsked()))}
}

// times is how often something is.
func times(n int32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// approvalState says how far a request is.
func approvalState(r *islev1.Approval) string {
	x := r.GetAccess()
	switch {
	case x.GetBreakGlass() && x.GetReview() == nil:
		return "UNREVIEWED break-glass"
	case x.GetGranted():
		return "granted, " + remaining(at(x.GetUntil()))
	case r.GetState() == approval.Pending && r.GetQuorum() > 1:
		return fmt.Sprintf("pending (%d of %d), %s", len(r.GetDecisions()), r.GetQuorum(), remaining(at(r.GetExpires())))
	case r.GetState() == approval.Pending:
		return "pending, " + remaining(at(r.GetExpires()))
	case r.GetState() == approval.Approved:
		return fmt.Sprintf("approved (%d of %d used), %s", r.GetUsed(), r.GetUses(), remaining(at(r.GetUntil())))
	}
	return r.GetState()
}

func remaining(t *time.Time) string {
	if t == nil {
		return ""
	}
	return span(max(time.Until(*t), 0)) + " left"
}

// shorten is the beginning of a text on one line.
func shorten(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func newApprovalsWatch(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Show what waits, and each change, until interrupted; with -o json one object a line",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Approvals.WatchApprovals(cmd.Context(), connect.NewRequest(&islev1.WatchApprovalsRequest{}))
			if err != nil {
				return err
			}
			defer stream.Close()
			enc := json.NewEncoder(a.stdout)
			enc.SetEscapeHTML(false)
			for stream.Receive() {
				r := stream.Msg()
				if a.output == "json" {
					if err := enc.Encode(approvalView(r)); err != nil {
						return err
					}
					continue
				}
				row := approvalRow(r)
				for i := range row {
					row[i] = cleanLine(row[i])
				}
				if _, err := fmt.Fprintln(a.stdout, strings.Join(row[:6], "  ")); err != nil {
					return err
				}
			}
			return stream.Err()
		},
	}
}

// getApproval asks for one request, whole.
func (a *app) getApproval(ctx context.Context, id string) (*islev1.Approval, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.Approvals.GetApproval(ctx, connect.NewRequest(&islev1.GetApprovalRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetApproval(), nil
}

func newApprovalsShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show REQUEST",
		Short: "Show all of a request: who, what exactly, where and why",
		Long: `Show all of a request. The text is complete and exact; what a reader would not see in it,
or would take for something else, stands as ⟦U+202E⟧: control characters, characters that
reorder or hide text, and letters of other alphabets that look like Latin ones.`,
		Args: args(1, 1, "the ID of a request"),
		RunE: func(cmd *cobra.Command, given []string) error {
			r, err := a.getApproval(cmd.Context(), given[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(approvalView(r))
			}
			return a.showApproval(r)
		},
	}
}

// showApproval shows all of a request. Whatever comes from who asks is revealed,
// so that it neither steers the terminal nor looks like part of this.
func (a *app) showApproval(r *islev1.Approval) error {
	var b strings.Builder
	var warnings []string
	reveal := func(s string) string {
		shown, w := approval.Reveal([]byte(s))
		warnings = append(warnings, w...)
		return strings.ReplaceAll(shown, "\n", "⟦U+000A⟧")
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-11s %s\n", name, reveal(value))
		}
	}
	line("request", r.GetId())
	line("state", approvalState(r))
	line("ended", r.GetEnding())
	line("who", r.GetActor())
	line("owner", r.GetOwner())
	line("for", strings.Join(r.GetChain(), ", "))
	if r.GetInstance() != "" {
		line("environment", r.GetEnvironment()+" ("+r.GetInstance()+")")
	}
	line("from", r.GetSource())
	where := r.GetConnection() + "@" + r.GetStage() + " (" + r.GetKind()
	for _, s := range []string{r.GetAddress(), r.GetDatabase()} {
		if s != "" {
			where += ", " + s
		}
	}
	if r.GetRole() != "" {
		where += ", as " + r.GetRole()
	}
	line("where", where+")")
	line("does", strings.Join(r.GetActions(), ", "))
	line("estimate", r.GetEstimate())
	line("why", r.GetWhy())
	line("held by", r.GetRule())
	line("approvers", strings.Join(r.GetApprovers(), ", "))
	if r.GetQuorum() > 1 {
		line("quorum", fmt.Sprintf("%d people", r.GetQuorum()))
	}
	line("asked", fmt.Sprintf("%s, %s", ago(at(r.GetAsked())), times(r.GetCount())))
	if r.GetAccess() == nil {
		line("gives", fmt.Sprintf("%s, within %s of the approval", times(r.GetUses()), r.GetValidFor().AsDuration()))
	}
	for _, d := range r.GetDecisions() {
		what := "denied"
		if d.GetApprove() {
			what = "approved"
		}
		line(what, strings.TrimSuffix(d.GetActor()+" "+ago(at(d.GetAt()))+": "+d.GetReason(), ": "))
	}
	for _, s := range r.GetSettings() {
		fmt.Fprintf(&b, "%-11s %s = %s\n", "setting", reveal(s.GetKey()), reveal(s.GetValue()))
	}
	line("hash", r.GetHash())
	if len(r.GetText()) > 0 {
		shown, w := approval.Reveal(r.GetText())
		warnings = append(warnings, w...)
		fmt.Fprintf(&b, "text, %d bytes:\n", len(r.GetText()))
		for _, l := range strings.Split(shown, "\n") {
			b.WriteString("  | " + l + "\n")
		}
	}
	for i, p := range r.GetParams() {
		shown, w := paramOf(p).Show()
		warnings = append(warnings, w...)
		fmt.Fprintf(&b, "  $%d %s: %s\n", i+1, reveal(p.GetType()), strings.ReplaceAll(shown, "\n", "⟦U+000A⟧"))
	}
	seen := map[string]bool{}
	for _, w := range warnings {
		if !seen[w] {
			seen[w] = true
			fmt.Fprintf(&b, "WARNING: %s\n", w)
		}
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

func newApprovalsApprove(a *app) *cobra.Command {
	var hash, reason string
	var yes bool
	cmd := &cobra.Command{
		Use:   "approve REQUEST",
		Short: "Approve a request, as it is shown",
		Long: `Approve a request. On a terminal it is shown first, and asked about. A script says which
hash it means with --hash, as isle approvals show -o json gives it, or takes the request
as it is with --yes. Where the hash is another the server refuses.`,
		Args: args(1, 1, "the ID of a request"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			if hash == "" {
				if !yes && !a.typed() {
					return usagef("there is nobody to ask: say which request is meant with --hash sha256:…, or take it as it is with --yes")
				}
				r, err := a.getApproval(ctx, given[0])
				if err != nil {
					return err
				}
				hash = r.GetHash()
				if !yes {
					if err := a.showApproval(r); err != nil {
						return err
					}
					if err := a.askYes(ctx, "Approve this? [y/N] ", "nothing was approved"); err != nil {
						return err
					}
				}
			}
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			res, err := c.Approvals.Approve(ctx, connect.NewRequest(&islev1.ApproveRequest{Id: given[0], Hash: hash, Reason: reason}))
			if err != nil {
				return err
			}
			return a.showDecided(res.Msg.GetApproval(), approvalState(res.Msg.GetApproval()))
		},
	}
	cmd.Flags().StringVar(&hash, "hash", "", "the hash that is approved, without a question")
	cmd.Flags().BoolVar(&yes, "yes", false, "approve it as it is, without a question")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	cmd.MarkFlagsMutuallyExclusive("hash", "yes")
	return cmd
}

// askYes asks, and fails with what came of it unless the answer is yes.
func (a *app) askYes(ctx context.Context, question, otherwise string) error {
	fmt.Fprint(a.stderr, question)
	answer, err := a.readLine(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s := strings.ToLower(strings.TrimSpace(answer)); err == nil && (s == "y" || s == "yes") {
		return nil
	}
	return isle.Errorf(isle.Failed, "%s", otherwise)
}

func (a *app) showDecided(r *islev1.Approval, what string) error {
	if a.output == "json" {
		return a.json(approvalView(r))
	}
	_, err := fmt.Fprintf(a.stdout, "request %s is %s\n", cleanLine(r.GetId()), cleanLine(what))
	return err
}

func newApprovalsDeny(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "deny REQUEST",
		Short: "Deny a request, or take back what is approved and not used, or access for a time",
		Args:  args(1, 1, "the ID of a request"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Approvals.Deny(cmd.Context(), connect.NewRequest(&islev1.DenyRequest{Id: given[0], Reason: reason}))
			if err != nil {
				return err
			}
			return a.showDecided(res.Msg.GetApproval(), "ended: "+res.Msg.GetApproval().GetEnding())
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why: who asked gets it as the error")
	return cmd
}

func newApprovalsReview(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "review REQUEST",
		Short: "Say that you have looked at access that somebody took at once (break-glass)",
		Args:  args(1, 1, "the ID of a request"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Approvals.Review(cmd.Context(), connect.NewRequest(&islev1.ReviewRequest{Id: given[0], Reason: reason}))
			if err != nil {
				return err
			}
			return a.showDecided(res.Msg.GetApproval(), "reviewed")
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "what was found, for the audit log")
	return cmd
}
