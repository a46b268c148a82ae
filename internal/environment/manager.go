package environment

import (
	"context"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
	"isle/internal/problem"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// Config is what a Manager needs. All of it is required unless said.
type Config struct {
	Store   Store
	Ports   Ports
	Driver  Driver // if it is also a Watcher, launches found at start are watched
	Network Network
	Volumes Volumes
	Lines   Lines
	Images  Images
	// Snapshots hold captured states; nil: there are none.
	Snapshots Snapshots
	// Warm are those of them that environments begin with; nil: none do.
	Warm WarmSnapshots
	// Sealed is the digest of all that decides what is in the memory of an
	// environment that is ready, whoever's it is: its release and the programs
	// that run it. It is needed with Warm.
	Sealed func(spec.File, map[string]image.Image) (isle.Digest, error)
	// Policy grants what files ask for; nil grants all of it.
	Policy Policy
	// Trust gives the certificates (PEM) that the services of an instance trust
	// beside those of their images, where its egress to the hosts is inspected.
	// nil: none.
	Trust func(instance isle.ID, hosts []string) ([]byte, error)
	// Waiting says at which connections of an instance sessions wait for an
	// approval, and how many; nil: none ever do.
	Waiting func(instance isle.ID) map[string]int
	// Init is the path of the isle-init binary.
	Init string
	// Logs is the folder for what services write, LOGS/<instance>/<service>.log,
	// bounded to twice LogSize each, and for the baselines of seeded volumes.
	Logs string
	// Forks is the folder for memory that copies are about to go on from; it is
	// emptied at start.
	Forks string
	// LogSize bounds one log file in bytes; default 10 MiB. There are two of
	// each: the present one and the one before.
	LogSize int64
	// Visits says who may connect to published ports; nil: everybody who reaches
	// them.
	Visits Visits
	// HTTP is the address of the listener that reaches published ports by name,
	// http://PORT.NAME[.STAGE].localhost; "" for none.
	HTTP string
	// Listen opens the listeners of published ports and names, each under a key
	// of its own, by which a program that takes over from this one may be given
	// it; default net.Listen.
	Listen func(key, network, address string) (net.Listener, error)
	// Grace is how long a service may take to end before it is killed; default
	// 10 s.
	Grace time.Duration
	// Drain is how long what an instance was asked may take to end once another
	// one has taken its place; default 30 s. KeepAside is how long that instance is
	// kept, frozen; default 1 hour.
	Drain, KeepAside time.Duration
	// OnFork is how long an on_fork may take; default 5 minutes.
	OnFork time.Duration
	// Spares is how many instances are kept ready for the next launches, by
	// class of isolation, if the driver is a Stocker; default none. At most
	// MaxSpares count.
	Spares map[string]int
	// Settle is how long a command without a check must run to count as up, so
	// that one which fails at once is reported; default 100 ms.
	Settle time.Duration
	// Boot names this run of the machine; default the kernel's boot ID.
	Boot string
	// Now tells the time; default time.Now.
	Now Clock
	// Log gets what an operator may want to know; nil discards it.
	Log *slog.Logger
	// Fault is called by name around each step, for tests that crash there;
	// nil in production. FaultPoints lists the names.
	Fault func(point string)
}

// Images hands out the files of an image's layers.
type Images interface {
	// Verify returns the paths of the layers, lowest first, each of them hashed.
	Verify(ctx context.Context, m image.Image) (layerPaths []string, err error)
}

// The bounds of what a Manager waits for and allows.
const (
	homeLimit  = 60 * time.Second // for isle-init to call home
	setupLimit = 15 * time.Minute // for setup to end
	// launchLimit is how long the driver may take over a launch, or over bringing
	// memory back: it takes one of a few turns that all environments share, and
	// whoever broke into a sandbox's kernel can have that never answer.
	launchLimit = 5 * time.Minute
	// lingerLimit is how long isle-init may take to end after what it ran did.
	lingerLimit = 10 * time.Second
	// keepVolumes is how long volumes are kept after a ttl ended.
	keepVolumes = 7 * 24 * time.Hour
	// maxConnections bounds the connections to one environment's published
	// ports, so that one cannot take the file descriptors of all.
	maxConnections = 256
	// idleOneShot is how long a one-shot environment may have no client.
	idleOneShot = 60 * time.Second
)

// A Manager makes environments be what they should be. Its methods may be
// called from any goroutine; work on one environment never waits for another's,
// and List and Get wait for nothing.
type Manager struct {
	cfg      Config
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	work     sync.WaitGroup // every goroutine that outlives a call
	locks    locks
	launches chan struct{} // bounds how many sandboxes are made at a time
	patience time.Duration // with the driver, for each of them: launchLimit
	subuids  []uidRange    // given to others by the machine

	mu      sync.Mutex
	envs    map[isle.Ref]*live
	staged  map[isle.ID]*live // replacements that do not serve yet, by instance
	volumes map[isle.ID]Volume
	// leaving are the uids of instances that are neither in envs nor staged any
	// more, and of which processes may be left: nobody else gets them.
	leaving map[isle.ID]uint32
	// generation is the last that was given to a copy.
	generation int64
	// futile are keys of ready states with which no warm start comes to anything,
	// and keeping those of states that are being captured.
	futile, keeping map[isle.Digest]bool
	closed          bool
	pool            pool
	web             *webServer
}

// New returns a Manager that knows nothing yet: call Reconcile before anything
// else.
func New(cfg Config) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.LogSize <= 0 {
		cfg.LogSize = 10 << 20
	}
	if cfg.Listen == nil {
		cfg.Listen = func(_, network, address string) (net.Listener, error) { return net.Listen(network, address) }
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.Drain <= 0 {
		cfg.Drain = defaultDrain
	}
	if cfg.KeepAside <= 0 {
		cfg.KeepAside = defaultKeepAside
	}
	if cfg.OnFork <= 0 {
		cfg.OnFork = 5 * time.Minute
	}
	if cfg.Settle <= 0 {
		cfg.Settle = 100 * time.Millisecond
	}
	if cfg.Boot == "" {
		b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it a reboot looks like a crash
		cfg.Boot = strings.TrimSpace(string(b))
	}
	m := &Manager{
		cfg: cfg, envs: map[isle.Ref]*live{}, staged: map[isle.ID]*live{}, volumes: map[isle.ID]Volume{}, leaving: map[isle.ID]uint32{},
		pool: newPool(), futile: map[isle.Digest]bool{}, keeping: map[isle.Digest]bool{},
		launches: make(chan struct{}, max(4, 2*runtime.NumCPU())), patience: launchLimit,
		subuids: readSubuids("/etc/subuid", "/etc/subgid"),
	}
	m.locks.refs = map[isle.Ref]*refLock{}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends the server's part: listeners, watches and restarts. Environments
// run on; the next Manager's Reconcile takes them up.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	envs := m.allLocked()
	web := m.web
	m.mu.Unlock()
	m.cancel()
	if web != nil {
		web.close()
	}
	for _, l := range envs {
		l.unpublishAll()
	}
	m.work.Wait()
	m.drainPool()
	for _, l := range envs {
		l.closeLogs()
	}
	return nil
}

// Drain stops taking connections to published ports and names, and waits until
// those that are open have ended or ctx has. Close must follow.
func (m *Manager) Drain(ctx context.Context) {
	m.mu.Lock()
	envs := m.allLocked()
	web := m.web
	m.mu.Unlock()
	for _, l := range envs {
		l.mu.Lock()
		all := make([]*publisher, 0, len(l.published))
		for _, p := range l.published {
			all = append(all, p)
		}
		l.mu.Unlock()
		for _, p := range all {
			p.ln.Close()
			select {
			case <-p.done: // what it accepted last is counted
			case <-ctx.Done():
			}
		}
	}
	if web != nil {
		web.drain(ctx)
	}
	for _, l := range envs {
		for len(l.connections) > 0 && sleep(ctx, 5*time.Millisecond) {
		}
	}
}

// spawn runs f as one of the Manager's own goroutines, unless it is closed.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Go(f)
	return true
}

func (m *Manager) fault(point string) {
	if m.cfg.Fault != nil {
		m.cfg.Fault(point)
	}
}

func (m *Manager) allLocked() []*live {
	out := make([]*live, 0, len(m.envs))
	for _, l := range m.envs {
		out = append(out, l)
	}
	for _, l := range m.staged {
		out = append(out, l)
	}
	return out
}

func (m *Manager) all() []*live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.allLocked()
}

// find returns the environment of a ref, nil if there is none.
func (m *Manager) find(ref isle.Ref) *live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.envs[ref]
}

// get is find, with the error for a person.
func (m *Manager) get(ref isle.Ref) (*live, error) {
	if l := m.find(ref); l != nil {
		return l, nil
	}
	return nil, m.notFound(ref)
}

// notFound says that there is no such environment, and which there are that
// may have been meant.
func (m *Manager) notFound(ref isle.Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var near, names []string
	for r := range m.envs {
		names = append(names, r.String())
		if problem.Distance(r.Name, ref.Name) <= 2 || strings.HasPrefix(r.Name, ref.Name) || r.Name == ref.Name {
			near = append(near, r.String())
		}
	}
	slices.Sort(near)
	slices.Sort(names)
	err := isle.Errorf(isle.NotFound, "there is no environment %s", ref)
	switch {
	case len(near) > 0:
		return err.WithHint("did you mean %s?", strings.Join(near[:min(len(near), 3)], " or "))
	case len(names) > 0:
		return err.WithHint("there are: %s; isle ls tells more", strings.Join(names[:min(len(names), 8)], ", "))
	}
	return err.WithHint("nothing is up; isle up starts one")
}

// List returns every environment, oldest first.
func (m *Manager) List(context.Context) ([]Environment, error) {
	out := []Environment{}
	for _, l := range m.all() {
		if e := l.snapshot(); !e.Staged {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Environment) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.Instance), string(b.Instance))
	})
	return out, nil
}

// Get returns one environment.
func (m *Manager) Get(_ context.Context, ref isle.Ref) (Environment, error) {
	l, err := m.get(ref)
	if err != nil {
		return Environment{}, err
	}
	return l.snapshot(), nil
}

// ByInstance returns the environment of an instance; the airlock names who
// calls by it.
func (m *Manager) ByInstance(instance isle.ID) (Environment, bool) {
	for _, l := range m.all() {
		if l.instance == instance {
			return l.snapshot(), true
		}
	}
	return Environment{}, false
}

// Changed returns a channel that is closed when the record of an instance is
// another one; nil where there is no such instance.
func (m *Manager) Changed(instance isle.ID) <-chan struct{} {
	for _, l := range m.all() {
		if l.instance == instance {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.changed
		}
	}
	return nil
}

// ByLaunch returns the environment and the service of a launch that is to run:
// not that of one which was replaced, nor of an environment that is to be down.
func (m *Manager) ByLaunch(instance, launch isle.ID) (e Environment, service string, ok bool) {
	e, ok = m.ByInstance(instance)
	if !ok || e.Desired == WantDown {
		return Environment{}, "", false
	}
	for _, s := range e.Services {
		if s.Launch == launch {
			return e, s.Name, true
		}
	}
	return Environment{}, "", false
}

// Over returns when a launch is not ByLaunch any more, or ctx ends.
func (m *Manager) Over(ctx context.Context, instance, launch isle.ID) {
	for _, l := range m.all() {
		if l.instance == instance {
			_ = l.wait(ctx, func(e Environment) bool {
				return e.Desired == WantDown || !slices.ContainsFunc(e.Services, func(s Service) bool { return s.Launch == launch })
			})
		}
	}
}

// Usage returns what an environment uses now.
func (m *Manager) Usage(ctx context.Context, ref isle.Ref) (Usage, error) {
	l, err := m.get(ref)
	if err != nil {
		return Usage{}, err
	}
	return m.cfg.Driver.Usage(ctx, l.instance)
}

// VolumesOf returns the volumes of an environment, or those that were kept of
// one that is down.
func (m *Manager) VolumesOf(_ context.Context, ref isle.Ref) ([]Volume, error) {
	return m.volumesOf(ref), nil
}

func (m *Manager) volumesOf(ref isle.Ref) []Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []Volume{}
	for _, v := range m.volumes {
		if v.Ref == ref && v.For == "" {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// volumesFor are those of an environment, also while it is staged.
func (m *Manager) volumesFor(e Environment) (out []Volume) {
	if !e.Staged {
		return m.volumesOf(e.Ref)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		if v.For == e.Instance {
			out = append(out, v)
		}
	}
	return out
}

// remember takes what was stored about volumes into memory.
func (m *Manager) remember(put []Volume, removed []isle.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range put {
		m.volumes[v.ID] = v
	}
	for _, id := range removed {
		delete(m.volumes, id)
	}
}

// Kept returns the refs of environments that are not up and have volumes still.
func (m *Manager) Kept(context.Context) (refs []isle.Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		if m.envs[v.Ref] == nil && v.For == "" && !slices.Contains(refs, v.Ref) {
			refs = append(refs, v.Ref)
		}
	}
	return refs
}

// VolumeUsed is how many bytes a volume occupies on disk.
func (m *Manager) VolumeUsed(id isle.ID) (int64, error) { return m.cfg.Volumes.Used(id) }

// InUse returns what must not be collected: the images of every environment
// and snapshot, and every volume that has a record or is a snapshot's.
func (m *Manager) InUse(context.Context) (images []image.Image, volumes []isle.ID) {
	seen := map[isle.Digest]bool{}
	use := func(img image.Image) {
		if d := img.Digest(); !seen[d] {
			seen[d] = true
			images = append(images, img)
		}
	}
	for _, l := range m.all() {
		for _, s := range l.snapshot().Services {
			use(s.Image)
		}
	}
	if m.cfg.Snapshots != nil {
		m.cfg.Snapshots.Images(func(s snapshot.Service) { use(s.Image) })
		volumes = m.cfg.Snapshots.Volumes()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.volumes {
		volumes = append(volumes, id)
	}
	return images, volumes
}

// Resource is the environment as what an action is done to.
func resource(ref isle.Ref) isle.Resource {
	return isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}
}

func serviceResource(ref isle.Ref, service string) isle.Resource {
	return isle.Resource{Kind: "service", Name: ref.Name + "/" + service, Stage: ref.Stage}
}

// begin writes the intent of an action that changes no record.
func (m *Manager) begin(ctx context.Context, e audit.Entry) (audit.Entry, error) {
	e = e.Explained(ctx) // its outcome, which is written without a caller, names the rule too
	return e, m.cfg.Store.Append(ctx, e)
}

// end writes how it ended. The caller may have left by now: that changes
// nothing about what happened.
func (m *Manager) end(intent audit.Entry, err error) {
	if e := m.cfg.Store.Append(context.WithoutCancel(m.ctx), intent.Outcome(err)); e != nil {
		m.cfg.Log.Error("the outcome of an action could not be recorded; recovery will close it as unknown", "intent", intent.ID, "error", e)
	}
}
