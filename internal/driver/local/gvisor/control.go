package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"
)

// maxAnswer bounds what a sandbox may answer, in bytes.
const maxAnswer = 1 << 20

// maxTasks is more than Linux can have (PID_MAX_LIMIT).
const maxTasks = 1 << 22

// errGone is the failure of a call to a sandbox that does not run.
var errGone = errors.New("the sandbox does not run")

// call asks the sandbox's control server for something, as runsc does (package
// urpc of gVisor): one JSON value each way on a unix socket.
func (r Runtime) call(ctx context.Context, sandbox, method string, arg, result any) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", r.Socket(sandbox))
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", errGone, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = json.NewEncoder(conn).Encode(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	var answer struct {
		Success bool            `json:"success"`
		Err     string          `json:"err"`
		Result  json.RawMessage `json:"result"`
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxAnswer)).Decode(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%s of sandbox %s: %w", method, sandbox, err)
	case !answer.Success:
		return &remoteError{answer.Err}
	case result != nil:
		return json.Unmarshal(answer.Result, result)
	}
	return nil
}

// A remoteError is what a sandbox answered that something failed with.
type remoteError struct{ said string }

func (e *remoteError) Error() string {
	const most = 1000
	return fmt.Sprintf("the sandbox said: %.*q", most, e.said)
}

// Destroy ends a container and returns when the sentry says that all its
// processes are gone. One that is not there has ended.
func (r Runtime) Destroy(ctx context.Context, sandbox, id string) error {
	err := r.call(ctx, sandbox, "containerManager.DestroySubcontainer", id, nil)
	var remote *remoteError
	switch {
	case err == nil, errors.Is(err, errGone):
		return nil
	case errors.As(err, &remote) && strings.Contains(remote.said, "not found"):
		return nil
	}
	return err
}

// Tasks is how many processes and threads a container has, as the sentry counts
// them.
func (r Runtime) Tasks(ctx context.Context, sandbox, id string) (int, error) {
	var out struct {
		Event struct {
			Data struct {
				Pids struct {
					Current uint32 `json:"current"`
				} `json:"pids"`
			} `json:"data"`
		} `json:"event"`
	}
	err := r.call(ctx, sandbox, "containerManager.Event", id, &out)
	return int(min(out.Event.Data.Pids.Current, maxTasks)), err
}

// Forget removes the records of a container that has ended; of a sandbox if the
// id is its own.
func (r Runtime) Forget(sandbox, id string) error {
	files := r.records(sandbox, id)
	if id == sandbox {
		files = append(files, r.Socket(sandbox))
	}
	var errs []error
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
