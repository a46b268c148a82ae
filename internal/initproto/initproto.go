// Package initproto is what isle-init and the server say to each other.
//
// isle-init is PID 1 of every service. It dials home: TCP to HomeAddress,
// which exists only inside its airlock. Each connection begins with a Hello
// that proves the launch by its secret, within HandshakeTimeout. Then it is one
// of two kinds. On the events connection isle-init sends numbered Events (setup
// done, started, health, log, exited) and the server acknowledges each; what is
// not acknowledged is sent again after a reconnect. Work connections are parked:
// isle-init keeps ParkedConnections of them open and idle; the server takes one
// and writes a Request (exec, forward, copy, list, signal, stop) on it, and
// isle-init dials another in its place. So a request costs one round trip, and
// every piece of work has a connection and flow control of its own.
//
// Frames are a type byte, a big-endian uint32 length of at most MaxFrame, and
// the payload; structured payloads are JSON. Both sides treat the other as
// hostile: unknown types, over-long frames and late handshakes end the
// connection, and nothing that arrives is trusted to be well formed.
package initproto

import (
	"time"

	"isle"
	"isle/internal/spec"
)

// Addresses and bounds of the protocol.
const (
	// Version is spoken by both sides; another one is refused in the Hello.
	Version = 1
	// HomeAddress is where isle-init dials. The address is synthetic, in the
	// benchmarking range of RFC 2544: it exists in airlocks only.
	HomeAddress = "198.18.0.1:1"
	// HandshakeTimeout bounds the time from accept to a valid Hello.
	HandshakeTimeout = 5 * time.Second
	// MaxFrame bounds a frame's payload in bytes.
	MaxFrame = 64 << 10
	// ParkedConnections is how many idle work connections isle-init keeps.
	ParkedConnections = 2
	// LogBuffer bounds, in bytes, the output kept while the server is away;
	// older output is dropped and said to be.
	LogBuffer = 1 << 20
)

// Boot is what isle-init reads from file descriptor 3 when it starts, to the
// end of the file; then it closes it. Reading it is the only way to the secret.
type Boot struct {
	Launch      isle.ID           `json:"launch"`
	Secret      []byte            `json:"secret"` // 32 bytes
	Home        string            `json:"home"`
	Hostname    string            `json:"hostname"`
	User        string            `json:"user"` // resolved inside, from /etc/passwd and /etc/group
	Workdir     string            `json:"workdir"`
	Env         map[string]string `json:"env"`
	Caps        []string          `json:"caps"`            // what children keep; isle-init itself drops the rest of its own for them
	Setup       []string          `json:"setup,omitempty"` // run and reported before Command; set only when volumes are not ready
	Command     []string          `json:"command"`         // none: idle
	Own         []string          `json:"own,omitempty"`   // volume paths whose root folder is given to User before setup
	Healthcheck *spec.Healthcheck `json:"healthcheck,omitempty"`
}
