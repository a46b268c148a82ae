package postgres

import (
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle/internal/approval"
)

// keepAlive is how often the server behind hears of a session that waits for an
// approval. A Flush does it: it changes nothing, is not answered, and from the
// first one on the server's idle time-outs do not run (they begin when it has
// said that it is ready).
const keepAlive = 30 * time.Second

// wait is called when an execution begins to wait for an approval. What was asked
// before it goes on, the client is told, and its end is watched for until
// waited.
func (s *exchange) wait(r approval.Request) error {
	if err := s.up.flush(); err != nil {
		return serverGone{err}
	}
	s.mu.Lock()
	s.hold.waiting = true
	in := s.wrote
	s.mu.Unlock()
	n := pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: stateHeld, Routine: "isle",
		Message: clip("isle: this waits for an approval: " + string(r.ID)),
		Detail:  clip(fmt.Sprintf("Rule %s holds it%s. It is asked for until %s.", r.Rule, reason(r.Why), r.Expires.UTC().Format(time.RFC3339))),
		Hint:    clip("isle approvals show " + string(r.ID) + "; to withdraw it, cancel")}
	if in {
		n.Detail += " Its transaction has written and others may wait for its locks: so this waits for a minute at most."
	}
	b, err := n.Encode(nil)
	if err != nil {
		return err
	}
	if err := s.outlet.tell(b); err != nil {
		return clientGone{err}
	}
	s.hold.watch(s)
	return nil
}

func reason(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// watch looks after both sides until the hold ends: it reads ahead, so that the
// client's end is seen, and keeps the server's side alive. Its goroutines end
// with unwatch.
func (h *holding) watch(s *exchange) {
	h.over = make(chan struct{})
	h.watchers.Go(func() {
		err := s.up.in.ahead()
		select {
		case <-h.over:
		default:
			if err != nil {
				h.cancel(clientGone{err})
			}
		}
	})
	h.watchers.Go(func() {
		tick := time.NewTicker(keepAlive)
		defer tick.Stop()
		for {
			if _, err := s.server.Write([]byte{'H', 0, 0, 0, 4}); err != nil {
				return // fromServer sees it too
			}
			select {
			case <-h.over:
				return
			case <-tick.C:
			}
		}
	})
}

// unwatch ends what watch began.
func (h *holding) unwatch(s *exchange) {
	if h.over == nil {
		return
	}
	close(h.over)
	s.client.SetReadDeadline(time.Unix(1, 0))
	h.watchers.Wait()
	s.client.SetReadDeadline(time.Time{})
	h.over = nil
}

// ahead reads into what room there is, until there is none (nil) or reading
// fails. A deadline that passed is no failure.
func (r *reader) ahead() error {
	for r.w < len(r.buf) {
		n, err := r.conn.Read(r.buf[r.w:])
		r.w += n
		if err != nil {
			if os.IsTimeout(err) {
				return nil
			}
			return err
		}
	}
	return nil
}
