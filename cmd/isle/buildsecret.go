package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// A givenSecret is one of --secret: what steps are given under an id, and where it
// is. It is read when it is sent, each time.
type givenSecret struct {
	id       string
	env, src string // one of them
}

// addSecrets adds --secret.
func addSecrets(cmd *cobra.Command, into *[]string) {
	cmd.Flags().StringArrayVar(into, "secret", nil, "give build steps a secret: id=ID,src=FILE or id=ID,env=NAME (RUN --mount=type=secret,id=ID)")
}

// parseSecrets reads --secret as BuildKit's clients do: without src and env it is
// the variable of the id's name, or else the file.
func parseSecrets(flags []string) (out []givenSecret, err error) {
	for _, f := range flags {
		var g givenSecret
		kind := ""
		for part := range strings.SplitSeq(f, ",") {
			key, value, ok := strings.Cut(part, "=")
			switch key = strings.ToLower(strings.TrimSpace(key)); {
			case !ok:
				return nil, usagef("--secret %q: want id=ID,src=FILE or id=ID,env=NAME", f)
			case key == "id":
				g.id = value
			case key == "src" || key == "source":
				g.src = value
			case key == "env":
				g.env = value
			case key == "type" && (value == "file" || value == "env"):
				kind = value
			default:
				return nil, usagef("--secret %q: there is no %s here; want id=ID,src=FILE or id=ID,env=NAME", f, part)
			}
		}
		if kind == "env" && g.env == "" {
			g.env, g.src = g.src, ""
		}
		if g.env == "" && g.src == "" {
			if _, ok := os.LookupEnv(g.id); ok && kind != "file" {
				g.env = g.id
			} else {
				g.src = g.id
			}
		}
		switch {
		case g.id == "":
			return nil, usagef("--secret %q names no id; want id=ID,src=FILE or id=ID,env=NAME", f)
		case g.env != "" && g.src != "":
			return nil, usagef("--secret %q has a file and a variable; want one of them", f)
		case slices.ContainsFunc(out, func(o givenSecret) bool { return o.id == g.id }):
			return nil, usagef("--secret: %s is given twice", g.id)
		}
		out = append(out, g)
	}
	return out, nil
}

// secretValues are those of what the project's builds are given, as they are now.
// What the command line gives comes before what a file does.
func (p *project) secretValues() (out []*islev1.BuildSecret, err error) {
	for _, s := range p.ofFile {
		if !slices.ContainsFunc(p.secrets, func(g givenSecret) bool { return g.id == s.ID }) {
			out = append(out, &islev1.BuildSecret{Id: s.ID, Value: s.Value, Service: s.Service})
		}
	}
	for _, g := range p.secrets {
		var value []byte
		if g.env != "" {
			v, ok := os.LookupEnv(g.env)
			if !ok {
				return nil, isle.Errorf(isle.NotFound, "secret %s: there is no variable %s", g.id, g.env).WithHint("set it, or give a file: --secret id=%s,src=FILE", g.id)
			}
			value = []byte(v)
		} else if value, err = readBounded(g.src, api.MaxBuildSecret); err != nil {
			return nil, isle.Errorf(isle.CodeOf(err), "secret %s: %w", g.id, err)
		}
		out = append(out, &islev1.BuildSecret{Id: g.id, Value: value})
	}
	return out, nil
}
