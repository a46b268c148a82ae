package environment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// shutReason is why a fork's doors are closed.
const shutReason = "it is a fork, and shut until on_fork has succeeded"

// Bounds of what an on_fork says that is kept for its error.
const (
	onForkTail  = 16 << 10 // bytes
	onForkLines = 10
)

// open refuses what needs an open environment.
func (l *live) open() error {
	rec := l.snapshot()
	if rec.Opening == Open {
		return nil
	}
	return isle.Errorf(isle.Unavailable, "environment %s is shut: it is a fork, and on_fork has not succeeded", l.ref).
		WithHint("isle status %s tells how far it is", l.ref)
}

// keptFrom refuses everybody in a fork of another stage until on_fork has
// succeeded: what it masks is not masked before that.
func (l *live) keptFrom() error {
	rec := l.snapshot()
	if !rec.keepsQuiet() {
		return nil
	}
	return isle.Errorf(isle.Conflict, "environment %s is a fork of stage %s, and nobody enters it before on_fork has succeeded", l.ref, rec.ParentRef.Stage).
		WithHint("wait for isle fork, or take it away: isle down %s", l.ref)
}

// keepsQuiet says that what its services write, and how their checks fail, is
// of another stage and is told to nobody: on_fork has not made it fit for this
// one. Errors and entries are read by more people than logs.
func (e *Environment) keepsQuiet() bool { return e.Crossed && e.Opening != Open }

// untold stands in place of the last words of what keeps quiet.
const untold = "what it wrote stays in stage "

// openFork runs on_fork in every service where it has not succeeded yet, in
// start order, and opens the fork. What it gets done is durable step by step:
// after a crash the next start goes on with what is missing, and an on_fork that
// was cut off is run again.
func (m *Manager) openFork(ctx context.Context, l *live, say func(Progress)) error {
	rec := l.snapshot()
	if rec.Opening == Open {
		return nil
	}
	if rec.Trouble != "" {
		l.update(func(e *Environment) { e.Trouble = "" })
	}
	for _, name := range spec.StartOrder(rec.Spec) {
		svc, _ := rec.specOf(name)
		if s, ok := rec.service(name); !ok || s.Forked || len(svc.OnFork) == 0 {
			continue
		}
		say(Progress{Service: name, Step: "on_fork", State: "start"})
		began := m.cfg.Now()
		if err := m.runOnFork(ctx, l, svc); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			say(Progress{Service: name, Step: "on_fork", State: "failed", Message: firstLine(err)})
			l.update(func(e *Environment) { e.Trouble = firstLine(err) })
			return err
		}
		if err := l.change(ctx, func(e *Environment) {
			if s, ok := e.service(name); ok {
				s.Forked = true
			}
		}, Mutation{}); err != nil {
			return err
		}
		m.fault("fork.on_fork")
		say(Progress{Service: name, Step: "on_fork", State: "done", Message: m.cfg.Now().Sub(began).Round(time.Millisecond).String()})
	}
	if rec.Crossed { // what was written by now speaks of what was not masked
		for _, s := range rec.Services {
			if err := l.log(s.Name).beginAnew(m.cfg.Now()); err != nil {
				return isle.Errorf(isle.Unavailable, "fork %s stays shut: what service %s has written cannot be removed: %w", l.ref, s.Name, err)
			}
		}
	}
	opened := audit.NewEvent(system("fork"), isle.ActionEnvironmentFork, resource(l.ref), isle.Allow, "on_fork has succeeded in every service: it is opened").In(l.ref, l.instance)
	if err := l.change(ctx, func(e *Environment) { e.Opening, e.Trouble = Open, "" }, Mutation{Entries: []audit.Entry{opened}}); err != nil {
		return err
	}
	m.fault("fork.opened")
	refused, err := m.openNetwork(ctx, l)
	for _, a := range refused {
		say(Progress{Service: a.by, Step: "fork", State: "log", Message: "warning: " + a.warning()})
	}
	return err
}

// runOnFork runs on_fork in one service. What it writes goes to the service's
// log, and its end into the error.
func (m *Manager) runOnFork(ctx context.Context, l *live, svc spec.Service) error {
	limit := l.forkLimit
	if limit <= 0 {
		limit = m.cfg.OnFork
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errOnForkLimit)
	defer cancel()
	fail := func(what string, said []byte) error {
		text := fmt.Sprintf("fork %s stays shut: on_fork of service %s %s", l.ref, svc.Name, what)
		if rec := l.snapshot(); rec.keepsQuiet() {
			return isle.Errorf(isle.Failed, "%s; %s%s", text, untold, rec.ParentRef.Stage).
				WithHint("a fork that keeps its stage shows what on_fork says there: isle fork %s", rec.ParentRef)
		}
		if lines := lastOf(said); len(lines) > 0 {
			text += "\nits last lines:\n  " + strings.Join(lines, "\n  ")
		}
		return isle.Errorf(isle.Failed, "%s", text).
			WithHint("isle logs %s -s %s shows all it wrote, isle exec looks inside; mend it and run isle up --name %s, or take the fork away: isle down %s", l.ref, svc.Name, l.ref.Name, l.ref)
	}
	line, err := l.line(ctx, svc.Name)
	if err != nil {
		return fail("could not be run: "+err.Error(), nil)
	}
	p, err := line.Exec(ctx, Exec{Command: svc.OnFork, Session: isle.NewID()})
	if err != nil {
		return fail("could not be run: "+err.Error(), nil)
	}
	defer p.Close() // which ends what still runs
	var said []byte
	for {
		out, err := p.Next()
		switch {
		case errors.Is(context.Cause(ctx), errOnForkLimit):
			return fail(fmt.Sprintf("did not end within %v", limit), said)
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF), err != nil:
			return fail("was not seen to end: "+err.Error(), said)
		case out.Exit != nil && out.Exit.Code != 0:
			return fail(describeExit(out.Exit.Code, oneLine(out.Exit.Reason)), said)
		case out.Exit != nil:
			return nil
		}
		now := m.cfg.Now()
		l.log(svc.Name).write(now, now, out.Stderr, out.Data)
		l.wakeLogs()
		said = append(said, out.Data...)
		said = said[max(0, len(said)-onForkTail):]
	}
}

var errOnForkLimit = errors.New("on_fork took too long")

// lastOf are the last lines of an output, fit for a message.
func lastOf(said []byte) (lines []string) {
	for line := range bytes.Lines(bytes.TrimSpace(said)) {
		if text := oneLine(string(line)); text != "" {
			lines = append(lines, text)
		}
	}
	return slices.Clone(lines[max(0, len(lines)-onForkLines):])
}
