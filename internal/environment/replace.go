package environment

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// launched is a service without what is applied while it runs: published ports,
// the restart policy, and what its forks run.
func launched(svc spec.Service) spec.Service {
	svc.Ports, svc.Restart, svc.OnFork = nil, "", nil
	return svc
}

// configDigest is the digest of what, when it changes, replaces a service
// beside its image: what its isle-init and sandbox were told at launch. Limits
// belong to the environment's control group and are applied in place.
func configDigest(svc spec.Service, f spec.File) isle.Digest {
	inspected := slices.DeleteFunc(slices.Clone(f.Egress), func(e spec.Egress) bool { return !e.Inspect })
	return spec.ConfigDigest(launched(svc), spec.File{Isolation: f.Isolation, Egress: inspected})
}

// A plan is what has to happen to make one environment another.
type plan struct {
	relaunch map[string]string // service -> why; new ones too
	fresh    map[string]bool   // of relaunch: was not there before
	removed  []string
	reasons  []string // for people, in start order
	egress   bool
	limits   bool
	ttl      bool
}

// compare makes the plan from the record and the request.
func compare(e Environment, req UpRequest) plan {
	p := plan{relaunch: map[string]string{}, fresh: map[string]bool{}}
	for _, name := range spec.StartOrder(req.Spec) {
		want, _ := req.Spec.Service(name)
		have, ok := e.service(name)
		was, _ := e.specOf(name)
		img := req.Images[name]
		switch {
		case !ok:
			p.fresh[name], p.relaunch[name] = true, "new"
		case have.Digest != img.Digest():
			p.relaunch[name] = "its image changed"
			if r := req.Reasons[name]; r != "" {
				p.relaunch[name] = r
			}
		case have.Config != configDigest(want, req.Spec):
			p.relaunch[name] = "its configuration changed"
			if why := spec.Explain(launched(was), launched(want)); why != "" {
				p.relaunch[name] = why
			} else if e.Spec.Isolation != req.Spec.Isolation {
				p.relaunch[name] = "isolation changed"
			} else if !slices.Equal(e.Spec.Inspected(), req.Spec.Inspected()) {
				p.relaunch[name] = "inspected egress changed"
			}
		case have.Phase == Exited || have.Phase == Broken:
			p.relaunch[name] = "it had " + strings.TrimPrefix(have.Message, "had ")
			if have.Message == "" || !strings.HasPrefix(have.Message, "ended") {
				p.relaunch[name] = "it was not up"
			}
		case have.Phase == Pending:
			p.relaunch[name] = "it was not started"
		default:
			if was.Restart != want.Restart {
				p.reasons = append(p.reasons, name+": restart policy applied in place")
			}
			if !slices.Equal(was.Ports, want.Ports) {
				p.reasons = append(p.reasons, name+": ports applied in place")
			}
			if !slices.Equal(was.OnFork, want.OnFork) {
				p.reasons = append(p.reasons, name+": on_fork applied in place")
			}
			continue
		}
		p.reasons = append(p.reasons, name+": "+p.relaunch[name])
	}
	for _, s := range e.Services {
		found := false
		for _, w := range req.Spec.Services {
			found = found || w.Name == s.Name
		}
		if !found {
			p.removed = append(p.removed, s.Name)
			p.reasons = append(p.reasons, s.Name+": removed, it is not in the file any more")
		}
	}
	if !reflect.DeepEqual(append([]spec.Egress{}, e.Spec.Egress...), append([]spec.Egress{}, req.Spec.Egress...)) {
		p.egress = true
		p.reasons = append(p.reasons, "egress: applied in place")
	}
	if !slices.Equal(e.Spec.Uses, req.Spec.Uses) || !maps.Equal(e.Spec.UsesAs, req.Spec.UsesAs) {
		p.egress = true
		p.reasons = append(p.reasons, "uses: applied in place")
	}
	if e.Spec.Limits != req.Spec.Limits {
		p.limits = true
		p.reasons = append(p.reasons, "limits: applied in place")
	}
	if e.Spec.Warm != req.Spec.Warm {
		p.reasons = append(p.reasons, "warm: applied in place")
	}
	if req.TTL != nil || e.Spec.TTL != req.Spec.TTL {
		p.ttl = true
		p.reasons = append(p.reasons, "ttl: applied in place")
	}
	return p
}

// replace makes an environment that is there what the request says: only the
// services that differ, or are not up, are launched anew; volumes stay.
func (m *Manager) replace(ctx context.Context, actor isle.Actor, l *live, req UpRequest, say func(Progress), started func()) (UpResult, error) {
	old := l.snapshot()
	p := compare(old, req)
	ports, err := m.assignPorts(ctx, req.Ref, req.Spec, l)
	if err != nil {
		return UpResult{}, err
	}
	intent := audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), strings.Join(p.reasons, "; ")).In(req.Ref, l.instance).Explained(ctx).With("project", req.Project)
	now := m.cfg.Now().UTC()
	secrets := map[string][]byte{}
	services := make([]Service, 0, len(req.Spec.Services))
	for _, name := range spec.StartOrder(req.Spec) {
		if _, again := p.relaunch[name]; !again {
			services = append(services, Service{Name: name})
			continue
		}
		svc, _ := req.Spec.Service(name)
		var hash isle.Digest
		secrets[name], hash = newSecret()
		s := newService(svc, req.Spec, req.Images[name], hash, nil)
		services = append(services, s)
		intent = intent.With("image "+name, string(s.Digest))
	}
	intent = req.from(intent)
	vols := m.wantVolumes(req, now)
	m.fault("replace.begin")
	err = l.change(ctx, func(e *Environment) {
		next := make([]Service, len(services))
		for i, s := range services {
			if have, ok := e.service(s.Name); ok && s.Launch == "" {
				s = *have // as it is by now: it may have been restarted
			}
			s.Ports = ports.of(s.Name)
			next[i] = s
		}
		e.Services, e.Spec, e.Boot, e.Kept = next, req.Spec, m.cfg.Boot, "" // what was kept was of another file
		req.mark(e)
		e.OneShot = e.OneShot && req.OneShot
		if p.ttl {
			e.Expires = expiry(now, req)
		}
	}, Mutation{PutVolumes: vols, Entries: append([]audit.Entry{intent}, volumesMade(actor, l, vols, now)...)})
	if err != nil {
		ports.release()
		return UpResult{}, err
	}
	m.fault("replace.recorded")
	l.publish(ports)
	if err = m.retire(ctx, l, old, p, say); err == nil {
		m.fault("replace.stopped")
		for _, svc := range req.Spec.Services {
			if s := l.supervisor(svc.Name); s != nil {
				s.setSpec(svc)
			}
		}
		err = m.carryOut(ctx, l, secrets, req.NoWait, say, started)
	}
	result := UpResult{Environment: l.snapshot(), Changed: true}
	for _, r := range p.reasons {
		if !p.fresh[strings.TrimSuffix(r, ": new")] {
			result.Replaced = append(result.Replaced, r)
		}
	}
	return result, m.conclude(l, intent, err)
}

// retire ends the launches that are replaced or removed, those that depend on
// others first.
func (m *Manager) retire(ctx context.Context, l *live, old Environment, p plan, say func(Progress)) error {
	leaving := map[string]bool{}
	for _, name := range p.removed {
		leaving[name] = true
	}
	for name := range p.relaunch {
		leaving[name] = leaving[name] || !p.fresh[name]
	}
	return m.stopServices(ctx, l, old, leaving, func(name string) {
		why := p.relaunch[name]
		if why == "" {
			why = "removed"
		}
		say(Progress{Service: name, Step: "replace", State: "start", Message: why})
	})
}

// stopServices ends the named services of a record: each after those that
// depend on it, otherwise in parallel.
func (m *Manager) stopServices(ctx context.Context, l *live, e Environment, names map[string]bool, say func(service string)) error {
	ended := map[string]chan struct{}{}
	for name := range names {
		ended[name] = make(chan struct{})
	}
	errs := make(chan error, len(names))
	for name := range names {
		go func() {
			defer close(ended[name])
			for _, other := range e.Spec.Services {
				if !names[other.Name] {
					continue
				}
				for _, d := range other.DependsOn {
					if d == name {
						<-ended[other.Name] // the file has no cycles
					}
				}
			}
			say(name)
			errs <- m.stopService(ctx, l, e, name)
		}()
	}
	var first error
	for range names {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (m *Manager) stopService(ctx context.Context, l *live, e Environment, name string) error {
	if s := l.supervisor(name); s != nil {
		err := s.end(ctx, m.cfg.Grace)
		l.mu.Lock()
		if l.supervisors[name] == s {
			delete(l.supervisors, name)
		}
		l.mu.Unlock()
		return err
	}
	rec, ok := e.service(name)
	if !ok || rec.Launch == "" {
		return nil
	}
	m.cfg.Lines.Forget(rec.Launch)
	if err := m.cfg.Driver.Kill(ctx, e.Instance, rec.Launch); err != nil {
		return fmt.Errorf("service %s: %w", name, err)
	}
	return nil
}
