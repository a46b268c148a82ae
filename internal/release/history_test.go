package release

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

// A book is a log in memory.
type book struct {
	t       *testing.T
	entries [][]byte
	hashes  []tlog.Hash
	at      time.Time
}

func (b *book) Encoded(_ context.Context, from uint64, limit int) ([][]byte, error) {
	return b.entries[from:min(from+uint64(limit), uint64(len(b.entries)))], nil
}

func (b *book) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = b.hashes[x]
	}
	return out, nil
}

// write appends entries as a store does.
func (b *book) write(entries ...audit.Entry) {
	b.t.Helper()
	for _, e := range entries {
		if b.at.IsZero() {
			b.at = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		}
		b.at = b.at.Add(time.Second)
		e.Sequence, e.Time = uint64(len(b.entries)), b.at
		raw, err := e.Encode()
		if err != nil {
			b.t.Fatal(err)
		}
		stored, err := tlog.StoredHashes(int64(e.Sequence), raw, b)
		if err != nil {
			b.t.Fatal(err)
		}
		b.entries, b.hashes = append(b.entries, raw), append(b.hashes, stored...)
	}
}

// launch is the intent and the outcome of a launch.
func launch(ref isle.Ref, instance, project string, d isle.Digest) []audit.Entry {
	i := audit.NewIntent(alice, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, "").
		In(ref, isle.ID(instance)).With("project", project).With("image web", string(isle.DigestOf([]byte("image"))))
	i.Release = d
	return []audit.Entry{i, i.Outcome(nil)}
}

func did(ref isle.Ref, instance string, action isle.Action, what string) audit.Entry {
	return audit.NewEvent(alice, action, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, isle.Allow, what).In(ref, isle.ID(instance))
}

func promoted(project, stage string, d isle.Digest) audit.Entry {
	e := audit.NewEvent(alice, isle.ActionReleasePromote, resourceAt(project, stage), isle.Allow, "")
	e.Release = d
	return e
}

func made(project string, d isle.Digest) audit.Entry {
	e := audit.NewEvent(alice, isle.ActionReleaseCreate, resourceOf(project), isle.Allow, "made "+project)
	e.Release = d
	return e
}

var (
	one, two = isle.DigestOf([]byte("one")), isle.DigestOf([]byte("two"))
	shopProd = isle.Ref{Name: "shop", Stage: "production"}
)

func read(t *testing.T, b *book, of Subject, may func(project, stage string) bool) History {
	t.Helper()
	h, err := ReadHistory(t.Context(), of, Reading{Log: b, Size: uint64(len(b.entries)), Limit: 100, May: may, ProjectOf: func(isle.Digest) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func everybody(string, string) bool { return true }

// texts are the summaries or actions of lines.
func texts(h History) (out []string) {
	for _, l := range h.Lines {
		out = append(out, strings.TrimPrefix(string(l.Entry.Action)+" "+l.Entry.Summary, "environment:"))
	}
	return out
}

// The shop in production ran release one, then two, then one again, and was ended.
func shopBook(t *testing.T) *book {
	b := &book{t: t}
	b.write(made("shop", one), made("other", two), made("shop", two), promoted("shop", "production", one))
	b.write(launch(shopProd, "i1", "shop", one)...)
	b.write(did(shopProd, "i1", isle.ActionEnvironmentExec, "ls"), did(shopProd, "", isle.ActionEnvironmentRead, "looked"))
	b.write(launch(isle.Ref{Name: "other", Stage: "production"}, "o1", "other", one)...)
	b.write(did(isle.Ref{Name: "other", Stage: "production"}, "o1", isle.ActionEnvironmentExec, "secret"))
	b.write(promoted("shop", "production", two))
	b.write(launch(shopProd, "i2", "shop", two)...)
	b.write(launch(shopProd, "i1", "shop", one)...) // rolled back
	end := did(shopProd, "i1", isle.ActionEnvironmentDown, "down")
	b.write(end)
	return b
}

func TestAHistoryOfAStageHasWhatRanThereFromWhenToWhen(t *testing.T) {
	h := read(t, shopBook(t), Subject{Ref: shopProd}, everybody)
	want := []string{"down down", "launch ", "launch ", "release:promote ", "exec ls", "launch ", "release:promote ", "release:create made shop", "release:create made shop"}
	if got := texts(h); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	var runs []string
	for _, r := range h.Runs {
		runs = append(runs, fmt.Sprintf("%s %s %t %d-%d", r.Instance, r.Release.Short(), r.To.IsZero(), r.Began, r.Ended))
	}
	if want := []string{"i1 " + one.Short() + " false 15-16", "i2 " + two.Short() + " false 13-15", "i1 " + one.Short() + " false 5-13"}; !slices.Equal(runs, want) {
		t.Errorf("%q", runs)
	}
	if l := h.Lines[1]; l.Intent == nil || l.Intent.Sequence != 14 || l.Leaf() != tlog.RecordHash(l.Bytes) {
		t.Errorf("%+v", l)
	}
}

func TestAHistoryOfAReleaseFollowsItWhereverItRan(t *testing.T) {
	h := read(t, shopBook(t), Subject{Release: one}, everybody)
	got := strings.Join(texts(h), ",")
	for _, want := range []string{"exec secret", "exec ls", "down down", "release:create made shop"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if len(h.Runs) != 3 || h.Runs[1].Environment != "other@production" || !h.Runs[1].To.IsZero() {
		t.Errorf("%+v", h.Runs)
	}
	if h := read(t, shopBook(t), Subject{Image: isle.DigestOf([]byte("image"))}, everybody); len(h.Runs) != 4 {
		t.Errorf("%+v", h.Runs)
	}
}

func TestAHistoryHasNothingOfOtherProjects(t *testing.T) {
	b := shopBook(t)
	// The name goes to another project, which was there before, too.
	b.write(launch(shopProd, "evil", "evil", one)...)
	b.write(did(shopProd, "evil", isle.ActionEnvironmentExec, "theirs"), did(shopProd, "", isle.ActionEnvironmentExec, "by name"), did(shopProd, "unknown", isle.ActionEnvironmentExec, "nobody's"))
	mine := func(project, _ string) bool { return project == "shop" }
	for _, of := range []Subject{{Ref: shopProd}, {Release: one}, {Image: isle.DigestOf([]byte("image")), Releases: []isle.Digest{one, two}}} {
		h := read(t, b, of, mine)
		got := strings.Join(texts(h), ",")
		for _, other := range []string{"theirs", "by name", "nobody's", "secret", "made other"} {
			if strings.Contains(got, other) {
				t.Errorf("%+v: %s", of, got)
			}
		}
		for _, r := range h.Runs {
			if r.Environment != "shop@production" || r.Instance == "evil" {
				t.Errorf("%+v: %+v", of, r)
			}
		}
		if !strings.Contains(got, "exec ls") {
			t.Errorf("%+v: nothing of it: %s", of, got)
		}
	}
	testing := func(_, stage string) bool { return stage != "production" }
	if h := read(t, b, Subject{Ref: shopProd}, testing); slices.ContainsFunc(h.Lines, func(l Line) bool { return l.Entry.Environment != "" }) || len(h.Runs) > 0 {
		t.Errorf("%q %+v", texts(h), h.Runs)
	}
}

func TestAHistoryHasTheLastLinesAndSaysThatThereAreMore(t *testing.T) {
	b := shopBook(t)
	for n := range 1000 {
		b.write(did(shopProd, "i1", isle.ActionEnvironmentExec, fmt.Sprint(n)))
	}
	h, err := ReadHistory(t.Context(), Subject{Ref: shopProd}, Reading{Log: b, Size: uint64(len(b.entries)), Limit: 3, May: everybody, ProjectOf: func(isle.Digest) string { return "" }})
	if err != nil || !h.Cut || !slices.Equal(texts(h), []string{"exec 999", "exec 998", "exec 997"}) {
		t.Errorf("%q %t %v", texts(h), h.Cut, err)
	}
	if len(h.Runs) != 3 {
		t.Errorf("%+v", h.Runs)
	}
}

// bundled is a history of the shop with its proofs, and the keys to verify it.
func bundled(t *testing.T, change func(*audit.Proof)) (file []byte, keys []string) {
	t.Helper()
	w := newWorld(t, "isle-releases/here")
	rel, released := exported(t, w, false)
	b := shopBook(t)
	entry := made("shop", rel.Digest)
	for _, a := range rel.Attestations {
		entry = entry.With(a.Kind, string(a.Digest))
	}
	b.write(entry)
	signer, err := audit.OpenSigner(filepath.Join(t.TempDir(), "audit.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	root, err := tlog.TreeHash(int64(len(b.entries)), b)
	if err != nil {
		t.Fatal(err)
	}
	c, err := signer.Sign(audit.Head{Size: uint64(len(b.entries)), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	bundle, err := NewBundle(&out, "shop@production", signer.Key())
	if err != nil {
		t.Fatal(err)
	}
	for n, raw := range b.entries {
		path, err := tlog.ProveRecord(int64(len(b.entries)), int64(n), b)
		if err != nil {
			t.Fatal(err)
		}
		p := audit.Proof{Checkpoint: string(c.Note), Sequence: uint64(n), Entry: string(raw)}
		for _, h := range path {
			p.Path = append(p.Path, h[:])
		}
		change(&p)
		if err := bundle.Prove(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := bundle.Release(rel.Digest, released); err != nil {
		t.Fatal(err)
	}
	if err := bundle.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), []string{signer.Key(), w.config.Key.Verifier()}
}

func TestAHistoryIsVerifiedWithoutAServer(t *testing.T) {
	file, keys := bundled(t, func(*audit.Proof) {})
	if !IsBundle(file) {
		t.Error("it is not known for what it is")
	}
	got, err := VerifyBundle(bytes.NewReader(file), keys)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Entries) != 18 || got.Checkpoint.Size != 18 || len(got.Releases) != 1 || got.Vouched != 2 || got.Of != "shop@production" {
		t.Errorf("%d entries of %d, %d releases, %d attestations, of %s", len(got.Entries), got.Checkpoint.Size, len(got.Releases), got.Vouched, got.Of)
	}
	for _, given := range [][]string{keys[:1], keys[1:], {keys[0], keyOf(t, "isle-releases/other").Verifier()}} {
		if _, err := VerifyBundle(bytes.NewReader(file), given); err == nil {
			t.Errorf("verified with %q", given)
		}
	}
	_, others := bundled(t, func(*audit.Proof) {})
	if _, err := VerifyBundle(bytes.NewReader(file), []string{others[0], keys[1]}); err == nil {
		t.Error("verified with another log's key")
	}
}

func TestAHistoryThatWasChangedIsNotVerified(t *testing.T) {
	for what, change := range map[string]func(*audit.Proof){
		"an entry":     func(p *audit.Proof) { p.Entry = strings.Replace(p.Entry, "exec", "copy", 1) },
		"its place":    func(p *audit.Proof) { p.Sequence ^= 1 },
		"its path":     func(p *audit.Proof) { p.Path = p.Path[1:] },
		"a checkpoint": func(p *audit.Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "18", "17", 1) },
	} {
		changed := false
		file, keys := bundled(t, func(p *audit.Proof) {
			if p.Sequence == 6 && !changed {
				change(p)
				changed = true
			}
		})
		if _, err := VerifyBundle(bytes.NewReader(file), keys); err == nil {
			t.Errorf("%s was changed, and it is verified", what)
		}
	}
	file, keys := bundled(t, func(*audit.Proof) {})
	for at := 512; at < len(file)-1024; at += 997 { // what is not read is padding
		cut := bytes.Clone(file)
		cut[at] ^= 1
		got, err := VerifyBundle(bytes.NewReader(cut), keys)
		if err == nil && (len(got.Entries) != 18 || len(got.Releases) != 1) {
			t.Errorf("byte %d was changed, and something is missing: %d entries", at, len(got.Entries))
		}
	}
}

func FuzzVerifyBundle(f *testing.F) {
	f.Add([]byte("isle-history/history.json"), "isle-log/x+0a1b2c3d+Ab")
	f.Fuzz(func(_ *testing.T, file []byte, key string) { _, _ = VerifyBundle(bytes.NewReader(file), []string{key}) })
}
