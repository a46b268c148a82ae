// Package initproto is what isle-init and the server say to each other.
//
// isle-init is PID 1 of every service. It dials home: TCP to HomeAddress,
// which exists only inside its airlock. Each connection begins with a handshake
// that proves the launch by its secret, within HandshakeTimeout. Then it is one
// of three kinds. On the events connection isle-init sends numbered events (setup
// done, started, health, log, exited) and the server acknowledges each; what is
// not acknowledged is sent again after a reconnect. Work connections are parked:
// isle-init keeps ParkedConnections of them open and idle; the server takes one
// and writes a Request (exec, forward, copy, list, signal, stop) on it, and
// isle-init dials another in its place. So a request costs one round trip, and
// every piece of work has a connection and flow control of its own. A workload
// connection is one that something in the service made to WorkloadSocket.
//
// Frames are a type byte, a big-endian uint32 length of at most MaxFrame, and
// the payload; structured payloads are JSON, the frequent ones binary. Both
// sides treat the other as hostile: unknown types, over-long frames and late
// handshakes end the connection, and nothing that arrives is trusted to be well
// formed.
//
// # The handshake
//
//	Challenge  home → init  the version and 32 random bytes
//	Hello      init → home  version, kind, launch, 16 random bytes, proof
//	Welcome    home → init  proof that home knows the launch too
//
// The proof is that of SCRAM (RFC 5802, section 3): the secret XOR an HMAC, keyed
// with the secret's SHA-256, of everything that was said before. So who listens
// learns nothing, who reads the server's store (which has the SHA-256 only)
// cannot pose as isle-init, and isle-init takes orders from its server only.
//
// # The events connection
//
//	Event      init → home  JSON Event: setup, started, health, exited
//	Log        init → home  a piece of the command's output, binary
//	Ack        home → init  uint64: every event up to this number is durable
//	Become     home → init  JSON Become: who it is from now on; at once or never
//
// Numbers only grow. There are gaps where isle-init had to drop output while
// the server was away; it says so in the output.
//
// # A work connection
//
//	Request    home → init  JSON Request: what to do
//	Response   init → home  JSON Response, at once: accepted, or why not
//
// then, by what was asked:
//
//	exec       Stdin, Signal, Resize home → init; Stdout, Stderr, Window, Exit
//	           init → home. An empty Stdin is its end. Window gives the number
//	           of bytes of Stdin consumed: home sends at most StdinWindow more
//	           than that, so input that nobody reads never delays a signal.
//	           Exit is the last frame. A connection that ends early kills the
//	           command's session.
//	forward    bytes, both ways, unframed, with TCP's own half-close
//	copy-in    Data, then End, home → init; Result init → home, at any time
//	copy-out   Data, then Result init → home
//	list       as copy-out; the data are JSON values, one spec.TreeEntry each,
//	           in any order
//	signal     nothing more
//	stop       nothing more; the Exited event follows in time
//
// # After a fork
//
// Memory that was captured and is brought back in another instance has an
// isle-init in it that takes itself for the one it was. Its connections home are
// gone, so it dials, in an airlock that is not the one it knew, and proves the
// launch that was captured. Home, which was told to expect that in this airlock,
// says Become on the events connection as its first word, and ends all others.
// isle-init wipes the secret that it had, drops what it had not told yet of the
// other's life, ends the connection, and dials as the new launch; there it tells
// how its service is. The new secret is XORed with an HMAC, keyed with the old
// one, of both nonces, so who listens learns nothing. Until the new launch has
// called, home says Become again to whoever proves the old one; then nothing.
//
// # A workload connection
//
// isle-init listens on a unix socket at WorkloadSocket, before anything of the
// service runs. For each connection that it accepts, once something was said on
// it, it dials home; from the Welcome on the bytes of the one are those of the
// other, both ways, unframed, with half-close. What is spoken there is none of this package's business (it
// is the SPIFFE Workload API), and says nothing about who speaks: that is the
// launch which the handshake proved, so the socket serves whoever in the
// service can open it, and no one else.
//
// At most MaxWorkload of them are open at once for a launch. isle-init accepts
// no more, so that they wait in the kernel's queue, and home ends a new one
// beyond. While the server is away what is accepted is closed at once: clients
// of the Workload API try again by themselves.
package initproto

import (
	"time"

	"isle"
	"isle/internal/spec"
)

// Addresses and bounds of the protocol.
const (
	// Version is spoken by both sides; another one is refused in the Hello.
	Version = 2 // since 2: Become
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
	// LogRate bounds, in bytes a second, the output the server takes from one
	// launch; what is more waits in the service's own pipe.
	LogRate = 32 << 20
	// StdinWindow bounds, in bytes, the input on its way to one command.
	StdinWindow = 256 << 10
	// MaxPending bounds an instance's connections that have not proved
	// themselves; one more ends the oldest.
	MaxPending = 16
	// MaxParked bounds a launch's idle work connections; one more ends the
	// oldest.
	MaxParked = 8
	// MaxOutput bounds, in bytes, the end of setup's output that is reported.
	MaxOutput = 16 << 10
	// MaxWorkload bounds a launch's workload connections.
	MaxWorkload = 32
	// WorkloadSocket is where a service finds its Workload API.
	WorkloadSocket = "/run/isle/workload.sock"
	// MaxDetail bounds, in bytes, a reason or a health check's last words.
	MaxDetail = 1 << 10
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
	// Trust are certificates (PEM) of authorities that the service trusts beside
	// those of its image: that which inspected egress is opened with.
	Trust []byte `json:"trust,omitempty"`
}
