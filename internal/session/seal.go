package session

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
)

// recorder is who seals, closes and deletes recordings.
func recorder() isle.Actor { return isle.Actor{Kind: isle.System, Name: "recorder"} }

// pending is what the log is yet to be told.
type pending struct {
	entries []audit.Entry
	closed  []isle.ID // sessions whose last entry is among them
	since   time.Time // when the log was first away; zero: it is not
	marked  time.Time // when the mark was last written
}

const (
	atOnce    = 8                // files that are synced at a time
	markEvery = 30 * time.Second // how often the mark is written
	lastTries = 5                // at the end, for a log that is away
)

// seal ends chunks and closes sessions until the end, and then closes all.
// Where no session is live it sleeps.
func (s *Sessions) seal(ctx context.Context) {
	t := time.NewTimer(s.cfg.tick)
	defer t.Stop()
	for tries := 0; ; {
		due := t.C
		if s.quiet() {
			due = nil
		}
		over := ctx.Done()
		if tries > 0 {
			over = nil // it is known
		}
		look := false
		select {
		case <-s.closing:
		case <-due:
			t.Reset(s.cfg.tick)
			look = true
		case <-over:
			tries++
		}
		s.closeOver()
		if look {
			s.sealDue()
		}
		s.tell(look || tries > 0)
		if tries == 0 {
			continue
		}
		if s.quiet() {
			s.mark()
			return
		}
		if tries++; tries > lastTries {
			s.log.Error("the ends of sessions could not be recorded; the next start closes them", "entries", len(s.pending.entries))
			return
		}
	}
}

// quiet says that nothing is live and nothing is to be told.
func (s *Sessions) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live) == 0 && len(s.pending.entries) == 0
}

// sealDue seals what is old or large enough, and keeps the rates.
func (s *Sessions) sealDue() {
	now := s.cfg.Now()
	s.mu.Lock()
	live := slices.Collect(maps.Values(s.live))
	s.mu.Unlock()
	live = slices.DeleteFunc(live, func(l *Live) bool {
		l.look(s.cfg.tick)
		if !l.out.TryLock() {
			return true // it is being written; the next look finds it
		}
		defer l.out.Unlock()
		return l.w.over || l.w.tail == 0 || now.Sub(l.w.since) < s.cfg.sealEvery && l.w.tail < sealBytes
	})
	var mu sync.Mutex // guards chunks
	var chunks []chunk
	s.each(live, func(l *Live) {
		l.out.Lock()
		defer l.out.Unlock()
		if l.w.over || l.flush() != nil || l.w.tail == 0 {
			return
		}
		c, err := l.w.seal(now)
		if err != nil {
			s.log.Error("a session cannot be recorded", "session", l.id, "err", err)
			l.fail(err)
			return
		}
		mu.Lock()
		chunks = append(chunks, c)
		mu.Unlock()
	})
	slices.SortFunc(chunks, func(a, b chunk) int { return strings.Compare(string(a.id), string(b.id)) })
	s.pending.entries = append(s.pending.entries, sealed(chunks)...)
}

// look keeps the rate.
func (l *Live) look(every time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := float64(l.info.Statements-l.last) / every.Seconds()
	l.last = l.info.Statements
	if l.info.Rate += (n - l.info.Rate) / 4; l.info.Rate < 0.01 {
		l.info.Rate = 0
	}
}

// each does something for sessions, a few at a time, and then makes the names
// of new files durable.
func (s *Sessions) each(list []*Live, do func(l *Live)) {
	var group sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, l := range list {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			do(l)
		})
	}
	group.Wait()
	folders := map[string]bool{}
	for _, l := range list {
		l.out.Lock()
		if l.w.created {
			l.w.created = false
			folders[dayOf(s.cfg.Dir, l.id)] = true
		}
		l.out.Unlock()
	}
	if len(folders) > 0 {
		folders[s.cfg.Dir] = true
	}
	for dir := range folders {
		if err := syncFolder(dir); err != nil {
			s.log.Error("a folder of recordings cannot be synced: a power failure may lose its newest names", "dir", dir, "err", err)
		}
	}
}

// Bounds of an entry about chunks.
const (
	linesOfDetail  = 16
	detailsOfEntry = 12
)

// sealed are the entries that vouch for chunks.
func sealed(chunks []chunk) (out []audit.Entry) {
	for part := range slices.Chunk(chunks, linesOfDetail*detailsOfEntry) {
		e := audit.NewEvent(recorder(), isle.ActionRecordingKeep, isle.Resource{Kind: "server", Name: "server"}, isle.Allow, "")
		n := 0
		for lines := range slices.Chunk(part, linesOfDetail) {
			var b strings.Builder
			for _, c := range lines {
				fmt.Fprintf(&b, "%s %d %d %s\n", c.id, c.number, c.end, hex.EncodeToString(c.hash[:]))
			}
			e = e.With(fmt.Sprintf("chunks.%02d", n), b.String())
			n++
		}
		out = append(out, e)
	}
	return out
}

// closeOver writes the ends of sessions that are over.
func (s *Sessions) closeOver() {
	s.mu.Lock()
	over := s.over
	s.over = nil
	s.mu.Unlock()
	if len(over) == 0 {
		return
	}
	var mu sync.Mutex // guards pending
	s.each(over, func(l *Live) {
		e := s.finish(l)
		mu.Lock()
		defer mu.Unlock()
		s.pending.entries = append(s.pending.entries, e)
		s.pending.closed = append(s.pending.closed, l.id)
	})
}

// finish ends the recording of a session, and returns the session's last entry.
func (s *Sessions) finish(l *Live) audit.Entry {
	l.out.Lock()
	defer l.out.Unlock()
	ferr := l.flush()
	info := l.Info()
	digest, err := l.w.end(s.cfg.Now(), info)
	l.mu.Lock()
	if l.broken && ferr == nil {
		ferr = l.cause
	}
	l.mu.Unlock()
	if ferr != nil {
		err = ferr
	}
	if err != nil {
		s.log.Error("the recording of a session is not whole", "session", l.id, "err", err)
	}
	return closed(info, digest, l.w.chunks, err)
}

// closed is the entry of a session's end. It fails where the recording is not
// whole.
func closed(i Info, digest isle.Digest, chunks int, err error) audit.Entry {
	e := audit.NewEvent(i.Actor, isle.ActionSessionClose, i.Resource(), isle.Allow, i.Why)
	if i.Ref != (isle.Ref{}) {
		e = e.In(i.Ref, i.Instance)
	}
	e.Link, e.Recording, e.Result = i.ID, digest, audit.Result(err)
	for _, d := range []struct {
		key string
		n   int64
	}{
		{"statements", i.Statements}, {"refused", i.Refused}, {"held", i.Held}, {"rows", i.Rows}, {"bytes_in", i.BytesIn}, {"bytes_out", i.BytesOut},
		{"chunks", int64(chunks)}, {"milliseconds", i.Ended.Sub(i.Started).Milliseconds()},
	} {
		e = e.With(d.key, strconv.FormatInt(d.n, 10))
	}
	if err != nil {
		e = e.With("recording", "not whole: "+err.Error())
	}
	return e
}

// tell tells the log what is pending. Where it is away for long nothing more
// may pass.
func (s *Sessions) tell(again bool) {
	p := &s.pending
	if len(p.entries) == 0 || !p.since.IsZero() && !again {
		return
	}
	now := time.Now()
	err := s.cfg.Log.Append(context.Background(), p.entries...)
	if err == nil {
		s.forget(p.closed)
		p.entries, p.closed, p.since = nil, nil, time.Time{}
	} else {
		s.log.Error("recordings cannot be recorded in the audit log", "err", err)
		if p.since.IsZero() {
			p.since = now
		}
		if now.Sub(p.since) >= logWithin {
			s.breakAll(isle.Errorf(isle.CodeOf(err), "the session's recording cannot be vouched for by the audit log, so nothing more may pass: %w", err))
		}
	}
	if now.Sub(p.marked) >= markEvery && err == nil {
		p.marked = now
		s.mark()
	}
}

func (s *Sessions) breakAll(err error) {
	s.mu.Lock()
	live := slices.Collect(maps.Values(s.live))
	s.mu.Unlock()
	for _, l := range live {
		l.fail(err)
	}
}

// markFile says at which entry of the log recovery begins.
const markFile = "mark"

// mark writes the number of an entry before which no session began that has not
// ended. It need not be durable: one of before makes recovery read more.
func (s *Sessions) mark() {
	if !s.whole.Load() {
		return // sessions of before it may be open still
	}
	next, err := s.cfg.Log.Next(context.Background())
	if err != nil {
		return // recovery reads from an earlier one
	}
	s.mu.Lock()
	least := next
	for _, l := range s.live {
		least = min(least, l.floor)
	}
	s.floor = next
	s.mu.Unlock()
	path := filepath.Join(s.cfg.Dir, markFile)
	if err = os.WriteFile(path+".new", []byte(strconv.FormatUint(least, 10)+"\n"), 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.log.Warn("the mark of recordings cannot be written; a recovery reads more of the log", "err", err)
	}
}
