package main

import (
	"bufio"
	"fmt"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/policy"
)

type applyJSON struct {
	Document string             `json:"document"`
	Changed  bool               `json:"changed"`
	DryRun   bool               `json:"dry_run"`
	Version  int32              `json:"version"`
	Epoch    uint64             `json:"epoch"`
	Changes  []policyChangeJSON `json:"changes"`
	Warnings []string           `json:"warnings"`
}

type policyChangeJSON struct {
	Subject string `json:"subject"`
	Gains   bool   `json:"gains"`
	What    string `json:"what"`
}

func newApply(a *app) *cobra.Command {
	var file, document string
	var dryRun bool
	var lockOut int
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Change the policy: roles, bindings, connections, approvals",
		Long: `Replace a document of the policy by a file: YAML with roles, bindings, connections and
approvals, or hand-written Cedar (FILE.cedar). It says who gains and who loses what.
Without --document the file replaces the document main, or cedar if it is Cedar.

A change after which nobody could change the policy any more is refused, unless it is
confirmed twice: on a terminal by two answers, in a script by giving --lock-out twice.`,
		Example: `  isle policy show > policy.yaml
  isle apply -f policy.yaml --dry-run
  isle apply -f policy.yaml
  isle apply -f orders.yaml --document orders`,
		Args: args(0, 0, "no arguments; the file goes after -f"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("isle apply needs a file").WithHint("isle apply -f FILE")
			}
			body, err := a.read(file, policy.MaxDocument)
			if err != nil {
				return err
			}
			if file != "-" && formatOf(file) == policy.YAML {
				// The server knows the document's name alone. What is wrong is in this file.
				if _, err := policy.Parse(file, body); err != nil {
					return err
				}
			}
			req := &islev1.ApplyRequest{Document: document, Format: formatOf(file), Body: body, DryRun: dryRun, Confirmations: int32(lockOut)}
			if req.Document == "" {
				req.Document = policy.DefaultDocument
				if req.Format == policy.Cedar {
					req.Document = "cedar"
				}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if !dryRun && lockOut == 0 && file != "-" && a.typed() {
				look := &islev1.ApplyRequest{Document: req.Document, Format: req.Format, Body: body, DryRun: true}
				res, err := c.Policy.Apply(cmd.Context(), connect.NewRequest(look))
				if err == nil && res.Msg.GetLocksOut() {
					if req.Confirmations, err = a.confirmLockOut(); err != nil {
						return err
					}
				}
			}
			res, err := c.Policy.Apply(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.showApplied(req, res.Msg)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "file to apply; - reads standard input")
	f.StringVar(&document, "document", "", "document of the policy to replace (default main, of Cedar cedar)")
	f.BoolVar(&dryRun, "dry-run", false, "say who would gain and lose what, and change nothing")
	f.CountVar(&lockOut, "lock-out", "lock everyone out, if the change does that; has to be given twice")
	return cmd
}

func formatOf(file string) string {
	if filepath.Ext(file) == ".cedar" {
		return policy.Cedar
	}
	return policy.YAML
}

// confirmLockOut asks twice, and returns how often the answer was yes.
func (a *app) confirmLockOut() (int32, error) {
	in := bufio.NewReader(a.stdin)
	for i, question := range []string{
		"After this nobody could change the policy any more. Is that meant? Type yes: ",
		"Only `isle server --default-policy`, as root, would undo it. Lock everyone out? Type lock everyone out: ",
	} {
		fmt.Fprint(a.stderr, question)
		line, err := in.ReadString('\n')
		if err != nil {
			return int32(i), isle.Errorf(isle.Refused, "the policy is as it was")
		}
		if strings.TrimSpace(line) != []string{"yes", "lock everyone out"}[i] {
			return int32(i), isle.Errorf(isle.Refused, "not confirmed; the policy is as it was")
		}
	}
	return 2, nil
}

func (a *app) showApplied(req *islev1.ApplyRequest, res *islev1.ApplyResponse) error {
	if a.output == "json" {
		out := applyJSON{req.GetDocument(), res.GetChanged(), req.GetDryRun(), res.GetVersion(), res.GetEpoch(), []policyChangeJSON{}, res.GetWarnings()}
		for _, c := range res.GetChanges() {
			out.Changes = append(out.Changes, policyChangeJSON{c.GetSubject(), c.GetGains(), c.GetWhat()})
		}
		if out.Warnings == nil {
			out.Warnings = []string{}
		}
		return a.json(out)
	}
	for _, c := range res.GetChanges() {
		sign, verb := "+", "gains"
		if !c.GetGains() {
			sign, verb = "-", "loses"
		}
		fmt.Fprintf(a.stdout, "%s %s %s %s\n", sign, clean(c.GetSubject()), verb, clean(c.GetWhat()))
	}
	for _, w := range res.GetWarnings() {
		fmt.Fprintf(a.stderr, "warning: %s\n", clean(w))
	}
	switch {
	case !res.GetChanged():
		fmt.Fprintf(a.stdout, "%s is as it was, nothing to do\n", req.GetDocument())
	case req.GetDryRun():
		if len(res.GetChanges()) == 0 {
			fmt.Fprintln(a.stdout, "nobody gains or loses anything")
		}
		fmt.Fprintf(a.stdout, "dry run: nothing is changed\n")
	default:
		fmt.Fprintf(a.stdout, "%s is at version %d\n", req.GetDocument(), res.GetVersion())
	}
	return nil
}
