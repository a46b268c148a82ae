package initproto

import (
	"context"
	"io"
	"time"

	"isle"
	"isle/internal/spec"
)

// A Line is the server's side of one isle-init: its connections through the
// airlock. Everything that comes from it is untrusted.
type Line interface {
	// Exec starts a command. Its process lives no longer than ctx. That it could
	// not start is no error here but an Exit with code 126 or 127 and a reason.
	Exec(ctx context.Context, e Exec) (Process, error)
	// Forward opens a connection to a TCP port on 127.0.0.1 inside, or else on
	// ::1. ctx bounds the dialing only. What it returns has CloseWrite.
	Forward(ctx context.Context, port int) (io.ReadWriteCloser, error)
	// CopyIn extracts a tar stream below dir; nothing is written outside dir,
	// whatever names and links the stream or the folder has. dir is made where
	// it is not there. owner is a user inside; "" is the service's.
	CopyIn(ctx context.Context, dir string, tar io.Reader, owner string) error
	// CopyOut writes path (a file or a folder) as a tar stream, in which names
	// begin with the last element of path. Sockets, pipes and devices are left
	// out, and named in the comment of a PAX global header at the end.
	CopyOut(ctx context.Context, path string, tar io.Writer) error
	// List describes the tree at path: what spec.HashTree would, but for links
	// at path itself, which are not followed, and for what is no file, folder
	// or link, which is left out.
	List(ctx context.Context, path string) (spec.Tree, error)
	// Folder describes what stands in the folder at path, and not what is below
	// that, or what is at path if it is no folder: MaxFolder things at most,
	// sorted by name. A link at path is not followed.
	Folder(ctx context.Context, path string) ([]File, error)
	// Signal signals the service's main process group.
	Signal(ctx context.Context, signal string) error
	// Stop asks the service's command to end (SIGTERM, after grace SIGKILL),
	// after which isle-init ends. It returns when that has begun.
	Stop(ctx context.Context, grace time.Duration) error
}

// MaxFolder bounds the things of a folder that are listed.
const MaxFolder = 10_000

// A File is a thing in a folder.
type File struct {
	Name   string    `json:"name"` // as text: a byte that is none is \xNN
	Type   string    `json:"type"` // "file", "dir", "link" or "other"
	Size   int64     `json:"size,omitempty"`
	Mode   uint32    `json:"mode"`             // permissions, with the set-ID and sticky bits as chmod(2) has them
	Time   time.Time `json:"time"`             // of the last change of its content
	Target string    `json:"target,omitempty"` // of a link
}

// The Types of a File.
const (
	TypeFile  = spec.TypeFile
	TypeDir   = spec.TypeDir
	TypeLink  = spec.TypeLink
	TypeOther = "other"
)

// An Exec is one command to run in a service.
type Exec struct {
	Command  []string
	Env      map[string]string // added to the service's
	User     string            // "" the service's
	Workdir  string            // "" the service's
	Terminal bool
	Rows     uint16
	Columns  uint16
	Session  isle.ID
}

// A Process is a running Exec. Its owner closes it; closing kills what still
// runs.
type Process interface {
	// Stdin is what the process reads. Writing more than StdinWindow bytes
	// ahead of it waits, and needs somebody to call Next meanwhile.
	Stdin() io.WriteCloser
	// Next returns the next piece of output; the last is Exit.
	Next() (Output, error)
	Signal(name string) error
	Resize(rows, columns uint16) error
	Close() error
}

// An Output is a piece of what a process wrote, or its end.
type Output struct {
	Stderr bool
	Data   []byte
	Exit   *Exit // set on the last
}

// An Exit is how a process ended: the code, or 128+n for signal n.
type Exit struct {
	Code   int
	Reason string // for 126 and 127: why it did not start
}

// Lines hands out the Lines of running launches.
type Lines interface {
	// Expect says that isle-init of this launch may dial home from the
	// instance's airlock with a secret of this SHA-256; events come to sink.
	Expect(instance, launch isle.ID, secretHash isle.Digest, sink Events)
	// ExpectFork says that the isle-init of a launch that was captured is brought
	// back in the instance: it may dial home from there with the secret that it
	// had, of this SHA-256, and is told to become b.Launch, which is expected
	// from then on as by Expect. It is called before it is brought back.
	ExpectFork(instance, captured isle.ID, secretHash isle.Digest, b Become, sink Events) error
	// Forget drops a launch and closes its connections.
	Forget(launch isle.ID)
	// Line returns the Line of a launch, waiting for it to dial home until ctx ends.
	Line(ctx context.Context, launch isle.ID) (Line, error)
}

// Events is what isle-init tells, in order, each at least once. The methods
// return when the event is durable: only then is it acknowledged.
type Events interface {
	// SetupDone tells that setup ended. When it returns nil for code 0 the
	// command starts; for another code isle-init ends with that code, and no
	// Exited follows.
	SetupDone(code int, output string) error
	Started() error
	// Health tells that the check changed its mind; detail is its last words.
	Health(healthy bool, detail string) error
	// Exited tells that the command ended; isle-init ends once this returns.
	Exited(code int, reason string) error
	// Log is a piece of the command's output.
	Log(at time.Time, stderr bool, data []byte) error
}
