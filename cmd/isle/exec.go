package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// execOptions are the flags that exec, shell and run share.
type execOptions struct {
	service, user, workdir string
	env                    []string
	terminal               bool
}

func (o *execOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable: K=V, or K to pass this one's value")
	f.StringVarP(&o.user, "user", "u", "", "run as this user (default: the service's)")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory (default: the service's)")
}

func newExec(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec ENV [-s SERVICE] [-t] -- CMD…",
		Short: "Run a command in a running service",
		Long: `Run a command in a running service: the first declared unless -s names one, as
its user and in its working directory. Standard input, output and error are passed
through; so are SIGINT, SIGTERM and SIGHUP, and the command's exit code.`,
		Example: `  isle exec shop -- env
  isle exec shop -s db -- psql -U postgres
  isle exec shop -t -- bash`,
		Args: args(2, -1, "an environment and a command"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			start, err := o.start(ref, given[1:])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), c, start)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVarP(&o.service, "service", "s", "", "service (default: the first declared)")
	cmd.Flags().BoolVarP(&o.terminal, "terminal", "t", false, "give the command a terminal")
	cmd.Flags().SetInterspersed(true)
	return cmd
}

func newShell(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "shell ENV [-s SERVICE]",
		Short: "Open a shell in a running service",
		Args:  args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			o.terminal = term.IsTerminal(int(a.stdin.Fd()))
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			shells := []string{"/bin/bash", "/bin/sh", "/bin/busybox"}
			if s := os.Getenv("SHELL"); s != "" && s != shells[0] {
				shells = append([]string{s}, shells...)
			}
			for i, shell := range shells {
				command := []string{shell}
				if shell == "/bin/busybox" {
					command = append(command, "sh")
				}
				start, err := o.start(ref, command)
				if err != nil {
					return err
				}
				err = a.execQuiet(cmd.Context(), c, start, i < len(shells)-1)
				if missing, ok := errors.AsType[notStarted](err); ok {
					if i < len(shells)-1 {
						continue
					}
					return isle.Errorf(isle.NotFound, "the image has no shell (%s)", missing.reason).
						WithHint("add a package with one, for example bash or busybox-static, or run a command with `isle exec %s -- CMD`", ref)
				}
				return err
			}
			return nil
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVarP(&o.service, "service", "s", "", "service (default: the first declared)")
	return cmd
}

// start makes the message that begins an exec.
func (o *execOptions) start(ref isle.Ref, command []string) (*islev1.ExecStart, error) {
	s := &islev1.ExecStart{
		Environment: ref.String(), Service: o.service, Command: command, User: o.user, Workdir: o.workdir,
		Terminal: o.terminal, Env: map[string]string{},
	}
	for _, kv := range o.env {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" {
			return nil, usagef("--env %q: want K=V", kv)
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				return nil, usagef("--env %s: there is no such variable here", k).WithHint("give it a value: --env %s=VALUE", k)
			}
		}
		s.Env[k] = v
	}
	if o.terminal {
		if _, ok := s.Env["TERM"]; !ok {
			s.Env["TERM"] = environ("TERM", "xterm-256color")
		}
	}
	return s, nil
}

// notStarted is the end of a command that could not be started at all: it is
// not in the image (127) or cannot be run (126).
type notStarted struct {
	code   int
	reason string
}

func (e notStarted) Error() string { return e.reason }

// exec runs a command and returns an exitError with its code if that is not 0.
func (a *app) exec(ctx context.Context, c *api.Client, start *islev1.ExecStart) error {
	err := a.execQuiet(ctx, c, start, false)
	if e, ok := errors.AsType[notStarted](err); ok {
		fmt.Fprintf(a.stderr, "isle: %s\n", clean(e.reason))
		return exitError(e.code)
	}
	return err
}

// execQuiet is exec that returns notStarted as an error of its own. With probe,
// input is not touched before the command has shown that it runs.
func (a *app) execQuiet(ctx context.Context, c *api.Client, start *islev1.ExecStart, probe bool) error {
	// Signals go to the command, so the program's own end by signal is off.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, unix.SIGWINCH)
	defer signal.Stop(signals)

	stream := c.Environments.Exec(ctx)
	// HTTP/2 looks at ctx only once the request has ended.
	stop := context.AfterFunc(ctx, func() { stream.CloseRequest() })
	defer stop()
	in := &execInput{stream: stream}
	if start.Terminal {
		restore, err := a.raw()
		if err != nil {
			return err
		}
		defer restore()
		start.Size = a.size()
	}
	if err := in.send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go in.signals(ctx, cancel, a, signals, start.Terminal)
	reading := false
	read := func() {
		if !reading {
			reading = true
			go in.stdin(a.stdin) // ends with the input, or with the program: a read of a terminal cannot be broken off
		}
	}
	if !probe {
		read()
	}
	for {
		out, err := stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return isle.Errorf(isle.Unavailable, "the server ended the command without saying how").WithHint("see `isle status %s`", start.Environment)
			}
			return err
		}
		switch o := out.GetOutput().(type) {
		case *islev1.ExecOutput_Stdout:
			read()
			if _, err := a.stdout.Write(o.Stdout); err != nil {
				return exitError(128 + int(syscall.SIGPIPE))
			}
		case *islev1.ExecOutput_Stderr:
			read()
			a.stderr.Write(o.Stderr)
		case *islev1.ExecOutput_Exit:
			code := int(o.Exit.GetCode())
			switch {
			case o.Exit.GetReason() != "" && (code == 126 || code == 127):
				return notStarted{code, o.Exit.GetReason()}
			case code != 0:
				return exitError(code)
			}
			return nil
		}
	}
}

// execInput serialises what is sent: input and signals come from two
// goroutines.
type execInput struct {
	mu     sync.Mutex // guards stream's sending side
	stream *connect.BidiStreamForClient[islev1.ExecInput, islev1.ExecOutput]
}

func (in *execInput) send(m *islev1.ExecInput) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stream.Send(m)
}

// stdin sends standard input until it ends.
func (in *execInput) stdin(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && in.send(&islev1.ExecInput{Input: &islev1.ExecInput_Stdin{Stdin: buf[:n]}}) != nil {
			return
		}
		if err != nil {
			in.send(&islev1.ExecInput{Input: &islev1.ExecInput_StdinEnd{StdinEnd: true}})
			return
		}
	}
}

// signals passes signals and terminal sizes on until ctx ends. A third
// interrupt gives up waiting for a command that does not heed them.
func (in *execInput) signals(ctx context.Context, giveUp func(), a *app, signals <-chan os.Signal, terminal bool) {
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == unix.SIGWINCH {
				if size := a.size(); terminal && size != nil {
					in.send(&islev1.ExecInput{Input: &islev1.ExecInput_Size{Size: size}})
				}
				continue
			}
			if interrupts++; interrupts >= 3 {
				giveUp()
				return
			}
			in.send(&islev1.ExecInput{Input: &islev1.ExecInput_Signal{Signal: unix.SignalName(s.(syscall.Signal))}})
		}
	}
}

// raw puts the terminal into raw mode and returns how to put it back.
func (a *app) raw() (restore func(), err error) {
	fd := int(a.stdin.Fd())
	if !term.IsTerminal(fd) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot set the terminal to raw mode: %w", err).WithHint("leave out -t")
	}
	return func() { term.Restore(fd, old) }, nil
}

// size is the terminal's size, nil if there is none.
func (a *app) size() *islev1.TerminalSize {
	w, h, err := term.GetSize(int(a.stdin.Fd()))
	if err != nil {
		return nil
	}
	return &islev1.TerminalSize{Rows: uint32(h), Columns: uint32(w)}
}
