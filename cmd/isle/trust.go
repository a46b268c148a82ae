package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"isle/internal/api"
)

// A trustedKey is a key whose signatures count here.
type trustedKey interface {
	GetName() string
	GetKey() string
	GetOwn() bool
}

type trustedKeyJSON struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	Own  bool   `json:"own"`
	PEM  string `json:"pem"`
}

// newTrust is the command that lists the keys whose signatures of a kind of thing
// count, and changes which those are. what says what it means to trust one.
func newTrust[K trustedKey](a *app, short, what string,
	list func(context.Context, *api.Client) ([]K, error), change func(ctx context.Context, c *api.Client, key string, remove bool) (K, error),
) *cobra.Command {
	var remove, pem bool
	cmd := &cobra.Command{
		Use:   "trust [KEY]",
		Short: short,
		Long: `Without a key, list the keys whose signatures count, this server's own first. With the key
of another server, as that lists its own, trust it: ` + what + `
--remove ends that. --pem writes keys as other tools read them (SubjectPublicKeyInfo).`,
		Args: args(0, 1, "at most one key"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if remove && len(given) == 0 {
				return usagef("--remove needs a key, or its name")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if len(given) > 0 {
				k, err := change(cmd.Context(), c, given[0], remove)
				if err != nil {
					return err
				}
				return a.showTrusted(k, remove)
			}
			keys, err := list(cmd.Context(), c)
			if err != nil {
				return err
			}
			if pem && a.output != "json" {
				for _, k := range keys {
					fmt.Fprint(a.stdout, pemOf(k.GetKey()))
				}
				return nil
			}
			return showList(a, keys, func(k K) trustedKeyJSON {
				return trustedKeyJSON{k.GetName(), k.GetKey(), k.GetOwn(), pemOf(k.GetKey())}
			}, "\tkey", func(k K) []string {
				if k.GetOwn() {
					return []string{"this server's", k.GetKey()}
				}
				return []string{"trusted", k.GetKey()}
			})
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "trust the key no more")
	cmd.Flags().BoolVar(&pem, "pem", false, "write the keys as PEM")
	return cmd
}

// showTrusted says what became of a key.
func (a *app) showTrusted(k trustedKey, removed bool) error {
	if a.output == "json" {
		return a.json(map[string]any{"name": k.GetName(), "key": k.GetKey(), "own": k.GetOwn(), "trusted": !removed})
	}
	word := "is trusted"
	if removed {
		word = "is trusted no more"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s\n", clean(k.GetName()), word)
	return err
}
