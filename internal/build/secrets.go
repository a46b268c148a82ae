package build

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/conceal"
	"isle/internal/image"
)

// Secrets gives the value of a service's build secret by its id, when a step is
// about to have it; ok is false where none is given. The value is the caller's
// own, who overwrites it.
type Secrets func(ctx context.Context, service, id string) (value []byte, ok bool, err error)

// Bounds of what a step is given: it is in memory while the step runs.
const (
	// MaxSecret is how many bytes one secret has at most, as in BuildKit.
	MaxSecret = 500 << 10
	// maxStepSecrets is how many those of one step have.
	maxStepSecrets = 4 << 20
	// maxVariable is how many bytes a variable has (MAX_ARG_STRLEN, execve(2)),
	// with its name.
	maxVariable = 128 << 10
)

// given are the values that one step has.
type given struct {
	values [][]byte
	forms  *conceal.Forms // hides them
}

// forget overwrites them.
func (g *given) forget() {
	for _, v := range g.values {
		clear(v)
	}
}

// giveSecrets has a step's secrets mounted, or set as variables of its own. What it
// returns is to be forgotten when the step has ended, also with an error.
func (x *stages) giveSecrets(ctx context.Context, mounts []mounting, stack *image.Stack, st *Step, say func(Event)) (*given, error) {
	g := &given{}
	var texts []string
	size := 0
	for _, m := range mounts {
		if m.op.Type != "secret" {
			continue
		}
		value, ok, err := x.secret(ctx, m.op)
		if err != nil {
			return g, err
		}
		if !ok {
			say(Event{State: "log", Message: fmt.Sprintf("no secret %s is given, and it is not required", m.op.ID)})
			continue
		}
		g.values = append(g.values, value)
		if size += len(value); size > maxStepSecrets {
			return g, isle.Errorf(isle.Invalid, "its secrets have more than %d MiB", maxStepSecrets>>20)
		}
		texts = append(texts, concealed(value)...)
		if err := m.give(value, stack, st); err != nil {
			return g, err
		}
	}
	g.forms = conceal.Of(texts...)
	return g, nil
}

// secret is the value of one, if it is given.
func (x *stages) secret(ctx context.Context, op dockerfile.Mount) (value []byte, ok bool, err error) {
	if x.o.Secret != nil {
		if value, ok, err = x.o.Secret(ctx, x.service, op.ID); err != nil {
			return nil, false, prefix("secret "+op.ID, err)
		}
	}
	switch {
	case !ok && op.Required:
		return nil, false, isle.Errorf(isle.Invalid, "--mount=type=secret,id=%s: this build is given no secret %[1]s", op.ID).
			WithHint("give it with --secret id=%s,src=FILE or --secret id=%[1]s,env=NAME, or name one that the server keeps: build: {secrets: {%[1]s: {secret: NAME}}}", op.ID)
	case len(value) > MaxSecret:
		clear(value)
		return nil, false, isle.Errorf(isle.Invalid, "secret %s has more than %d KiB", op.ID, MaxSecret>>10)
	}
	return value, ok, nil
}

// give makes a value a file of the step, a variable, or both.
func (m mounting) give(value []byte, stack *image.Stack, st *Step) error {
	if m.op.Target != "" {
		at, err := m.target(stack)
		if err != nil {
			return err
		}
		content := value
		if content == nil {
			content = []byte{}
		}
		st.Mounts = append(st.Mounts, Mount{Target: at, ReadOnly: true, Content: content, Mode: m.op.Mode, UID: m.op.UID, GID: m.op.GID})
	}
	if name := m.op.Env; name != "" {
		switch {
		case bytes.IndexByte(value, 0) >= 0:
			return isle.Errorf(isle.Invalid, "secret %s has a NUL byte, which no variable can have", m.op.ID).WithHint("have it as a file: leave env out")
		case len(name)+len(value)+2 > maxVariable:
			return isle.Errorf(isle.Invalid, "secret %s has more than %d KiB, which no variable can have", m.op.ID, maxVariable>>10).WithHint("have it as a file: leave env out")
		}
		st.Env[name] = string(value)
	}
	return nil
}

// concealed are the texts by which a value is known in what a step writes: the
// whole, and its lines, for that is what programs print.
func concealed(value []byte) []string {
	all := []string{strings.TrimSpace(string(value))}
	for line := range strings.Lines(all[0]) {
		if line = strings.TrimSpace(line); !slices.Contains(all, line) && len(all) < 100 {
			all = append(all, line)
		}
	}
	return all
}
