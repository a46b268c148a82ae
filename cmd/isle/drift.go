package main

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

type checkedJSON struct {
	Environment string        `json:"environment"`
	Instance    string        `json:"instance"`
	Release     string        `json:"release"`
	Drifted     []driftedJSON `json:"drifted"`
	Equal       []string      `json:"equal"` // stages of the project that run the same as it is, this one too
}

type driftedJSON struct {
	Kind    string `json:"kind"`
	Service string `json:"service,omitempty"`
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"` // of a door, what it was and is, for those who may read the policy
}

func newDrift(a *app) *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "drift [ENV|PROJECT]",
		Short: "Compare what runs with its release",
		Long: `Compare an environment that runs a release, the stages of a project, or all that run one, with
that release: its signature, what its stage points at, the image of each service, what it was
launched with, doors and limits included, what is mounted in it, and the layers on disk;
--full reads every byte of them. What policy lets a stage do through its doors, and where they
lead, is compared with when it was promoted. Stages that run the same without a finding are
equal.

What is not as released is listed, and an entry of the audit log; the exit code is 1 then.`,
		Example: "  isle drift\n  isle drift shop@production --full",
		Args:    args(0, 1, "at most one environment or project"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.Drift(cmd.Context(), connect.NewRequest(&islev1.DriftRequest{Environment: first(given), Full: full}))
			if err != nil {
				return err
			}
			return a.showDrift(res.Msg)
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "read every byte of the layers")
	return cmd
}

func (a *app) showDrift(res *islev1.DriftResponse) error {
	list, n := []checkedJSON{}, 0
	for _, c := range res.GetChecked() {
		out := checkedJSON{c.GetEnvironment(), c.GetInstance(), c.GetRelease(), []driftedJSON{}, equalTo(c, res.GetEqual())}
		for _, d := range c.GetDrifted() {
			out.Drifted = append(out.Drifted, driftedJSON{d.GetKind(), d.GetService(), d.GetMessage(), d.GetDetail()})
			n++
		}
		list = append(list, out)
	}
	if a.output == "json" {
		if err := a.json(list); err != nil {
			return err
		}
	} else {
		for _, c := range list {
			if len(c.Drifted) == 0 {
				fmt.Fprintf(a.stdout, "%s runs release %s as it is\n", c.Environment, shortDigest(c.Release))
			}
			for _, d := range c.Drifted {
				where := c.Environment
				if d.Service != "" {
					where += "/" + clean(d.Service)
				}
				text := d.Message
				if d.Detail != "" {
					text += " (" + d.Detail + ")"
				}
				fmt.Fprintf(a.stdout, "! %s: %s: %s\n", where, d.Kind, cleanLine(text))
			}
		}
		for _, e := range res.GetEqual() {
			fmt.Fprintf(a.stdout, "%s: %s are equal: release %s\n", clean(e.GetProject()), clean(strings.Join(e.GetStages(), ", ")), shortDigest(e.GetRelease()))
			for _, v := range e.GetValues() {
				fmt.Fprintf(a.stdout, "  but for %s\n", cleanLine(v))
			}
		}
		if len(list) == 0 {
			fmt.Fprintln(a.stdout, "no environment runs a release")
		}
	}
	if n > 0 {
		return isle.Errorf(isle.Failed, "what runs is not as released (differences: %d)", n).WithHint("isle audit search --action release:drift has them; isle up --release launches what was released, and isle promote agrees to what it reaches now")
	}
	return nil
}

// equalTo are the stages that run the same as an environment.
func equalTo(c *islev1.Checked, all []*islev1.Equal) []string {
	ref, err := isle.ParseRef(c.GetEnvironment())
	for _, e := range all {
		if err == nil && e.GetProject() == ref.Name && e.GetRelease() == c.GetRelease() && slices.Contains(e.GetStages(), ref.Stage) {
			return e.GetStages()
		}
	}
	return []string{}
}
