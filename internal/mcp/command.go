package mcp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// commandUsual is how long a command may take unless the agent says otherwise,
// and commandsMost how many one call may run.
const (
	commandUsual = 10 * time.Minute
	commandsMost = 32
)

func (s *Server) addCommands() {
	add(s, tool{
		name: "run", title: "Run a command in a throw-away environment", hint: adds, outside: true,
		description: "Launch a one-shot sealed environment, run a command or a script in it, return its output and exit code, and throw everything away. It is made of Debian packages, or of an environment file; it reaches no network. This is the safe way to try something: untrusted code, a build, a tool that is not installed. Local files get in with copies, each into a writable volume. Nothing comes back but the output, unless keep is true: then work on in it with exec, read_file and write_file, and call down with volumes when it is no longer needed.",
		tune:        commandSchema,
	}, s.run)
	add(s, tool{
		name: "exec", title: "Run a command in an environment", hint: destroys,
		description: "Run a command, a script, or several commands, in a running service of an environment, and return their output and exit code. There is no terminal. A command is killed at its time-out, and when the call is cancelled. What it leaves running in the background is not killed with it, and its output is lost: write it to a file.",
		tune:        commandSchema,
	}, s.exec)
	add(s, tool{
		name: "read_output", title: "Read the rest of an output", hint: reads,
		description: "Read on from a cursor that another tool's result holds, where its output was cut. Call it again with the cursor of the result, until there is none.",
		tune: func(in map[string]*jsonschema.Schema) {
			in["encoding"].Enum = []any{encodingText, encodingBase64}
		},
	}, s.readOutput)
}

// commandSchema says more about what runs than types do.
func commandSchema(in map[string]*jsonschema.Schema) {
	one := 1
	in["command"].MinItems = &one
	in["commands"].MinItems = &one
	in["commands"].Items.MinItems = &one
}

// A commandIn is what exec and run have in common.
type commandIn struct {
	Command   []string          `json:"command,omitempty" jsonschema:"program and arguments, as they are: no shell reads them"`
	Script    string            `json:"script,omitempty" jsonschema:"instead of command: a script for /bin/sh -c, which the image must have"`
	Commands  [][]string        `json:"commands,omitempty" jsonschema:"instead of command: several, run one after another until one fails"`
	AtOnce    bool              `json:"at_once,omitempty" jsonschema:"run all of commands at the same time"`
	Stdin     string            `json:"stdin,omitempty" jsonschema:"what the command reads from standard input"`
	Env       map[string]string `json:"env,omitempty" jsonschema:"variables to set"`
	Workdir   string            `json:"workdir,omitempty" jsonschema:"absolute path inside; left out, it is the service's"`
	User      string            `json:"user,omitempty" jsonschema:"left out, it is the service's"`
	Timeout   float64           `json:"timeout,omitempty" jsonschema:"seconds after which a command is killed; left out, it is 600"`
	MaxOutput int               `json:"max_output,omitempty" jsonschema:"bytes to show at most of each command's standard output and as many of its standard error; left out, it is 16384"`
}

// list is the commands that are to run.
func (in commandIn) list() ([][]string, error) {
	var out [][]string
	ways := 0
	if len(in.Command) > 0 {
		ways, out = ways+1, [][]string{in.Command}
	}
	if in.Script != "" {
		ways, out = ways+1, [][]string{{"/bin/sh", "-c", in.Script}}
	}
	if len(in.Commands) > 0 {
		ways, out = ways+1, in.Commands
	}
	switch {
	case ways != 1:
		return nil, isle.Errorf(isle.Invalid, "want one of command, script and commands, not %d of them", ways).WithHint(`for example {"command": ["ls", "-l", "/"]}`)
	case len(out) > commandsMost:
		return nil, isle.Errorf(isle.Invalid, "%d commands: want at most %d", len(out), commandsMost).WithHint("write them into a script")
	case in.AtOnce && in.Stdin != "":
		return nil, isle.Errorf(isle.Invalid, "of commands that run at once none has the standard input")
	}
	return out, nil
}

// A ran is how one command went.
type ran struct {
	Command       []string `json:"command"`
	ExitCode      int32    `json:"exit_code" jsonschema:"128+n: ended by signal n; 126 and 127: it could not be started; -1: it was killed, for its time was over or because the call was cancelled"`
	Reason        string   `json:"reason,omitempty" jsonschema:"why it could not be started"`
	TimedOut      bool     `json:"timed_out,omitempty"`
	Seconds       float64  `json:"seconds"`
	Stdout        string   `json:"stdout"`
	StdoutBytes   int64    `json:"stdout_bytes" jsonschema:"of all of it"`
	StdoutLeftOut int64    `json:"stdout_left_out,omitempty" jsonschema:"bytes that are left out in the middle"`
	StdoutCursor  string   `json:"stdout_cursor,omitempty" jsonschema:"for read_output: what is left out begins there"`
	StdoutBinary  bool     `json:"stdout_binary,omitempty" jsonschema:"it is not text, and not shown exactly"`
	Stderr        string   `json:"stderr"`
	StderrBytes   int64    `json:"stderr_bytes"`
	StderrLeftOut int64    `json:"stderr_left_out,omitempty"`
	StderrCursor  string   `json:"stderr_cursor,omitempty"`
	StderrBinary  bool     `json:"stderr_binary,omitempty"`
}

func (v ran) text() string {
	var b strings.Builder
	switch {
	case v.TimedOut:
		fmt.Fprintf(&b, "killed after %.1f s: its time was over", v.Seconds)
	case v.Reason != "":
		fmt.Fprintf(&b, "exit code %d: it could not be started: %s", v.ExitCode, oneLine(v.Reason))
	default:
		fmt.Fprintf(&b, "exit code %d after %.1f s", v.ExitCode, v.Seconds)
	}
	for _, o := range []struct{ name, text string }{{"stdout", v.Stdout}, {"stderr", v.Stderr}} {
		if o.text != "" {
			fmt.Fprintf(&b, "\n%s:\n%s", o.name, strings.TrimRight(o.text, "\n"))
		}
	}
	return b.String()
}

// A commandOut is what exec and run give.
type commandOut struct {
	Environment string `json:"environment"`
	Kept        bool   `json:"kept,omitempty" jsonschema:"of run: the environment is still there"`
	Results     []ran  `json:"results" jsonschema:"one of each command that ran"`
	NotRun      int    `json:"not_run,omitempty" jsonschema:"commands that did not run because one before failed"`
}

func (v commandOut) text() string {
	var b strings.Builder
	for i, r := range v.Results {
		if i > 0 {
			b.WriteString("\n\n")
		}
		if len(v.Results) > 1 {
			fmt.Fprintf(&b, "$ %s\n", clip(oneLine(strings.Join(r.Command, " ")), 200))
		}
		b.WriteString(r.text())
	}
	if v.NotRun > 0 {
		fmt.Fprintf(&b, "\n\n%d more were not run", v.NotRun)
	}
	if v.Kept {
		fmt.Fprintf(&b, "\n\nthe environment %s is kept; tear it down with down and volumes when it is no longer needed", v.Environment)
	}
	return b.String()
}

// failed implements failing: a command that ends with a code has done so, and
// what that means is the agent's to say. One that did not end has not.
func (v commandOut) failed() bool {
	for _, r := range v.Results {
		if r.TimedOut || r.Reason != "" {
			return true
		}
	}
	return false
}

type execIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Service     string `json:"service,omitempty" jsonschema:"left out, it is the first that the file declares"`
	commandIn
}

func (s *Server) exec(ctx context.Context, c *call, in execIn) (commandOut, error) {
	list, err := in.list()
	if err != nil {
		return commandOut{}, err
	}
	return s.execAll(ctx, c, in.Environment, in.Service, in.commandIn, list)
}

// execAll runs commands in one service.
func (s *Server) execAll(ctx context.Context, c *call, environment, service string, in commandIn, list [][]string) (commandOut, error) {
	show, err := limit(in.MaxOutput)
	if err != nil {
		return commandOut{}, err
	}
	show = min(show, showCall/2/len(list))
	timeout, err := seconds(in.Timeout, commandUsual, callMost)
	if err != nil {
		return commandOut{}, err
	}
	one := func(command []string) (ran, error) {
		start := &islev1.ExecStart{Environment: environment, Service: service, Command: command, Env: in.Env, User: in.User, Workdir: in.Workdir}
		return s.execOne(ctx, c, start, []byte(in.Stdin), timeout, show, len(list))
	}
	out := commandOut{Environment: environment, Results: []ran{}}
	if in.AtOnce {
		results, errs := make([]ran, len(list)), make([]error, len(list))
		var wg sync.WaitGroup
		for i, command := range list {
			wg.Go(func() { results[i], errs[i] = one(command) })
		}
		wg.Wait()
		out.Results = results
		return out, errors.Join(errs...)
	}
	for i, command := range list {
		r, err := one(command)
		if err != nil {
			return commandOut{}, err
		}
		out.Results = append(out.Results, r)
		if r.ExitCode != 0 {
			out.NotRun = len(list) - i - 1
			break
		}
	}
	return out, nil
}

// execOne runs one of n commands.
func (s *Server) execOne(ctx context.Context, c *call, start *islev1.ExecStart, stdin []byte, timeout time.Duration, show, n int) (ran, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	stdout, stderr := newCapture(n), newCapture(n)
	name := clip(oneLine(strings.Join(start.GetCommand(), " ")), 80)
	c.say("%s", name)
	exit, err := s.cfg.Services.Exec(ctx, start, stdin, func(isErr bool, b []byte) {
		if isErr {
			stderr.Write(b)
		} else {
			stdout.Write(b)
		}
		c.say("%s: %d bytes of output, the last: %s", name, stdout.total+stderr.total, lastLine(b))
	})
	r := ran{Command: start.GetCommand(), ExitCode: exit.GetCode(), Seconds: time.Since(began).Round(time.Millisecond).Seconds()}
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		r.ExitCode, r.TimedOut = -1, true
	case err != nil:
		return ran{}, err
	case r.ExitCode == 126 || r.ExitCode == 127:
		r.Reason = clip(exit.GetReason(), 500)
	}
	o, e := s.show(stdout.output(), show), s.show(stderr.output(), show)
	r.Stdout, r.StdoutBytes, r.StdoutLeftOut, r.StdoutCursor, r.StdoutBinary = o.text, stdout.total, o.left, o.cursor, o.binary
	r.Stderr, r.StderrBytes, r.StderrLeftOut, r.StderrCursor, r.StderrBinary = e.text, stderr.total, e.left, e.cursor, e.binary
	return r, nil
}

// lastLine is the last line of a piece of output, short.
func lastLine(b []byte) string {
	text, _ := asText(b[max(0, len(b)-400):])
	text = strings.TrimRight(text, "\r\n ")
	return clip(oneLine(text[strings.LastIndexAny(text, "\r\n")+1:]), 100)
}

type runIn struct {
	Packages []string `json:"packages,omitempty" jsonschema:"Debian packages, for example [\"python3\", \"git\"]; a script needs one with a shell, for example dash or bash"`
	File     string   `json:"file,omitempty" jsonschema:"instead of packages: absolute path, on the user's machine, of an environment file or the folder of an isle.yaml"`
	Suite    string   `json:"suite,omitempty" jsonschema:"Debian suite of packages; left out, it is bookworm"`
	Service  string   `json:"service,omitempty" jsonschema:"service of file to run in; left out, it is the first"`
	Copies   []copyIn `json:"copies,omitempty" jsonschema:"local files and folders to fill volumes with"`
	Name     string   `json:"name,omitempty" jsonschema:"name of the environment; left out, it is made up"`
	Keep     bool     `json:"keep,omitempty" jsonschema:"leave the environment when the command ends"`
	commandIn
}

type copyIn struct {
	From string `json:"from" jsonschema:"absolute path on the user's machine"`
	To   string `json:"to" jsonschema:"absolute path inside, which becomes a writable volume, for example /workspace; of a file it must be in a volume"`
}

func (s *Server) run(ctx context.Context, c *call, in runIn) (out commandOut, err error) {
	list, err := in.list()
	if err != nil {
		return commandOut{}, err
	}
	// The time-out is a command's; the call as a whole has another.
	ctx, cancel := context.WithTimeout(ctx, callMost)
	defer cancel()
	r := Run{Packages: in.Packages, File: in.File, Suite: in.Suite, Name: in.Name, Service: in.Service, Keep: in.Keep}
	for _, k := range in.Copies {
		r.Copies = append(r.Copies, Copy(k))
	}
	c.say("launching")
	e, err := s.cfg.Projects.Launch(ctx, r, c.event)
	if err != nil {
		return commandOut{}, err
	}
	ref := refOf(e)
	if !in.Keep {
		defer func() {
			c.say("tearing down")
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if eerr := s.cfg.Projects.End(end, ref); eerr != nil && err == nil {
				err = eerr
			}
		}()
	}
	out, err = s.execAll(ctx, c, ref, in.Service, in.commandIn, list)
	out.Kept = in.Keep
	if err != nil && in.Keep {
		err = isle.Errorf(isle.CodeOf(err), "the environment %s is kept, but: %w", ref, err)
	}
	return out, err
}

// The encodings of what is read and written.
const (
	encodingText   = "utf-8"
	encodingBase64 = "base64"
)

type readOutputIn struct {
	Cursor    string `json:"cursor" jsonschema:"as a result has it"`
	MaxOutput int    `json:"max_output,omitempty" jsonschema:"bytes to show at most; left out, it is 16384"`
	Encoding  string `json:"encoding,omitempty" jsonschema:"utf-8, or base64 for output that is not text; left out, it is utf-8"`
}

type readOutputOut struct {
	Text     string `json:"text"`
	Encoding string `json:"encoding"`
	At       int64  `json:"at" jsonschema:"byte of the output at which the text begins"`
	Skipped  int64  `json:"skipped,omitempty" jsonschema:"bytes before the text that are not kept"`
	Total    int64  `json:"total" jsonschema:"bytes of the output"`
	Cursor   string `json:"cursor,omitempty" jsonschema:"where to read on; none: this was the end"`
}

func (v readOutputOut) text() string {
	b := v.Text
	if v.Skipped > 0 {
		b = fmt.Sprintf("[… %d bytes are not kept …]\n%s", v.Skipped, b)
	}
	if v.Cursor != "" {
		b += fmt.Sprintf("\n[… more with cursor %q …]", v.Cursor)
	}
	return b
}

func (s *Server) readOutput(_ context.Context, _ *call, in readOutputIn) (readOutputOut, error) {
	show, err := limit(in.MaxOutput)
	if err != nil {
		return readOutputOut{}, err
	}
	name, at, err := parseCursor(in.Cursor)
	if err != nil {
		return readOutputOut{}, err
	}
	o, err := s.kept.get(name)
	if err != nil {
		return readOutputOut{}, err
	}
	if at > o.total {
		return readOutputOut{}, isle.Errorf(isle.Invalid, "the cursor %q is behind the output's end", in.Cursor).WithHint("give one exactly as a result has it")
	}
	begin, b := o.read(at, show)
	out := readOutputOut{Encoding: encodingText, At: begin, Skipped: begin - at, Total: o.total}
	if in.Encoding == encodingBase64 {
		out.Encoding, out.Text = encodingBase64, base64.StdEncoding.EncodeToString(b)
	} else {
		if begin+int64(len(b)) < o.total {
			if k := runeEnd(b); k > 0 {
				b = b[:k]
			}
		}
		out.Text, _ = asText(b)
	}
	if end := begin + int64(len(b)); end < o.total {
		out.Cursor = cursorOf(name, end)
	}
	return out, nil
}
