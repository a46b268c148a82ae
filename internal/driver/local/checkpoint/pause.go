package checkpoint

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"isle"
)

// Pause stops every task of the sandbox with the control socket, in its own
// kernel: what watches over them there stands still too, which it does not where
// the machine freezes processes, and would take those for stuck. Each Pause needs
// one Resume; one more ends the sandbox.
func Pause(ctx context.Context, socket string) error {
	return tell(ctx, socket, "containerManager.Pause")
}

// Resume undoes one Pause.
func Resume(ctx context.Context, socket string) error {
	return tell(ctx, socket, "containerManager.Resume")
}

// tell calls a method of the sandbox that takes and returns nothing (of gVisor's
// package boot).
func tell(ctx context.Context, socket, method string) error {
	var dialer net.Dialer
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "the sandbox does not answer: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(map[string]any{"method": method, "arg": struct{}{}}); err != nil {
		return err
	}
	return answer(conn)
}
