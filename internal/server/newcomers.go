package server

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// newcomers are the connections that were accepted and have not asked for
// anything yet. A server that is shut down drops the first request of such a
// one (net/http, HTTP/1.1), so before it hands over they are waited for.
type newcomers struct {
	mu   sync.Mutex // guards what follows
	open map[net.Conn]struct{}
}

// watch follows the connections of a server that does not serve yet.
func (n *newcomers) watch(srv *http.Server) {
	also := srv.ConnState
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		n.mu.Lock()
		if state == http.StateNew {
			if n.open == nil {
				n.open = map[net.Conn]struct{}{}
			}
			n.open[c] = struct{}{}
		} else {
			delete(n.open, c)
		}
		n.mu.Unlock()
		if also != nil {
			also(c, state)
		}
	}
}

// wait waits until there are none, and no longer than that.
func (n *newcomers) wait(most time.Duration) {
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		n.mu.Lock()
		left := len(n.open)
		n.mu.Unlock()
		if left == 0 {
			return
		}
	}
}
