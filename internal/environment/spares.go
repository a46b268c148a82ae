package environment

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/spec"
)

const (
	// quietFor is how long no launch must have begun or be under way before
	// something is prepared: launches that somebody waits for need the machine.
	quietFor = 300 * time.Millisecond
	// stockRetry is how long after a failure it is tried again.
	stockRetry = time.Minute
	// discardLimit bounds how long it takes to remove one spare.
	discardLimit = 30 * time.Second
	// MaxSpares bounds how many are kept of each class.
	MaxSpares = 64
)

// A spare is an instance that is made ready before anybody asks for it: uids,
// airlock, control group and what launches of its class begin with. There is no
// record of it, nothing of any project in it, and nobody has touched it. The
// environment that takes it has its instance ID for good, so it is used once.
// What a server that died leaves of it has no record, and is swept.
type spare struct {
	instance isle.ID
	launch   isle.ID // of the first service
	class    string
	uids     uint32
}

// A pool holds the spares of all classes. Manager.mu guards what is in it.
type pool struct {
	ready map[string][]spare // by class, the oldest first
	uids  map[isle.ID]uint32 // of spares that no live has taken
	wake  chan struct{}      // has one element when there may be work to do
	busy  int                // launches under way
	last  time.Time          // when the last one began or ended
	// Why nothing could be prepared, by class, and when that is tried again.
	trouble map[string]error
	again   map[string]time.Time
}

func newPool() pool {
	return pool{
		ready: map[string][]spare{}, uids: map[isle.ID]uint32{}, wake: make(chan struct{}, 1),
		trouble: map[string]error{}, again: map[string]time.Time{},
	}
}

// Prepared is how many spares of a class are ready, of how many, and why there
// are fewer, where that is known.
type Prepared struct {
	Class       string
	Ready, Want int
	Trouble     error
}

// Prepared says what is ready for the next launches, by class in the order of
// their names; nothing where nothing is to be.
func (m *Manager) Prepared() (out []Prepared) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, class := range slices.Sorted(maps.Keys(m.cfg.Spares)) {
		if want := m.cfg.Spares[class]; want > 0 {
			out = append(out, Prepared{class, len(m.pool.ready[class]), want, m.pool.trouble[class]})
		}
	}
	return out
}

// launching notes that a launch is under way; the returned function that it is
// no more.
func (m *Manager) launching() func() {
	note := func(n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pool.busy += n
		m.pool.last = time.Now()
	}
	note(1)
	return sync.OnceFunc(func() { note(-1) })
}

// takeSpare gives the environment that is to be launched a spare, and the
// service that is to be launched with what is in it; false where none is ready
// or would be of use. Its uids stay taken until keepSpare.
func (m *Manager) takeSpare(f spec.File) (s spare, service string, ok bool) {
	service = firstToLaunch(f)
	m.mu.Lock()
	defer m.mu.Unlock()
	ready := m.pool.ready[f.Isolation]
	if service == "" || len(ready) == 0 {
		return s, "", false
	}
	m.pool.ready[f.Isolation], m.pool.last = ready[1:], time.Now()
	select {
	case m.pool.wake <- struct{}{}:
	default:
	}
	return ready[0], service, true
}

// firstToLaunch is the service that begins with what is prepared: the first of
// those launched at once that it can fit, or, in a sandbox, which is of use to
// any, the first. "" if there is none.
func firstToLaunch(f spec.File) (first string) {
	for _, name := range spec.StartOrder(f) {
		i := slices.IndexFunc(f.Services, func(s spec.Service) bool { return s.Name == name })
		if i < 0 || len(f.Services[i].DependsOn) > 0 {
			continue
		}
		s := f.Services[i]
		if s.Writable > 0 {
			continue
		}
		if len(s.Caps) == 0 && (f.Isolation != spec.Gvisor || len(s.Volumes)+len(s.Tmpfs) == 0) {
			return name
		}
		if first == "" && f.Isolation == spec.Gvisor {
			first = name
		}
	}
	return first
}

// stockLoop keeps the pool full, one spare at a time, while no launch is under
// way. It ends with the Manager.
func (m *Manager) stockLoop() {
	stocker, ok := m.cfg.Driver.(Stocker)
	if !ok {
		return
	}
	for m.ctx.Err() == nil {
		class, wait := m.shortOf()
		if class == "" {
			retry := time.NewTimer(wait)
			select {
			case <-retry.C:
			case <-m.pool.wake:
			case <-m.ctx.Done():
			}
			retry.Stop()
			continue
		}
		if !m.awaitQuiet() {
			return
		}
		err := m.stock(stocker, class)
		if m.ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		told := m.pool.trouble[class]
		m.pool.trouble[class] = err
		if err != nil {
			m.pool.again[class] = time.Now().Add(stockRetry)
		}
		m.mu.Unlock()
		if err != nil && (told == nil || told.Error() != err.Error()) {
			m.cfg.Log.Warn("nothing could be prepared for the next launch", "isolation", class, "error", err)
		}
	}
}

// shortOf returns a class of which there are too few spares, or "" and how long
// there will be none, if none is taken.
func (m *Manager) shortOf() (class string, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait = time.Hour
	for _, class := range slices.Sorted(maps.Keys(m.cfg.Spares)) {
		if len(m.pool.ready[class]) >= min(m.cfg.Spares[class], MaxSpares) {
			continue
		}
		left := time.Until(m.pool.again[class])
		if left <= 0 {
			return class, 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

// awaitQuiet returns when no launch is under way, nor was just now; false where
// the Manager ends before.
func (m *Manager) awaitQuiet() bool {
	for {
		m.mu.Lock()
		wait := quietFor - time.Since(m.pool.last)
		if m.pool.busy > 0 {
			wait = quietFor
		}
		m.mu.Unlock()
		if wait <= 0 {
			return m.ctx.Err() == nil
		}
		if !sleep(m.ctx, wait) {
			return false
		}
	}
}

// stock makes one spare.
func (m *Manager) stock(stocker Stocker, class string) (err error) {
	s := spare{instance: isle.NewID(), launch: isle.NewID(), class: class}
	m.mu.Lock()
	s.uids = m.pickUIDs(s.instance)
	m.pool.uids[s.instance] = s.uids
	m.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, m.discardSpare(s))
		}
	}()
	netns, err := m.cfg.Network.Open(m.ctx, s.instance, Grants{})
	if err != nil {
		return err
	}
	m.fault("spare.network")
	err = stocker.Stock(m.ctx, Stock{
		Shared: Shared{Instance: s.instance, Isolation: class}, Launch: s.launch, UIDBase: s.uids, Network: netns, Init: m.cfg.Init,
		Limits: spec.DefaultLimits(),
	})
	if err != nil {
		return err
	}
	m.fault("spare.stocked")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pool.ready[class] = append(m.pool.ready[class], s)
	return nil
}

// keepSpare leaves a spare's uids to the live that has them now; m.mu is held.
func (m *Manager) keepSpare(s spare) { delete(m.pool.uids, s.instance) }

// returnSpare takes a spare's uids back from a live that came to nothing.
func (m *Manager) returnSpare(s spare) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pool.uids[s.instance] = s.uids
}

// discardSpare removes a spare that nobody uses.
func (m *Manager) discardSpare(s spare) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), discardLimit)
	defer cancel()
	err := errors.Join(m.cfg.Driver.Remove(ctx, s.instance), m.cfg.Network.Close(ctx, s.instance))
	if err != nil {
		return err // its uids stay taken: something may have them still
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pool.uids, s.instance)
	return nil
}

// drainPool removes all spares. Nothing is prepared any more.
func (m *Manager) drainPool() {
	m.mu.Lock()
	all := slices.Concat(slices.Collect(maps.Values(m.pool.ready))...)
	m.pool.ready = map[string][]spare{}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() {
			if err := m.discardSpare(s); err != nil {
				m.cfg.Log.Error("what was prepared for a launch could not be removed; the next start tries again", "instance", s.instance, "error", err)
			}
		})
	}
	wg.Wait()
}
