package environment

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// diedAway is the message of a service that nobody saw end.
const diedAway = "it ended while the server was away"

// A found is what Reconcile finds on the machine.
type found struct {
	sandboxes []Sandbox
	networks  []isle.ID
	volumes   []isle.ID
}

// alive reports whether a launch runs.
func (f *found) alive(instance, launch isle.ID) bool {
	for _, s := range f.sandboxes {
		if s.Instance == instance && s.Launch == launch {
			return s.Alive
		}
	}
	return false
}

// Reconcile makes what is follow what should be. It is called once, before
// anything else, and after a crash at any point leaves each environment running
// or gone: what the record wants running is adopted where it is alive and
// launched where it is not (an Up that was half done is finished, since its
// record was durable before its first effect); a teardown that was begun is
// finished; one-shot environments are torn down, their clients being gone; what
// no record names is removed. Intents whose outcome nobody saw are closed as
// unknown. It returns once airlocks and published ports are taken up again;
// launches go on in the background.
func (m *Manager) Reconcile(ctx context.Context) error {
	envs, err := m.cfg.Store.Environments(ctx)
	if err != nil {
		return err
	}
	volumes, err := m.cfg.Store.Volumes(ctx)
	if err != nil {
		return err
	}
	open, err := m.cfg.Store.OpenIntents(ctx)
	if err != nil {
		return err
	}
	var f found
	if f.sandboxes, err = m.cfg.Driver.List(ctx); err != nil {
		return err
	}
	if f.networks, err = m.cfg.Network.List(ctx); err != nil {
		return err
	}
	if f.volumes, err = m.cfg.Volumes.List(ctx); err != nil {
		return err
	}
	m.fault("reconcile.read")
	if err := m.closeIntents(ctx, open); err != nil {
		return err
	}
	if envs, volumes, err = m.unstageAll(ctx, envs, volumes); err != nil {
		return err
	}
	m.remember(volumes, nil)
	all := make([]*live, 0, len(envs))
	m.mu.Lock()
	for _, e := range envs {
		l := m.newLive(e)
		if e.Aside == nil {
			m.envs[e.Ref] = l
		} else {
			m.staged[e.Instance] = l
		}
		all = append(all, l)
	}
	m.mu.Unlock()
	swept, err := m.sweep(ctx, envs, &f)
	if err != nil { // what cannot be removed keeps nobody from working
		m.cfg.Log.Error("leftovers could not be removed; the next start tries again", "error", err)
	}
	m.fault("reconcile.swept")
	m.adoptAll(ctx, all, &f)
	m.fault("reconcile.adopted")
	if len(all) > 0 || swept > 0 || len(open) > 0 {
		e := audit.NewEvent(system("reconcile"), isle.ActionServerReconcile, isle.Resource{Kind: "server", Name: "local"}, isle.Allow,
			fmt.Sprintf("%d environments taken up, %d leftovers removed, %d actions closed as unknown", len(all), swept, len(open)))
		if err := m.cfg.Store.Append(ctx, e); err != nil {
			return err
		}
	}
	m.serveHTTP()
	m.spawn(m.expireLoop)
	m.spawn(m.stockLoop)
	return nil
}

func system(name string) isle.Actor { return isle.Actor{Kind: isle.System, Name: name} }

// closeIntents writes the outcome of what was cut off.
func (m *Manager) closeIntents(ctx context.Context, open []audit.Entry) error {
	entries := make([]audit.Entry, 0, len(open))
	for _, e := range open {
		entries = append(entries, e.Unknown("the server ended in between"))
	}
	return m.cfg.Store.Append(ctx, entries...)
}

// sweep removes what no record names and says how much that was.
func (m *Manager) sweep(ctx context.Context, envs []Environment, f *found) (swept int, err error) {
	instances := map[isle.ID]bool{}
	launches := map[isle.ID]bool{}
	for _, e := range envs {
		instances[e.Instance] = true
		for _, s := range e.Services {
			launches[s.Launch] = true
		}
	}
	var errs []error
	note := func(err error) {
		swept++
		if err != nil {
			errs = append(errs, err)
		}
	}
	removed := map[isle.ID]bool{}
	for _, s := range f.sandboxes {
		switch {
		case !instances[s.Instance] && !removed[s.Instance]:
			removed[s.Instance] = true
			note(m.cfg.Driver.Remove(ctx, s.Instance))
		case instances[s.Instance] && s.Launch != "" && (!launches[s.Launch] || !s.Alive):
			note(m.cfg.Driver.Kill(ctx, s.Instance, s.Launch))
		}
	}
	for _, id := range f.networks {
		if !instances[id] {
			note(m.cfg.Network.Close(ctx, id))
		}
	}
	live := map[isle.Ref]bool{}
	for _, e := range envs {
		live[e.Ref] = true
	}
	m.mu.Lock()
	var stale []isle.ID // made for an environment that never came to be
	for id, v := range m.volumes {
		if !v.Ready && !live[v.Ref] {
			stale = append(stale, id)
		}
	}
	m.mu.Unlock()
	if len(stale) > 0 {
		if err := m.cfg.Store.Update(ctx, Mutation{RemoveVolumes: stale}); err != nil {
			return swept, err
		}
		m.remember(nil, stale)
	}
	kept := map[isle.ID]bool{}
	if m.cfg.Snapshots != nil {
		for _, id := range m.cfg.Snapshots.Volumes() {
			kept[id] = true
		}
	}
	known := func(id isle.ID) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		_, ok := m.volumes[id]
		return ok || kept[id]
	}
	for _, id := range f.volumes {
		if !known(id) {
			note(m.cfg.Volumes.Delete(ctx, id))
		}
	}
	errs = append(errs, sweepFolder(m.cfg.Forks, func(string) bool { return false })) // what was to go on from it is undone
	errs = append(errs, sweepFolder(m.cfg.Logs, func(name string) bool {
		return name == "baselines" || instances[isle.ID(name)] || !isle.ID(name).Valid()
	}))
	errs = append(errs, sweepFolder(filepath.Join(m.cfg.Logs, "baselines"), func(name string) bool {
		return known(isle.ID(strings.TrimSuffix(name, ".json")))
	}))
	return swept, errors.Join(errs...)
}

// adoptAll takes up every environment, several at a time.
func (m *Manager) adoptAll(ctx context.Context, all []*live, f *found) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, l := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if l.snapshot().Aside != nil {
				m.adoptAside(ctx, l, f)
				return
			}
			o := m.locks.try(m.ctx, l.ref)
			if o == nil {
				return // cannot be: nothing else runs yet
			}
			if err := m.adopt(ctx, o, l, f); err != nil {
				m.cfg.Log.Error("an environment could not be taken up", "environment", l.ref, "error", err)
			}
		})
	}
	wg.Wait()
}

// adopt takes up one environment; it gives the ref free when all is done, which
// may be later.
func (m *Manager) adopt(ctx context.Context, o *op, l *live, f *found) error {
	rec := l.snapshot()
	if rec.Desired == WantRunning && rec.Warm && rec.halfMade() && !rec.OneShot {
		if err := m.startAnew(ctx, l); err != nil {
			o.release()
			return err
		}
		rec = l.snapshot()
	}
	if rec.Desired == WantDown || rec.OneShot || rec.halfMade() || rec.Opening == Shut && rec.Crossed {
		who := "reconcile"
		if rec.OneShot && rec.Desired != WantDown {
			who = "one-shot"
		}
		defer o.release()
		return m.takeDown(context.WithoutCancel(ctx), system(who), l, rec.OneShot, func(Progress) {})
	}
	m.listenAgain(l)
	again, err := m.relaunches(ctx, l, f)
	if err != nil {
		o.release()
		return err
	}
	// Whoever is alive may call home as soon as the airlock is open.
	for _, s := range l.snapshot().Services {
		if _, relaunch := again[s.Name]; !relaunch && s.Phase != Exited && s.Phase != Broken && f.alive(l.instance, s.Launch) {
			svc, _ := rec.specOf(s.Name)
			m.supervise(l, svc, s, nil)
		}
	}
	netOpen := m.open(ctx, l, func(Progress) {})
	o.abandon()
	if !m.spawn(func() {
		defer o.release()
		err := netOpen
		if err == nil {
			err = m.converge(o.ctx, l, again, func(Progress) {})
		}
		if err == nil && rec.Trouble == "" { // what was cut off is done again, what failed is not
			err = m.openFork(o.ctx, l, func(Progress) {})
		}
		if err != nil {
			m.cfg.Log.Warn("an environment is not up after a restart of the server", "environment", l.ref, "error", err)
		}
		if err := l.save(context.WithoutCancel(m.ctx), Mutation{}); err != nil {
			m.cfg.Log.Error("the state of an environment could not be stored", "environment", l.ref, "error", err)
		}
	}) {
		o.release()
	}
	return netOpen
}

// halfMade says that the record is of a copy that does not hold yet what it is a
// copy of, and that nothing can finish.
func (e *Environment) halfMade() bool { return e.Opening == Copying || e.Opening == Waking }

// relaunches decides which services need a new launch, and records them: after
// a reboot of the machine all of them; else those that were being launched when
// the server died, and those that died since and are to be restarted. It
// returns their secrets.
func (m *Manager) relaunches(ctx context.Context, l *live, f *found) (map[string][]byte, error) {
	rec := l.snapshot()
	rebooted := rec.Boot != m.cfg.Boot
	secrets := map[string][]byte{}
	next := map[string]Service{}
	var entries []audit.Entry
	for _, name := range spec.StartOrder(rec.Spec) {
		s, ok := rec.service(name)
		if !ok || !rec.Yielding && f.alive(l.instance, s.Launch) {
			continue
		}
		if rec.Yielding { // some have ended, and some are about to
			if err := m.cfg.Driver.Kill(ctx, l.instance, s.Launch); err != nil {
				return nil, err
			}
		}
		svc, _ := rec.specOf(name)
		n := *s
		summary := ""
		switch {
		case rec.Yielding:
			summary = "its place was not taken"
		case rebooted:
			summary = "the machine was started anew"
		case s.Phase == Exited || s.Phase == Broken:
			continue // told before
		case s.Phase == Pending || s.Phase == Starting:
			summary = "its launch was not finished"
		case svc.Restart == "always" || svc.Restart == "on-failure":
			summary = diedAway
			n.Restarts++
		default:
			code := 137
			n.Phase, n.ExitCode, n.Message = Broken, &code, diedAway
			next[name] = n
			e := audit.NewEvent(system("reconcile"), isle.ActionServiceExit, serviceResource(l.ref, name), isle.Allow, n.Message).In(l.ref, l.instance)
			e.Result = audit.Unknown
			entries = append(entries, e)
			continue
		}
		n.Launch, n.Phase, n.Message, n.ExitCode, n.Started = isle.NewID(), Pending, "", nil, m.cfg.Now()
		secrets[name], n.SecretHash = newSecret()
		next[name] = n
		entries = append(entries, audit.NewEvent(system("reconcile"), isle.ActionServiceStart, serviceResource(l.ref, name), isle.Allow, summary).In(l.ref, l.instance))
	}
	if len(next) == 0 && !rebooted && !rec.Yielding {
		return secrets, nil
	}
	err := l.change(ctx, func(e *Environment) {
		e.Boot, e.Yielding = m.cfg.Boot, false
		for i, s := range e.Services {
			if n, ok := next[s.Name]; ok {
				e.Services[i] = n
			}
		}
	}, Mutation{Entries: entries})
	return secrets, err
}

// listenAgain opens the published ports of a record. One that is taken by now
// is missing until the next up: the environment runs all the same.
func (m *Manager) listenAgain(l *live) {
	plan := &portPlan{m: m, ports: map[string][]PublishedPort{}, opened: map[portKey]net.Listener{}}
	for _, s := range l.snapshot().Services {
		for _, p := range s.Ports {
			ln, err := m.listenLoopback(p.Host)
			if err != nil {
				m.cfg.Log.Error("a published port could not be opened again", "environment", l.ref, "service", s.Name, "port", p.Host, "error", err)
				continue
			}
			plan.ports[s.Name] = append(plan.ports[s.Name], p)
			plan.opened[portKey{s.Name, p.Name}] = ln
		}
	}
	l.publish(plan)
}
