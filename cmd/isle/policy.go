package main

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/policy"
)

func newPolicy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show, explain and test who may do what",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyShow(a), newPolicyExplain(a), newPolicyTest(a))
	return cmd
}

type documentJSON struct {
	Name    string `json:"name"`
	Format  string `json:"format"`
	Version int32  `json:"version"`
	Body    string `json:"body"`
}

type cedarJSON struct {
	Cedar string `json:"cedar"`
}

func newPolicyShow(a *app) *cobra.Command {
	var cedar, list bool
	cmd := &cobra.Command{
		Use:   "show [DOCUMENT]",
		Short: "Print a document of the policy, as it was applied",
		Example: `  isle policy show > policy.yaml    edit it, then: isle apply -f policy.yaml
  isle policy show --list
  isle policy show --cedar          all that decides, as Cedar`,
		Args: args(0, 1, "at most one document"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Policy.Show(cmd.Context(), connect.NewRequest(&islev1.ShowRequest{Cedar: cedar}))
			if err != nil {
				return err
			}
			if cedar && a.output == "json" {
				return a.json(cedarJSON{string(res.Msg.GetCedar())})
			}
			if cedar {
				_, err := fmt.Fprint(a.stdout, res.Msg.GetCedar())
				return err
			}
			out := []documentJSON{}
			var rows [][]string
			for _, d := range res.Msg.GetDocuments() {
				out = append(out, documentJSON{d.GetName(), d.GetFormat(), d.GetVersion(), string(d.GetBody())})
				rows = append(rows, []string{d.GetName(), d.GetFormat(), fmt.Sprint(d.GetVersion()), bytesText(int64(len(d.GetBody())))})
			}
			if a.output == "json" {
				return a.json(out)
			}
			if list {
				return table(a.stdout, "document\tformat\tversion\tsize", rows)
			}
			name := policy.DefaultDocument
			if len(given) > 0 {
				name = given[0]
			}
			var names []string
			for _, d := range out {
				if d.Name == name {
					_, err := fmt.Fprint(a.stdout, d.Body)
					return err
				}
				names = append(names, d.Name)
			}
			return isle.Errorf(isle.NotFound, "the policy has no document %s", name).WithHint("it has: %s", strings.Join(names, ", "))
		},
	}
	cmd.Flags().BoolVar(&cedar, "cedar", false, "print every policy that decides, as Cedar")
	cmd.Flags().BoolVar(&list, "list", false, "list the documents")
	return cmd
}

type explainJSON struct {
	Decision  string      `json:"decision"`
	Rule      string      `json:"rule"`
	Because   []string    `json:"because"`
	Final     bool        `json:"final"`
	Message   string      `json:"message,omitempty"`
	Roles     []string    `json:"roles"`
	Groups    []string    `json:"groups"`
	Evaluated int32       `json:"evaluated"`
	Total     int32       `json:"total"`
	Grants    []grantJSON `json:"grants"`
}

type grantJSON struct {
	Role    string `json:"role"`
	Binding string `json:"binding"`
	NewRole string `json:"new_role,omitempty"`
}

func newPolicyExplain(a *app) *cobra.Command {
	var stage, project string
	cmd := &cobra.Command{
		Use:   "explain ACTOR ACTION RESOURCE",
		Short: "Say whether somebody may do something, by which rule, and what to ask for",
		Long: `Say whether an actor may do an action to a resource, which rule decides, and where
nothing grants it which grants would.

ACTOR is human:NAME, group:NAME, machine:NAME or workload:PROJECT/STAGE/NAME. RESOURCE is
KIND:NAME[@STAGE]; the stage is testing unless said. docs/actions.md lists the actions.`,
		Example: `  isle policy explain human:ann environment:exec environment:shop@production
  isle policy explain workload:shop/testing/shop egress:connect egress:api.example.com:443`,
		Args: args(3, 3, "an actor, an action and a resource"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Policy.Explain(cmd.Context(), connect.NewRequest(&islev1.ExplainRequest{
				Actor: given[0], Action: given[1], Resource: given[2], Stage: stage, Project: project,
			}))
			if err != nil {
				return err
			}
			m := res.Msg
			if a.output == "json" {
				out := explainJSON{m.GetDecision(), m.GetRule(), m.GetBecause(), m.GetFinal(), m.GetMessage(), m.GetRoles(), m.GetGroups(), m.GetEvaluated(), m.GetTotal(), []grantJSON{}}
				for _, s := range []*[]string{&out.Because, &out.Roles, &out.Groups} {
					if *s == nil {
						*s = []string{}
					}
				}
				for _, g := range m.GetGrants() {
					out.Grants = append(out.Grants, grantJSON{g.GetRole(), g.GetBinding(), g.GetNewRole()})
				}
				return a.json(out)
			}
			a.showExplained(m)
			return nil
		},
	}
	cmd.Flags().StringVar(&stage, "stage", "", "stage of the session (default: the resource's)")
	cmd.Flags().StringVar(&project, "project", "", "project of the resource (default: that of the environment of its name)")
	return cmd
}

func (a *app) showExplained(m *islev1.ExplainResponse) {
	w := a.stdout
	fmt.Fprintf(w, "%s: %s\n", m.GetDecision(), clean(m.GetRule()))
	if m.GetMessage() != "" {
		fmt.Fprintf(w, "  %s\n", clean(m.GetMessage()))
	}
	for _, b := range m.GetBecause()[min(1, len(m.GetBecause())):] {
		fmt.Fprintf(w, "  also %s\n", clean(b))
	}
	for _, r := range m.GetRoles() {
		fmt.Fprintf(w, "  has role %s\n", clean(r))
	}
	if len(m.GetRoles()) == 0 {
		fmt.Fprintln(w, "  has no role here")
	}
	for i, g := range m.GetGrants() {
		if i == 0 {
			fmt.Fprintln(w, "  any of these would allow it, the least first:")
		}
		if g.GetNewRole() != "" {
			fmt.Fprintf(w, "    roles:    %s\n", clean(g.GetNewRole()))
		}
		fmt.Fprintf(w, "    bindings: %s\n", clean(g.GetBinding()))
	}
	fmt.Fprintf(w, "  %d of %d policies bear on it\n", m.GetEvaluated(), m.GetTotal())
}

type policyTestJSON struct {
	Cases    int               `json:"cases"`
	Failures []caseFailureJSON `json:"failures"`
}

type caseFailureJSON struct {
	At           string `json:"at"` // FILE:LINE:COLUMN
	Actor        string `json:"actor"`
	Action       string `json:"action"`
	Resource     string `json:"resource"`
	Expect       string `json:"expect"`
	ExpectedRule string `json:"expected_rule,omitempty"`
	Decision     string `json:"decision"`
	Rule         string `json:"rule"`
}

func testOf(cases []policy.Case, failures []policy.Failure) policyTestJSON {
	out := policyTestJSON{len(cases), []caseFailureJSON{}}
	for _, f := range failures {
		q := f.Case.Query
		out.Failures = append(out.Failures, caseFailureJSON{
			f.Case.At.String(), q.Actor.String(), string(q.Action), q.Resource.String(),
			string(f.Case.Expect), f.Case.Rule, string(f.Answer.Decision), f.Answer.Rule,
		})
	}
	return out
}

func newPolicyTest(a *app) *cobra.Command {
	var with string
	var document string
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "Ask the policy a file of questions, and compare the answers",
		Long: `Ask the policy each case of a file and compare. With -f the answers are those that the
policy would give after that file was applied, so that a change is tested before it is made.

A case is {actor, action, resource, expect} and may have groups, stage, project, release, at
and rule; see docs/policy.md.`,
		Example: `  isle policy test access.yaml
  isle policy test access.yaml -f policy.yaml`,
		Args: args(1, 1, "a file of cases"),
		RunE: func(cmd *cobra.Command, given []string) error {
			b, err := a.read(given[0], policy.MaxDocument)
			if err != nil {
				return err
			}
			cases, err := policy.ParseCases(given[0], b)
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Policy.Show(cmd.Context(), connect.NewRequest(&islev1.ShowRequest{}))
			if err != nil {
				return err
			}
			var docs []policy.Document
			for _, d := range res.Msg.GetDocuments() {
				docs = append(docs, policy.Document{Name: d.GetName(), Format: d.GetFormat(), Version: int(d.GetVersion()), Body: d.GetBody()})
			}
			if with != "" {
				body, err := a.read(with, policy.MaxDocument)
				if err != nil {
					return err
				}
				next := policy.Document{Name: document, Format: formatOf(with), Body: body}
				found := false
				for i := range docs {
					if docs[i].Name == document {
						docs[i], found = next, true
					}
				}
				if !found {
					docs = append(docs, next)
				}
			}
			set, err := policy.Compile(docs...)
			if err != nil {
				return err
			}
			failures := set.Replay(cases, time.Now())
			if a.output == "json" {
				if err := a.json(testOf(cases, failures)); err != nil {
					return err
				}
			} else {
				for _, f := range failures {
					fmt.Fprintln(a.stdout, clean(f.String()))
				}
			}
			if len(failures) > 0 {
				return isle.Errorf(isle.Failed, "%d of %d cases have another answer", len(failures), len(cases)).
					WithHint("`isle policy explain` says why for each")
			}
			if a.output != "json" {
				_, err = fmt.Fprintf(a.stdout, "%d cases, all as expected\n", len(cases))
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&with, "file", "f", "", "test the policy as it would be with this file applied")
	cmd.Flags().StringVar(&document, "document", policy.DefaultDocument, "document that the file replaces")
	return cmd
}

type roleJSON struct {
	Name      string   `json:"name"`
	Builtin   bool     `json:"builtin"`
	Does      string   `json:"does,omitempty"`
	Actions   []string `json:"actions"`
	Resources []string `json:"resources"`
	Subjects  []string `json:"subjects"`
	At        string   `json:"at"`
}

func newRole(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "role",
		Short: "List roles and who has them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "ls",
		Short: "List roles and who has them",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Policy.Roles(cmd.Context(), connect.NewRequest(&islev1.RolesRequest{}))
			if err != nil {
				return err
			}
			return showList(a, res.Msg.GetRoles(), roleView, "role\tsubjects\tgives", func(r *islev1.RoleInfo) []string {
				does := r.GetDoes()
				if does == "" {
					does = strings.Join(r.GetActions(), ", ") + " on " + strings.Join(r.GetResources(), ", ")
				}
				return []string{r.GetName(), strings.Join(r.GetSubjects(), "; "), does}
			})
		},
	})
	return cmd
}

func roleView(r *islev1.RoleInfo) roleJSON {
	v := roleJSON{r.GetName(), r.GetBuiltin(), r.GetDoes(), r.GetActions(), r.GetResources(), r.GetSubjects(), r.GetAt()}
	if v.Subjects == nil {
		v.Subjects = []string{}
	}
	return v
}
