package environment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
	"isle/internal/initproto"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
	"isle/internal/seal"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// A world is what outlives a server: the machine's sandboxes, airlocks and
// volumes, and the store's content.
type world struct {
	t    *testing.T
	logs string

	mu        sync.Mutex
	life      *life
	sandboxes map[isle.ID]*sandbox
	prepared  map[isle.ID]spec.Limits
	networks  map[isle.ID]Grants
	thawed    func(isle.ID, Grants) // told of each that goes on, and of its doors then
	doors     []Door                // that every airlock tells of
	files     map[isle.ID]int       // volume -> how often it was made
	volumeDir string                // of the files of volumes
	ledger    *ledgertest.Memory    // of snapshots
	noSpace   error                 // of captures and clones
	captures  int
	envs      map[isle.ID]Environment
	volumes   map[isle.ID]Volume
	entries   []audit.Entry
	ports     map[string]int
	writes    int
	full      error    // of the store: nothing is written
	launched  []string // services, in order
	executed  []string // "SERVICE PROGRAM", in order
	launches  map[isle.ID]Launch
	inside    func(port int) (io.ReadWriteCloser, error)
	tree      spec.Tree
	build     isle.Digest          // of the runtime
	builtOf   isle.Digest          // that of what runs
	imageless map[isle.Digest]bool // images that are not in the store
	woken     []string             // services, in order
	broken    error                // of memory that is to be brought back
	stuck     error                // of instances that are to be removed
	stocks    []Stock              // in order
	frozen    map[isle.ID]bool
	// unstockable is why nothing can be prepared; nil: it can.
	unstockable error
}

// A life is one server's access to the world. Once it is dead nothing it does
// has any effect.
type life struct {
	*world
	dead    bool // under world.mu
	taken   *snapshot.Snapshots
	expects map[isle.ID]expected
	forks   map[isle.ID]expectedFork
	arrived chan struct{}
}

type expected struct {
	hash isle.Digest
	sink Events
}

// A sandbox plays isle-init of one launch.
type sandbox struct {
	w        *world
	instance isle.ID
	service  string
	boot     initproto.Boot
	asleep   bool          // it takes itself for the one that was captured; under world.mu
	stop     chan struct{} // closed to ask it to end
	killed   chan struct{} // closed when it is gone
	once     sync.Once
	stopOnce sync.Once
	exited   []func() // under world.mu
}

var errCrashed = errors.New("this server is dead")

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, logs: t.TempDir(), sandboxes: map[isle.ID]*sandbox{}, prepared: map[isle.ID]spec.Limits{},
		networks: map[isle.ID]Grants{}, files: map[isle.ID]int{}, envs: map[isle.ID]Environment{},
		volumes: map[isle.ID]Volume{}, launches: map[isle.ID]Launch{}, ports: map[string]int{},
		build: isle.DigestOf([]byte("isle-runsc")), builtOf: isle.DigestOf([]byte("isle-runsc")), frozen: map[isle.ID]bool{},
	}
	w.volumeDir, w.ledger = filepath.Join(w.logs, "volumes"), ledgertest.New()
	if err := os.Mkdir(w.volumeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.reboot)
	return w
}

// snapshots opens those of the world for a server.
func (l *life) snapshots() *snapshot.Snapshots {
	key, err := seal.NewKey("test", bytes.Repeat([]byte{1}, 32))
	if err != nil {
		l.t.Fatal(err)
	}
	s, err := snapshot.Open(l.t.Context(), snapshot.Config{Dir: filepath.Join(l.logs, "snapshots"), Volumes: (*fakeVolumes)(l), Store: (*fakeLedger)(l), Key: key, WarmCount: 50})
	if err != nil && !l.isDead() {
		l.t.Fatal(err)
	}
	return s
}

// A fakeLedger is the world's ledger, which a dead server does not change.
type fakeLedger life

func (f *fakeLedger) Ledger(ctx context.Context, name string) ([]ledger.Record, audit.Entry, error) {
	return f.ledger.Ledger(ctx, name)
}

func (f *fakeLedger) ChangeLedger(ctx context.Context, c ledger.Change) error {
	if (*life)(f).isDead() {
		return errCrashed
	}
	return f.ledger.ChangeLedger(ctx, c)
}

// reboot ends every sandbox, as a machine does.
func (w *world) reboot() {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.sandboxes))
	w.networks = map[isle.ID]Grants{}
	w.prepared = map[isle.ID]spec.Limits{}
	w.mu.Unlock()
	for _, s := range all {
		s.kill()
	}
}

// serve begins a server's life and reconciles.
func (w *world) serve(change func(*Config)) *Manager {
	w.t.Helper()
	lf := &life{world: w, expects: map[isle.ID]expected{}, forks: map[isle.ID]expectedFork{}, arrived: make(chan struct{})}
	w.mu.Lock()
	w.life = lf
	w.mu.Unlock()
	lf.taken = lf.snapshots()
	cfg := Config{
		Store: lf, Ports: lf, Driver: (*fakeDriver)(lf), Network: (*fakeNetwork)(lf), Volumes: (*fakeVolumes)(lf), Lines: (*fakeLines)(lf),
		Images: lf, Snapshots: lf.taken, Warm: lf.taken, Sealed: sealed, Init: "/init", Logs: w.logs, Forks: filepath.Join(w.logs, "forks"), Grace: time.Second, Settle: 100 * time.Millisecond, Boot: "boot-1", Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m := New(cfg)
	w.t.Cleanup(func() {
		w.mu.Lock()
		lf.dead = true
		w.mu.Unlock()
		m.Close()
	})
	if err := m.Reconcile(w.t.Context()); err != nil && !lf.isDead() {
		w.t.Fatal(err)
	}
	return m
}

func (l *life) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

func (l *life) crash() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
}

// begin locks the world, unless the server is dead.
func (l *life) begin() error {
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return errCrashed
	}
	return nil
}

// Store and Ports.

func (l *life) Update(ctx context.Context, c Mutation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.full != nil {
		return l.full
	}
	after := maps.Clone(l.envs)
	for _, e := range c.PutEnvironments { // one after the other
		after[e.Instance] = e
		for _, other := range after {
			if other.Ref == e.Ref && other.Instance != e.Instance && !other.Staged && !e.Staged && !slices.Contains(c.RemoveEnvironments, other.Instance) {
				return isle.Errorf(isle.Conflict, "another environment is named %s", e.Ref)
			}
		}
	}
	l.writes++
	for _, id := range c.RemoveEnvironments {
		delete(l.envs, id)
	}
	for _, e := range c.PutEnvironments {
		b, _ := json.Marshal(e) // as a store keeps it
		var again Environment
		if err := json.Unmarshal(b, &again); err != nil {
			return err
		}
		l.envs[e.Instance] = again
	}
	for _, id := range c.RemoveVolumes {
		delete(l.volumes, id)
	}
	for _, v := range c.PutVolumes {
		l.volumes[v.ID] = v
	}
	l.entries = append(l.entries, c.Entries...)
	return nil
}

func (l *life) Append(ctx context.Context, entries ...audit.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return l.Update(ctx, Mutation{Entries: entries})
}

func (l *life) Environments(context.Context) ([]Environment, error) {
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.envs)), nil
}

func (l *life) Volumes(context.Context) ([]Volume, error) {
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.volumes)), nil
}

// fullLog lets the store take nothing more, until it is nil.
func (w *world) fullLog(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.full = err
}

func (w *world) openIntents() (out []audit.Entry) {
	closed := map[isle.ID]bool{}
	for _, e := range w.entries {
		closed[e.Link] = true
	}
	for _, e := range w.entries {
		if e.Kind == audit.Intent && !closed[e.ID] {
			out = append(out, e)
		}
	}
	return out
}

func (l *life) OpenIntents(context.Context) ([]audit.Entry, error) {
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return l.openIntents(), nil
}

func (l *life) Port(_ context.Context, ref isle.Ref, service, name string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ports[fmt.Sprint(ref, "/", service, "/", name)], nil
}

func (l *life) SetPort(_ context.Context, ref isle.Ref, service, name string, port int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.ports {
		if p == port {
			return isle.Errorf(isle.Conflict, "taken")
		}
	}
	l.ports[fmt.Sprint(ref, "/", service, "/", name)] = port
	return nil
}

func (l *life) ForgetPorts(_ context.Context, ref isle.Ref) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.ports, func(k string, _ int) bool { return len(k) > len(ref.String()) && k[:len(ref.String())] == ref.String() })
	return nil
}

func (l *life) Verify(_ context.Context, img image.Image) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.imageless[img.Digest()] {
		return nil, isle.Errorf(isle.NotFound, "a layer is not in the store")
	}
	return []string{"/layer"}, nil
}

type fakeDriver life

func (d *fakeDriver) Prepare(_ context.Context, s Shared) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	l.prepared[s.Instance] = s.Limits
	return nil
}

// fits says what a launch lacks; l.mu is held.
func (l *life) fits(x Launch) error {
	if _, ok := l.prepared[x.Instance]; !ok {
		return errors.New("not prepared")
	}
	if _, ok := l.networks[x.Instance]; !ok || x.Network == "" {
		return errors.New("no airlock")
	}
	for _, v := range x.Volumes {
		if l.files[v.Volume] == 0 {
			return errors.New("a volume without a file")
		}
	}
	return nil
}

func (d *fakeDriver) Launch(ctx context.Context, x Launch) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if err := l.fits(x); err != nil {
		return err
	}
	s := &sandbox{w: l.world, instance: x.Instance, service: x.Service, stop: make(chan struct{}), killed: make(chan struct{}), exited: []func(){x.Exited}}
	if err := json.Unmarshal(x.Boot, &s.boot); err != nil {
		return err
	}
	if len(s.boot.Command) > 0 && s.boot.Command[0] == "unlaunchable" {
		return errors.New("exec format error")
	}
	if len(s.boot.Command) > 0 && s.boot.Command[0] == "mute sandbox" {
		l.mu.Unlock()
		<-ctx.Done()
		l.mu.Lock()
		return context.Cause(ctx)
	}
	l.sandboxes[x.ID] = s
	l.launched = append(l.launched, x.Service)
	l.launches[x.ID] = x
	go s.play()
	return nil
}

func (d *fakeDriver) Stock(_ context.Context, s Stock) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.unstockable != nil {
		return l.unstockable
	}
	if _, ok := l.networks[s.Shared.Instance]; !ok || s.Network == "" {
		return errors.New("no airlock")
	}
	l.prepared[s.Shared.Instance] = s.Shared.Limits
	l.stocks = append(l.stocks, s)
	return nil
}

func (d *fakeDriver) Kill(_ context.Context, _, launch isle.ID) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	s := l.sandboxes[launch]
	delete(l.sandboxes, launch)
	l.mu.Unlock()
	if s != nil {
		s.kill()
	}
	return nil
}

func (d *fakeDriver) Remove(ctx context.Context, instance isle.ID) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	var all []isle.ID
	for id, s := range l.sandboxes {
		if s.instance == instance {
			all = append(all, id)
		}
	}
	if l.stuck != nil {
		l.mu.Unlock()
		return l.stuck
	}
	delete(l.prepared, instance)
	l.mu.Unlock()
	for _, id := range all {
		if err := d.Kill(ctx, instance, id); err != nil {
			return err
		}
	}
	return nil
}

func (d *fakeDriver) List(context.Context) (out []Sandbox, err error) {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for id, s := range l.sandboxes {
		out = append(out, Sandbox{Instance: s.instance, Launch: id, Alive: !s.isGone()})
	}
	for id := range l.prepared {
		out = append(out, Sandbox{Instance: id})
	}
	return out, nil
}

func (d *fakeDriver) Usage(context.Context, isle.ID) (Usage, error) { return Usage{Memory: 1}, nil }

func (d *fakeDriver) Watch(_, launch isle.ID, exited func()) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	s := l.sandboxes[launch]
	gone := s == nil || s.isGone()
	if !gone {
		s.exited = append(s.exited, exited)
	}
	l.mu.Unlock()
	if gone {
		exited()
	}
	return nil
}

type fakeNetwork life

func (n *fakeNetwork) Open(_ context.Context, instance isle.ID, grants Grants) (string, error) {
	l := (*life)(n)
	if err := l.begin(); err != nil {
		return "", err
	}
	defer l.mu.Unlock()
	l.networks[instance] = grants
	return "/netns/" + string(instance), nil
}

func (n *fakeNetwork) Close(_ context.Context, instance isle.ID) error {
	l := (*life)(n)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	delete(l.networks, instance)
	return nil
}

func (n *fakeNetwork) List(context.Context) ([]isle.ID, error) {
	l := (*life)(n)
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.networks)), nil
}

func (n *fakeNetwork) Doors(isle.ID) []Door {
	l := (*life)(n)
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.doors)
}

type fakeVolumes life

func (v *fakeVolumes) Create(_ context.Context, id isle.ID, _ int64) error {
	l := (*life)(v)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	l.files[id]++
	return os.WriteFile(v.Path(id), []byte(">"), 0o600) // a file system is never empty
}
func (v *fakeVolumes) Clone(_ context.Context, from, to isle.ID) (string, error) {
	l := (*life)(v)
	if err := l.begin(); err != nil {
		return "", err
	}
	defer l.mu.Unlock()
	return ByReflink, l.clone(from, to)
}

// clone is that of one volume; l.mu is held.
func (l *life) clone(from, to isle.ID) error {
	switch {
	case l.noSpace != nil:
		return l.noSpace
	case l.files[from] == 0:
		return errors.New("no such volume")
	}
	v := (*fakeVolumes)(l)
	b, err := os.ReadFile(v.Path(from))
	if err != nil {
		return err
	}
	l.files[to]++
	os.Remove(v.Path(to))
	return os.WriteFile(v.Path(to), b, 0o600)
}

func (d *fakeDriver) Capture(_ context.Context, c Capture) (Captured, error) {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return Captured{}, err
	}
	defer l.mu.Unlock()
	l.captures++
	for _, v := range c.Volumes {
		if err := l.clone(v.From, v.To); err != nil {
			for _, v := range c.Volumes {
				delete(l.files, v.To)
			}
			return Captured{}, err
		}
	}
	out := Captured{How: ByReflink}
	if c.Memory == "" {
		return out, nil
	}
	return l.freeze(c, out)
}

// Fill is for imports, which no test here makes.
func (v *fakeVolumes) Fill(context.Context, isle.ID, string) error {
	return errors.New("not imported here")
}

func (v *fakeVolumes) Path(id isle.ID) string { return filepath.Join(v.volumeDir, string(id)) }
func (v *fakeVolumes) Delete(_ context.Context, id isle.ID) error {
	l := (*life)(v)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	delete(l.files, id)
	os.Remove(v.Path(id))
	return nil
}
func (v *fakeVolumes) List(context.Context) ([]isle.ID, error) {
	l := (*life)(v)
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.files)), nil
}
func (v *fakeVolumes) Used(isle.ID) (int64, error) { return 0, nil }

type fakeLines life

func (h *fakeLines) Expect(_, launch isle.ID, hash isle.Digest, sink Events) {
	l := (*life)(h)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expects[launch] = expected{hash, sink}
}

func (h *fakeLines) Forget(launch isle.ID) {
	l := (*life)(h)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.expects, launch)
	delete(l.forks, launch)
}

func (h *fakeLines) Line(ctx context.Context, launch isle.ID) (Line, error) {
	l := (*life)(h)
	for {
		l.mu.Lock()
		_, ok := l.expects[launch]
		s := l.sandboxes[launch]
		asleep := s != nil && s.asleep
		l.mu.Unlock()
		switch {
		case !ok:
			return nil, isle.Errorf(isle.NotFound, "launch %s is not expected", launch)
		case s != nil && !s.isGone() && !asleep && (len(s.boot.Command) == 0 || s.boot.Command[0] != "mute"):
			return &fakeLine{s}, nil
		}
		if !sleep(ctx, time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

type fakeLine struct{ *sandbox }

func (f *fakeLine) Exec(ctx context.Context, e Exec) (Process, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.executed = append(f.w.executed, f.service+" "+e.Command[0])
	return &fakeProcess{ctx: ctx, e: e}, nil
}
func (f *fakeLine) Forward(_ context.Context, port int) (io.ReadWriteCloser, error) {
	return f.w.inside(port)
}
func (f *fakeLine) CopyIn(_ context.Context, _ string, tar io.Reader, _ string) error {
	_, err := io.Copy(io.Discard, tar)
	return err
}
func (f *fakeLine) CopyOut(context.Context, string, io.Writer) error { return nil }
func (f *fakeLine) List(context.Context, string) (spec.Tree, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return f.w.tree, nil
}
func (f *fakeLine) Folder(context.Context, string) ([]File, error) {
	return []File{{Name: "file", Type: "file"}}, nil
}
func (f *fakeLine) Signal(context.Context, string) error { return nil }
func (f *fakeLine) Stop(context.Context, time.Duration) error {
	f.stopOnce.Do(func() { close(f.stop) })
	return nil
}

type fakeProcess struct {
	ctx  context.Context
	e    Exec
	over bool
}

func (p *fakeProcess) Stdin() io.WriteCloser { return nil }
func (p *fakeProcess) Next() (Output, error) {
	if p.over {
		return Output{}, io.EOF
	}
	if p.e.Command[0] == "refuse" && p.e.User == "" {
		p.e.User = "said"
		return Output{Stderr: true, Data: []byte("no seed\n")}, nil
	}
	if p.e.Command[0] == "hang" {
		<-p.ctx.Done()
		return Output{}, p.ctx.Err()
	}
	p.over = true
	if p.e.Command[0] == "reseed" {
		return Output{Exit: &Exit{}}, nil
	}
	return Output{Exit: &Exit{Code: 3}}, nil
}
func (p *fakeProcess) Signal(string) error         { return nil }
func (p *fakeProcess) Resize(uint16, uint16) error { return nil }
func (p *fakeProcess) Close() error                { return nil }

func (s *sandbox) isGone() bool {
	select {
	case <-s.killed:
		return true
	default:
		return false
	}
}

func (s *sandbox) kill() {
	s.once.Do(func() {
		close(s.killed)
		s.w.mu.Lock()
		told := s.exited
		s.w.mu.Unlock()
		for _, f := range told {
			go f()
		}
	})
}

// tell gives an event to whichever server lives, until one has taken it.
func (s *sandbox) tell(f func(Events) error) bool {
	for !s.isGone() {
		s.w.mu.Lock()
		lf := s.w.life
		e, ok := lf.expects[s.boot.Launch]
		ok = ok && !lf.dead && e.hash == isle.DigestOf(s.boot.Secret)
		s.w.mu.Unlock()
		if ok && f(e.sink) == nil && !lf.isDead() {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// play is the life of an isle-init. What its command does is the command's name.
func (s *sandbox) play() {
	command := "idle"
	if len(s.boot.Command) > 0 {
		command = s.boot.Command[0]
	}
	exit := func(code int, reason string) {
		s.tell(func(e Events) error { return e.Exited(code, reason) })
		s.kill()
	}
	log := func(text string) {
		s.tell(func(e Events) error { return e.Log(time.Now(), true, []byte(text)) })
	}
	if command == "mute" {
		return
	}
	if len(s.boot.Setup) > 0 {
		if s.boot.Setup[0] == "fail" {
			s.tell(func(e Events) error { return e.SetupDone(1, "initdb: no") })
			exit(1, "setup failed")
			return
		}
		if !s.tell(func(e Events) error { return e.SetupDone(0, "") }) {
			return
		}
	}
	if command == "missing" {
		exit(127, "executable file not found: missing")
		return
	}
	if len(s.boot.Command) > 0 && !s.tell(func(e Events) error { return e.Started() }) {
		return
	}
	switch command {
	case "fail":
		log("boom\n")
		exit(1, "")
		return
	case "done":
		exit(0, "")
		return
	case "never":
		log("waiting for Godot\n")
		s.tell(func(e Events) error { return e.Health(false, "connection refused") })
	default:
		if s.boot.Healthcheck != nil {
			s.tell(func(e Events) error { return e.Health(true, "") })
		}
	}
	select {
	case <-s.stop:
		exit(143, "")
	case <-s.killed:
	}
}

// echo is a port inside that answers what it is told.
func echo(int) (io.ReadWriteCloser, error) {
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		io.Copy(b, b)
	}()
	return a, nil
}
