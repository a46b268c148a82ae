package session

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
)

// A Verifier checks recordings against the audit log. It needs no key. It is
// made first, then given every entry of the log in order, and then asked: so
// whatever it finds in the folder the log must know of.
type Verifier struct {
	dir      string
	only     map[isle.ID]bool // nil: all
	found    []isle.ID        // in the folder, where all are checked
	sessions map[isle.ID]*vouched
}

// vouched is what the log says of a session.
type vouched struct {
	opened  audit.Entry
	chunks  []chunk
	closed  *audit.Entry
	deleted string // by which rule
}

// NewVerifier checks the recordings of a folder; those of some sessions, or of
// all if none are named.
func NewVerifier(dir string, ids ...isle.ID) *Verifier {
	v := &Verifier{dir: dir, sessions: map[isle.ID]*vouched{}}
	for _, id := range ids {
		if v.only == nil {
			v.only = map[isle.ID]bool{}
		}
		v.only[id] = true
	}
	if v.only == nil {
		for id, err := range recordings(dir, time.Time{}, time.Time{}) {
			if err == nil { // else there is no folder, and so no recording
				v.found = append(v.found, id)
			}
		}
	}
	return v
}

// Concerns says whether an encoded entry can be about recordings: what is not
// need not be decoded.
func Concerns(encoded []byte) bool {
	return bytes.Contains(encoded, []byte(`"action":"session:`)) || bytes.Contains(encoded, []byte(`"action":"recording:`))
}

// Entry takes an entry of the log.
func (v *Verifier) Entry(e audit.Entry) {
	switch e.Action {
	case isle.ActionSessionOpen:
		if v.only == nil || v.only[e.ID] {
			v.sessions[e.ID] = &vouched{opened: e}
		}
	case isle.ActionSessionClose:
		if s := v.sessions[e.Link]; s != nil && s.closed == nil {
			s.closed = &e
		}
	case isle.ActionRecordingKeep:
		for _, c := range chunksOf(e) {
			if s := v.sessions[c.id]; s != nil {
				s.chunks = append(s.chunks, c)
			}
		}
	case isle.ActionRecordingDelete:
		for _, id := range deletedBy(e) {
			if s := v.sessions[id]; s != nil {
				s.deleted = e.Rule
			}
		}
	}
}

// chunksOf reads the chunks that an entry vouches for.
func chunksOf(e audit.Entry) (out []chunk) {
	for _, key := range sortedKeys(e.Details) {
		if !strings.HasPrefix(key, "chunks.") {
			continue
		}
		for line := range strings.Lines(e.Details[key]) {
			var c chunk
			f := strings.Fields(line)
			if len(f) != 4 {
				continue
			}
			c.id = isle.ID(f[0])
			c.number, _ = strconv.Atoi(f[1])
			c.end, _ = strconv.ParseInt(f[2], 10, 64)
			h, err := hex.DecodeString(f[3])
			if err != nil || len(h) != len(c.hash) {
				continue
			}
			copy(c.hash[:], h)
			out = append(out, c)
		}
	}
	return out
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// A Report is what was found of one recording.
type Report struct {
	ID     isle.ID  `json:"id"`
	State  string   `json:"state"` // "whole", "growing" (its session goes on), "deleted", "wrong"
	Note   string   `json:"note,omitempty"`
	Chunks int      `json:"chunks"` // that the log vouches for
	Bytes  int64    `json:"bytes"`
	Wrong  []string `json:"wrong,omitempty"`
}

// The states of a Report.
const (
	Whole   = "whole"
	Growing = "growing"
	Deleted = "deleted"
	Wrong   = "wrong"
)

// Verify checks one recording. It fails with NotFound where neither the log nor
// the folder has heard of the session.
func (v *Verifier) Verify(id isle.ID) (Report, error) {
	r := Report{ID: id}
	says := v.sessions[id]
	f, err := openFile(v.dir, id)
	switch {
	case err == nil:
		defer f.close()
		r.Bytes = f.size
	case isle.CodeOf(err) == isle.Untrusted:
		r.wrong("%s", err.(*isle.Error).Message)
		return r, nil
	case isle.CodeOf(err) != isle.NotFound:
		return r, err
	}
	switch {
	case says == nil && f == nil:
		return r, isle.Errorf(isle.NotFound, "there is no session %q", clip(string(id)))
	case says == nil:
		r.wrong("the log has no session %s", id)
	case f == nil:
		v.missing(&r, says)
	default:
		v.compare(&r, says, f)
	}
	return r, nil
}

func (r *Report) wrong(format string, args ...any) {
	r.State = Wrong
	r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
}

// missing says whether a recording may be missing.
func (v *Verifier) missing(r *Report, says *vouched) {
	r.Chunks = len(says.chunks)
	switch {
	case says.deleted != "":
		r.State, r.Note = Deleted, "deleted by "+says.deleted
	case len(says.chunks) > 0 || says.closed != nil && says.closed.Recording != "":
		r.wrong("the recording is missing: the log vouches for it, and does not say that it was deleted")
	case says.closed == nil:
		r.State, r.Note = Growing, "nothing is recorded yet"
	default:
		r.State, r.Note = Whole, "nothing was recorded"
	}
}

// compare walks a file.
func (v *Verifier) compare(r *Report, says *vouched, f *file) {
	r.State = Whole
	if says.closed == nil {
		r.State = Growing
	}
	left := says.chunks
	r.Chunks = len(left)
	for {
		b, err := f.next()
		if err == io.EOF {
			break
		}
		if err == errTorn {
			if says.closed != nil {
				r.wrong("from byte %d on it cannot be read", f.at)
				return
			}
			r.Note = "its end was being written"
			break
		}
		if err != nil {
			r.wrong("%s", err.(*isle.Error).Message)
			return
		}
		if b.kind != blockSeal || len(left) == 0 {
			continue // what no entry vouches for yet the last one does
		}
		if left[0] != b.chunk {
			r.wrong("chunk %d, which ends at byte %d, is not the one that the log vouches for", b.chunk.number, b.chunk.end)
			return
		}
		left = left[1:]
	}
	if len(left) > 0 {
		r.wrong("it ends at byte %d; the log vouches for %d chunks, up to byte %d", f.size, len(says.chunks), left[len(left)-1].end)
		return
	}
	if says.closed != nil && says.closed.Recording != f.digest() {
		r.wrong("what follows chunk %d is not what was there when the session ended", f.chunks-1)
		return
	}
	if says.closed != nil && says.closed.Details["recording"] != "" {
		r.Note = says.closed.Details["recording"]
	}
}

// All checks every recording that the log or the folder has heard of, oldest
// first.
func (v *Verifier) All() ([]Report, error) {
	ids := map[isle.ID]bool{}
	for id := range v.sessions {
		ids[id] = true
	}
	for _, id := range v.found {
		ids[id] = true
	}
	for id := range v.only {
		ids[id] = true
	}
	var out []Report
	for _, id := range sortedIDs(ids) {
		r, err := v.Verify(id)
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	return out, nil
}

func sortedIDs(m map[isle.ID]bool) []isle.ID {
	ids := make([]isle.ID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
