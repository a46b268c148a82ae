package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/audit"
	"isle/internal/identity"
)

// What one environment, one caller or one source may put into the audit log by
// being refused. Beyond the burst its refusals are counted together, so that none can fill the disk or
// keep others from being recorded; and one that goes on and on is stopped.
const (
	// refusalBurst is how many refusals of an environment are entries of their
	// own in a row; one more may be every refusalEvery.
	refusalBurst = 100
	refusalEvery = 10 * time.Second
	// togetherEvery is how often those beyond are told of, in one entry.
	togetherEvery = time.Minute
	// togetherNamed is how many destinations such an entry names.
	togetherNamed = 8
	// refusalShare is how many refusals an environment has before it is stopped;
	// it gets refusalRefill more each second, up to the share again.
	refusalShare  = 100_000
	refusalRefill = 10
	// maxShares is how many environments, sources and actors are remembered before those
	// that are quiet are forgotten.
	maxShares = 2000
	// stopTimeout bounds how long stopping one may take.
	stopTimeout = 5 * time.Minute
)

var (
	ownRefusals = allowance.Rate{Burst: refusalBurst, Every: refusalEvery}
	allRefusals = allowance.Rate{Burst: refusalShare, Every: time.Second / refusalRefill}
)

// An appender is what refusals needs of the log.
type appender interface {
	Append(ctx context.Context, entries ...audit.Entry) error
}

// refusals records what environments, and callers from elsewhere, were refused,
// each within its share.
type refusals struct {
	log  appender
	slog *slog.Logger
	stop func(ctx context.Context, ref isle.Ref) error // takes an environment down, volumes kept
	now  func() time.Time

	ctx    context.Context // of stops in progress
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	shares map[string]*share // by instance, source or actor
}

// A share is that of one environment or source.
type share struct {
	at     time.Time           // of the last refusal
	own    allowance.Allowance // entries of its own
	left   allowance.Allowance // refusals before it is stopped
	over   bool                // it was stopped for it
	last   audit.Entry
	count  int            // refusals to be told of together
	named  map[string]int // and of which destinations
	others int            // and of how many that are not named
	timer  *time.Timer    // tells of them; nil if there are none
}

func newRefusals(log appender, logger *slog.Logger, stop func(context.Context, isle.Ref) error) *refusals {
	r := &refusals{log: log, slog: logger, stop: stop, now: time.Now, shares: map[string]*share{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// add takes a refusal of an environment: an entry with its Instance, Count and
// Resource. It returns once the entry is durable, or is to be told of later.
func (r *refusals) add(e audit.Entry, ref isle.Ref) {
	e.Count = max(e.Count, 1)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	s := r.share(string(e.Instance))
	s.last = e
	exhausted := !s.left.Spend(s.at, allRefusals, e.Count) && !s.over && ref.Name != ""
	if exhausted {
		s.over = true
		r.wg.Add(1)
	}
	own := s.own.Take(s.at, ownRefusals)
	if !own {
		r.together(s, e)
	}
	r.mu.Unlock()
	if own {
		r.append(e)
	}
	if exhausted {
		go r.halt(e, ref) // ends with the stop, or with close
	}
}

// sources is the share of all sources together.
const sources = "sources"

// actors is the share of all actors together who come when as many as may be are
// remembered.
const actors = "actors"

// actor takes a refusal of somebody who is known. Each has their share, beyond
// which their refusals are counted together: who may speak to the server and do
// nothing there must not fill its disk by asking, nor hide what others ask.
func (r *refusals) actor(e audit.Entry) {
	e.Count = max(e.Count, 1)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	key := "actor " + e.Actor.String()
	if _, known := r.shares[key]; !known && len(r.shares) >= maxShares {
		key = actors
	}
	s := r.share(key)
	s.last = e
	own := s.own.Take(s.at, ownRefusals)
	if !own {
		named := e
		named.Resource.Name = string(e.Action) + " " + e.Resource.String()
		r.together(s, named)
	}
	r.mu.Unlock()
	if own {
		r.append(e)
	}
}

// source takes a refusal of a caller from elsewhere. A source has its share, and
// all together have one: beyond either a refusal is counted with others, of
// whatever source, so that many can put no more into the log than one.
func (r *refusals) source(e audit.Entry, source string) {
	e.Count = max(e.Count, 1)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	all := r.share(sources)
	key, one := "source "+identity.Neighbours(source), all
	if _, known := r.shares[key]; known || len(r.shares) < maxShares {
		one = r.share(key)
	}
	own := one != all && one.own.Has(one.at, ownRefusals) && all.own.Take(all.at, ownRefusals)
	if own {
		one.own.Take(one.at, ownRefusals)
	} else {
		all.last = e
		named := e
		named.Resource.Name = identity.Neighbours(source)
		r.together(all, named)
	}
	r.mu.Unlock()
	if own {
		r.append(e)
	}
}

// share returns that of an instance or source, as of now. mu is held.
func (r *refusals) share(key string) *share {
	now := r.now()
	s := r.shares[key]
	if s == nil {
		if len(r.shares) >= maxShares {
			for k, o := range r.shares {
				if o.timer == nil && now.Sub(o.at) > time.Hour {
					delete(r.shares, k)
				}
			}
		}
		s = &share{}
		r.shares[key] = s
	}
	s.at = now
	return s
}

// together counts a refusal to be told of with others. mu is held.
func (r *refusals) together(s *share, e audit.Entry) {
	s.count += e.Count
	if s.named == nil {
		s.named = map[string]int{}
	}
	if _, ok := s.named[e.Resource.Name]; ok || len(s.named) < togetherNamed {
		s.named[e.Resource.Name] += e.Count
	} else {
		s.others += e.Count
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(togetherEvery, func() { r.flush(s) })
	}
}

// flush tells of what was counted together.
func (r *refusals) flush(s *share) {
	r.mu.Lock()
	e, ok := s.take()
	r.mu.Unlock()
	if ok {
		r.append(e)
	}
}

// take makes an entry of what was counted together. mu is held.
func (s *share) take() (audit.Entry, bool) {
	if s.timer == nil {
		return audit.Entry{}, false
	}
	s.timer.Stop()
	e := audit.NewEvent(s.last.Actor, s.last.Action, isle.Resource{Kind: s.last.Resource.Kind, Name: "*"}, isle.Deny,
		fmt.Sprintf("%d more refusals, told of together", s.count))
	e.Environment, e.Instance, e.Rule, e.Count = s.last.Environment, s.last.Instance, s.last.Rule, s.count
	for name, n := range s.named {
		e = e.With(name, fmt.Sprint(n))
	}
	if s.others > 0 {
		e = e.With("others", fmt.Sprint(s.others))
	}
	s.timer, s.count, s.named, s.others = nil, 0, nil, 0
	return e, true
}

// halt stops an environment that has used up its share.
func (r *refusals) halt(e audit.Entry, ref isle.Ref) {
	defer r.wg.Done()
	why := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "log"}, isle.ActionEnvironmentDown,
		isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, isle.Allow,
		fmt.Sprintf("it used up its share of the log: %d refusals faster than %d a second; it is stopped, its volumes are kept", refusalShare, refusalRefill)).In(ref, e.Instance)
	r.append(why)
	r.slog.Warn("an environment used up its share of the audit log and is stopped", "environment", ref, "instance", e.Instance)
	ctx, cancel := context.WithTimeout(r.ctx, stopTimeout)
	defer cancel()
	if err := r.stop(ctx, ref); err != nil {
		r.slog.Error("it could not be stopped; the next refusal tries again", "environment", ref, "err", err)
		r.mu.Lock()
		if s := r.shares[string(e.Instance)]; s != nil {
			s.over = false
		}
		r.mu.Unlock()
	}
}

// append writes an entry that nobody waits for.
func (r *refusals) append(e audit.Entry) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.log.Append(ctx, e); err != nil {
		r.slog.Error("a refusal could not be recorded", "instance", e.Instance, "what", e.Resource, "err", err)
	}
}

// close tells of what was counted and waits for stops in progress, which it
// cuts off. Whatever is refused later is not recorded.
func (r *refusals) close() {
	r.mu.Lock()
	r.closed = true
	var rest []audit.Entry
	for _, s := range r.shares {
		if e, ok := s.take(); ok {
			rest = append(rest, e)
		}
	}
	r.mu.Unlock()
	for _, e := range rest {
		r.append(e)
	}
	r.cancel()
	r.wg.Wait()
}
