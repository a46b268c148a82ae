package environment

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"isle"
	"isle/internal/initproto"
)

// A frozen is what a fake capture writes of a sandbox.
type frozen struct {
	Launch  isle.ID
	Service string
	Boot    initproto.Boot
}

// An expectedFork is a captured isle-init that may call home.
type expectedFork struct {
	instance, captured isle.ID
	hash               isle.Digest
	become             initproto.Become
}

const frozenFile = "memory.json"

// freeze writes those of an instance that live; l.mu is held.
func (l *life) freeze(c Capture, out Captured) (Captured, error) {
	var all []frozen
	for id, s := range l.sandboxes {
		if s.instance == c.Instance && !s.isGone() {
			all = append(all, frozen{id, s.service, s.boot})
			out.Launches = append(out.Launches, id)
		}
	}
	if len(all) == 0 {
		return Captured{}, isle.Errorf(isle.Unavailable, "nothing runs")
	}
	b, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.Memory, frozenFile), b, 0o600)
	}
	out.Memory, out.Runtime = int64(len(b)), l.builtOf
	return out, err
}

func (d *fakeDriver) CanRestore(build isle.Digest) error {
	if build != d.build {
		return isle.Errorf(isle.Conflict, "captured with another build")
	}
	return nil
}

func (d *fakeDriver) RuntimeOf(isle.ID) (isle.Digest, error) { return d.builtOf, nil }

func (d *fakeDriver) Restore(ctx context.Context, r Restore) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	if err := d.CanRestore(r.Runtime); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(r.Memory, frozenFile))
	var all []frozen
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return err
	}
	if len(all) != len(r.Launches) {
		return errors.New("not those that were captured")
	}
	for _, x := range r.Launches {
		if err := l.fits(x); err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(f frozen) bool { return f.Service == x.Service })
		if i < 0 || len(x.Boot) > 0 {
			return errors.New("not as it was captured")
		}
		if c := all[i].Boot.Command; len(c) > 0 && c[0] == "stuck" {
			l.mu.Unlock()
			<-ctx.Done()
			l.mu.Lock()
			return context.Cause(ctx)
		}
		s := &sandbox{w: l.world, instance: x.Instance, service: x.Service, boot: all[i].Boot, asleep: true,
			stop: make(chan struct{}), killed: make(chan struct{}), exited: []func(){x.Exited}}
		l.sandboxes[x.ID] = s
		l.launches[x.ID] = x
		l.woken = append(l.woken, x.Service)
		go s.wake(all[i].Launch)
	}
	return nil
}

func (h *fakeLines) ExpectFork(instance, captured isle.ID, hash isle.Digest, b initproto.Become, sink Events) error {
	if err := b.Check(); err != nil {
		return err
	}
	h.Expect(instance, b.Launch, isle.DigestOf(b.Secret), sink)
	l := (*life)(h)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forks[b.Launch] = expectedFork{instance, captured, hash, b}
	return nil
}

// wake is the life of an isle-init that is brought back: it takes itself for that
// of the captured launch until it is told who it is.
func (s *sandbox) wake(captured isle.ID) {
	if len(s.boot.Command) > 0 && s.boot.Command[0] == "dies" {
		s.kill()
		return
	}
	for !s.isGone() && !s.become(captured) {
		time.Sleep(time.Millisecond)
	}
	if len(s.boot.Command) > 0 && !s.tell(func(e Events) error { return e.Started() }) {
		return
	}
	if s.boot.Healthcheck != nil {
		s.tell(func(e Events) error { return e.Health(true, "") })
	}
	select {
	case <-s.stop:
		s.tell(func(e Events) error { return e.Exited(143, "") })
		s.kill()
	case <-s.killed:
	}
}

// become is one call home.
func (s *sandbox) become(captured isle.ID) bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	lf := s.w.life
	for _, f := range lf.forks {
		if !lf.dead && f.instance == s.instance && f.captured == captured && f.hash == isle.DigestOf(s.boot.Secret) {
			s.boot.Launch, s.boot.Secret, s.boot.Hostname, s.asleep = f.become.Launch, f.become.Secret, f.become.Hostname, false
			return true
		}
	}
	return false
}
