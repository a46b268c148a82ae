package main

import (
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
	"isle/internal/identity"
)

func newToken(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke your own personal tokens",
		Long: `A personal token proves you to a server from elsewhere: give it to "isle login". It may do
what you may, in its stage alone if it has one. You make it on the server's machine, where
the operating system vouches for you; it lives for 90 days at most.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenCreate(a), newTokenLs(a), newTokenRevoke(a))
	return cmd
}

func newTokenCreate(a *app) *cobra.Command {
	var req islev1.CreateTokenRequest
	var expires string
	cmd := &cobra.Command{
		Use:     "create --purpose TEXT --expires WHEN",
		Short:   "Make a personal token, and print it this once",
		Example: `  isle token create --purpose "my laptop" --expires 30d --stage testing`,
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Purpose == "" {
				return usagef("it needs a purpose: one line that says what it is for").WithHint("give one with --purpose")
			}
			var err error
			if req.Expires, err = ending("expires", expires); err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.CreateToken(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			m := res.Msg
			if a.output == "json" {
				return a.json(struct {
					Key    keyJSON `json:"key"`
					Secret string  `json:"secret"`
				}{keyView(m.GetKey()), m.GetSecret()})
			}
			a.showSecret(m.GetSecret(), m.GetKey(), "isle token create")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Purpose, "purpose", "", "what it is for: one line")
	f.StringVar(&expires, "expires", "", "its end, 90 days ahead at most: how long from now (30d), a day (its end, UTC) or a time")
	f.StringVar(&req.Stage, "stage", "", "the only stage that it acts in (default any, one at a time)")
	return cmd
}

func newTokenLs(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List your personal tokens",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.ListTokens(cmd.Context(), connect.NewRequest(&islev1.ListTokensRequest{}))
			if err != nil {
				return err
			}
			shown := slices.DeleteFunc(res.Msg.GetTokens(), func(k *islev1.Key) bool { return !all && k.GetState() != identity.Active })
			return showList(a, shown, keyView, "id\tbegins with\tpurpose\tstage\tends\tlast used\tlook at", func(k *islev1.Key) []string {
				stage := k.GetStage()
				if stage == "" {
					stage = "any"
				}
				look := ""
				switch left := time.Until(k.GetExpires().AsTime()); {
				case k.GetState() != identity.Active:
					look = k.GetState()
				case left < 7*24*time.Hour:
					look = "expires soon"
				}
				return []string{k.GetId(), k.GetHint(), k.GetPurpose(), stage, until(k.GetExpires()), lastUse(k.GetLastUsed(), k.GetLastSource()), look}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "those too that have expired or were revoked")
	return cmd
}

func newTokenRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "End one of your personal tokens, at once and for ever",
		Example: `  isle token ls; isle token revoke 06fhq2m5b0s9v1k3t7c8d4e6ga`,
		Args:    args(1, 1, "the ID of a token"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if identity.LooksLikeSecret(given[0]) {
				return usagef("that is a token, not its ID; a token does not belong on a command line, where others see it").WithHint("see `isle token ls`, and revoke this one too")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.RevokeToken(cmd.Context(), connect.NewRequest(&islev1.RevokeTokenRequest{Id: given[0]}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(keyView(res.Msg.GetKey()))
			}
			_, err = fmt.Fprintf(a.stdout, "the personal token %s is revoked\n", res.Msg.GetKey().GetId())
			return err
		},
	}
}
