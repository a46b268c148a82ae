package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
)

const (
	// retainEvery is how often it is looked for what is to be deleted, the first
	// time soon after the start.
	retainEvery = time.Hour
	retainFirst = time.Minute
	// idsOfDetail is how many sessions one detail of an entry names.
	idsOfDetail = 60
)

// kept is a recording that may be deleted.
type kept struct {
	id    isle.ID
	ended time.Time
	bytes int64
}

// retain deletes what is old, until the end.
func (s *Sessions) retain(ctx context.Context) {
	t := time.NewTimer(retainFirst)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(retainEvery)
		}
		if _, err := s.Retain(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("recordings could not be deleted", "err", err)
		}
	}
}

// Retain deletes recordings that are older than Keep and, where all together
// have more than Max bytes, those that began first, until they have not; none
// of a session that ended less than MinKeep ago or goes on. What is deleted and
// by which rule is in the log before it is. It returns how many were.
func (s *Sessions) Retain(ctx context.Context) (deleted int, err error) {
	now := s.cfg.Now()
	var all []kept // those that began last first
	total := int64(0)
	for id, err := range recordings(s.cfg.Dir, time.Time{}, time.Time{}) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, err
		}
		st, err := os.Lstat(pathOf(s.cfg.Dir, id))
		if err != nil {
			continue // deleted by somebody else
		}
		total += st.Size()
		// It was written last when it ended: to ask the file would be to open each.
		if k := (kept{id, latest(st.ModTime(), id.Time()), st.Size()}); now.Sub(k.ended) >= MinKeep && s.find(id) == nil {
			all = append(all, k)
		}
	}
	slices.Reverse(all)
	var old, excess []kept
	for _, k := range all {
		switch {
		case now.Sub(k.ended) >= s.cfg.Keep:
			old = append(old, k)
		case total > s.cfg.Max:
			excess = append(excess, k)
		default:
			continue
		}
		total -= k.bytes
	}
	err = errors.Join(
		s.remove(ctx, old, "recordings-keep "+s.cfg.Keep.String()),
		s.remove(ctx, excess, "recordings-max "+strconv.FormatInt(s.cfg.Max, 10)),
	)
	if total > s.cfg.Max {
		s.log.Warn("recordings have more bytes than they may, and none is old enough to be deleted", "bytes", total, "max", s.cfg.Max, "kept at least", MinKeep)
	}
	return len(old) + len(excess), err
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// remove deletes recordings by a rule.
func (s *Sessions) remove(ctx context.Context, list []kept, rule string) error {
	for part := range slices.Chunk(list, idsOfDetail*(detailsOfEntry-2)) {
		if err := s.cfg.Log.Append(ctx, removal(part, rule)); err != nil {
			return err
		}
		days := map[string]bool{}
		for _, k := range part {
			path := pathOf(s.cfg.Dir, k.id)
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return isle.Errorf(isle.Unavailable, "cannot delete a recording: %w", err)
			}
			days[filepath.Dir(path)] = true
		}
		for dir := range days {
			_ = os.Remove(dir) // unless it holds others
		}
	}
	return nil
}

// removal is the entry of deletions.
func removal(list []kept, rule string) audit.Entry {
	e := audit.NewEvent(recorder(), isle.ActionRecordingDelete, isle.Resource{Kind: "server", Name: "server"}, isle.Allow, fmt.Sprintf("%d recordings", len(list)))
	e.Rule = rule
	bytes := int64(0)
	n := 0
	for part := range slices.Chunk(list, idsOfDetail) {
		var b strings.Builder
		for _, k := range part {
			b.WriteString(string(k.id) + "\n")
			bytes += k.bytes
		}
		e = e.With(fmt.Sprintf("sessions.%02d", n), b.String())
		n++
	}
	return e.With("bytes", strconv.FormatInt(bytes, 10))
}

// deletedBy are the sessions whose recordings an entry says were deleted.
func deletedBy(e audit.Entry) (out []isle.ID) {
	for _, key := range sortedKeys(e.Details) {
		if !strings.HasPrefix(key, "sessions.") {
			continue
		}
		for line := range strings.Lines(e.Details[key]) {
			out = append(out, isle.ID(strings.TrimSpace(line)))
		}
	}
	return out
}
