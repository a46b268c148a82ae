package environment

import (
	"context"
	"time"

	"isle"
)

// expireEvery is how often ends of life are looked for. Looking costs no disk.
const expireEvery = time.Second

// expireLoop ends with the Manager.
func (m *Manager) expireLoop() {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.expire()
		case <-m.ctx.Done():
			return
		}
	}
}

// expire begins what is due: environments past their end are torn down and
// their volumes get a date of their own, one-shot environments without a client
// go, and volumes past their date are deleted. What is busy waits for the next
// time.
func (m *Manager) expire() {
	m.expireAsides()
	now := m.cfg.Now()
	for _, l := range m.all() {
		rec := l.snapshot()
		if rec.Staged {
			continue
		}
		l.mu.Lock()
		idle := rec.OneShot && rec.Desired == WantRunning && l.sessions == 0 && now.Sub(l.idleSince) > idleOneShot
		l.mu.Unlock()
		if !idle && (rec.Expires.IsZero() || now.Before(rec.Expires)) {
			continue
		}
		m.holding(l.ref, func(ctx context.Context) error { return m.expired(ctx, l) })
	}
	m.mu.Lock()
	due := map[isle.Ref][]Volume{}
	for _, v := range m.volumes {
		if !v.DeleteAfter.IsZero() && now.After(v.DeleteAfter) && m.envs[v.Ref] == nil {
			due[v.Ref] = append(due[v.Ref], v)
		}
	}
	m.mu.Unlock()
	for ref := range due {
		m.holding(ref, func(ctx context.Context) error {
			if m.find(ref) != nil {
				return nil
			}
			var still []Volume
			for _, v := range m.volumesOf(ref) {
				if !v.DeleteAfter.IsZero() && now.After(v.DeleteAfter) {
					still = append(still, v)
				}
			}
			return m.deleteVolumes(ctx, isle.Actor{Kind: isle.System, Name: "ttl"}, ref, still, func(Progress) {})
		})
	}
}

// holding runs f with the ref held, on a goroutine of its own; not at all if
// somebody holds it.
func (m *Manager) holding(ref isle.Ref, f func(context.Context) error) {
	o := m.locks.try(m.ctx, ref)
	if o == nil {
		return
	}
	if !m.spawn(func() {
		defer o.release()
		if err := f(context.WithoutCancel(o.ctx)); err != nil {
			m.cfg.Log.Error("an end of life could not be carried out; trying again", "environment", ref, "error", err)
			sleep(o.ctx, 10*time.Second) // hold the ref meanwhile, so as not to try every second
		}
	}) {
		o.release()
	}
}

// expired tears down an environment whose time has come; the ref is held.
func (m *Manager) expired(ctx context.Context, l *live) error {
	rec := l.snapshot()
	now := m.cfg.Now()
	if m.find(l.ref) != l || !rec.OneShot && (rec.Expires.IsZero() || now.Before(rec.Expires)) {
		return nil
	}
	if !rec.OneShot {
		var keep []Volume
		for _, v := range m.volumesOf(l.ref) {
			v.DeleteAfter = now.Add(keepVolumes).UTC()
			keep = append(keep, v)
		}
		if len(keep) > 0 {
			if err := l.save(ctx, Mutation{PutVolumes: keep}); err != nil {
				return err
			}
		}
		m.fault("expire.recorded")
	}
	return m.takeDown(ctx, isle.Actor{Kind: isle.System, Name: "ttl"}, l, false, func(Progress) {})
}
