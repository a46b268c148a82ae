package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// A saidFlag is true where it is given, and notices a value instead of failing:
// what fails to be read is repeated in the error, and may be a token.
type saidFlag struct{ given, valued bool }

func (f *saidFlag) String() string   { return "false" }
func (f *saidFlag) Type() string     { return "bool" }
func (f *saidFlag) IsBoolFlag() bool { return true }
func (f *saidFlag) Set(v string) error {
	f.given = true
	f.valued = v != "true"
	return nil
}

// inArguments is why a token is not taken from there.
func inArguments() error {
	return usagef("a token on the command line can be read by everybody on this machine, and stays in the shell's history").
		WithHint("have it revoked; --token takes no value: the token is asked for, or read from standard input")
}

func newLogin(a *app) *cobra.Command {
	var token saidFlag
	var ca, pin string
	cmd := &cobra.Command{
		Use:   "login https://HOST:PORT --token",
		Short: "Use a server elsewhere, with a token of yours or of a machine",
		Long: `Log in to a server that listens elsewhere. The token is asked for, or read from
standard input; it is kept in ~/.config/isle/servers.json, for you only.

The server has to prove who it is: by a certificate that the system trusts or --ca
names, or by its key, which --pin names. Where neither is so its key is shown, to be
compared with what ` + "`isle version`" + ` says on the server's own machine.

Commands go on to use this machine's server unless they are told otherwise, by
--server or ISLE_SERVER.`,
		Example: `  isle login https://isle.example.org:7443 --token
  isle login https://10.0.0.5:7443 --token --pin sha256//… <token
  ISLE_SERVER=https://10.0.0.5:7443 isle ls`,
		Args: func(cmd *cobra.Command, given []string) error {
			if len(given) > 1 && token.given {
				return inArguments()
			}
			return args(1, 1, "the address of a server")(cmd, given)
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			switch {
			case token.valued:
				return inArguments()
			case !token.given:
				return usagef("how do you want to log in? A token is the only way so far").WithHint("isle login %s --token", clean(given[0]))
			}
			url, err := api.ServerURL(given[0])
			if err != nil {
				return asUsage(err)
			}
			return a.login(cmd.Context(), login{URL: url, Pin: pin}, ca)
		},
	}
	f := cmd.Flags()
	f.Var(&token, "token", "log in with a token, which is asked for or read from standard input")
	f.Lookup("token").NoOptDefVal = "true"
	f.StringVar(&ca, "ca", "", "file with the certificates that vouch for the server, in PEM")
	f.StringVar(&pin, "pin", "", "the server's key, as isle version shows it there: sha256//…")
	return cmd
}

// login sees that the server is the one that is meant, then that it knows the
// token, and keeps both.
func (a *app) login(ctx context.Context, l login, ca string) error {
	if l.Pin != "" {
		if err := api.CheckPin(l.Pin); err != nil {
			return asUsage(err)
		}
	}
	var err error
	if ca != "" {
		if l.CA, err = readCA(ca); err != nil {
			return err
		}
	}
	if l.Pin == "" {
		if l.Pin, err = a.trust(ctx, l); err != nil {
			return err
		}
	}
	if l.Token, err = a.askToken(ctx, l.URL); err != nil {
		return err
	}
	r, err := l.remote()
	if err != nil {
		return err
	}
	c, err := api.NewRemoteClient(r)
	if err != nil {
		return err
	}
	a.client = c
	res, err := c.Identities.WhoAmI(ctx, connect.NewRequest(&islev1.WhoAmIRequest{}))
	if err != nil {
		return err
	}
	if err := a.recognise(ctx, c); err != nil {
		return err
	}
	l.Actor, l.Since = res.Msg.GetActor(), time.Now().UTC().Truncate(time.Second)
	if err := openLogins().put(l); err != nil {
		return err
	}
	who := whoOf(l.URL, res.Msg)
	if a.output == "json" {
		return a.json(who)
	}
	fmt.Fprintf(a.stdout, "logged in to %s as %s\n", l.URL, who)
	fmt.Fprintf(a.stdout, "  use it: isle --server %s ls, or export ISLE_SERVER=%s\n", l.URL, l.URL)
	return nil
}

// trust is the pin to trust from now on: "" where somebody who is trusted
// already vouches for the server. It is never said without being asked.
func (a *app) trust(ctx context.Context, l login) (string, error) {
	r, err := l.remote()
	if err != nil {
		return "", err
	}
	pin, trusted, err := api.Peek(ctx, r)
	if err != nil || trusted {
		return "", err
	}
	stranger := isle.Errorf(isle.Untrusted, "nobody who is trusted vouches for the server at %s, which shows the key %s", l.URL, pin)
	if l.CA != "" {
		return "", stranger.WithHint("see whether --ca is the right file, and the address one that is in the server's certificate")
	}
	compare := "`isle version` on the server's own machine shows its key"
	if !a.typed() {
		return "", stranger.WithHint("%s; if it is this one, give it with --pin", compare)
	}
	fmt.Fprintf(a.stderr, "Nobody who is trusted vouches for the server at %s. It shows the key\n  %s\n%s. If that is another one, somebody is in between.\nIs it the same? Type yes: ", l.URL, pin, compare)
	line, err := a.readLine(ctx)
	if err != nil || strings.TrimSpace(line) != "yes" {
		return "", isle.Errorf(isle.Untrusted, "the server at %s is not trusted; nothing was sent to it", l.URL)
	}
	return pin, nil
}

// askToken reads the token: unseen from a terminal, else from standard input.
func (a *app) askToken(ctx context.Context, url string) (string, error) {
	if !a.typed() {
		return readToken(a.stdin)
	}
	line, err := a.askUnseen(ctx, "Token for "+url+" (not shown): ")
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot read the token: %w", err)
	}
	return readToken(bytes.NewReader(line))
}

func newLogout(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout https://HOST:PORT",
		Short: "Forget the token for a server elsewhere",
		Args:  args(1, 1, "the address of a server"),
		RunE: func(_ *cobra.Command, given []string) error {
			url, err := api.ServerURL(given[0])
			if err != nil {
				return asUsage(err)
			}
			had, err := openLogins().remove(url)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"server": url, "logged_out": had})
			}
			if !had {
				fmt.Fprintf(a.stdout, "you were not logged in to %s\n", url)
				return nil
			}
			fmt.Fprintf(a.stdout, "the token for %s is forgotten here; it counts until it ends or is revoked\n", url)
			return nil
		},
	}
}

// A who is what `isle whoami` says.
type who struct {
	Server      string     `json:"server"`
	Actor       string     `json:"actor"`
	Stage       string     `json:"stage,omitempty"`
	Expires     *time.Time `json:"expires,omitempty"`
	Groups      []string   `json:"groups"`
	TrustDomain string     `json:"trust_domain,omitempty"`
}

func whoOf(server string, m *islev1.WhoAmIResponse) who {
	w := who{Server: server, Actor: m.GetActor(), Stage: m.GetStage(), Groups: append([]string{}, m.GetGroups()...), TrustDomain: m.GetTrustDomain()}
	if m.GetExpires() != nil {
		t := m.GetExpires().AsTime()
		w.Expires = &t
	}
	return w
}

func (w who) String() string {
	s := clean(w.Actor)
	if w.Stage != "" {
		s += ", in " + clean(w.Stage) + " only"
	}
	if w.Expires != nil {
		s += ", until " + w.Expires.UTC().Format(time.RFC3339)
	}
	return s
}

func newWhoami(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Say who you are to the server",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.WhoAmI(cmd.Context(), connect.NewRequest(&islev1.WhoAmIRequest{}))
			if err != nil {
				return err
			}
			w := whoOf(c.Address(), res.Msg)
			if a.output == "json" {
				return a.json(w)
			}
			fmt.Fprintln(a.stdout, w)
			if len(w.Groups) > 0 {
				fmt.Fprintf(a.stdout, "  groups: %s\n", clean(strings.Join(w.Groups, ", ")))
			}
			return nil
		},
	}
}
