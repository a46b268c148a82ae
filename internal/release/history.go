package release

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

// A Subject is what a history is of: an environment, which is a stage where its
// name is a project's, a release, or an image.
type Subject struct {
	Ref     isle.Ref    // zero: it is of a digest
	Release isle.Digest // "": it is of no release
	Image   isle.Digest // "": it is of no image
	// Releases are those that have the image.
	Releases []isle.Digest
}

// A Proven is an entry as it stands in the log, whose hash is the leaf of the tree
// (RFC 6962, section 2.1).
type Proven struct {
	Sequence uint64
	Entry    audit.Entry
	Bytes    []byte // the canonical encoding
}

// Leaf is the entry's hash.
func (p Proven) Leaf() tlog.Hash { return tlog.RecordHash(p.Bytes) }

// A Line is one thing that was done, refused or found. Its Intent is what the log
// said before it was done; nil where the one entry says all.
type Line struct {
	Proven
	Intent *Proven
}

// Details are those of the intent, and of how it ended.
func (l Line) Details() map[string]string {
	out := maps.Clone(l.Entry.Details)
	if l.Intent != nil {
		if out == nil {
			out = map[string]string{}
		}
		maps.Copy(out, l.Intent.Entry.Details)
	}
	return out
}

// A Run is that an instance served.
type Run struct {
	Environment string // NAME@STAGE
	Instance    isle.ID
	Release     isle.Digest // "": it was launched of a file
	From        time.Time
	To          time.Time // zero: nothing says that it ended
	Began       uint64    // the entries that say so
	Ended       uint64
}

// A History is what the log says of a Subject.
type History struct {
	Lines []Line // the last one first
	Runs  []Run  // those that began last first
	Cut   bool   // there are more Lines, before these
	// Of the log the entries [From, Size) were read.
	From, Size uint64
}

// Bounds of a history.
const (
	MaxLines = 5_000
	maxRuns  = 1000
	// maxRead bounds how many entries of the log are read, the last ones: about
	// five seconds' worth.
	maxRead  = 2_000_000
	readPage = 256 // entries at once: 16 MiB at most
	// maxFollowed bounds what is remembered while reading: instances, and what was
	// begun and has not ended.
	maxFollowed = 100_000
)

// A Log is the audit log to be read; *sqlite.Store implements it.
type Log interface {
	Encoded(ctx context.Context, from uint64, limit int) ([][]byte, error)
}

// A Reading is how a history is read.
type Reading struct {
	Log   Log
	Size  uint64 // the entries before this one are read
	Limit int    // of lines
	// May says whether whoever asks may read what happened to a project's things in
	// a stage; "" for what is of no stage. The project is "?" where it is not known.
	May func(project, stage string) bool
	// ProjectOf is the project of a release, "" where there is none.
	ProjectOf func(isle.Digest) string
}

// ReadHistory reads the log from its beginning, or from maxRead entries before its
// end, and keeps what is of the subject and may be read. An entry whose project is
// not known is nobody's but those who may read everything.
func ReadHistory(ctx context.Context, of Subject, r Reading) (History, error) {
	h := historian{
		of: of, r: r, needles: of.needles(), releases: map[isle.Digest]bool{}, made: map[isle.Digest][]Line{}, projects: map[isle.ID]string{},
		serving: map[string]int{}, open: map[isle.ID]Proven{}, may: map[[2]string]bool{},
	}
	for _, d := range of.Releases {
		h.releases[d] = true
	}
	if of.Release != "" {
		h.releases[of.Release] = true
	}
	if r.Size > maxRead {
		h.out.From = r.Size - maxRead
	}
	h.out.Size = r.Size
	for at := h.out.From; at < r.Size; {
		page, err := r.Log.Encoded(ctx, at, int(min(readPage, r.Size-at)))
		if err != nil {
			return h.out, err
		}
		for i, b := range page {
			if err := h.read(at+uint64(i), b); err != nil {
				return h.out, err
			}
		}
		if len(page) == 0 {
			break
		}
		at += uint64(len(page))
	}
	return h.finish(), nil
}

// needles are bytes of which an entry of the subject has one, or one that says
// which instance has a name. Those of its instances are found by their ID.
func (s Subject) needles() (out [][]byte) {
	for _, a := range []isle.Action{isle.ActionEnvironmentLaunch, isle.ActionEnvironmentRestore, isle.ActionEnvironmentDown} {
		out = append(out, []byte(`"action":"`+string(a)+`"`))
	}
	if s.Ref.Name != "" {
		out = append(out, []byte(`"`+s.Ref.Name+`@`+s.Ref.Stage+`"`), []byte(`"name":"`+s.Ref.Name+`"`))
	}
	for _, d := range append([]isle.Digest{s.Release, s.Image}, s.Releases...) {
		if d != "" {
			out = append(out, []byte(d.Hex()))
		}
	}
	return out
}

// A historian reads a log, the first entry first.
type historian struct {
	of      Subject
	r       Reading
	out     History
	needles [][]byte

	lines    []Line
	releases map[isle.Digest]bool   // that are of the subject
	made     map[isle.Digest][]Line // how releases of the project came about
	projects map[isle.ID]string     // of the instances of the subject
	holder   string                 // the project that has the subject's name
	serving  map[string]int         // the Run that goes on, by NAME@STAGE
	open     map[isle.ID]Proven     // intents that have not ended
	may      map[[2]string]bool     // what May has said
}

// concerns says whether an entry has to be looked at, by its bytes.
func (h *historian) concerns(b []byte) bool {
	for _, n := range h.needles {
		if bytes.Contains(b, n) {
			return true
		}
	}
	_, rest, ok := bytes.Cut(b, []byte(`"instance":"`))
	id, _, ok2 := bytes.Cut(rest, []byte(`"`))
	if !ok || !ok2 {
		return false
	}
	_, known := h.projects[isle.ID(id)]
	return known
}

// read takes one entry in.
func (h *historian) read(seq uint64, b []byte) error {
	if !h.concerns(b) {
		return nil
	}
	e, err := audit.Decode(b)
	if err != nil {
		return isle.Errorf(isle.Internal, "audit entry %d cannot be read: %w", seq, err).WithHint("see `isle audit verify`")
	}
	p := Proven{seq, e, b}
	of := h.is(e)
	project := h.projectOf(e, of)
	if h.places(p, of, project) {
		of = true // it ends what the subject did
	}
	stage := e.Resource.Stage
	if _, s, ok := strings.Cut(e.Environment, "@"); ok {
		stage = s
	}
	switch {
	case h.of.Ref.Name != "" && (e.Action == isle.ActionReleaseCreate || e.Action == isle.ActionReleaseImport) && e.Decision == isle.Allow:
		if len(h.made) < MaxReleases && h.allowed(project, "") {
			h.made[e.Release] = append(h.made[e.Release], Line{Proven: p})
		}
		return nil
	case !of || quiet(e) || !h.allowed(project, stage):
		return nil
	case e.Kind == audit.Intent:
		if len(h.open) < maxFollowed {
			h.open[e.ID] = p
		}
		return nil
	}
	l := Line{Proven: p}
	if i, ok := h.open[e.Link]; ok && e.Kind == audit.Outcome {
		l.Intent = &i
		delete(h.open, e.Link)
	}
	h.add(l)
	return nil
}

// add keeps a line, and of all that there are the last ones.
func (h *historian) add(l Line) {
	if h.lines = append(h.lines, l); len(h.lines) >= 2*h.r.Limit {
		h.lines, h.out.Cut = slices.Clone(h.lines[len(h.lines)-h.r.Limit:]), true
	}
}

// is says whether an entry is about the subject.
func (h *historian) is(e audit.Entry) bool {
	if _, ok := h.projects[e.Instance]; ok && e.Instance != "" && h.of.Ref.Name == "" {
		return true
	}
	if ref := h.of.Ref; ref.Name != "" {
		if e.Environment != "" {
			return e.Environment == ref.Name+"@"+ref.Stage
		}
		r := e.Resource
		switch r.Kind {
		case "environment", "service", "volume", "snapshot":
			name, _, _ := strings.Cut(r.Name, "/")
			return name == ref.Name && r.Stage == ref.Stage
		case "release":
			return r.Name == ref.Name && r.Stage == ref.Stage
		}
		return false
	}
	if h.releases[e.Release] {
		return true
	}
	for _, v := range e.Details {
		if d := isle.Digest(v); v != "" && (d == h.of.Image || h.releases[d]) {
			return true
		}
	}
	return false
}

// projectOf is whose an entry is; "?" where nobody knows.
func (h *historian) projectOf(e audit.Entry, of bool) string {
	if e.Resource.Kind == "release" {
		return e.Resource.Name
	}
	project := h.projects[e.Instance]
	if said := e.Details["project"]; said != "" && e.Kind != audit.Outcome && launches(e) {
		project = said
	}
	if project == "" && e.Release != "" && launches(e) {
		project = h.r.ProjectOf(e.Release)
	}
	if of && e.Instance != "" && project != "" && len(h.projects) < maxFollowed {
		h.projects[e.Instance] = project
	}
	if project == "" && e.Instance == "" && of {
		project = h.holder // who has the name
	}
	return cmp.Or(project, "?")
}

// launches says whether an entry is of how an instance came about; an event, which
// is refused, may name what never was.
func launches(e audit.Entry) bool {
	switch e.Action {
	case isle.ActionEnvironmentLaunch, isle.ActionEnvironmentRestore, isle.ActionEnvironmentFork:
		return e.Instance != "" && e.Decision == isle.Allow
	}
	return false
}

// places follows which instance serves under which name. It says whether the entry
// ends a Run of the subject.
func (h *historian) places(p Proven, of bool, project string) (ends bool) {
	e := p.Entry
	if e.Environment == "" || e.Kind == audit.Intent || e.Result != audit.OK {
		return false
	}
	i, serves := h.serving[e.Environment]
	end := func() {
		h.out.Runs[i].To, h.out.Runs[i].Ended = e.Time, p.Sequence
		delete(h.serving, e.Environment)
	}
	switch e.Action {
	case isle.ActionEnvironmentDown:
		if serves && h.out.Runs[i].Instance == e.Instance {
			end()
			return true
		}
		return false
	case isle.ActionEnvironmentLaunch, isle.ActionEnvironmentRestore:
	default:
		return false
	}
	if serves && h.out.Runs[i].Instance == e.Instance && h.out.Runs[i].Release == e.Release {
		return false // it goes on
	}
	if serves {
		end()
	}
	_, stage, _ := strings.Cut(e.Environment, "@")
	if h.of.Ref.Name != "" && of {
		h.holder = project
	}
	if mine := of && (h.of.Ref.Name != "" || h.of.Image != "" || h.releases[e.Release]); mine && h.allowed(project, stage) {
		if len(h.out.Runs) >= 2*maxRuns { // nothing of before the last ones ends now but by its name
			h.out.Runs = slices.Delete(h.out.Runs, 0, maxRuns)
			maps.DeleteFunc(h.serving, func(name string, at int) bool { h.serving[name] = at - maxRuns; return at < maxRuns })
		}
		h.out.Runs = append(h.out.Runs, Run{Environment: e.Environment, Instance: e.Instance, Release: e.Release, From: e.Time, Began: p.Sequence})
		h.serving[e.Environment] = len(h.out.Runs) - 1
	}
	return serves
}

// allowed asks May once about each project and stage.
func (h *historian) allowed(project, stage string) bool {
	key := [2]string{project, stage}
	ok, asked := h.may[key]
	if !asked {
		if ok = h.r.May(project, stage); len(h.may) < maxFollowed {
			h.may[key] = ok
		}
	}
	return ok
}

// quiet says of an entry that it changed nothing, and is no part of a history:
// what was only looked at, and the documents that services fetch all the time.
func quiet(e audit.Entry) bool {
	if e.Decision != isle.Allow {
		return false
	}
	switch e.Action {
	case isle.ActionEnvironmentLogs, isle.ActionSVIDIssue, isle.ActionIdentityUse, isle.ActionTokenIssue:
		return true
	}
	return strings.HasSuffix(string(e.Action), ":read") || strings.HasSuffix(string(e.Action), ":list") || e.Action == isle.ActionReleaseHistory
}

// finish is the history that was read.
func (h *historian) finish() History {
	out := h.out
	for _, p := range h.open {
		h.lines = append(h.lines, Line{Proven: p})
	}
	var ran []isle.Digest // or was to run: how that came about is part of it
	for _, r := range out.Runs {
		ran = append(ran, r.Release)
	}
	for _, l := range h.lines {
		ran = append(ran, l.Entry.Release)
	}
	for _, d := range ran {
		h.lines = append(h.lines, h.made[d]...)
		delete(h.made, d)
	}
	slices.SortFunc(h.lines, func(a, b Line) int { return cmp.Compare(b.Sequence, a.Sequence) })
	if len(h.lines) > h.r.Limit {
		h.lines, out.Cut = h.lines[:h.r.Limit], true
	}
	slices.Reverse(out.Runs)
	out.Lines, out.Runs = h.lines, out.Runs[:min(len(out.Runs), maxRuns)]
	return out
}
