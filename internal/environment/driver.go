package environment

import (
	"cmp"
	"context"
	"slices"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/initproto"
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
	Instance  isle.ID
	Isolation string // the class: "container" or "gvisor"
	Limits    spec.Limits
}

// A Launch is everything a Driver needs to start one service.
type Launch struct {
	Instance isle.ID
	ID       isle.ID // of the launch
	// Isolation is the class, the same for all launches that an instance has at one
	// time: "container" or "gvisor".
	Isolation string
	Service   string
	Hostname  string
	Hosts     []string // names of the environment's services: each resolves to 127.0.0.1
	// MachineID is what /etc/machine-id holds (machine-id(5)): 32 hexadecimal
	// digits, another one for each service of each instance.
	MachineID string
	// Generation is what /etc/isle/generation holds, in decimal: it is another one
	// in every copy of a state, and grows. 0: no copy.
	Generation int64
	Image      image.Image
	Layers     []string // paths of the layers' files, lowest first, verified
	UIDBase    uint32
	Network    string // path of the network namespace to join; "" makes an empty one (build steps)
	Volumes    []Mount
	Tmpfs      []string
	Writable   int64 // bytes that can be written to the root, in memory; 0: none
	Caps       []string
	Limits     spec.Limits
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

// Warmer is what a Driver may also do, to make launches faster.
type Warmer interface {
	// Warm makes what launches with this UIDBase will need and nobody else can
	// see: it does nothing that would have to be recorded first. It has no
	// failure, because the launch meets it again.
	Warm(uidBase uint32)
}

// A Freezer is a Driver that can hold what runs still, for as long as it is
// wanted. Both methods are idempotent. What is frozen when this process dies may
// go on with the next one.
type Freezer interface {
	// Freeze stops every process of an instance where it stands; their memory,
	// files and connections stay.
	Freeze(ctx context.Context, instance isle.ID) error
	// Thaw lets them go on.
	Thaw(ctx context.Context, instance isle.ID) error
}

// A Stocker is a Driver that makes what launches begin with before anybody has
// asked for one.
type Stocker interface {
	// Stock makes what the launches of an instance of a class begin with, in which
	// nothing is of any project. The Launch of that ID, and the instance's others,
	// use it where they can, and do without where it has ended or does not fit.
	// It is used at most once. It ends with this process, and Remove removes it.
	// On error nothing of the launch is left; Remove removes the rest.
	Stock(ctx context.Context, s Stock) error
}

// A Stock is what a Stocker is to make ready.
type Stock struct {
	Shared  Shared      // without limits: Prepare sets them when somebody takes it
	Launch  isle.ID     // of the launch that may begin with it
	Limits  spec.Limits // that it will most likely have
	UIDBase uint32
	Network string // path of the network namespace
	Init    string // path of the isle-init binary
}

// A Capturer is a Driver that copies the state of what runs.
type Capturer interface {
	// Capture copies the volumes of an instance, and its memory where it is
	// asked for, all as they are at one instant: what runs is stopped for that
	// moment, and goes on when Capture returns, also after an error. After an
	// error none of the new volumes is left, and the folder of memory is empty.
	// While memory is captured nothing of the instance is launched. Its files are
	// not durable when Capture returns, which volumes are: who keeps them syncs
	// them.
	Capture(ctx context.Context, c Capture) (Captured, error)
}

// A Capture is what a Capturer is to copy.
type Capture struct {
	Instance  isle.ID
	Isolation string // the class of the instance
	Volumes   []Clone
	Memory    string // folder for memory, which exists; "": none is captured
}

// A Restorer is a Driver that brings back memory that a Capturer has captured.
type Restorer interface {
	// Restore starts all services of an instance from memory, at once. They go
	// on from the instant of the capture, in another instance's place: with its
	// network, volumes, uids and generated files. The isle-init of each takes
	// itself for that of the launch which was captured, and gets no Boot: Lines
	// are told to expect it before (ExpectFork). Memory is needed until
	// Restore returns; it may be removed then. A sandbox of another build of the
	// runtime can't be brought back, which is isle.Conflict. On error nothing of
	// the instance is left.
	Restore(ctx context.Context, r Restore) error
	// CanRestore says why memory that a build of the runtime wrote can't be
	// brought back: isle.Conflict where it is another than the one that is here.
	CanRestore(runtime isle.Digest) error
	// RuntimeOf is the build that an instance runs in, and that a capture of it
	// would need.
	RuntimeOf(instance isle.ID) (isle.Digest, error)
}

// A Restore is what a Restorer is to bring back.
type Restore struct {
	Shared   Shared
	Launches []Launch    // of all services that are in memory, see Captured.Launches
	Memory   string      // folder of Capture.Memory
	Runtime  isle.Digest // Captured.Runtime
}

// A Clone is a volume, and the ID that its copy gets.
type Clone struct{ From, To isle.ID }

// Captured is how a capture went.
type Captured struct {
	Paused  time.Duration // how long what runs was stopped
	How     string        // how volumes were cloned: ByReflink or ByCopy; "" without volumes
	Memory  int64         // bytes of the files of memory
	Runtime isle.Digest   // of the runtime's program that wrote memory, and can read it; "" without memory
	// Launches are those that are in memory: whatever had ended is not.
	Launches []isle.ID
}

// How a volume is cloned.
const (
	ByReflink = "reflink" // both share their blocks until one writes: takes no time and no space
	ByCopy    = "copy"
)

// Volumes makes the files behind volumes.
type Volumes interface {
	// Create makes an empty volume's file, replacing one that is there.
	Create(ctx context.Context, id isle.ID, size int64) error
	// Clone makes the volume to hold what the volume from holds, and says how:
	// ByReflink or ByCopy. Nobody may have from mounted; volumes that somebody
	// writes to are cloned by a Capturer. An earlier to is replaced.
	Clone(ctx context.Context, from, to isle.ID) (how string, err error)
	// Path is where the file is, for this process and until the Volumes are closed.
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
	Open(ctx context.Context, instance isle.ID, grants Grants) (netns string, err error)
	// Close removes it.
	Close(ctx context.Context, instance isle.ID) error
	// List says for which instances one exists.
	List(ctx context.Context) ([]isle.ID, error)
	// Doors says what is open and what was tried.
	Doors(instance isle.ID) []Door
}

// Grants are what an airlock opens.
type Grants struct {
	Egress      []spec.Egress
	Connections []ConnectionDoor
}

// A ConnectionDoor is a connection as it is found inside: by a name, at ports
// that its kind has.
type ConnectionDoor struct {
	Name, Kind, Stage string
	As                string // the name inside; "": its own
	Ports             []int
}

// Inside is the name that it is found by.
func (d ConnectionDoor) Inside() string { return cmp.Or(d.As, d.Name) }

func (g Grants) equal(h Grants) bool {
	return slices.EqualFunc(g.Egress, h.Egress, func(a, b spec.Egress) bool {
		return a.Host == b.Host && a.Port == b.Port && a.Inspect == b.Inspect && slices.Equal(a.Addresses, b.Addresses)
	}) && slices.EqualFunc(g.Connections, h.Connections, func(a, b ConnectionDoor) bool {
		return a.Name == b.Name && a.As == b.As && a.Kind == b.Kind && a.Stage == b.Stage && slices.Equal(a.Ports, b.Ports)
	})
}

// The kinds of door.
const (
	KindConnection = "connection"
	KindEgress     = "egress" // attempts at what is neither among them
)

// A Door is one destination as an environment sees it.
type Door struct {
	Destination string    `json:"destination"` // "api.example.com:443", "203.0.113.9:80", "dns:evil.example"; of a connection its name
	Kind        string    `json:"kind"`
	Protocol    string    `json:"protocol"`        // "tcp", "udp", "dns", "icmp", …; of a connection its kind
	Stage       string    `json:"stage,omitempty"` // of a connection
	State       string    `json:"state"`           // "open", "refused", or "held": somebody waits there for an approval
	Reason      string    `json:"reason"`          // what granted or refused it
	Count       int       `json:"count"`           // connections or attempts
	Active      int       `json:"active"`
	Held        int       `json:"held,omitempty"` // of Active: sessions that wait for an approval
	First       time.Time `json:"first,omitzero"`
	Last        time.Time `json:"last,omitzero"`
}

// The words of the line to isle-init are initproto's: it stands above this room
// and its Home implements Lines.
type (
	Line    = initproto.Line    // the server's side of one isle-init
	Lines   = initproto.Lines   // hands out the Lines of running launches
	Events  = initproto.Events  // what isle-init tells
	Process = initproto.Process // a running Exec
	Exec    = initproto.Exec    // a command to run in a service
	File    = initproto.File    // a thing in a folder of a service
	Output  = initproto.Output  // a piece of what a process wrote, or its end
	Exit    = initproto.Exit    // how a process ended
)
