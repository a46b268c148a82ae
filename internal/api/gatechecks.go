package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/policy"
	"isle/internal/release"
)

const (
	// forkTime is how long the copy of the stage before may take to be open.
	forkTime = 10 * time.Minute
	// keptOutput bounds what is kept of what a check wrote, in bytes: its end.
	keptOutput = 4 << 10
)

// errCheckTime ends a check that takes too long.
var errCheckTime = errors.New("the time of the check is over")

// runChecks runs the checks of all gates, in their order, in one copy of the stage
// before. The copy is made for it and removed after it. What they say is the
// environment's own word: nothing of it is believed but whether they pass.
func (x *passing) runChecks(ctx context.Context, say func(*islev1.ProgressEvent)) {
	checks, from := x.checks(), isle.Ref{Name: x.p.Project, Stage: x.plan.From}
	if len(checks) == 0 {
		return
	}
	limit := forkTime
	for _, c := range checks {
		limit += c.Timeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errCheckTime)
	defer cancel()
	ref, err := x.copyOf(ctx, from, checks[0].rule, say)
	if ref.Name != "" {
		defer x.remove(ctx, ref)
	}
	for _, c := range checks {
		x.checked = append(x.checked, x.run(ctx, ref, c, err, say))
	}
}

// copyOf makes the copy. It has a name as soon as something of it may be there.
func (x *passing) copyOf(ctx context.Context, from isle.Ref, rule string, say func(*islev1.ProgressEvent)) (ref isle.Ref, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, forkTime, errCheckTime)
	defer cancel()
	actor := actorOf(ctx)
	req := environment.ForkRequest{From: from, N: 1, OneShot: true, May: func(plan environment.ForkPlan) error {
		if plan.Release != x.plan.Release.Digest {
			return isle.Errorf(isle.Conflict, "release %s runs in %s by now", plan.Release.Short(), from)
		}
		ref = plan.Forks[0]
		// Whoever promotes needs no leave to copy the stage: that is what the gate asks.
		audit.Allowed(ctx, actor, isle.ActionEnvironmentFork, isle.Resource{Kind: "environment", Name: from.Name, Stage: from.Stage}, rule)
		for _, a := range []isle.Action{isle.ActionEnvironmentLaunch, isle.ActionEnvironmentExec, isle.ActionEnvironmentDown, isle.ActionVolumeDelete} {
			audit.Allowed(ctx, actor, a, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, rule)
		}
		return nil
	}}
	if _, err = x.s.Environments.Fork(ctx, actor, req, func(p environment.Progress) { say(progressMessage(p)) }); err != nil {
		return ref, overTime(ctx, err)
	}
	return ref, nil
}

// remove takes the copy down, whatever became of its caller.
func (x *passing) remove(ctx context.Context, ref isle.Ref) {
	(&environments{x.s.Config}).endOneShot(ctx, ref)
}

// run runs one check in the copy; copied is why there is none.
func (x *passing) run(ctx context.Context, ref isle.Ref, c check, copied error, say func(*islev1.ProgressEvent)) release.Gate {
	o := release.Gate{Kind: release.GateCheck, Name: c.String(), Rule: c.rule, State: release.GateUnmet}
	if copied != nil {
		o.Text = fmt.Sprintf("%s could not be copied to run it in: %s", isle.Ref{Name: x.p.Project, Stage: x.plan.From}, Flatten(copied).Message)
		if o.Remedy = Flatten(copied).Hint; o.Remedy == "" {
			o.Remedy = "find out why: isle fork " + isle.Ref{Name: x.p.Project, Stage: x.plan.From}.String()
		}
		return o
	}
	o.Claim = true
	tell := func(state, message string) {
		say(&islev1.ProgressEvent{Service: c.Service, Step: "check", State: state, Message: message})
	}
	tell("start", o.Name)
	began := time.Now()
	code, output, err := x.execute(ctx, ref, c.GateCheck)
	took, last := time.Since(began).Round(time.Millisecond), lastLine(output)
	switch {
	case errors.Is(err, errCheckTime):
		o.Text = said(fmt.Sprintf("it did not end within %s, and was ended", c.Timeout), last)
		o.Remedy = "find out what it waits for, or give it more time in the policy"
	case err != nil:
		o.Text, o.Remedy = said("it could not be run: "+Flatten(err).Message, last), "isle exec "+isle.Ref{Name: x.p.Project, Stage: x.plan.From}.String()+" -- COMMAND runs it by hand"
	case code != 0:
		o.Text, o.Remedy = outcome(code, took, last), "mend what it finds, and release that"
	default:
		o.State, o.Text = release.GateMet, outcome(0, took, last)
	}
	state := "done"
	if o.State != release.GateMet {
		state = "failed"
	}
	tell(state, o.Text)
	return o
}

// outcome is how a check ended, with the last line of what it wrote.
func outcome(code int, took time.Duration, last string) string {
	return said(fmt.Sprintf("exit code %d after %s", code, took), last)
}

// said is a text with the last line of what a check wrote, in quotes: it is the
// environment's own, and looks like nothing that the server says.
func said(text, last string) string {
	if last == "" {
		return text
	}
	return text + ": " + strconv.Quote(last)
}

// execute runs the command of a check. It fails with errCheckTime once its time is
// over: what still runs is killed then.
func (x *passing) execute(ctx context.Context, ref isle.Ref, c policy.GateCheck) (code int, output []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errCheckTime)
	defer cancel()
	p, err := x.s.Environments.Exec(ctx, actorOf(ctx), ref, c.Service, environment.Exec{Command: c.Command})
	if err != nil {
		return 0, nil, overTime(ctx, err)
	}
	defer p.Close()
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	p.Stdin().Close()
	for {
		out, err := p.Next()
		if err != nil {
			return 0, output, overTime(ctx, err)
		}
		if out.Exit != nil {
			return out.Exit.Code, output, nil
		}
		if output = append(output, out.Data...); len(output) > keptOutput {
			output = output[len(output)-keptOutput:]
		}
	}
}

// overTime is the cause of a context that has ended, where that is why something
// failed.
func overTime(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// lastLine is the last line of what a check wrote that says something, made fit to
// be shown.
func lastLine(b []byte) string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(b), "\ufffd"))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if r := []rune(text); len(r) > 200 {
		text = string(r[:200]) + "…"
	}
	return text
}
