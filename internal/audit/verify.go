package audit

import (
	"fmt"
	"iter"
	"runtime"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// A Finding is one thing that is wrong with a log.
type Finding struct {
	Sequence uint64 `json:"seq"` // the entry, or the first of several
	Kind     string `json:"kind"`
	Message  string `json:"message"`
}

// The kinds of finding.
const (
	Changed   = "changed"   // not the bytes that were appended
	Missing   = "missing"   // was there, and is not
	Added     = "added"     // was never appended
	Moved     = "moved"     // is not in its place
	Truncated = "truncated" // the end is missing
	Rewritten = "rewritten" // a whole history that is another than the one that was signed
	Unlinked  = "unlinked"  // an outcome without its intent
	Backwards = "backwards" // from before the entry before it
	Edited    = "edited"    // a ledger, which is beside the log, is not what the log says
)

// maxFindings bounds a report; what is beyond it is counted.
const maxFindings = 100

// A Report is what a verification found.
type Report struct {
	From     uint64    `json:"from"` // the entries read: [From, To)
	To       uint64    `json:"to"`
	Proven   []string  `json:"proven"` // the checkpoints that the entries are proven against, by where they are from
	Open     int       `json:"open"`   // intents without an outcome yet
	Findings []Finding `json:"findings"`
	More     int       `json:"more,omitempty"` // findings beyond the first hundred
}

// OK says that nothing was found.
func (r *Report) OK() bool { return len(r.Findings) == 0 }

// Edited adds that a ledger is not what the log vouches for.
func (r *Report) Edited(why error) { r.add(r.To, Edited, "%s", why) }

func (r *Report) add(seq uint64, kind, format string, args ...any) {
	if len(r.Findings) >= maxFindings {
		r.More++
		return
	}
	r.Findings = append(r.Findings, Finding{seq, kind, fmt.Sprintf(format, args...)})
}

// A Reference is a checkpoint that the log must agree with.
type Reference struct {
	Source string // where it is from, for people
	Checkpoint
}

// A Row is an entry as a store has it.
type Row struct {
	Sequence uint64
	Time     int64  // Unix microseconds
	ID       string // the entry's
	Link     string // the entry's
	Ledger   string // that the entry is bound to
	Epoch    uint64 // of the change
	Entry    []byte
	Hashes   []byte // those that the entry completes, upwards, joined
}

// VerifyRows checks a whole store, entry 0 first, against itself and against
// checkpoints from elsewhere. An error means that the rows could not be read.
func VerifyRows(rows iter.Seq2[Row, error], refs []Reference) (Report, error) {
	refs = slices.Clone(refs)
	slices.SortStableFunc(refs, func(a, b Reference) int { return int(int64(a.Size) - int64(b.Size)) })
	v := rowVerifier{refs: refs, checker: checker{intents: map[isle.ID]intent{}, whole: true}}
	v.checker.report = &v.report
	for d, err := range decoded(rows) {
		if err != nil {
			return v.report, err
		}
		v.row(d)
	}
	v.anchor()
	for _, ref := range v.refs {
		v.report.add(v.tree.size, Truncated, "entries %d to %d are missing at the end: the checkpoint %s is of %d entries", v.tree.size, ref.Size-1, ref.Source, ref.Size)
	}
	v.report.To, v.report.Open = v.tree.size, len(v.intents)
	return v.report, nil
}

// A rowVerifier walks a store.
type rowVerifier struct {
	checker
	report Report
	refs   []Reference // those not met yet, the smallest first
	next   uint64      // the row that must come
	tree   Tree        // of the entries as they are
	stored []tlog.Hash // the right edge of the tree of the hashes as stored
	count  uint64      // rows in stored
	broken bool        // entries are missing: the trees are of something else
}

func (v *rowVerifier) row(d decodedRow) {
	r := d.row
	switch {
	case r.Sequence > v.next:
		v.report.add(v.next, Missing, "%s missing", span(v.next, r.Sequence))
		v.broken = true
	case r.Sequence < v.next:
		v.report.add(r.Sequence, Moved, "row %d stands behind row %d", r.Sequence, v.next-1)
	}
	v.next = r.Sequence + 1
	v.anchor()
	v.tree, _ = v.tree.Add(d.leaf)
	stored := splitHashes(r.Hashes)
	switch {
	case len(stored) == 0:
		v.report.add(r.Sequence, Changed, "entry %d has no hash beside it", r.Sequence)
	case stored[0] != d.leaf:
		v.report.add(r.Sequence, Changed, "entry %d is not what was appended: its bytes have another hash than the one beside them", r.Sequence)
	}
	v.edge(r.Sequence, stored)
	if d.err != nil {
		v.report.add(r.Sequence, Changed, "entry %d cannot be read: %s", r.Sequence, d.err)
		return
	}
	v.check(r.Sequence, d.entry)
	if e := d.entry; r.ID != string(e.ID) || r.Time != e.Time.UnixMicro() || r.Link != string(e.Link) {
		v.report.add(r.Sequence, Changed, "entry %d is listed under another ID, time or link than it has", r.Sequence)
	}
	var b Bound
	if d.entry.Bound != nil {
		b = *d.entry.Bound
	}
	if r.Ledger != b.Ledger || r.Epoch != b.Epoch {
		v.report.add(r.Sequence, Changed, "entry %d is listed for another ledger, or change of it, than it speaks of", r.Sequence)
	}
}

// edge checks that the stored hashes are those of one tree. It goes on with
// what is stored, so that each place that is wrong is named once.
func (v *rowVerifier) edge(seq uint64, stored []tlog.Hash) {
	if v.broken || len(stored) == 0 {
		v.broken = true
		return
	}
	want := 1
	for n := v.count; n&1 == 1; n >>= 1 {
		want++
	}
	if len(stored) != want {
		v.report.add(seq, Changed, "entry %d has %d hashes beside it, not %d", seq, len(stored), want)
		v.broken = true
		return
	}
	keep := len(v.stored) - (want - 1)
	for i := 1; i < want; i++ {
		if tlog.NodeHash(v.stored[len(v.stored)-i], stored[i-1]) != stored[i] {
			first := seq + 1 - 1<<i
			v.report.add(first, Changed, "one of the entries %d to %d was replaced together with its hash: they no longer make the hash above them", first, seq)
			break
		}
	}
	v.stored = append(v.stored[:keep], stored[want-1])
	v.count++
}

// anchor compares with the checkpoints of the present size.
func (v *rowVerifier) anchor() {
	for len(v.refs) > 0 && v.refs[0].Size == v.tree.size {
		ref := v.refs[0]
		v.refs = v.refs[1:]
		if v.tree.Root() != ref.Root {
			v.report.add(0, Rewritten, "the first %d entries are not those that the checkpoint %s is of: at least one of them was changed, added or taken out after it", ref.Size, ref.Source)
			continue
		}
		v.report.Proven = append(v.report.Proven, ref.Source)
	}
}

func span(from, to uint64) string {
	if to == from+1 {
		return fmt.Sprintf("entry %d is", from)
	}
	return fmt.Sprintf("entries %d to %d are", from, to-1)
}

func splitHashes(b []byte) []tlog.Hash {
	if len(b)%tlog.HashSize != 0 || len(b) > 64*tlog.HashSize {
		return nil
	}
	out := make([]tlog.Hash, 0, len(b)/tlog.HashSize)
	for ; len(b) > 0; b = b[tlog.HashSize:] {
		out = append(out, tlog.Hash(b[:tlog.HashSize]))
	}
	return out
}

// An intent is what its outcome must agree with.
type intent struct {
	actor    isle.Actor
	action   isle.Action
	resource isle.Resource
}

// A checker checks what entries say, in order.
type checker struct {
	report  *Report
	whole   bool // the log from its beginning
	begun   bool
	last    uint64
	time    time.Time
	intents map[isle.ID]intent // open ones
}

// check takes the entry that stands at a place.
func (c *checker) check(at uint64, e Entry) {
	switch {
	case e.Sequence == at:
	case c.begun && e.Sequence == c.last+1: // said once, where the shift begins
	case c.begun && e.Sequence > c.last+1:
		c.report.add(c.last+1, Missing, "%s missing: entry %d follows entry %d", span(c.last+1, e.Sequence), e.Sequence, c.last)
	default:
		c.report.add(at, Moved, "at place %d stands the entry that says that it is entry %d", at, e.Sequence)
	}
	if c.begun && e.Time.Before(c.time) {
		c.report.add(at, Backwards, "entry %d is from %s, before the entry before it (%s)", at, e.Time.Format(time.RFC3339Nano), c.time.Format(time.RFC3339Nano))
	}
	c.begun, c.last, c.time = true, e.Sequence, e.Time
	switch e.Kind {
	case Intent:
		c.intents[e.ID] = intent{e.Actor, e.Action, e.Resource}
	case Outcome:
		i, ok := c.intents[e.Link]
		delete(c.intents, e.Link)
		switch {
		case !ok && c.whole:
			c.report.add(at, Unlinked, "entry %d is the outcome of %s, which is no open intent before it", at, e.Link)
		case ok && i != intent{e.Actor, e.Action, e.Resource}:
			c.report.add(at, Unlinked, "entry %d is the outcome of %s, which is about something else", at, e.Link)
		}
	}
}

// A decodedRow is a row with what was computed of it.
type decodedRow struct {
	row   Row
	entry Entry
	err   error // of reading the entry
	leaf  tlog.Hash
}

func decodeRow(r Row) decodedRow {
	e, err := Decode(r.Entry)
	return decodedRow{r, e, err, tlog.RecordHash(r.Entry)}
}

// decoded decodes rows, in parallel and in order. Its goroutines end with it.
func decoded(rows iter.Seq2[Row, error]) iter.Seq2[decodedRow, error] {
	const batch = 256
	return func(yield func(decodedRow, error) bool) {
		queue := make(chan chan []decodedRow, 2*runtime.GOMAXPROCS(0))
		stop := make(chan struct{})
		done := make(chan struct{})
		var failed error // written before queue is closed
		go func() {      // ends when the rows do, or with stop
			defer close(done)
			defer close(queue)
			slots := make(chan struct{}, runtime.GOMAXPROCS(0))
			var part []Row
			flush := func() bool {
				out, work := make(chan []decodedRow, 1), part
				part = nil
				select {
				case queue <- out:
				case <-stop:
					return false
				}
				slots <- struct{}{}
				go func() { // ends with its batch
					defer func() { <-slots }()
					list := make([]decodedRow, len(work))
					for i, r := range work {
						list[i] = decodeRow(r)
					}
					out <- list
				}()
				return true
			}
			for r, err := range rows {
				if err != nil {
					failed = err
					break
				}
				if part = append(part, r); len(part) == batch && !flush() {
					return
				}
			}
			if len(part) > 0 {
				flush()
			}
		}()
		defer func() { <-done }()
		defer close(stop)
		for out := range queue {
			for _, d := range <-out {
				if !yield(d, nil) {
					return
				}
			}
		}
		if failed != nil {
			yield(decodedRow{}, failed)
		}
	}
}

// VerifyRange checks the entries [from, to) of a store: by themselves, and
// against checkpoints from elsewhere with the hashes that the store has of the
// rest of the tree.
func VerifyRange(rows iter.Seq2[Row, error], from, to uint64, refs []Reference, r tlog.HashReader) (Report, error) {
	report := Report{From: from, To: from}
	if from > to {
		return report, isle.Errorf(isle.Invalid, "entries %d to %d: the end is before the beginning", from, to)
	}
	check := checker{report: &report, whole: from == 0, intents: map[isle.ID]intent{}}
	var stored, have []tlog.Hash
	for d, err := range decoded(rows) {
		if err != nil {
			return report, err
		}
		if d.row.Sequence != report.To {
			report.add(report.To, Missing, "%s missing", span(report.To, d.row.Sequence))
		}
		report.To = d.row.Sequence + 1
		have = append(have, d.leaf)
		if beside := splitHashes(d.row.Hashes); len(beside) > 0 {
			stored = append(stored, beside[0])
		}
		if d.err != nil {
			report.add(d.row.Sequence, Changed, "entry %d cannot be read: %s", d.row.Sequence, d.err)
			continue
		}
		check.check(d.row.Sequence, d.entry)
	}
	if report.To < to {
		report.add(report.To, Truncated, "%s missing at the end", span(report.To, to))
	}
	align(&report, from, stored, have)
	report.Open = len(check.intents)
	for _, ref := range refs {
		if !report.OK() || ref.Size < to {
			continue // it says nothing of the range, or the range is broken already
		}
		proof, err := ProveRange(ref.Size, from, to, r)
		if isle.CodeOf(err) == isle.NotFound && err != nil {
			report.add(to, Truncated, "the log is shorter than the checkpoint %s, which is of %d entries", ref.Source, ref.Size)
			continue
		}
		if err != nil {
			return report, err
		}
		if root, err := RangeRoot(ref.Size, from, have, proof); err != nil || root != ref.Root {
			report.add(from, Rewritten, "the entries are not in the log that the checkpoint %s is of", ref.Source)
			continue
		}
		report.Proven = append(report.Proven, ref.Source)
	}
	return report, nil
}
