package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// ExportVersion is the version of the export format.
const ExportVersion = 1

// An export is a file of lines of JSON. The first is an ExportHeader. Then, for
// each 256 entries, comes a line with their leaf hashes, {"leaves":BASE64}, and
// a line for each entry, its canonical encoding. The header's proof ties the
// leaf hashes to its checkpoint, and they say of each entry whether it is the
// one that was appended: so the file proves itself, given the log's key.

// An ExportHeader is the first line of an export.
type ExportHeader struct {
	Version    int      `json:"isle_audit_export"`
	From       uint64   `json:"from"` // the entries: [From, To)
	To         uint64   `json:"to"`
	Checkpoint string   `json:"checkpoint"` // a signed note
	Key        string   `json:"key"`        // the log's key, for convenience: it proves nothing
	Proof      [][]byte `json:"proof"`      // as of ProveRange
}

type leavesLine struct {
	Leaves []byte `json:"leaves"`
}

// Bounds of an export's lines in bytes: the header has at most 128 hashes and a
// checkpoint, the others 256 hashes or an entry.
const maxExportLine = 256 << 10

// Export writes the entries [from, to) of a log. Key is what the header says
// is the log's.
func (r *Remote) Export(ctx context.Context, key string, from, to uint64, w io.Writer) error {
	if from > to || to > r.Size {
		return isle.Errorf(isle.Invalid, "the log has entries 0 to %d; asked for are %d to %d", int64(r.Size)-1, from, int64(to)-1)
	}
	hashes := r.Hashes(ctx)
	proof, err := ProveRange(r.Size, from, to, hashes)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(out)
	if err := enc.Encode(ExportHeader{ExportVersion, from, to, string(r.Note), key, toBytes(proof)}); err != nil {
		return err
	}
	for at := from; at < to; {
		index := at / TileWidth
		entries, leaves, err := r.bundle(ctx, index, hashes)
		if err != nil {
			return err
		}
		lo, hi := at-index*TileWidth, min(to-index*TileWidth, TileWidth)
		if err := enc.Encode(leavesLine{bytes.Join(toBytes(leaves[lo:hi]), nil)}); err != nil {
			return err
		}
		for _, e := range entries[lo:hi] {
			out.Write(e)
			if err := out.WriteByte('\n'); err != nil {
				return err
			}
		}
		at = index*TileWidth + hi
	}
	return out.Flush()
}

// VerifyExport checks an export against its checkpoint, and that against the
// log's key ("" leaves the signature unchecked). An error means that the file
// is no export, or its checkpoint not of that key.
func VerifyExport(r io.Reader, key string) (ExportHeader, Report, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxExportLine)
	h, c, err := exportHeader(lines, key)
	if err != nil {
		return h, Report{}, err
	}
	report := Report{From: h.From}
	check := checker{report: &report, whole: h.From == 0, intents: map[isle.ID]intent{}}
	f := exportFile{lines: lines, next: h.From}
	var have []tlog.Hash
	for d, err := range decoded(f.rows()) {
		if err != nil {
			return h, report, err
		}
		have = append(have, d.leaf)
		if d.err != nil {
			report.add(d.row.Sequence, Changed, "entry %d cannot be read: %s", d.row.Sequence, d.err)
			continue
		}
		check.check(d.row.Sequence, d.entry)
	}
	proof, err := toHashes(h.Proof)
	if err != nil {
		return h, report, err
	}
	root, err := RangeRoot(c.Size, h.From, f.leaves, proof)
	switch {
	case err != nil || uint64(len(f.leaves)) != h.To-h.From:
		report.add(h.From, Missing, "the file has the hashes of %d entries, not of %d", len(f.leaves), h.To-h.From)
	case root != c.Root:
		report.add(h.From, Rewritten, "the hashes in the file are not those of the log that the checkpoint is of")
	}
	align(&report, h.From, f.leaves, have)
	report.To, report.Open = h.From+uint64(len(have)), len(check.intents)
	if report.OK() {
		report.Proven = append(report.Proven, "in the file")
	}
	return h, report, nil
}

func exportHeader(lines *bufio.Scanner, key string) (h ExportHeader, c Checkpoint, err error) {
	if !lines.Scan() {
		return h, c, isle.Errorf(isle.Invalid, "no export of an audit log: there is no first line")
	}
	d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil || h.Version == 0 {
		return h, c, isle.Errorf(isle.Invalid, "no export of an audit log: the first line is no header")
	}
	if h.Version != ExportVersion {
		return h, c, isle.Errorf(isle.Invalid, "the export is of version %d, this program reads version %d", h.Version, ExportVersion)
	}
	if c, err = ParseCheckpoint([]byte(h.Checkpoint), key); err != nil {
		return h, c, err
	}
	if h.From > h.To || h.To > c.Size {
		return h, c, isle.Errorf(isle.Invalid, "the export says that it has entries %d to %d of a log of %d", h.From, h.To, c.Size)
	}
	return h, c, nil
}

// An exportFile is read from its second line on.
type exportFile struct {
	lines  *bufio.Scanner
	next   uint64
	leaves []tlog.Hash // complete once rows has ended
}

func (f *exportFile) rows() iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for f.lines.Scan() {
			line := f.lines.Bytes()
			if bytes.HasPrefix(line, []byte(`{"leaves":`)) {
				var l leavesLine
				if err := json.Unmarshal(line, &l); err != nil || len(l.Leaves)%tlog.HashSize != 0 {
					yield(Row{}, isle.Errorf(isle.Invalid, "the line of hashes before entry %d cannot be read", f.next))
					return
				}
				for b := l.Leaves; len(b) > 0; b = b[tlog.HashSize:] {
					f.leaves = append(f.leaves, tlog.Hash(b[:tlog.HashSize]))
				}
				continue
			}
			if !yield(Row{Sequence: f.next, Entry: bytes.Clone(line)}, nil) {
				return
			}
			f.next++
		}
		if err := f.lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(Row{}, isle.Errorf(isle.Invalid, "the line of entry %d is longer than any entry", f.next))
		} else if err != nil {
			yield(Row{}, isle.Errorf(isle.Unavailable, "cannot read the export: %w", err))
		}
	}
}

// align says how have came of want: which were changed, taken out, put in, put
// elsewhere.
func align(r *Report, from uint64, want, have []tlog.Hash) {
	first := 0
	for first < len(want) && first < len(have) && want[first] == have[first] {
		first++
	}
	if first == len(want) && first == len(have) {
		return
	}
	place := make(map[tlog.Hash]int, len(want)-first) // of what is wanted
	for i := first; i < len(want); i++ {
		place[want[i]] = i
	}
	ahead := make(map[tlog.Hash]int, len(have)-first) // how often it still comes
	for _, h := range have[first:] {
		ahead[h]++
	}
	moved := map[tlog.Hash]bool{}
	at := func(k int) uint64 { return from + uint64(k) }
	i, j := first, first // of have, of want
	for i < len(have) && j < len(want) {
		k, known := place[have[i]]
		switch {
		case have[i] == want[j]:
			j++
		case moved[want[j]]:
			j++
			continue
		case known && ahead[want[j]] == 0:
			r.add(at(j), Missing, "entry %d is missing", at(j))
			j++
			continue
		case known:
			r.add(at(k), Moved, "entry %d stands before entry %d", at(k), at(j))
			moved[have[i]] = true
		case ahead[want[j]] > 0:
			r.add(at(j), Added, "before entry %d stands one that was never appended", at(j))
		default:
			r.add(at(j), Changed, "entry %d is not what was appended", at(j))
			j++
		}
		ahead[have[i]]--
		i++
	}
	for ; i < len(have); i++ {
		r.add(at(len(want)), Added, "behind entry %d stands one that was never appended there", int64(from)+int64(len(want))-1)
	}
	for j < len(want) && moved[want[j]] {
		j++
	}
	if j < len(want) {
		r.add(at(j), Truncated, "%s missing at the end", span(at(j), at(len(want))))
	}
}
