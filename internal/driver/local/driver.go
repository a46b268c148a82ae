// Package local makes sandboxes on this machine.
//
// A launch is an OCI container made by crun or runc. Its root is a read-only
// overlay of the image's EROFS layers, mounted with shifted owners in a mount
// namespace that only the container is left in: no mount of a launch is ever
// seen by the host, and when the container dies all of them, and the loop
// devices of its volumes, vanish by themselves. Its processes are in a control
// group of its own, below that of the instance, which has the limits. A folder
// of the state folder, made before anything else, says that the launch exists.
//
// So everything that a launch consists of is its processes, its groups and its
// folder, all three named by its ID; what the server left half done when it
// died is found by List and removed by Kill and Remove.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"isle"
	"isle/internal/driver/local/checkpoint"
	"isle/internal/environment"
)

// A Config says how a Driver works.
type Config struct {
	// State is the folder that the driver keeps its folders sandboxes and
	// volumes in. Two drivers with different folders don't see each other.
	State string
	// Runtime is the path or name of the OCI runtime. "" is crun, or runc where
	// there is no crun, looked for when the first launch needs it.
	Runtime string
	// Runsc is the path of isle-runsc, for the class gvisor. "": there is none.
	Runsc string
	// CgroupParent is the control group below which the driver makes its own,
	// relative to the root of each hierarchy. "" is the root.
	CgroupParent string
	// BuildUIDs is the first of 65,536 host uids that build steps run as.
	// Default 0x0fff0000, just below those of environments. No environment may
	// have the same.
	BuildUIDs uint32
	// Log is for what can't be told to a caller. Default slog.Default.
	Log *slog.Logger
	// Fault is called by name around each step, for tests that crash there;
	// nil in production. FaultPoints lists the names.
	Fault func(point string)
}

// A Driver implements environment.Driver, environment.Watcher and build.Sandbox.
type Driver struct {
	given    Config
	state    string
	private  string // where each launch mounts its private folder, in its own namespace
	groups   *cgroups
	hide     []string
	seccomp  *specs.LinuxSeccomp
	volumes  *Volumes
	layers   layerMounts
	ids      idMaps
	silence  *os.File // what containers have for stdin, stdout and stderr
	log      *slog.Logger
	watchers watchers
	builds   checkpoint.Builds
	sealed   sealedRuntime

	mu      sync.Mutex
	runtime string               // path, once found
	locks   map[isle.ID]*keyLock // by launch
	steps   map[isle.ID]bool     // instances of build steps that run now
	spares  map[isle.ID]*spare   // by the launch that each stands ready for
}

type keyLock struct {
	sync.Mutex
	users int
}

var (
	_ environment.Driver   = (*Driver)(nil)
	_ environment.Watcher  = (*Driver)(nil)
	_ environment.Warmer   = (*Driver)(nil)
	_ environment.Capturer = (*Driver)(nil)
	_ environment.Freezer  = (*Driver)(nil)
	_ environment.Volumes  = (*Volumes)(nil)
)

// New returns a Driver for the state folder. It fails only where it can't make
// its folders or read the control groups; Check says what else is missing.
func New(c Config) (*Driver, error) {
	d, err := assemble(c)
	if err != nil {
		return nil, err
	}
	for dir, mode := range map[string]os.FileMode{d.sandboxes(): 0o700, d.volumes.dir: 0o700, d.private: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, isle.Errorf(isle.Unavailable, "the driver's folder: %w", err).WithHint("run the server as root")
		}
	}
	if err := d.volumes.store.open(); err != nil {
		// What has no volume there runs all the same, and what has is told why not.
		d.log.Error("the store of volumes can't be opened", "err", err)
	}
	d.thawAll()
	return d, nil
}

// assemble makes a driver, and nothing on the machine.
func assemble(c Config) (*Driver, error) {
	state, err := filepath.Abs(c.State)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.BuildUIDs == 0 {
		c.BuildUIDs = 0x0fff_0000
	}
	if c.Fault == nil {
		c.Fault = func(string) {}
	}
	sum := sha256.Sum256([]byte(state))
	name := "isle-" + hex.EncodeToString(sum[:4])
	groups, err := findCgroups(strings.Trim(filepath.Join(c.CgroupParent, name), "/"))
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	silence, err := newSilence()
	if err != nil {
		return nil, err
	}
	volumes := filepath.Join(state, "volumes")
	return &Driver{
		silence: silence,
		given:   c,
		state:   state,
		private: "/run/" + name, // not below the state folder, which is closed to the container's root
		groups:  groups,
		hide:    groups.hybrid(),
		seccomp: seccompFilter(),
		volumes: &Volumes{dir: volumes, store: &store{dir: volumes, kinds: storeKinds(), fault: c.Fault}, fault: c.Fault},
		log:     c.Log,
		runtime: "",
		locks:   make(map[isle.ID]*keyLock),
		steps:   make(map[isle.ID]bool),
		spares:  make(map[isle.ID]*spare),
	}, nil
}

// Volumes returns the volumes of the state folder.
func (d *Driver) Volumes() environment.Volumes { return d.volumes }

// Close lets go of what the driver holds open. Launches run on; their exited
// functions are not called any more.
func (d *Driver) Close() error {
	d.watchers.close()
	d.closeSpares()
	d.layers.close()
	d.ids.close()
	d.silence.Close()
	d.sealed.close()
	d.volumes.store.close()
	os.Remove(d.private) // empty on the host
	os.Remove(d.runsc().Root)
	d.groups.removeRoot()
	return nil
}

func (d *Driver) sandboxes() string { return filepath.Join(d.state, "sandboxes") }

// runtimeRoot is where the OCI runtime keeps its own state.
func (d *Driver) runtimeRoot() string { return filepath.Join(d.sandboxes(), ".runtime") }

func (d *Driver) dir(instance, launch isle.ID) string {
	return filepath.Join(d.sandboxes(), string(instance), string(launch))
}

// findRuntime returns the path of the OCI runtime.
func (d *Driver) findRuntime() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runtime != "" {
		return d.runtime, nil
	}
	names := []string{"crun", "runc"}
	if d.given.Runtime != "" {
		names = []string{d.given.Runtime}
	}
	for _, name := range names {
		if path, err := findTool(name); err == nil {
			d.runtime = path
			return path, nil
		}
	}
	return "", isle.Errorf(isle.Unavailable, "no OCI runtime: %s is not installed", strings.Join(names, " or ")).WithHint("apt-get install crun")
}

// crun reports whether the runtime found is crun and not runc.
func (d *Driver) crun() bool { return strings.Contains(filepath.Base(d.runtime), "crun") }

// lock holds a launch: what is done to it is done one after the other.
func (d *Driver) lock(id isle.ID) (unlock func()) {
	d.mu.Lock()
	k := d.locks[id]
	if k == nil {
		k = &keyLock{}
		d.locks[id] = k
	}
	k.users++
	d.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		d.mu.Lock()
		if k.users--; k.users == 0 {
			delete(d.locks, id)
		}
		d.mu.Unlock()
	}
}

// Prepare makes the control groups that hold the environment's limits.
func (d *Driver) Prepare(ctx context.Context, s environment.Shared) error {
	if !s.Instance.Valid() {
		return isle.Errorf(isle.Internal, "prepare: %q is no ID", s.Instance)
	}
	limits, devices := s.Limits, true
	if s.Isolation == classGvisor {
		limits = sandboxLimits(limits)
	} else {
		if _, err := d.findRuntime(); err != nil {
			return err
		}
		devices = d.crun()
	}
	if err := d.groups.prepare(string(s.Instance), limits, devices); err != nil {
		return isle.Errorf(isle.Unavailable, "limits of environment %s: %w", s.Instance, err).WithHint("isle doctor")
	}
	return nil
}

// Warm makes the user namespace of an environment, which a process has to be
// started for.
func (d *Driver) Warm(uidBase uint32) {
	if ns, err := d.ids.get(uidBase); err == nil {
		ns.Close()
	}
}

// Launch starts one service and returns once its isle-init has been given Boot.
func (d *Driver) Launch(ctx context.Context, l environment.Launch) error {
	if !l.Instance.Valid() || !l.ID.Valid() || l.UIDBase == 0 || l.Init == "" {
		return isle.Errorf(isle.Internal, "launch %q of instance %q: incomplete", l.ID, l.Instance)
	}
	defer d.lock(l.ID)()
	if d.alive(l.Instance, l.ID) {
		return isle.Errorf(isle.Conflict, "launch %s runs already", l.ID)
	}
	c, launch := containerOf(ctx, l), d.launchInSandbox
	var err error
	if l.Isolation != classGvisor {
		launch, err = d.launch, d.unsandbox(ctx, c)
	}
	if err == nil {
		err = launch(ctx, c, l)
	}
	if err == nil {
		d.given.Fault("launch.told")
		err = d.watch(l.Instance, l.ID, l.Exited)
	}
	if err == nil {
		return nil
	}
	// Nothing may be left, whatever became of the caller.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if cleanErr := d.tidy(clean, l.Instance, l.ID); cleanErr != nil {
		d.log.Error("a failed launch left something behind", "instance", l.Instance, "launch", l.ID, "err", cleanErr)
	}
	var known *isle.Error
	if errors.As(err, &known) {
		return err
	}
	return isle.Errorf(isle.Failed, "launch service %s: %w", l.Service, err)
}

// containerOf is the container of a launch, which ctx bounds the start of.
func containerOf(ctx context.Context, l environment.Launch) *container {
	c := &container{
		ctx: ctx, instance: l.Instance, id: l.ID, service: l.Service, hostname: l.Hostname, hosts: l.Hosts,
		machine: l.MachineID, forked: l.Generation,
		layers: l.Layers, uidBase: l.UIDBase, network: l.Network, volumes: l.Volumes, tmpfs: l.Tmpfs, writable: l.Writable,
		caps: l.Caps, limits: l.Limits, init: l.Init, command: []string{initPath}, env: []string{"PATH=" + defaultPath},
		class: classContainer,
	}
	if l.Isolation == classGvisor {
		c.class, c.command = classGvisor, []string{initPath, "0"}
	}
	return c
}

func (d *Driver) launch(ctx context.Context, c *container, l environment.Launch) error {
	if s := d.takeSpare(l.ID); s != nil {
		if done, err := d.launchSpare(s, c, l.Boot); done || err != nil {
			return err
		}
	}
	read, boot, err := os.Pipe()
	if err != nil {
		return err
	}
	defer boot.Close()
	err = d.start(c, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{read} })
	read.Close()
	if err != nil {
		return err
	}
	return d.tell(boot, l.Boot)
}

// tell writes isle-init its orders. It reads them before it does anything, so
// it is what has started.
func (d *Driver) tell(boot *os.File, orders []byte) error {
	if err := boot.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := boot.Write(orders); err != nil {
		return fmt.Errorf("isle-init did not read its instructions: %w", err)
	}
	return nil
}

// Kill ends one launch and removes what it consisted of.
func (d *Driver) Kill(ctx context.Context, instance, launch isle.ID) error {
	if !instance.Valid() || !launch.Valid() {
		return isle.Errorf(isle.Internal, "kill %q of %q: no ID", launch, instance)
	}
	defer d.lock(launch)()
	return d.tidy(ctx, instance, launch)
}

// tidy ends the launch's processes and removes its groups and its folder, in
// this order: until the folder is gone, List tells of it.
func (d *Driver) tidy(ctx context.Context, instance, launch isle.ID) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if s := d.takeSpare(launch); s != nil {
		s.close()
	}
	if err := d.groups.kill(ctx, string(instance), string(launch)); err != nil {
		return isle.Errorf(isle.Unavailable, "end launch %s: %w", launch, err)
	}
	if d.sandboxed(instance) {
		if err := d.leaveSandbox(ctx, instance, launch); err != nil {
			return isle.Errorf(isle.Unavailable, "end launch %s: %w", launch, err)
		}
	}
	d.given.Fault("kill.ended")
	if err := d.groups.remove(ctx, string(instance), string(launch)); err != nil {
		return isle.Errorf(isle.Unavailable, "end launch %s: %w", launch, err)
	}
	d.given.Fault("kill.groups")
	if err := os.RemoveAll(filepath.Join(d.runtimeRoot(), string(launch))); err != nil {
		return isle.Errorf(isle.Unavailable, "remove launch %s: %w", launch, err)
	}
	if err := os.RemoveAll(d.dir(instance, launch)); err != nil {
		return isle.Errorf(isle.Unavailable, "remove launch %s: %w", launch, err)
	}
	return nil
}

// Remove ends every launch of the instance and removes its control group.
func (d *Driver) Remove(ctx context.Context, instance isle.ID) error {
	if !instance.Valid() {
		return isle.Errorf(isle.Internal, "remove: %q is no ID", instance)
	}
	if d.sandboxed(instance) { // first, and every container of it ends at once
		if err := d.endSandbox(ctx, instance); err != nil {
			return err
		}
	}
	for _, launch := range d.launches()[instance] {
		if err := d.Kill(ctx, instance, launch); err != nil {
			return err
		}
	}
	if err := d.groups.remove(ctx, string(instance), ""); err != nil {
		return isle.Errorf(isle.Unavailable, "remove environment %s: %w", instance, err)
	}
	d.given.Fault("remove.groups")
	if err := os.RemoveAll(filepath.Join(d.sandboxes(), string(instance))); err != nil {
		return isle.Errorf(isle.Unavailable, "remove environment %s: %w", instance, err)
	}
	if len(d.launches()) == 0 {
		d.layers.release()
		d.groups.removeRoot()
	}
	return nil
}

// launches finds every launch that has a folder or a group, by instance.
func (d *Driver) launches() map[isle.ID][]isle.ID {
	found := make(map[isle.ID][]isle.ID)
	add := func(instance, launch isle.ID) {
		if !instance.Valid() {
			return
		}
		if _, ok := found[instance]; !ok {
			found[instance] = nil
		}
		if launch.Valid() && !slices.Contains(found[instance], launch) {
			found[instance] = append(found[instance], launch)
		}
	}
	instances, _ := os.ReadDir(d.sandboxes())
	for _, i := range instances {
		add(isle.ID(i.Name()), "")
		launches, _ := os.ReadDir(filepath.Join(d.sandboxes(), i.Name()))
		for _, l := range launches {
			add(isle.ID(i.Name()), isle.ID(l.Name()))
		}
	}
	for i, launches := range d.groups.list() {
		add(isle.ID(i), "")
		for _, l := range launches {
			add(isle.ID(i), isle.ID(l))
		}
	}
	return found
}

// List says what exists. Build steps that run now are not among it; those of a
// server that died are, as instances that no record has.
func (d *Driver) List(ctx context.Context) ([]environment.Sandbox, error) {
	var all []environment.Sandbox
	for instance, launches := range d.launches() {
		d.mu.Lock()
		step := d.steps[instance]
		d.mu.Unlock()
		if step {
			continue
		}
		if len(launches) == 0 {
			all = append(all, environment.Sandbox{Instance: instance})
		}
		for _, l := range launches {
			all = append(all, environment.Sandbox{Instance: instance, Launch: l, Alive: d.alive(instance, l)})
		}
	}
	slices.SortFunc(all, func(a, b environment.Sandbox) int {
		return strings.Compare(string(a.Instance+a.Launch), string(b.Instance+b.Launch))
	})
	return all, nil
}

// Usage is what an instance uses now.
func (d *Driver) Usage(ctx context.Context, instance isle.ID) (environment.Usage, error) {
	if !instance.Valid() {
		return environment.Usage{}, isle.Errorf(isle.Internal, "usage: %q is no ID", instance)
	}
	u := d.groups.usage(string(instance))
	if d.sandboxed(instance) {
		if n, err := d.tasks(ctx, instance); err == nil {
			u.PIDs = n
		} // else those on the host, which are more
	}
	return u, nil
}
