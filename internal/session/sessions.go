package session

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
)

// Sessions are those of one server. They are safe for concurrent use.
type Sessions struct {
	cfg   Config
	log   *slog.Logger
	first uint64 // entry of the log that may be of a session of this Sessions

	whole   atomic.Bool // the sessions of before are closed
	packer  *zstd.Encoder
	buffers sync.Pool // of *[]byte with nothing in it
	scratch sync.Pool // of *scratch

	work    chan struct{} // has one where something is queued
	early   chan struct{} // has one where that is much
	closing chan struct{} // has one where a session is over or begins
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	live   map[isle.ID]*Live
	floor  uint64    // every session that is not in live ended, or begins, at this entry or after it
	over   []*Live   // those to close
	ending int       // those that are over, and in live still
	fewer  sync.Cond // ending became less
	closed bool

	unwritten atomic.Int64 // bytes of events, of all sessions

	dirty struct {
		sync.Mutex // guards list
		list       []*Live
	}
	shares struct {
		sync.Mutex // guards of
		of         map[isle.Actor]share
	}
	pending pending // of the sealing goroutine alone
}

// Open opens the recordings of a folder and begins to write what is recorded.
// Recover is to be called soon.
func Open(ctx context.Context, cfg Config) (*Sessions, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	cfg.Keep, cfg.Max = cmp.Or(cfg.Keep, DefaultKeep), cmp.Or(cfg.Max, DefaultMax)
	cfg.flushEvery, cfg.sealEvery, cfg.tick = cmp.Or(cfg.flushEvery, flushEvery), cmp.Or(cfg.sealEvery, sealEvery), cmp.Or(cfg.tick, tick)
	cfg.reserve, cfg.share = cmp.Or(cfg.reserve, maxReserve), cmp.Or(cfg.share, max(cfg.Max/shareOf, leastShare))
	if cfg.Keep < MinKeep {
		return nil, isle.Errorf(isle.Invalid, "recordings cannot be kept for %s only: the least is %s", cfg.Keep, MinKeep)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot make the folder of recordings: %w", err)
	}
	next, err := cfg.Log.Next(ctx)
	if err != nil {
		return nil, err
	}
	packer, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot compress recordings: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Sessions{
		cfg: cfg, log: cfg.Slog, packer: packer, stop: cancel, live: map[isle.ID]*Live{}, first: next, floor: next,
		work: make(chan struct{}, 1), early: make(chan struct{}, 1), closing: make(chan struct{}, 1),
	}
	s.fewer.L = &s.mu
	s.shares.of = map[isle.Actor]share{}
	s.remember()
	s.buffers.New = func() any { b := make([]byte, 0, 4<<10); return &b }
	s.scratch.New = func() any { return &scratch{} }
	s.running.Go(func() { s.write(ctx) })  // ends with Close
	s.running.Go(func() { s.seal(ctx) })   // so does this
	s.running.Go(func() { s.retain(ctx) }) // and this
	return s, nil
}

// Close ends every session, and returns when all that was recorded is durable.
func (s *Sessions) Close() error {
	s.mu.Lock()
	s.closed = true
	live := slices.Collect(maps.Values(s.live))
	s.fewer.Broadcast()
	s.mu.Unlock()
	for _, l := range live {
		l.mu.Lock()
		l.stop(isle.Errorf(isle.Unavailable, "the server ends"))
		l.mu.Unlock()
		l.End("")
	}
	s.stop()
	s.running.Wait()
	return s.packer.Close()
}

// Begin begins a session. ID, Started and the counters are Begin's to give. The
// session's audit entry is durable when Begin returns.
func (s *Sessions) Begin(ctx context.Context, info Info) (*Live, error) {
	now := s.cfg.Now().UTC().Truncate(time.Microsecond)
	info.ID, info.Started, info.Last, info.State = isle.NewID(), now, now, Active
	for _, t := range []*string{&info.Owner, &info.Source, &info.Address, &info.Database, &info.Role} {
		*t = clip(*t)
	}
	if err := s.hasRoom(); err != nil {
		return nil, err
	}
	if err := s.spend(info.Actor, 0); err != nil {
		return nil, err
	}
	w, err := newWriter(s.cfg.Dir, info, s.cfg.Sealer)
	if err != nil {
		return nil, err
	}
	l := &Live{s: s, id: info.ID, w: w, info: info, done: make(chan struct{})}
	l.info.State = ""
	l.room.L = &l.mu
	if err := s.register(ctx, l); err != nil {
		return nil, err
	}
	if err := s.cfg.Log.Append(ctx, opened(info)); err != nil {
		s.mu.Lock()
		delete(s.live, l.id)
		s.mu.Unlock()
		return nil, err
	}
	poke(s.closing)
	return l, nil
}

// register makes a session one of those that are live. Where they end faster
// than their ends can be made durable it waits.
func (s *Sessions) register(ctx context.Context, l *Live) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.fewer.Broadcast()
		s.mu.Unlock()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.ending >= maxEnding && ctx.Err() == nil && !s.closed {
		s.fewer.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.closed:
		return isle.Errorf(isle.Unavailable, "the server ends")
	case len(s.live) >= MaxSessions:
		return isle.Errorf(isle.Exhausted, "there are %d sessions already, as many as there may be", MaxSessions).WithHint("see `isle sessions ls`; end one with `isle sessions end ID`")
	}
	l.floor = s.floor
	s.live[l.id] = l
	return nil
}

// Err says why no session can begin; nil if one can.
func (s *Sessions) Err() error {
	if err := s.hasRoom(); err != nil {
		return err
	}
	_, err := s.cfg.Sealer.Seal(purpose(""), nil)
	return err
}

// hasRoom fails where the disk is so full that the rest is the audit log's, which
// is to say why nothing passes: a twentieth of it, maxReserve at most.
func (s *Sessions) hasRoom() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &st); err != nil {
		return isle.Errorf(isle.Unavailable, "nothing can be recorded, so nothing may pass: %w", Unwritten{fmt.Errorf("cannot look at %s: %w", s.cfg.Dir, err)})
	}
	free, reserve := st.Bavail*uint64(st.Bsize), min(st.Blocks*uint64(st.Bsize)/20, s.cfg.reserve)
	if free < reserve {
		return isle.Errorf(isle.Exhausted, "nothing more can be recorded, so nothing more may pass: %w",
			Unwritten{fmt.Errorf("%s has %d bytes free, and %d of them are kept for the audit log", s.cfg.Dir, free, reserve)}).
			WithHint("free space there; or keep recordings for a shorter time with --recordings-keep")
	}
	return nil
}

// opened is the entry of a session's start. Its ID is the session's.
func opened(i Info) audit.Entry {
	e := entryOf(i, isle.ActionSessionOpen, i.Actor)
	e.ID = i.ID
	return e.With("results", strconv.FormatBool(i.Results))
}

// entryOf is an entry about a session.
func entryOf(i Info, action isle.Action, by isle.Actor) audit.Entry {
	e := audit.NewEvent(by, action, i.Resource(), isle.Allow, "")
	if i.Ref != (isle.Ref{}) {
		e = e.In(i.Ref, i.Instance)
	}
	for _, d := range [][2]string{{"kind", i.Kind}, {"owner", i.Owner}, {"source", i.Source}, {"address", i.Address}, {"database", i.Database}, {"role", i.Role}} {
		if d[1] != "" {
			e = e.With(d[0], d[1])
		}
	}
	return e
}

// List returns the sessions that are live, those that began last first.
func (s *Sessions) List() []Info {
	s.mu.Lock()
	live := slices.Collect(maps.Values(s.live))
	s.mu.Unlock()
	out := make([]Info, 0, len(live))
	for _, l := range live {
		out = append(out, l.Info())
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(b.ID, a.ID) })
	return out
}

// End ends a live session at once, by the actor. It is durable in the log before
// the session ends. The session's Cause says who did it and why.
func (s *Sessions) End(ctx context.Context, by isle.Actor, id isle.ID, reason string) error {
	l := s.find(id)
	if l == nil {
		return isle.Errorf(isle.NotFound, "no session %q goes on", id).WithHint("see `isle sessions ls`")
	}
	e := audit.NewEvent(by, isle.ActionSessionEnd, l.Info().Resource(), isle.Allow, clip(reason)).With("session", string(id))
	e.Link = id
	if err := s.cfg.Log.Append(ctx, e); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop(endedBy(by, reason))
	return nil
}

// find returns a live session, nil if there is none of the ID.
func (s *Sessions) find(id isle.ID) *Live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// ended takes a session that is over, to be closed.
func (s *Sessions) ended(l *Live) {
	s.mu.Lock()
	s.over = append(s.over, l)
	s.ending++
	s.mu.Unlock()
	poke(s.closing)
}

// forget lets go of sessions that are over and closed.
func (s *Sessions) forget(ids []isle.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.live, id)
	}
	s.ending -= len(ids)
	s.fewer.Broadcast()
}

// poke puts something into a channel of one, if nothing is there.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// queue takes a session of which something is to be written.
func (s *Sessions) queue(l *Live) {
	s.dirty.Lock()
	s.dirty.list = append(s.dirty.list, l)
	s.dirty.Unlock()
	poke(s.work)
}

// write writes what is recorded, each time that a moment has passed, and sooner
// what is much. Where nothing is it sleeps.
func (s *Sessions) write(ctx context.Context) {
	t := time.NewTimer(s.cfg.flushEvery)
	defer t.Stop()
	runs := true     // t does
	var held []*Live // to be written when t runs out
	for {
		work := s.work
		if len(held) > 0 {
			work = nil // the timer runs for them already
		}
		all := false
		select {
		case <-ctx.Done():
			return // what is left the sealing goroutine writes as it closes
		case <-work:
		case <-s.early: // of something that may be new, which work has not told of yet
		case <-t.C:
			all, runs = true, false
		}
		s.dirty.Lock()
		held = append(held, s.dirty.list...)
		s.dirty.list = nil
		s.dirty.Unlock()
		rest := held[:0]
		for _, l := range held {
			if !(all || l.waiting() >= maxEarly) || !s.flush(l) {
				rest = append(rest, l)
			}
		}
		clear(held[len(rest):])
		if held = rest; len(held) > 0 && !runs {
			t.Reset(s.cfg.flushEvery)
			runs = true
		}
	}
}

// flush writes what is recorded of a session, unless it is being synced: the
// others do not wait for that.
func (s *Sessions) flush(l *Live) bool {
	if !l.out.TryLock() {
		return false
	}
	defer l.out.Unlock()
	if err := l.flush(); err != nil {
		s.log.Error("a session cannot be recorded", "session", l.id, "err", err)
	}
	return true
}

// pack writes events as one block.
func (s *Sessions) pack(w *writer, encoded []byte) error {
	if err := s.hasRoom(); err != nil {
		return err
	}
	z := s.scratch.Get().(*scratch)
	defer s.scratch.Put(z)
	return w.events(s.cfg.Now(), encoded, s.packer, z)
}

// buffer returns an empty buffer, giveBack takes it back unless it has grown.
func (s *Sessions) buffer() []byte { return (*s.buffers.Get().(*[]byte))[:0] }

func (s *Sessions) giveBack(b []byte) {
	if cap(b) <= 2*maxPending {
		s.buffers.Put(&b)
	}
}
