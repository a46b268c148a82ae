package spec

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"isle/internal/document"
)

// Bounds of what a build can have.
const (
	maxBuildArgs    = 128
	maxBuildSecrets = 64
)

// secretIDPattern is what the id of a secret looks like where a file names it.
const secretIDPattern = `^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`

// A Build is an image that a Dockerfile makes.
type Build struct {
	Context    string            `json:"context"`    // the folder whose files COPY sees, relative to the file's folder
	Dockerfile string            `json:"dockerfile"` // relative to Context; default "Dockerfile"
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Secrets    map[string]string `json:"secrets,omitempty"` // by id: the name of one that the server keeps
}

// File is the Dockerfile's path, relative to the file's folder.
func (b Build) File() string { return path.Join(b.Context, b.Dockerfile) }

// Equal reports whether both ask for the same.
func (b Build) Equal(o Build) bool {
	return b.Context == o.Context && b.Dockerfile == o.Dockerfile && b.Target == o.Target && maps.Equal(b.Args, o.Args) && maps.Equal(b.Secrets, o.Secrets)
}

func buildShape() shape[Build] {
	line := scalar("a folder with a Dockerfile", schema{Type: "string", MinLength: 1}, func(s string) (Build, error) {
		context, err := parseContext(s)
		return Build{Context: context, Dockerfile: "Dockerfile"}, err
	})
	args := textsBy("arguments by name", maxBuildArgs, schema{Pattern: envPattern}, envError, scalar("a text", schema{Type: written}, parseText))
	type named struct{ id, secret string }
	kept := object("a secret that the server keeps",
		must(key("secret", "", "Its name: `isle secret ls`. Whoever builds needs `secret:build` for it.", text("a name", namePattern, parseName), func(n *named) *string { return &n.secret })))
	secrets := mapOf("secrets by id", maxBuildSecrets, schema{Pattern: secretIDPattern}, secretIDError, kept, func(id string, n named) named { return named{id, n.secret} })
	full := object("a build",
		key("context", ".", "The folder whose files the Dockerfile's COPY and ADD see, relative to isle.yaml. What its .dockerignore names stays out, and so do .git and isle.lock.",
			text("a relative path", "", parseContext), func(b *Build) *string { return &b.Context }),
		key("dockerfile", "Dockerfile", "The Dockerfile, relative to `context`.", text("a relative path", "", parseDockerfile), func(b *Build) *string { return &b.Dockerfile }),
		key("target", "", "The stage to build, by its name or number. Without it, the last one.", text("a stage", "", parseTarget), func(b *Build) *string { return &b.Target }),
		key("args", "", "Values for the Dockerfile's ARG. No secrets here: the file is code, and the image has them.",
			args, func(b *Build) *map[string]string { return &b.Args }),
		key("secrets", "", "What `RUN --mount=type=secret,id=ID` is given, by ID, of what the server keeps (docs/dockerfile.md). One of `--secret id=ID` comes before it.",
			convert(secrets, func(in []named) map[string]string {
				out := make(map[string]string, len(in))
				for _, n := range in {
					out[n.id] = n.secret
				}
				return out
			}), func(b *Build) *map[string]string { return &b.Secrets }),
	)
	return scalarOr("a folder with a Dockerfile, or a build", line, full)
}

func parseContext(s string) (string, error) {
	if strings.Contains(s, "://") || strings.HasPrefix(s, "git@") {
		return "", fmt.Errorf("%q is elsewhere; want a folder beside isle.yaml", clip(s))
	}
	clean, err := parseFrom(s)
	return strings.TrimSuffix(clean, "/"), err
}

func parseDockerfile(s string) (string, error) {
	clean, err := parseFrom(s)
	if err == nil && (clean == "." || strings.HasSuffix(clean, "/")) {
		return "", fmt.Errorf("%q is a folder; want the Dockerfile's name", clip(s))
	}
	return clean, err
}

// secretIDError says why a text is no id of a secret.
func secretIDError(s string) error {
	rest := strings.TrimLeft(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
	if s == "" || len(s) > 128 || rest != "" || s[0] == '.' || s[0] == '-' {
		return errors.New("is no id of a secret; want letters, digits, _, . and -, at most 128")
	}
	return nil
}

func parseTarget(s string) (string, error) {
	if s == "" || len(s) > 128 || !cleanText(s) || strings.ContainsAny(s, " /") {
		return "", errors.New("is no stage; want the name after AS, or a number")
	}
	return s, nil
}

// checkBegin refuses a service that begins with two things, or with none that its
// arguments are for.
func (r *reader) checkBegin(s *Service) {
	at := func(key string) string { return document.Path("services", s.Name, key) }
	switch {
	case len(s.Args) > 0 && len(s.Command) > 0:
		r.problemFor(at("args"), "stands beside `command`, which stands for the image's entrypoint too; remove one of the two")
	case len(s.Args) > 0 && s.Image == "" && s.Build == nil:
		r.problemFor(at("args"), "are for the entrypoint of an image, and the service begins with none; write `command`")
	}
	if s.Image == "" && s.Build == nil {
		return
	}
	s.Suite = ""
	with := "image"
	if s.Build != nil {
		with = "build"
		if s.Image != "" {
			r.problemFor(at("image"), "stands beside `build`, and a service begins with one of the two; remove one")
		}
	}
	if len(s.Packages) > 0 {
		r.problemFor(at("packages"), "stands beside `%s`, and a service begins with one of the two; remove one", with)
	}
}

func (b *Build) node() mapping {
	m := newMapping()
	if b == nil {
		return m
	}
	args := newMapping()
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		args.add(k, textNode(b.Args[k]))
	}
	secrets := newMapping()
	for _, id := range slices.Sorted(maps.Keys(b.Secrets)) {
		secrets.add(id, newMapping().text("secret", b.Secrets[id]).some())
	}
	return m.text("context", b.Context).text("dockerfile", b.Dockerfile).text("target", b.Target).add("args", args.some()).add("secrets", secrets.some())
}
