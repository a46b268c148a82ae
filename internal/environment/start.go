package environment

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/initproto"
	"isle/internal/spec"
)

// launch makes one launch of a service: its volumes first, then the sandbox.
func (m *Manager) launch(ctx context.Context, s *supervisor, r *run, secret []byte) error {
	defer m.launching()()
	rec := s.l.snapshot()
	svcRec, ok := rec.service(s.name)
	if !ok || svcRec.Launch != r.launch {
		return isle.Errorf(isle.Conflict, "service %s was replaced", s.name)
	}
	svc, _ := rec.specOf(s.name)
	x, err := m.launchOf(ctx, s.l, rec, svc, *svcRec)
	if err != nil {
		return err
	}
	mounts, fresh, setup, err := m.prepareVolumes(ctx, rec, svc)
	if err != nil {
		return err
	}
	r.set(func() { r.setup = setup })
	svc = asRun(svc, svcRec.Image.Config)
	r.set(func() { r.idles = len(svc.Command) == 0 })
	boot := initproto.Boot{Launch: r.launch, Secret: secret, Own: fresh}
	if setup {
		boot.Setup = svc.Setup
	}
	if x.Boot, err = m.boot(rec, svc, boot); err != nil {
		return err
	}
	x.Volumes, x.Exited = mounts, r.initGone
	m.cfg.Lines.Expect(rec.Instance, r.launch, svcRec.SecretHash, r)
	m.fault("up.launching")
	ctx, cancel := m.bounded(ctx)
	defer cancel()
	if err := m.cfg.Driver.Launch(ctx, x); err != nil {
		m.cfg.Lines.Forget(r.launch)
		return err
	}
	m.fault("up.launched")
	return nil
}

// bounded is the context of a driver's work for one launch.
func (m *Manager) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, m.patience, isle.Errorf(isle.Failed, "its sandbox did not answer within %v", m.patience))
}

// trust are the authorities that the services of an environment trust for its
// inspected egress.
func (m *Manager) trust(rec Environment) ([]byte, error) {
	hosts := rec.Spec.Inspected()
	if len(hosts) == 0 || m.cfg.Trust == nil {
		return nil, nil
	}
	return m.cfg.Trust(rec.Instance, hosts)
}

// launchOf is what the driver is told of a launch of a service, but for its
// volumes, what isle-init reads, and who hears of its end.
func (m *Manager) launchOf(ctx context.Context, l *live, rec Environment, svc spec.Service, s Service) (Launch, error) {
	layers, err := m.cfg.Images.Verify(ctx, s.Image)
	if err != nil {
		return Launch{}, err
	}
	var hosts []string
	for _, other := range rec.Services {
		hosts = append(hosts, other.Name)
	}
	l.mu.Lock()
	netns := l.netns
	l.mu.Unlock()
	return Launch{
		Instance: rec.Instance, ID: s.Launch, Isolation: rec.Spec.Isolation, Service: svc.Name, Hostname: rec.hostname(svc.Name), Hosts: hosts,
		MachineID: machineID(rec.Instance, svc.Name), Generation: rec.Generation,
		Image: s.Image, Layers: layers, UIDBase: rec.UIDBase, Network: netns,
		Tmpfs: svc.Tmpfs, Writable: svc.Writable, Caps: svc.Caps, Limits: rec.Spec.Limits, Init: m.cfg.Init,
	}, nil
}

// boot is what isle-init of a launch reads.
func (m *Manager) boot(rec Environment, svc spec.Service, b initproto.Boot) ([]byte, error) {
	b.Home, b.Hostname = initproto.HomeAddress, rec.hostname(svc.Name)
	b.User, b.Workdir, b.Env, b.Caps, b.Command, b.Healthcheck = svc.User, svc.Workdir, svc.Env, svc.Caps, svc.Command, svc.Healthcheck
	var err error
	if b.Trust, err = m.trust(rec); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(b)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "service %s: %w", svc.Name, err)
	}
	return encoded, nil
}

// asRun is a service as it is run: what its file leaves open is as its image
// says. A command of the file stands for the image's entrypoint and its
// arguments, and arguments of the file for these alone.
func asRun(svc spec.Service, image *image.Config) spec.Service {
	if image == nil {
		if len(svc.Args) > 0 { // an image without an entrypoint
			svc.Command = svc.Args
		}
		return svc
	}
	switch {
	case len(svc.Args) > 0:
		svc.Command = slices.Concat(image.Entrypoint, svc.Args)
	case len(svc.Command) == 0:
		svc.Command = image.Command()
	}
	if svc.User == "" {
		svc.User = image.User
	}
	if svc.Workdir == "" {
		svc.Workdir = image.Workdir
	}
	env := image.Variables()
	maps.Copy(env, svc.Env)
	svc.Env = env
	return svc
}

// prepareVolumes makes the files of the service's volumes that are not ready
// anew. It returns the mounts, the paths of those made, and whether setup has
// to run: it does when none of the volumes is ready, since it is written for
// empty ones. Volumes that no setup prepares are ready from the start, and
// recorded as such before anything can write to them.
func (m *Manager) prepareVolumes(ctx context.Context, e Environment, svc spec.Service) (mounts []Mount, fresh []string, setup bool, err error) {
	setup = len(svc.Setup) > 0
	var made []Volume
	volumes := m.volumesFor(e)
	for _, want := range svc.Volumes {
		v, ok := findVolume(volumes, svc.Name, want.Path)
		if !ok {
			return nil, nil, false, isle.Errorf(isle.Internal, "service %s: volume %s has no record", svc.Name, want.Path)
		}
		if v.Ready {
			setup = false
		} else {
			if err := m.cfg.Volumes.Create(ctx, v.ID, v.Size); err != nil {
				return nil, nil, false, err
			}
			m.fault("up.volume")
			made = append(made, v)
			fresh = append(fresh, want.Path)
		}
		mounts = append(mounts, Mount{Volume: v.ID, Source: m.cfg.Volumes.Path(v.ID), Path: want.Path})
	}
	if setup || len(made) == 0 {
		return mounts, fresh, setup, nil
	}
	for i := range made {
		made[i].Ready = true
	}
	if err := m.cfg.Store.Update(ctx, Mutation{PutVolumes: made}); err != nil {
		return nil, nil, false, err
	}
	m.remember(made, nil)
	return mounts, fresh, false, nil
}

func (m *Manager) volume(ref isle.Ref, service, path string) (Volume, bool) {
	return findVolume(m.volumesOf(ref), service, path)
}

func findVolume(volumes []Volume, service, path string) (Volume, bool) {
	for _, v := range volumes {
		if v.Service == service && v.Path == path {
			return v, true
		}
	}
	return Volume{}, false
}

// open makes what the services share: the airlock and, meanwhile, the control
// group. It says what policy refuses of what the file asks for.
func (m *Manager) open(ctx context.Context, l *live, say func(Progress)) error {
	rec := l.snapshot()
	prepared := make(chan error, 1)
	go func() {
		prepared <- m.cfg.Driver.Prepare(ctx, Shared{Instance: rec.Instance, Isolation: rec.Spec.Isolation, Limits: rec.Spec.Limits})
	}()
	refused, err := m.openNetwork(ctx, l)
	groupErr := <-prepared
	if err != nil {
		return err
	}
	for _, a := range refused {
		say(Progress{Step: a.by, State: "log", Message: "warning: " + a.warning()})
	}
	m.fault("up.network")
	if groupErr != nil {
		return groupErr
	}
	m.fault("up.prepared")
	return nil
}

// warm has the driver make, while the intent is on its way to the disk, what
// has no name and no effect yet.
func (m *Manager) warm(l *live) {
	if w, ok := m.cfg.Driver.(Warmer); ok {
		base := l.snapshot().UIDBase
		m.spawn(func() { w.Warm(base) })
	}
}

// up reports whether a service is as far as those that depend on it need.
func up(s *Service) bool { return s.Phase == Running || s.Phase == Unhealthy || s.Phase == Exited }

// converge starts the services named in secrets, and fails if one is not up then.
func (m *Manager) converge(ctx context.Context, l *live, secrets map[string][]byte, say func(Progress)) error {
	if err := m.settle(ctx, l, secrets, say); err != nil {
		return err
	}
	return l.failure()
}

// settle starts the services named in secrets, each once those it depends on
// are up, and waits until all services are up or can't be. Services without
// mutual dependencies start in parallel.
func (m *Manager) settle(ctx context.Context, l *live, secrets map[string][]byte, say func(Progress)) error {
	var wg sync.WaitGroup
	rec := l.snapshot()
	for i := range rec.Services {
		svc, _ := rec.specOf(rec.Services[i].Name)
		launch := rec.Services[i].Launch
		secret, start := secrets[svc.Name]
		wg.Go(func() { m.bringUp(ctx, l, svc, launch, secret, start, say) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// bringUp is settle for one service.
func (m *Manager) bringUp(ctx context.Context, l *live, svc spec.Service, launch isle.ID, secret []byte, start bool, say func(Progress)) {
	var failed string
	err := l.wait(ctx, func(e Environment) bool {
		failed = ""
		ready := true
		for _, d := range svc.DependsOn {
			dep, ok := e.service(d)
			if !ok {
				continue
			}
			if dep.Phase == Broken || dep.Phase == Pending && dep.Message != "" {
				failed = d
				return true
			}
			ready = ready && up(dep)
		}
		return ready
	})
	if err != nil {
		return
	}
	if start && failed != "" {
		l.observe(svc.Name, launch, func(s *Service) {
			s.Phase, s.Message = Pending, "not started: it depends on "+failed+", which is not up"
		})
		say(Progress{Service: svc.Name, Step: "launch", State: "failed", Message: "not started: it depends on " + failed})
		return
	}
	if start {
		say(Progress{Service: svc.Name, Step: "launch", State: "start"})
		rec := l.snapshot()
		s, ok := rec.service(svc.Name)
		if !ok {
			return
		}
		m.supervise(l, svc, *s, secret)
	}
	began := m.cfg.Now()
	var end Service
	launched := !start
	if err := l.wait(ctx, func(e Environment) bool {
		s, ok := e.service(svc.Name)
		if !ok {
			return true
		}
		end = *s
		if !launched && s.Phase == Starting {
			launched = true
			say(Progress{Service: svc.Name, Step: "health", State: "start"})
		}
		return up(s) || s.Phase == Broken || s.Phase == Pending && s.Message != ""
	}); err != nil || !start {
		return
	}
	if s := l.supervisor(svc.Name); s != nil && end.Phase == Broken {
		select { // nothing of it is left when Up returns
		case <-s.done:
		case <-ctx.Done():
		}
	}
	if up(&end) {
		say(Progress{Service: svc.Name, Step: "health", State: "done", Message: m.cfg.Now().Sub(began).Round(time.Millisecond).String()})
		return
	}
	say(Progress{Service: svc.Name, Step: "health", State: "failed", Message: end.Message})
}

// failure is the error of an environment with services that are not up; nil if
// there are none but those that are known not to be. It shows the last lines of
// the first that failed.
func (l *live) failure(known ...string) error {
	rec := l.snapshot()
	var failed []string
	var first *Service
	for i := range rec.Services {
		s := &rec.Services[i]
		if s.Phase == Broken && !slices.Contains(known, s.Name) {
			failed = append(failed, s.Name)
			if first == nil {
				first = s
			}
		}
	}
	if first == nil {
		return nil
	}
	text := "service " + first.Name + " " + first.Message
	if !strings.HasPrefix(first.Message, "did not") && !strings.HasPrefix(first.Message, "ended") && !strings.HasPrefix(first.Message, "could not") {
		text = "service " + first.Name + ": " + first.Message
	}
	if others := slices.DeleteFunc(failed, func(n string) bool { return n == first.Name }); len(others) > 0 {
		text += "; so did " + strings.Join(others, ", ")
	}
	if rec.keepsQuiet() {
		return isle.Errorf(isle.Failed, "%s; %s%s", text, untold, rec.ParentRef.Stage).
			WithHint("a fork that keeps its stage shows it: isle fork %s", rec.ParentRef)
	}
	lines := l.lastLines(first.Name, 10)
	if len(lines) > 0 {
		text += "\nits last lines:\n  " + strings.Join(lines, "\n  ")
	}
	return isle.Errorf(isle.Failed, "%s", text).WithHint("isle logs %s shows all it wrote; isle up tries again, isle down %s clears it away", l.ref, l.ref)
}
