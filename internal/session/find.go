package session

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"isle"
)

// A Filter selects sessions. What is empty selects all.
type Filter struct {
	Actor      string // kind:name, or the name of one of any kind
	Connection string // NAME[@STAGE], of any stage without one
	Since      time.Time
	Until      time.Time       // and not at it; both of the session's start
	May        func(Info) bool // nil: all
}

// Match says whether the filter selects a session.
func (f Filter) Match(i Info) bool {
	name, stage, staged := strings.Cut(f.Connection, "@")
	return (f.Actor == "" || f.Actor == i.Actor.String() || f.Actor == i.Actor.Name) &&
		(name == "" || name == i.Connection) && (!staged || stage == i.Stage) &&
		!i.Started.Before(f.Since) && (f.Until.IsZero() || i.Started.Before(f.Until)) &&
		(f.May == nil || f.May(i))
}

// Past returns the sessions that a filter selects, live ones too, those that
// began last first, and at most so many.
func (s *Sessions) Past(ctx context.Context, f Filter, most int) ([]Info, error) {
	var out []Info
	for i, err := range s.all(ctx, f) {
		if err != nil {
			return out, err
		}
		if out = append(out, i); len(out) >= most {
			break
		}
	}
	return out, nil
}

// all are the sessions that a filter selects, those that began last first. A
// recording that cannot be read is logged and passed over.
func (s *Sessions) all(ctx context.Context, f Filter) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		live := s.List() // those without a file too
		for id, err := range recordings(s.cfg.Dir, f.Since, f.Until) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(Info{}, err)
				return
			}
			for len(live) > 0 && live[0].ID > id {
				if f.Match(live[0]) && !yield(live[0], nil) {
					return
				}
				live = live[1:]
			}
			if len(live) > 0 && live[0].ID == id {
				continue // comes before the next one
			}
			i, err := s.Get(id)
			if err != nil {
				s.log.Warn("a recording cannot be read", "session", id, "err", err)
				continue
			}
			if f.Match(i) && !yield(i, nil) {
				return
			}
		}
		for _, i := range live {
			if f.Match(i) && !yield(i, nil) {
				return
			}
		}
	}
}

// recordings are the sessions of which there are files and that may have begun
// in a span of time, the last ones first.
func recordings(dir string, since, until time.Time) iter.Seq2[isle.ID, error] {
	return func(yield func(isle.ID, error) bool) {
		days, err := os.ReadDir(dir)
		if err != nil {
			yield("", isle.Errorf(isle.Unavailable, "cannot read the folder of recordings: %w", err))
			return
		}
		slices.Reverse(days)
		for _, d := range days {
			day, err := time.Parse(time.DateOnly, d.Name())
			if err != nil || !d.IsDir() || !until.IsZero() && !day.Before(until) || !since.IsZero() && !day.Add(25*time.Hour).After(since) {
				continue
			}
			files, err := os.ReadDir(filepath.Join(dir, d.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			}
			if err != nil {
				yield("", isle.Errorf(isle.Unavailable, "cannot read the folder of recordings: %w", err))
				return
			}
			slices.Reverse(files)
			for _, f := range files {
				name, ok := strings.CutSuffix(f.Name(), suffix)
				if id := isle.ID(name); ok && id.Valid() && !yield(id, nil) {
					return
				}
			}
		}
	}
}

// A Query says which events are looked for. What is empty fits all.
type Query struct {
	Text     string        // in a statement, or in an error; in any case of letters
	Decision isle.Decision // what was decided: allow, deny (also events of a refusal), hold
	Kind     string
}

// Match says whether an event is looked for.
func (q Query) Match(e Event) bool {
	switch q.Decision {
	case "":
	case isle.Deny:
		if e.Decision != isle.Deny && e.Kind != Refused && e.Kind != Denied {
			return false
		}
	case isle.Hold:
		if e.Decision != isle.Hold && e.Kind != Holding {
			return false
		}
	default:
		if e.Decision != q.Decision {
			return false
		}
	}
	if q.Kind != "" && q.Kind != e.Kind {
		return false
	}
	if q.Text == "" {
		return true
	}
	text := []byte(strings.ToLower(q.Text))
	return e.Kind != End && bytes.Contains(bytes.ToLower(e.Text), text) || bytes.Contains(bytes.ToLower([]byte(e.Error)), text)
}

// Search looks through the recordings of the sessions that a filter selects,
// those that began last first. It keeps one block in memory at a time. A
// recording that cannot be read to its end is logged, and the next one is read.
func (s *Sessions) Search(ctx context.Context, f Filter, q Query, emit func(Info, Event) error) error {
	for i, err := range s.all(ctx, f) {
		if err != nil {
			return err
		}
		var over error // emit wants no more
		err := s.Events(ctx, i.ID, false, func(e Event) error {
			if q.Match(e) {
				over = emit(i, e)
			}
			return over
		})
		if over != nil {
			return over
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && isle.CodeOf(err) != isle.NotFound { // deleted meanwhile
			s.log.Warn("a recording cannot be searched", "session", i.ID, "err", err)
		}
	}
	return nil
}
