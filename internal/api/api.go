package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/environment"
	"isle/internal/identity"
	"isle/internal/image"
	"isle/internal/seal"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// Lifecycle makes and ends environments; *environment.Manager implements it.
type Lifecycle interface {
	Up(ctx context.Context, actor isle.Actor, req environment.UpRequest, progress func(environment.Progress)) (environment.UpResult, error)
	Down(ctx context.Context, actor isle.Actor, ref isle.Ref, volumes bool, progress func(environment.Progress)) error
	// HoldRequests has requests wait until release is called.
	HoldRequests(ctx context.Context, ref isle.Ref) (release func(), err error)
	Extend(ctx context.Context, actor isle.Actor, ref isle.Ref, by time.Duration, never bool) (time.Time, error)
}

// Records tells about environments; *environment.Manager implements it.
type Records interface {
	List(ctx context.Context) ([]environment.Environment, error)
	Get(ctx context.Context, ref isle.Ref) (environment.Environment, error)
	Usage(ctx context.Context, ref isle.Ref) (environment.Usage, error)
	VolumesOf(ctx context.Context, ref isle.Ref) ([]environment.Volume, error)
	Kept(ctx context.Context) []isle.Ref
	// Asides are the instances that served under a name before, the last one first.
	Asides(ctx context.Context, ref isle.Ref) []environment.Environment
	VolumeUsed(id isle.ID) (int64, error)
	Doors(ctx context.Context, actor isle.Actor, ref isle.Ref) ([]environment.Door, error)
}

// Sessions work inside environments; *environment.Manager implements it.
type Sessions interface {
	Exec(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, e environment.Exec) (environment.Process, error)
	Forward(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, port int) (io.ReadWriteCloser, error)
	CopyIn(ctx context.Context, actor isle.Actor, ref isle.Ref, service, dir string, baseline bool, tar io.Reader) error
	CopyOut(ctx context.Context, actor isle.Actor, ref isle.Ref, service, path string, tar io.Writer) error
	Folder(ctx context.Context, actor isle.Actor, ref isle.Ref, service, path string) ([]environment.File, error)
	Diff(ctx context.Context, actor isle.Actor, ref isle.Ref, service string) ([]environment.Change, error)
	Files(ctx context.Context, actor isle.Actor, ref isle.Ref, service string) (map[string]spec.Tree, error)
	Logs(ctx context.Context, actor isle.Actor, ref isle.Ref, o environment.LogOptions, emit func(environment.LogLine) error) error
}

// Copies are made of what runs, and of snapshots; *environment.Manager implements it.
type Copies interface {
	Fork(ctx context.Context, actor isle.Actor, req environment.ForkRequest, progress func(environment.Progress)) ([]environment.UpResult, error)
	PlanFork(req environment.ForkRequest) (environment.ForkPlan, error)
	Whose(name string) (ref isle.Ref, at string)
	Parent(req environment.UpRequest, branches []string) (environment.Environment, bool)
	Unlike(parent environment.Environment, req environment.UpRequest) string
	RestoreTo(ctx context.Context, actor isle.Actor, ref isle.Ref, req environment.RestoreRequest, progress func(environment.Progress)) (environment.UpResult, error)
	Lineage(ctx context.Context, visible func(kind string, ref isle.Ref, project string) bool) ([]environment.Relation, error)
}

// Witness says what runs otherwise than it was declared; *environment.Manager implements it.
type Witness interface {
	Undeclared(ctx context.Context, ref isle.Ref) (map[string][]string, error)
}

// Environments is all that the EnvironmentService and the ForkService need.
type Environments interface {
	Witness
	Lifecycle
	Copies
	Records
	Sessions
}

// Builder locks and builds; *build.Builder implements it.
type Builder interface {
	Lock(ctx context.Context, f spec.File, old *spec.Lock, copies []build.Copied, o build.LockOptions, p build.Progress) (lock *spec.Lock, changes []string, err error)
	LockNeeds(f spec.File, copies []build.Copied) []isle.Digest
	Needs(lock *spec.Lock) []isle.Digest
	Build(ctx context.Context, f spec.File, lock *spec.Lock, o build.Options, p build.Progress) (build.Result, error)
	Verify(ctx context.Context, f spec.File, lock *spec.Lock, o build.Options, p build.Progress) (build.Result, error)
	Export(ctx context.Context, lock *spec.Lock, w io.Writer) error
	Caches(project string) ([]build.CacheMount, int, error)
	PruneCaches(project string, unused time.Duration) ([]build.CacheMount, error)
	ForgetSteps() (int, error)
	ExportCache(ctx context.Context, keys *seal.Ring, project string, w io.Writer) (build.CacheFile, error)
	ImportCache(ctx context.Context, keys *seal.Ring, r io.Reader) (build.CacheFile, error)
	Import(ctx context.Context, r io.Reader) (packages int, size int64, err error)
}

// Blobs takes what clients upload; *image.Store implements it.
type Blobs interface {
	Missing(digests []isle.Digest) []isle.Digest
	PutBlob(ctx context.Context, d isle.Digest, r io.Reader) error
	HasLayer(d isle.Digest) bool
	// Packages are the versions of an image's Debian packages, by name.
	Packages(ctx context.Context, m image.Image) (map[string]string, error)
	// Compare says what differs between two images.
	Compare(ctx context.Context, a, b image.Image) (image.Comparison, error)
	// Hold keeps everything in the store until release is called.
	Hold() (release func())
}

// Audit is the log as the API writes and reads it.
type Audit interface {
	Log
	Tree
	// Next is the sequence number that the next entry will have.
	Next(ctx context.Context) (uint64, error)
	// FirstSince is the sequence number of the first entry not from before t.
	FirstSince(ctx context.Context, t time.Time) (uint64, error)
	// ByID returns the sequence number of an entry, and of those that link to it.
	ByID(ctx context.Context, id isle.ID) (sequence uint64, links []uint64, err error)
}

// Host is the server itself.
type Host interface {
	Info() Info
	Doctor(ctx context.Context) []Check
	Collect(ctx context.Context, dryRun bool) (Collected, error)
	// Stop begins to end the server and returns at once.
	Stop()
}

// Info says which server answers.
type Info struct {
	Version string
	State   string // the state folder
	PID     int
	Started time.Time
	Remote  RemoteInfo
	Gateway string // the address at which it serves connections to who is outside; "": it does not
}

// RemoteInfo says how a server is reached from elsewhere; the zero value: it is
// not.
type RemoteInfo struct {
	Address string // at which it listens
	URL     string // what it is called
	Pin     string // its key, as PinOf gives it
}

// A Check is one thing that the machine has or lacks.
type Check struct {
	Name    string
	State   string // CheckOK, CheckWarning or CheckMissing
	Message string
	Remedy  string // the command, or a sentence
}

// The states of a Check.
const (
	CheckOK      = "ok"
	CheckWarning = "warning" // works, but less well
	CheckMissing = "missing" // environments cannot run
)

// Collected says what was freed.
type Collected struct {
	Layers, Blobs, Volumes int
	Warm                   int   // snapshots of ready states
	Releases               int   // that nothing names and no rule keeps
	Freed                  int64 // bytes
}

// Config is what the API stands in front of. All of it is required but where it
// says otherwise.
type Config struct {
	Environments Environments
	Builder      Builder
	Images       Images
	Blobs        Blobs
	Audit        Audit
	Signer       *audit.Signer // of the log's checkpoints
	Host         Host
	Policy       Policy
	Secrets      Secrets
	Recordings   Recordings
	Approvals    Approvals
	Snapshots    Snapshots
	Releases     Releases
	// Drifting is what was found of an instance that is not as released, for people;
	// nil: nobody looks.
	Drifting func(isle.ID) []string
	// Capture makes a snapshot of an environment; environment.Manager does.
	Capture     func(ctx context.Context, actor isle.Actor, ref isle.Ref, req environment.SnapshotRequest) (snapshot.Snapshot, error)
	Identities  *identity.Registry
	Credentials Credentials   // of callers from elsewhere; nil: there are none
	Gateway     Gateway       // that serves connections; nil: there is none
	TrustDomain func() string // of this server's identities; nil: it gives none
	Mirror      string        // of requests that name none; "" is the machine's
	// Refused records what a caller was refused, within what one of them may put
	// into the log. It returns when the entry is durable, or counted. nil: each is
	// appended.
	Refused func(e audit.Entry)
	Log     *slog.Logger

	guard *guard // made by New
}

// New returns the handler of all services. The http.Server it is given to uses
// ConnContext, and speaks HTTP/2 without TLS for the bidirectional streams.
func New(cfg Config) http.Handler {
	g := &guard{policy: cfg.Policy, credentials: cfg.Credentials, log: cfg.Audit, slog: cfg.Log, refused: cfg.Refused, rules: cfg.rules(), released: cfg.copiesRelease}
	cfg.guard = g
	options := []connect.HandlerOption{
		connect.WithInterceptors(g),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithConditionalHandlerOptions(func(s connect.Spec) []connect.HandlerOption {
			if s.StreamType&connect.StreamTypeClient == 0 {
				return nil
			}
			return []connect.HandlerOption{connect.WithReadMaxBytes(maxPiece)}
		}),
		connect.WithCompression("gzip", nil, nil), // some bytes would be maxMessage of them, before anybody is asked
		connect.WithRecover(func(_ context.Context, s connect.Spec, _ http.Header, p any) error {
			cfg.Log.Error("a call panicked", "procedure", s.Procedure, "panic", p, "stack", string(debug.Stack()))
			return toWire(isle.Errorf(isle.Internal, "the server made a mistake in %s: %v", s.Procedure, p).WithHint("please report it; the server's log has more"))
		}),
	}
	mux := http.NewServeMux()
	mux.Handle(islev1connect.NewEnvironmentServiceHandler(&environments{cfg}, options...))
	mux.Handle(islev1connect.NewForkServiceHandler(&forks{cfg}, options...))
	mux.Handle(islev1connect.NewBuildServiceHandler(&images{cfg}, options...))
	mux.Handle(islev1connect.NewImageServiceHandler(&named{cfg}, options...))
	mux.Handle(islev1connect.NewServerServiceHandler(&host{cfg}, options...))
	mux.Handle(islev1connect.NewPolicyServiceHandler(&policies{cfg}, options...))
	mux.Handle(islev1connect.NewSecretServiceHandler(&secrets{cfg}, options...))
	mux.Handle(islev1connect.NewSessionServiceHandler(&recordings{cfg}, options...))
	mux.Handle(islev1connect.NewApprovalServiceHandler(&approvals{cfg}, options...))
	mux.Handle(islev1connect.NewIdentityServiceHandler(&identities{Config: cfg}, options...))
	mux.Handle(islev1connect.NewSnapshotServiceHandler(&snapshots{cfg}, options...))
	mux.Handle(islev1connect.NewReleaseServiceHandler(&releases{cfg, make(chan struct{}, 1)}, options...))
	mux.Handle(islev1connect.NewConnectionServiceHandler(&connections{cfg}, options...))
	mux.Handle("/", tilesMux(&tiles{cfg.Audit, cfg.Signer, cfg.Log, g.mayReadLog}))
	return impatient(mux)
}

// actorOf is who acts; the guard has seen to it that there is someone.
func actorOf(ctx context.Context) isle.Actor {
	a, _ := ActorFrom(ctx)
	return a
}

// allowed asks about what a handler has found out to do beyond its call's rule.
func (cfg Config) allowed(ctx context.Context, asks ...ask) error {
	who, _ := callerFrom(ctx)
	_, err := cfg.guard.may(ctx, who, queriesOf(who, asks...), "")
	return err
}

// recorded does something between its intent and its outcome in the audit log.
func (cfg Config) recorded(ctx context.Context, intent audit.Entry, do func() error) error {
	if err := cfg.Audit.Append(ctx, intent); err != nil {
		return err
	}
	err := do()
	if aerr := cfg.Audit.Append(context.WithoutCancel(ctx), intent.Outcome(err)); aerr != nil {
		cfg.Log.Error("an outcome could not be recorded; recovery will close it as unknown", "action", intent.Action, "err", aerr)
	}
	return err
}

var (
	_ Builder      = (*build.Builder)(nil)
	_ Blobs        = (*image.Store)(nil)
	_ Environments = (*environment.Manager)(nil)
)
