package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
)

// memory is where the last checkpoint of each server's log is remembered:
// isle/checkpoints below XDG_STATE_HOME, which is ~/.local/state by default.
func memory() audit.Memory {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(home(), ".local", "state")
	}
	return audit.Memory{Dir: filepath.Join(dir, "isle", "checkpoints")}
}

// home is the user's home folder.
func home() string {
	dir, err := os.UserHomeDir()
	if err != nil {
		if u, uerr := user.Current(); uerr == nil {
			dir = u.HomeDir
		}
	}
	return dir
}

// serverName is what a server is remembered by: its URL, or its socket's path.
func serverName(c *api.Client) (string, error) {
	if api.Remotely(c.Address()) {
		return c.Address(), nil
	}
	name, err := filepath.Abs(c.Address())
	if err != nil {
		return "", isle.Errorf(isle.Invalid, "--server %s: %w", c.Address(), err)
	}
	return name, nil
}

// forget drops what was seen of the server at the address: this command has just
// begun its state, where there was none, and with it another log.
func (a *app) forget(address string) error {
	address, err := filepath.Abs(address)
	if err != nil {
		return isle.Errorf(isle.Invalid, "--server %s: %w", address, err)
	}
	forgot, err := memory().Forget(address)
	if forgot {
		fmt.Fprintf(a.stderr, "isle: the state folder %s is new, and so is its audit log; the one that was seen there before is gone\n", clean(a.state))
	}
	return err
}

// recognise sees that the server's log goes on from what was seen of it last,
// and remembers what it is now. A server that is not known yet is believed.
func (a *app) recognise(ctx context.Context, c *api.Client) error {
	m := memory()
	address, err := serverName(c)
	if err != nil {
		return err
	}
	seen, err := m.Last(address)
	if errors.Is(err, fs.ErrPermission) { // another user's home
		fmt.Fprintf(a.stderr, "isle: warning: the server's log is not compared with what was seen of it before: %s\n", clean(api.Flatten(err).Message))
		return nil
	}
	if err != nil {
		return err
	}
	res, err := c.Server.Checkpoint(ctx, connect.NewRequest(&islev1.CheckpointRequest{Since: seen.Size()}))
	if err != nil {
		if seen == nil { // it may not let us, or be older; the call itself will say
			return nil
		}
		return err
	}
	now, err := seen.Check(res.Msg.GetKey(), res.Msg.GetNote(), res.Msg.GetProof())
	if err != nil {
		return isle.Errorf(isle.Untrusted, "the server at %s is not the one it was, or its log was tampered with: %s", address, api.Flatten(err).Message).
			WithHint("if its state was put back from a backup or made anew, accept that with `isle audit accept`; what was seen before is in %s", m.Path(address))
	}
	if seen != nil && now.Size == seen.Size() {
		return nil
	}
	if err := m.Remember(audit.Seen{Server: address, Key: res.Msg.GetKey(), Checkpoint: string(now.Note)}); err != nil {
		fmt.Fprintf(a.stderr, "isle: warning: %s\n", clean(err.Error()))
	}
	return nil
}
