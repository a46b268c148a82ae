package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/secret"
)

func newSecret(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Set and list what connections are opened with",
		Long: `Set and list secrets: passwords, keys and tokens that connections of the policy are opened
with. Connections name them; environments and people never get them, and no command gives
a value back. docs/secrets.md has more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSecretSet(a), newSecretLs(a), newSecretVersions(a), newSecretCheck(a), newSecretRm(a))
	return cmd
}

type secretJSON struct {
	Name      string              `json:"name"`
	Backend   string              `json:"backend"`
	Reference string              `json:"reference,omitempty"`
	Version   int32               `json:"version"`
	UsedBy    []string            `json:"used_by"`
	Versions  []secretVersionJSON `json:"versions"`
}

type secretVersionJSON struct {
	Version   int32      `json:"version"`
	Created   *time.Time `json:"created"`
	CreatedBy string     `json:"created_by"`
	Backend   string     `json:"backend"`
	Reference string     `json:"reference,omitempty"`
	Destroyed bool       `json:"destroyed"`
}

func secretView(s *islev1.Secret) secretJSON {
	out := secretJSON{s.GetName(), s.GetBackend(), s.GetReference(), s.GetVersion(), s.GetUsedBy(), []secretVersionJSON{}}
	if out.UsedBy == nil {
		out.UsedBy = []string{}
	}
	for _, v := range s.GetVersions() {
		out.Versions = append(out.Versions, secretVersionJSON{v.GetVersion(), at(v.GetCreated()), v.GetCreatedBy(), v.GetBackend(), v.GetReference(), v.GetDestroyed()})
	}
	return out
}

func newSecretSet(a *app) *cobra.Command {
	var variable, file, vault string
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Set a secret from standard input, or say where its value is",
		Long: `Set a secret to what comes over standard input, or on a terminal to what is typed, twice and
unseen. One newline at the end is not part of it. The value is never an argument: those are
seen by every user of the machine, and shells keep them.

With --env, --file or --vault nothing is stored but where the value is, on the server's
machine: it is taken from there each time that a connection is opened.`,
		Example: `  isle secret set orders-db                 asks for the value
  pass show orders-db | isle secret set orders-db
  isle secret set orders-db < password.txt
  isle secret set orders-db --file /etc/isle/secrets/orders-db
  isle secret set orders-db --env ISLE_SECRET_ORDERS_DB
  isle secret set orders-db --vault kv/shop/orders#password`,
		Args: func(_ *cobra.Command, given []string) error {
			if len(given) > 1 {
				return usagef("isle secret set takes a name only: a value on the command line is seen by every user of the machine, and stays in the shell's history").
					WithHint("if that was the secret, it is one no longer: make another, and give it over standard input, or let yourself be asked")
			}
			if len(given) == 0 {
				return usagef("isle secret set needs the secret's name").WithHint("isle secret set NAME")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			req := &islev1.SetSecretRequest{Name: given[0]}
			for _, o := range []struct{ flag, backend, reference string }{{"env", secret.Environment, variable}, {"file", secret.File, file}, {"vault", secret.Vault, vault}} {
				if !cmd.Flags().Changed(o.flag) {
					continue
				}
				if req.Backend != "" {
					return usagef("a secret is in one place: give one of --env, --file and --vault")
				}
				req.Backend, req.Reference = o.backend, o.reference
			}
			if !isle.ValidName(req.Name) {
				return usagef("%q is no name for a secret: want lower-case letters, digits and dashes, at most 40, beginning with a letter", req.Name)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			var cut bool
			if req.Backend == "" {
				if req.Value, cut, err = a.readSecret(cmd.Context(), req.Name); err != nil {
					return err
				}
				defer clear(req.Value)
			}
			res, err := c.Secrets.SetSecret(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.showSet(res.Msg.GetSecret(), cut)
		},
	}
	f := cmd.Flags()
	f.StringVar(&variable, "env", "", "take the value from this variable of the server's environment; its name begins with "+secret.VariablePrefix)
	f.StringVar(&file, "file", "", "take the value from this file on the server's machine")
	f.StringVar(&vault, "vault", "", "take the value from Vault: MOUNT/PATH#FIELD, or MOUNT/PATH?version=N#FIELD")
	return cmd
}

func (a *app) showSet(s *islev1.Secret, cut bool) error {
	if a.output == "json" {
		return a.json(secretView(s))
	}
	fmt.Fprintf(a.stdout, "secret %s is at version %d\n", s.GetName(), s.GetVersion())
	if cut {
		fmt.Fprintln(a.stdout, "  one newline at the end was cut off")
	}
	if s.GetBackend() != secret.Stored {
		fmt.Fprintf(a.stdout, "  see whether its value can be had: isle secret check %s\n", s.GetName())
	}
	return nil
}

// readSecret reads a value: on a terminal twice and unseen, else all of standard
// input. cut says that a newline was taken off its end.
func (a *app) readSecret(ctx context.Context, name string) (value []byte, cut bool, err error) {
	if !a.typed() {
		b, err := io.ReadAll(io.LimitReader(a.stdin, secret.MaxValue+2))
		if err != nil {
			return nil, false, isle.Errorf(isle.Unavailable, "cannot read the secret from standard input: %w", err)
		}
		b, cut = bytes.CutSuffix(b, []byte("\n"))
		return b, cut, nil
	}
	ask := func(question string) ([]byte, error) {
		b, err := a.askUnseen(ctx, question)
		if _, said := errors.AsType[*isle.Error](err); err != nil && !said && ctx.Err() == nil {
			err = isle.Errorf(isle.Invalid, "nothing was typed; the secret is as it was")
		}
		return b, err
	}
	first, err := ask("Value of " + name + ": ")
	if err != nil {
		return nil, false, err
	}
	second, err := ask("The same again: ")
	if err != nil {
		return nil, false, err
	}
	defer clear(second)
	if !bytes.Equal(first, second) {
		return nil, false, isle.Errorf(isle.Invalid, "the two are not the same; the secret is as it was")
	}
	return first, false, nil
}

func newSecretLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List secrets, and which connections use them",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.secrets(cmd.Context())
			if err != nil {
				return err
			}
			return showList(a, list, func(s secretJSON) secretJSON { return s }, "secret\tversion\tvalue is\tset\tby\tused by", func(s secretJSON) []string {
				last := s.Versions[len(s.Versions)-1]
				return []string{s.Name, strconv.Itoa(int(s.Version)), whereabouts(s.Backend, s.Reference), ago(last.Created), last.CreatedBy, strings.Join(s.UsedBy, ", ")}
			})
		},
	}
}

// secrets asks for all of them.
func (a *app) secrets(ctx context.Context) ([]secretJSON, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.Secrets.ListSecrets(ctx, connect.NewRequest(&islev1.ListSecretsRequest{}))
	if err != nil {
		return nil, err
	}
	out := []secretJSON{}
	for _, s := range res.Msg.GetSecrets() {
		v := secretView(s)
		if len(v.Versions) == 0 {
			return nil, isle.Errorf(isle.Internal, "the server knows no version of the secret %s", v.Name)
		}
		out = append(out, v)
	}
	return out, nil
}

// whereabouts says where a value is.
func whereabouts(backend, reference string) string {
	switch backend {
	case secret.Stored:
		return "stored"
	case secret.Environment:
		return "in the variable " + reference
	}
	return "in " + backend + " " + reference
}

// ago is when something was, for people.
func ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return span(time.Since(*t)) + " ago"
}

func newSecretVersions(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "versions NAME",
		Short: "List the versions of a secret; the last one counts",
		Args:  args(1, 1, "the name of a secret"),
		RunE: func(cmd *cobra.Command, given []string) error {
			list, err := a.secrets(cmd.Context())
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.Name != given[0] {
					continue
				}
				if a.output == "json" {
					return a.json(s.Versions)
				}
				var rows [][]string
				for i, v := range s.Versions {
					state := ""
					switch {
					case i == len(s.Versions)-1:
						state = "counts"
					case v.Destroyed:
						state = "destroyed"
					}
					rows = append(rows, []string{strconv.Itoa(int(v.Version)), state, whereabouts(v.Backend, v.Reference), ago(v.Created), v.CreatedBy})
				}
				return table(a.stdout, "version\tstate\tvalue is\tset\tby", rows)
			}
			return isle.Errorf(isle.NotFound, "there is no secret %q", given[0]).WithHint("see `isle secret ls`")
		},
	}
}

func newSecretCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check NAME",
		Short: "See whether a secret's value can be had, as a connection would",
		Args:  args(1, 1, "the name of a secret"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Secrets.CheckSecret(cmd.Context(), connect.NewRequest(&islev1.CheckSecretRequest{Name: given[0]}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"name": given[0], "version": res.Msg.GetVersion(), "size": res.Msg.GetSize()})
			}
			_, err = fmt.Fprintf(a.stdout, "secret %s can be had: version %d, %s\n", given[0], res.Msg.GetVersion(), bytesText(int64(res.Msg.GetSize())))
			return err
		},
	}
}

func newSecretRm(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a secret with all of its versions",
		Args:  args(1, 1, "the name of a secret"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := c.Secrets.DeleteSecret(cmd.Context(), connect.NewRequest(&islev1.DeleteSecretRequest{Name: given[0], Force: force})); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"name": given[0], "removed": true})
			}
			_, err = fmt.Fprintf(a.stdout, "secret %s is removed\n", given[0])
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it although a connection uses it")
	return cmd
}
