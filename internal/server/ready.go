package server

import (
	"encoding/json"
	"net"
	"os"

	"isle"
	"isle/internal/api"
)

// ReadyVariable names, in the environment of a server that is started on
// demand, the descriptor of a pipe on which it says, once, that it serves, or
// why it cannot.
const ReadyVariable = "ISLE_READY_FD"

// Ready is the line of JSON that is said there. An empty Message means that
// the server serves.
type Ready struct {
	Code    isle.Code `json:"code,omitempty"`
	Message string    `json:"message,omitempty"`
	Hint    string    `json:"hint,omitempty"`
}

// A readiness tells whoever started the server how that went: a command line
// through a pipe, or systemd by its protocol (sd_notify(3)).
type readiness struct {
	pipe *os.File // nil if nobody waits
	sock string   // systemd's, "" if it did not start us
}

func newReadiness() *readiness {
	r := &readiness{sock: os.Getenv("NOTIFY_SOCKET")}
	if fd := inheritedFD(ReadyVariable); fd > 0 {
		r.pipe = os.NewFile(uintptr(fd), "ready")
	}
	return r
}

// say tells that the server serves, or the error that it ends with. Only the
// first call is heard on the pipe.
func (r *readiness) say(err error) {
	if r.pipe != nil {
		var ready Ready
		if flat := api.Flatten(err); flat != nil {
			ready = Ready{Code: flat.Code, Message: flat.Message, Hint: flat.Hint}
		}
		json.NewEncoder(r.pipe).Encode(ready) // whoever asked may be gone
		r.pipe.Close()
		r.pipe = nil
	}
	if err == nil {
		r.systemd("READY=1")
	}
}

// systemd sends a state to the service manager, if there is one.
func (r *readiness) systemd(state string) {
	if r.sock == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: r.sock, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
