package session

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"isle"
	"isle/internal/audit"
)

// unclosed is what the log says of a session whose end it does not have.
type unclosed struct {
	info   Info
	chunks []chunk
}

// page is how many entries are read at a time.
const page = 1000

// Recover closes the sessions that the log has as open: the server died in them.
// What was written of a recording is kept up to the last event that is whole; a
// recording that is not what the log vouches for is left as it is, and its
// session's last entry says so. It is called once; sessions may begin meanwhile.
func (s *Sessions) Recover(ctx context.Context) error {
	if s.whole.Load() {
		return nil
	}
	from := s.marked()
	if from > s.first {
		from = 0 // it is that of a log that was longer
	}
	open := map[isle.ID]*unclosed{}
	for from < s.first { // what is later is of sessions that go on
		entries, err := s.cfg.Log.Encoded(ctx, from, int(min(page, s.first-from)))
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			break
		}
		for i, b := range entries {
			if !Concerns(b) {
				continue
			}
			e, err := audit.Decode(b)
			if err != nil {
				return isle.Errorf(isle.Unavailable, "audit entry %d cannot be read, so sessions cannot be recovered: %w", from+uint64(i), err).WithHint("see `isle audit verify`")
			}
			note(open, e)
		}
		from += uint64(len(entries))
	}
	ids := map[isle.ID]bool{}
	for id := range open {
		ids[id] = true
	}
	var entries []audit.Entry
	for _, id := range sortedIDs(ids) {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries = append(entries, s.recover(open[id]))
	}
	if len(entries) > 0 {
		if err := s.cfg.Log.Append(ctx, entries...); err != nil {
			return err
		}
		s.log.Info("closed sessions in which the server had died", "sessions", len(entries))
	}
	s.whole.Store(true)
	s.mark()
	return nil
}

// marked is the entry that recovery begins at; 0 where that is not known.
func (s *Sessions) marked() uint64 {
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, markFile))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 62)
	if err != nil {
		return 0
	}
	return n
}

// note takes an entry of the log in.
func note(open map[isle.ID]*unclosed, e audit.Entry) {
	switch e.Action {
	case isle.ActionSessionOpen:
		open[e.ID] = &unclosed{info: infoOf(e)}
	case isle.ActionSessionClose:
		delete(open, e.Link)
	case isle.ActionRecordingKeep:
		for _, c := range chunksOf(e) {
			if u := open[c.id]; u != nil {
				u.chunks = append(u.chunks, c)
			}
		}
	}
}

// infoOf is what the entry of a session's start says of it.
func infoOf(e audit.Entry) Info {
	name, stage, _ := strings.Cut(e.Environment, "@")
	return Info{
		ID: e.ID, Actor: e.Actor, Ref: isle.Ref{Name: name, Stage: stage}, Instance: e.Instance, Started: e.ID.Time().UTC(), Last: e.ID.Time().UTC(),
		Connection: e.Resource.Name, Stage: e.Resource.Stage, Kind: e.Details["kind"], Owner: e.Details["owner"], Source: e.Details["source"],
		Address: e.Details["address"], Database: e.Details["database"], Role: e.Details["role"], Results: e.Details["results"] == "true",
	}
}

// died is why a session ended that recovery closes.
const died = "the server died"

// recover closes the recording of one session.
func (s *Sessions) recover(u *unclosed) audit.Entry {
	info := u.info
	info.State, info.Why, info.Ended = Ended, died, info.Last
	f, err := openFile(s.cfg.Dir, info.ID)
	if isle.CodeOf(err) == isle.NotFound && err != nil {
		if err = nil; len(u.chunks) > 0 {
			err = isle.Errorf(isle.Untrusted, "the recording is missing, and the log vouches for %d chunks of it", len(u.chunks))
		}
		return s.recovered(info, "", 0, err)
	}
	if err != nil {
		return s.recovered(info, "", 0, err)
	}
	defer f.close()
	whole, err := s.walk(f, u, &info)
	switch {
	case err != nil:
		return s.recovered(info, "", f.chunks, err)
	case whole: // it had ended, and the log had not been told
		return s.recovered(info, f.digest(), f.chunks, nil)
	}
	dropped := f.size - f.at
	w := &writer{dir: s.cfg.Dir, id: info.ID, size: f.at, chunks: f.chunks, chain: f.chain, rest: f.rest, tail: f.tail}
	if dropped > 0 {
		info.Why += "; " + strconv.FormatInt(dropped, 10) + " bytes at the recording's end were not whole and were cut off"
		err = os.Truncate(f.path, f.at)
	}
	var digest isle.Digest
	if err == nil {
		digest, err = w.end(s.cfg.Now(), info)
		err = errors.Join(err, syncFolder(filepath.Dir(f.path)), syncFolder(s.cfg.Dir))
	}
	return s.recovered(info, digest, w.chunks, err)
}

// recovered is the last entry of a session in which the server died.
func (s *Sessions) recovered(i Info, digest isle.Digest, chunks int, err error) audit.Entry {
	e := closed(i, digest, chunks, err)
	if i.Why != died && !strings.HasPrefix(i.Why, died+";") {
		return e // it had ended before
	}
	if e.Result == audit.OK {
		e.Result = audit.Unknown
	}
	if err != nil {
		s.log.Error("the recording of a session is not whole", "session", i.ID, "err", err)
	}
	return e
}

// walk reads a recording up to where it is whole and counts what is in it. It
// fails with Untrusted where it is not what the log vouches for. whole says that
// the recording has its end.
func (s *Sessions) walk(f *file, u *unclosed, info *Info) (whole bool, err error) {
	// Without the key what is not sealed yet counts for what it looks like.
	open, kerr := f.unpacker(s.cfg.Sealer)
	if kerr == nil {
		defer open.close()
	}
	counter := Live{info: *info}
	defer func() {
		if !whole {
			*info = counter.info
			info.State, info.Ended = Ended, info.Last
		}
	}()
	for left := u.chunks; ; {
		b, err := f.next()
		if err != nil && err != io.EOF && err != errTorn {
			return false, err
		}
		if err == nil && b.kind == blockEvents && kerr == nil {
			err = open.count(b, &counter)
		}
		switch {
		case err != nil && len(left) > 0:
			return false, f.bad("from byte %d on it cannot be read; the log vouches for it up to byte %d", f.at, left[len(left)-1].end)
		case err != nil:
			return false, nil
		case b.kind == blockSeal && len(left) > 0:
			if left[0] != b.chunk {
				return false, f.bad("chunk %d, which ends at byte %d, is not the one that the log vouches for", b.chunk.number, b.chunk.end)
			}
			left = left[1:]
		case b.kind == blockEnd:
			i, ok := f.end()
			if f.accept(); !ok || f.at != f.size || len(left) > 0 {
				return false, f.bad("it goes on after its end, at byte %d", b.at)
			}
			*info = i
			return true, nil
		}
	}
}

// count opens a block and counts its events.
func (u *unpacker) count(b block, l *Live) error {
	encoded, err := u.open(b)
	for err == nil && len(encoded) > 0 {
		var e Event
		if e, encoded, err = readEvent(encoded); err == nil {
			l.count(&e)
		}
	}
	return err
}
