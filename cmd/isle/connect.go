package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/api"
	"isle/internal/server"
)

// startTimeout bounds how long a server that was started may take until it
// serves. It reconciles before it does.
const startTimeout = 2 * time.Minute

// remote reports whether the flags name a server elsewhere.
func (a *app) remote() bool { return api.Remotely(a.address) }

// newClient makes a client of the server that the flags name.
func (a *app) newClient() (*api.Client, error) {
	if a.remote() {
		return remoteClient(a.address)
	}
	return api.NewClient(a.socket()), nil
}

// here fails where the flags name a server elsewhere: what is done to the
// server's process is done on its own machine.
func (a *app) here() error {
	if a.remote() {
		return usagef("%s is elsewhere; that is done on its own machine", clean(a.address))
	}
	return nil
}

// socket is where the server is, by the flags.
func (a *app) socket() string {
	if a.address != "" {
		return a.address
	}
	return server.SocketPath(a.state)
}

// connect returns a client of a server that answers. It starts a local server
// when none does, unless --server names one.
func (a *app) connect(ctx context.Context) (*api.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	c, err := a.newClient()
	if err != nil {
		return nil, err
	}
	err = c.Answers(ctx)
	if isle.CodeOf(err) == isle.NotFound && err != nil && a.address == "" {
		err = a.start(ctx, c)
	}
	if err == nil {
		err = a.recognise(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	a.client = c
	return c, nil
}

// existing is like connect, but starts nothing, and speaks to a server whose
// log is not the one that it was, too: to stop it, or to see what is wrong.
func (a *app) existing(ctx context.Context) (*api.Client, error) {
	c, err := a.newClient()
	if err != nil {
		return nil, err
	}
	if err := c.Answers(ctx); err != nil {
		return nil, err
	}
	a.client = c
	return c, nil
}

// start runs `isle server` as a process of its own, away from this terminal,
// and returns when it serves. Of two that start at once one waits for the
// other, by a lock in the state folder.
func (a *app) start(ctx context.Context, c *api.Client) error {
	if os.Geteuid() != 0 {
		return isle.Errorf(isle.Refused, "no server answers at %s, and only root can start one", c.Address()).
			WithHint("run the command as root, for example with sudo")
	}
	state, err := filepath.Abs(a.state)
	if err != nil {
		return isle.Errorf(isle.Invalid, "--state %s: %w", a.state, err)
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot make the state folder: %w", err).WithHint("choose another with --state")
	}
	if err := server.CheckState(state); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(state, "start.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot start a server: %w", err).WithHint("choose another state folder with --state")
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot lock %s: %w", lock.Name(), err)
	}
	if c.Answers(ctx) == nil {
		return nil // somebody else started it while we waited
	}

	_, missing := os.Lstat(server.LogPath(state))
	begun := errors.Is(missing, os.ErrNotExist)
	exe, err := os.Executable()
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot find my own executable: %w", err)
	}
	logName := filepath.Join(state, "server.log")
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot write the server's log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot start a server: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, "server", "--state", state, "--log", logName)
	cmd.Dir = "/"
	cmd.Env = append(serverVariables(os.Environ()), server.ReadyVariable+"=3")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot start a server: %w", err)
	}
	defer cmd.Process.Release()
	if err := awaitReady(ctx, r, logName); err != nil {
		return err
	}
	if begun {
		return a.forget(c.Address())
	}
	return nil
}

// serverVariables are those of a caller's variables that a server uses. The
// others stay here: a server lives for months, and what the first caller has
// in its environment (keys, tokens) is nothing for it.
func serverVariables(environ []string) (out []string) {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(name) {
		case "PATH", "HOME", "LANG", "TZ", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GODEBUG", "GOTRACEBACK", "GOCOVERDIR":
			out = append(out, kv)
		default:
			if strings.HasPrefix(name, "ISLE_") || strings.HasPrefix(name, "LC_") {
				out = append(out, kv)
			}
		}
	}
	return out
}

// awaitReady reads what a server that starts has to say: one line of JSON,
// server.Ready. The end of the file without it means that the server died.
func awaitReady(ctx context.Context, r *os.File, logName string) error {
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	r.SetReadDeadline(time.Now().Add(startTimeout))
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadBytes('\n')
	var ready server.Ready
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return isle.Errorf(isle.Unavailable, "the server did not come up within %s", startTimeout).WithHint("see %s and `isle doctor`", logName)
	case err != nil || json.Unmarshal(line, &ready) != nil:
		return isle.Errorf(isle.Unavailable, "the server ended while it started%s", lastLines(logName, 5)).WithHint("see %s and `isle doctor`", logName)
	case ready.Message != "":
		if ready.Hint == "" {
			ready.Hint = "see `isle doctor`"
		}
		return &isle.Error{Code: ready.Code, Message: "the server cannot start: " + ready.Message, Hint: ready.Hint}
	}
	return nil
}

// lastLines returns the end of a file for an error message, "" if it cannot
// be read.
func lastLines(name string, n int) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 4096 {
		f.Seek(-4096, io.SeekEnd)
	}
	b, err := io.ReadAll(f)
	if err != nil || len(b) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return ":\n" + strings.Join(lines[max(0, len(lines)-n):], "\n")
}
