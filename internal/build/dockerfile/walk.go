package dockerfile

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"isle/internal/image"
)

// DefaultPath is PATH where neither an image nor a Dockerfile has one.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A Walk goes through a stage's instructions.
type Walk struct {
	plan   *Plan
	stage  *Stage
	lex    *shell.Lex
	config image.Config
	args   map[string]string // in scope, with their values
	todo   []command
	cmdSet bool // the stage has its own CMD
}

// Walk begins a stage on top of an image's configuration. below is the Walk of
// the stage that it begins with, nil of others: its arguments go on. A stage of a
// Plan is gone through once: to go through it again takes another Plan.
func (p *Plan) Walk(stage int, base *image.Config, below *Walk) (*Walk, error) {
	s := &p.Stages[stage]
	w := &Walk{plan: p, stage: s, lex: shell.NewLex(p.file.escape), args: map[string]string{}}
	if base != nil {
		w.config = *base
	}
	w.config.Env = slices.Clone(w.config.Env)
	w.config.Volumes, w.config.Ports = slices.Clone(w.config.Volumes), slices.Clone(w.config.Ports)
	w.config.Labels = maps.Clone(w.config.Labels)
	if below != nil {
		maps.Copy(w.args, below.args)
	}
	triggers := w.config.OnBuild
	w.config.OnBuild = nil
	if len(triggers) > maxTriggers {
		return nil, p.file.fail(s.Line, "the image that it begins with has %d ONBUILD instructions; at most %d are done", len(triggers), maxTriggers)
	}
	for _, t := range triggers {
		c, err := w.trigger(t)
		if err != nil {
			return nil, err
		}
		w.todo = append(w.todo, c)
	}
	w.todo = append(w.todo, p.file.stages[s.number].commands...)
	return w, nil
}

// trigger reads an ONBUILD instruction of the image that the stage begins with.
func (w *Walk) trigger(text string) (c command, err error) {
	bad := func(format string, args ...any) (command, error) {
		e := w.plan.file.fail(w.stage.Line, format, args...)
		return c, e.WithHint("the instruction is of the image that this stage begins with: ONBUILD %s", clip(text))
	}
	defer func() {
		if p := recover(); p != nil {
			c, err = bad("ONBUILD cannot be read: %v", p)
		}
	}()
	if err := readable("ONBUILD", []byte(text)); err != nil {
		return bad("%w", err)
	}
	tree, err := parser.Parse(strings.NewReader(text))
	if err != nil || len(tree.AST.Children) != 1 {
		return bad("ONBUILD is not one instruction")
	}
	parsed, err := instructions.ParseInstruction(tree.AST.Children[0])
	if err != nil {
		return bad("ONBUILD: %v", err)
	}
	switch i := parsed.(type) {
	case *instructions.OnbuildCommand, *instructions.MaintainerCommand:
		return bad("%s cannot stand in ONBUILD", strings.ToUpper(i.(instructions.Command).Name()))
	case instructions.Command:
		if len(sourcesOf(i)) > 0 {
			return bad("from= in ONBUILD: what it names is pinned by no lock; write the instruction in the Dockerfile itself")
		}
		return command{w.stage.Line, i}, nil
	}
	return bad("ONBUILD has a FROM")
}

// Config is the image's configuration after what was done so far.
func (w *Walk) Config() image.Config {
	c := w.config
	c.Env = slices.Clone(c.Env)
	if _, ok := c.Variables()["PATH"]; !ok {
		c.Env = append([]string{"PATH=" + DefaultPath}, c.Env...)
	}
	if c.Workdir == "" {
		c.Workdir = "/"
	}
	slices.Sort(c.Volumes)
	slices.Sort(c.Ports)
	return c
}

// Next does instructions up to the next that makes a layer, which it returns; nil
// is the end of the stage.
func (w *Walk) Next() (Op, error) {
	for len(w.todo) > 0 {
		c := w.todo[0]
		w.todo = w.todo[1:]
		op, err := w.do(c)
		if err != nil || op != nil {
			return op, err
		}
	}
	return nil, nil
}

// env are the variables that instructions see: those of the image come before
// arguments of the same name.
func (w *Walk) env() map[string]string {
	env := maps.Clone(w.args)
	maps.Copy(env, w.config.Variables())
	if _, ok := env["PATH"]; !ok {
		env["PATH"] = DefaultPath
	}
	return env
}

func (w *Walk) fail(c command, format string, args ...any) error {
	return w.plan.file.fail(c.line, format, args...)
}

// do does one instruction.
func (w *Walk) do(c command) (Op, error) {
	place := Place{File: w.plan.file.name, Line: c.line, Text: summary(c)}
	if err := w.expandIn(c); err != nil {
		return nil, err
	}
	switch i := c.Command.(type) {
	case *instructions.ArgCommand:
		if err := w.arg(c, i); err != nil {
			return nil, err
		}
		return nil, w.checkSettings(c)
	case *instructions.EnvCommand:
		if len(i.Env) > maxVariables {
			return nil, w.fail(c, "more than %d variables", maxVariables)
		}
		for _, kv := range i.Env {
			w.setEnv(kv.Key, kv.Value)
		}
		return nil, w.checkSettings(c)
	case *instructions.LabelCommand:
		if w.config.Labels == nil {
			w.config.Labels = map[string]string{}
		}
		for _, kv := range i.Labels {
			w.config.Labels[kv.Key] = kv.Value
		}
		return nil, w.checkSettings(c)
	case *instructions.MaintainerCommand:
		w.config.Author = i.Maintainer
	case *instructions.UserCommand:
		w.config.User = i.User
	case *instructions.ShellCommand:
		w.config.Shell = i.Shell
	case *instructions.CmdCommand:
		w.config.Cmd, w.cmdSet = w.words(i.ShellDependantCmdLine), true
	case *instructions.EntrypointCommand:
		w.config.Entrypoint = w.words(i.ShellDependantCmdLine)
		if !w.cmdSet {
			w.config.Cmd = nil
		}
	case *instructions.HealthCheckCommand:
		h := i.Health
		w.config.Healthcheck = &image.Healthcheck{
			Test: h.Test, Interval: int64(h.Interval), Timeout: int64(h.Timeout), StartPeriod: int64(h.StartPeriod),
			StartInterval: int64(h.StartInterval), Retries: h.Retries,
		}
	case *instructions.ExposeCommand:
		return nil, w.expose(c, i)
	case *instructions.VolumeCommand:
		for _, v := range i.Volumes {
			if slices.Contains(w.config.Volumes, v) {
				continue
			}
			if len(w.config.Volumes) >= maxNames {
				return nil, w.fail(c, "more than %d volumes", maxNames)
			}
			w.config.Volumes = append(w.config.Volumes, v)
		}
	case *instructions.StopSignalCommand:
		return nil, w.stopSignal(c, i)
	case *instructions.OnbuildCommand:
		w.config.OnBuild = append(slices.Clone(w.config.OnBuild), i.Expression)
	case *instructions.WorkdirCommand:
		return w.workdir(place, i), nil
	case *instructions.RunCommand:
		return w.run(place, c, i)
	case *instructions.CopyCommand:
		return w.copy(place, c, i)
	case *instructions.AddCommand:
		return w.add(place, c, i)
	default:
		return nil, w.fail(c, "%s is no instruction that Isle knows", strings.ToUpper(c.Name()))
	}
	return nil, nil
}

// expandIn puts the variables into an instruction that takes them.
func (w *Walk) expandIn(c command) error {
	if _, isArg := c.Command.(*instructions.ArgCommand); isArg {
		return nil // each argument sees those before it
	}
	env := w.env()
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansion); ok {
		err := e.Expand(func(word string) (string, error) { return w.plan.expand(w.lex, word, env, c.line) })
		if err != nil {
			return w.placed(c, err)
		}
	}
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		lex := shell.NewLex('\\')
		lex.SkipProcessQuotes = true
		err := e.ExpandRaw(func(word string) (string, error) { return w.plan.expand(lex, word, env, c.line) })
		if err != nil {
			return w.placed(c, err)
		}
	}
	return nil
}

// placed gives an error of the parser its line.
func (w *Walk) placed(c command, err error) error {
	if strings.HasPrefix(err.Error(), w.plan.file.name+":") {
		return err
	}
	return w.fail(c, "%v", err)
}

// arg brings arguments into scope: with the value that was given, its own
// default, or the one of before the first FROM.
func (w *Walk) arg(c command, i *instructions.ArgCommand) error {
	for _, a := range i.Args {
		value, ok := w.plan.args[a.Key]
		switch {
		case ok:
		case a.Value != nil:
			var err error
			if value, err = w.plan.expand(w.lex, *a.Value, w.env(), c.line); err != nil {
				return err
			}
		default:
			if value, ok = w.plan.global[a.Key]; !ok {
				continue
			}
		}
		w.args[a.Key] = value
	}
	return nil
}

// checkSettings bounds what the stage keeps: each instruction of it, and each
// record of a step, has all of it.
func (w *Walk) checkSettings(c command) error {
	size := 0
	for _, kv := range w.config.Env {
		size += len(kv)
	}
	for _, m := range []map[string]string{w.args, w.config.Labels} {
		if len(m) > maxVariables {
			return w.fail(c, "more than %d arguments or labels", maxVariables)
		}
		for k, v := range m {
			size += len(k) + len(v)
		}
	}
	switch {
	case len(w.config.Env) > maxVariables:
		return w.fail(c, "more than %d variables", maxVariables)
	case size > maxSettings:
		return w.fail(c, "variables, arguments and labels have more than %d bytes", maxSettings)
	}
	return nil
}

func (w *Walk) setEnv(name, value string) {
	kv := name + "=" + value
	i := slices.IndexFunc(w.config.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	if i < 0 {
		w.config.Env = append(w.config.Env, kv)
	} else {
		w.config.Env[i] = kv
	}
}

// words are a command line, with the shell before it in its shell form.
func (w *Walk) words(l instructions.ShellDependantCmdLine) []string {
	if !l.PrependShell {
		return slices.Clone(l.CmdLine)
	}
	shell := w.config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), strings.Join(l.CmdLine, " "))
}

func (w *Walk) workdir(place Place, i *instructions.WorkdirCommand) Op {
	w.config.Workdir = w.below(i.Path)
	if w.config.Workdir == "/" {
		return nil
	}
	return &Folder{At: place, Path: w.config.Workdir, User: w.config.User}
}

// below is a path, relative to the working folder if it is not absolute. A slash
// at its end is gone.
func (w *Walk) below(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", w.config.Workdir, p)
}

// summary is an instruction in one short line.
func summary(c command) string {
	text := strings.ToUpper(c.Name())
	if s, ok := c.Command.(interface{ String() string }); ok {
		first, _, _ := strings.Cut(strings.ReplaceAll(s.String(), "\\\n", " "), "\n")
		text = first
		if name, rest, ok := strings.Cut(strings.TrimSpace(first), " "); ok {
			text = strings.ToUpper(name) + " " + rest
		}
	}
	return clip(text)
}
