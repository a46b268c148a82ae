package environment

import (
	"context"
	"io"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// A Driver makes sandboxes. Every method is idempotent: to make what is there,
// or remove what is not, succeeds. What a Driver makes is found again by List
// after the server died at any moment, and removed whole by Remove.
type Driver interface {
	// Prepare makes what the services of an environment share: the control
	// group that holds its limits. It is cheap.
	Prepare(ctx context.Context, s Shared) error
	// Launch starts one service and returns once its isle-init runs. On error
	// nothing of the launch is left.
	Launch(ctx context.Context, l Launch) error
	// Kill ends one launch at once: every process of it is gone when it returns.
	Kill(ctx context.Context, instance, launch isle.ID) error
	// Remove ends every launch of the instance and removes its control group.
	Remove(ctx context.Context, instance isle.ID) error
	// List says what exists, of this state folder, dead or alive.
	List(ctx context.Context) ([]Sandbox, error)
	// Usage is what an instance uses now.
	Usage(ctx context.Context, instance isle.ID) (Usage, error)
}

// Shared is what the services of one environment have in common.
type Shared struct {
	Instance isle.ID
	Limits   spec.Limits
}

// A Launch is everything a Driver needs to start one service.
type Launch struct {
	Instance isle.ID
	ID       isle.ID // of the launch
	Service  string
	Hostname string
	Image    image.Image
	Layers   []string // paths of the layers' files, lowest first, verified
	UIDBase  uint32
	Network  string // path of the network namespace to join; "" makes an empty one (build steps)
	Volumes  []Mount
	Tmpfs    []string
	Caps     []string
	Limits   spec.Limits
	// Init is the path of the isle-init binary, and Boot what it reads, once,
	// from file descriptor 3: an encoded initproto.Boot, which holds the
	// one-launch secret. It is in no file, argument or variable.
	Init string
	Boot []byte
	// Exited is called once, from any goroutine, when isle-init is gone.
	// Drivers call it also for launches that they find by List after a restart
	// of the server and are told to Watch.
	Exited func()
}

// A Mount is a volume in a sandbox.
type Mount struct {
	Volume isle.ID
	Source string // path of the volume's image file
	Path   string // inside
}

// A Sandbox is one launch as a Driver finds it.
type Sandbox struct {
	Instance isle.ID
	Launch   isle.ID // "" when only shared things of the instance are left
	Alive    bool
}

// Usage is what an environment uses.
type Usage struct {
	Memory  int64         `json:"memory"` // bytes, with page cache
	PIDs    int           `json:"pids"`
	CPU     time.Duration `json:"cpu"` // since launch
	OOMKill int           `json:"oom_kills"`
}

// Watcher is what a Driver also does for launches found after a restart.
type Watcher interface {
	// Watch calls exited once when the launch's isle-init is gone (at once if
	// it is already).
	Watch(instance, launch isle.ID, exited func()) error
}

// Volumes makes the files behind volumes.
type Volumes interface {
	// Create makes an empty volume's file, replacing one that is there.
	Create(ctx context.Context, id isle.ID, size int64) error
	// Path is where the file is.
	Path(id isle.ID) string
	// Delete removes it.
	Delete(ctx context.Context, id isle.ID) error
	// List says which exist.
	List(ctx context.Context) ([]isle.ID, error)
	// Used is how many bytes a volume really occupies on disk.
	Used(id isle.ID) (int64, error)
}

// A Network makes airlocks. Methods are idempotent.
type Network interface {
	// Open makes, or takes up again, the airlock of an instance and returns
	// the path of the network namespace its services join.
	Open(ctx context.Context, instance isle.ID, egress []spec.Egress) (netns string, err error)
	// Close removes it.
	Close(ctx context.Context, instance isle.ID) error
	// List says for which instances one exists.
	List(ctx context.Context) ([]isle.ID, error)
	// Doors says what is open and what was tried.
	Doors(instance isle.ID) []Door
}

// A Door is one destination as an environment sees it.
type Door struct {
	Destination string    `json:"destination"` // "api.example.com:443", "203.0.113.9:80", "dns:evil.example"
	Protocol    string    `json:"protocol"`    // "tcp", "udp", "dns", "icmp", …
	State       string    `json:"state"`       // "open" or "refused"
	Reason      string    `json:"reason"`      // what granted or refused it
	Count       int       `json:"count"`       // connections or attempts
	Active      int       `json:"active"`
	First       time.Time `json:"first,omitzero"`
	Last        time.Time `json:"last,omitzero"`
}

// A Line is the server's side of one isle-init: its connections through the
// airlock. Everything that comes from it is untrusted.
type Line interface {
	Exec(ctx context.Context, e Exec) (Process, error)
	// Forward opens a connection to a TCP port on 127.0.0.1 inside.
	Forward(ctx context.Context, port int) (io.ReadWriteCloser, error)
	// CopyIn extracts a tar stream below dir; nothing is written outside dir,
	// whatever names and links the stream or the folder has.
	CopyIn(ctx context.Context, dir string, tar io.Reader, owner string) error
	// CopyOut writes path (a file or a folder) as a tar stream.
	CopyOut(ctx context.Context, path string, tar io.Writer) error
	// List describes the tree at path: what Tree would hash.
	List(ctx context.Context, path string) (spec.Tree, error)
	// Signal signals the service's main process group.
	Signal(ctx context.Context, signal string) error
	// Stop asks the service's command to end (SIGTERM, after grace SIGKILL),
	// after which isle-init ends.
	Stop(ctx context.Context, grace time.Duration) error
}

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
	// Forget drops a launch and closes its connections.
	Forget(launch isle.ID)
	// Line returns the Line of a launch, waiting for it to dial home until ctx ends.
	Line(ctx context.Context, launch isle.ID) (Line, error)
}

// Events is what isle-init tells, in order, each at least once. The methods
// return when the event is durable: only then is it acknowledged.
type Events interface {
	// SetupDone tells that setup ended. When it returns nil for code 0 the
	// command starts.
	SetupDone(code int, output string) error
	Started() error
	// Health tells that the check changed its mind; detail is its last words.
	Health(healthy bool, detail string) error
	// Exited tells that the command ended; isle-init ends once this returns.
	Exited(code int, reason string) error
	// Log is a piece of the command's output.
	Log(at time.Time, stderr bool, data []byte) error
}
