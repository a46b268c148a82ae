package debian

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"isle"
)

// A release is a checked InRelease file.
type release struct {
	repo   repository
	base   string // where it was found
	path   string // "dists/bookworm/InRelease"
	digest isle.Digest
	date   time.Time // when it was made; zero where it does not say
	byHash bool
	files  map[string]indexFile // SHA256 of each file, by path below dists/SUITE
	merged bool                 // packages of architecture "all" stand in the other indexes too
}

type indexFile struct {
	digest isle.Digest
	size   int64
}

// fresh is how long a release is used without asking the mirror again.
const fresh = 10 * time.Minute

const maxRelease = 16 << 20

// fetched is what is remembered of an HTTP answer, beside its body.
type fetched struct {
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	Asked        time.Time `json:"asked"`
}

// release gets and checks a repository's InRelease, from the first of its bases
// that has it. nil without an error: it does not exist, and need not.
func (a *Archive) release(ctx context.Context, r repository, o ResolveOptions, say func(string)) (*release, error) {
	var last error
	for _, base := range r.bases {
		rel, err := a.releaseAt(ctx, r, base, o, say)
		if err == nil {
			return rel, nil
		}
		if last == nil || isle.CodeOf(last) == isle.NotFound {
			last = err
		}
		if ctx.Err() != nil {
			return nil, err
		}
	}
	missing := last == nil || isle.CodeOf(last) == isle.NotFound
	if r.guessed { // whatever answers there may be no archive at all; a wrong signature is another matter
		missing = missing || isle.CodeOf(last) == isle.Unavailable || isle.CodeOf(last) == isle.Invalid
	}
	if r.optional && missing {
		return nil, nil
	}
	if isle.CodeOf(last) == isle.NotFound {
		bases := make([]string, len(r.bases))
		for i, b := range r.bases {
			bases[i] = redact(b)
		}
		return nil, isle.Errorf(isle.Invalid, "no suite %q at %s", r.suite, strings.Join(bases, ", ")).
			WithHint("use the code name of a Debian release the mirror has, as in `suite: bookworm`")
	}
	return nil, last
}

func (a *Archive) releaseAt(ctx context.Context, r repository, base string, o ResolveOptions, say func(string)) (*release, error) {
	address := joinURL(base, "dists/"+r.suite+"/InRelease")
	l, err := a.releaseBytes(ctx, address, o.Refresh, say)
	if err != nil {
		return nil, err
	}
	rel, err := a.checkRelease(r, base, address, l.data)
	if err != nil {
		a.forget(address)
		return nil, err
	}
	if l.previous != nil {
		// Debian's stable releases have no Valid-Until: only what was seen
		// before tells that somebody goes back to before a fix. Mirrors lag
		// behind each other too, so the newer one is used without a fuss.
		if old, err := a.checkRelease(r, base, address, l.previous); err == nil && old.date.After(rel.date) {
			say("the mirror has an older release of " + r.suite + " than before; using that of " + old.date.UTC().Format(time.DateOnly))
			rel, l.data, l.meta = old, l.previous, fetched{Asked: l.meta.Asked}
		}
	}
	if l.fresh {
		err = a.keepRelease(address, l)
	}
	return rel, err
}

// checkRelease checks the signature of an InRelease file, and reads it.
func (a *Archive) checkRelease(r repository, base, address string, data []byte) (*release, error) {
	keys, files := a.keyring(r.keys)
	shown := redact(address)
	text, err := verifyRelease(shown, data, keys, files, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	rel := &release{repo: r, base: base, path: "dists/" + r.suite + "/InRelease", digest: isle.DigestOf(data)}
	return rel, rel.parse(shown, text, a.cfg.Now(), !a.apt.off("acquire::check-valid-until"))
}

// A list is an InRelease file before it was checked.
type list struct {
	data     []byte
	previous []byte // what the cache has instead, if that is something else
	meta     fetched
	fresh    bool // it, or the answer that it is still current, is to be kept
}

// releaseBytes returns the file from the cache while it is fresh, and otherwise
// asks for it if it changed. Its signature is for the caller to check, every
// time, so the cache needs no trust.
func (a *Archive) releaseBytes(ctx context.Context, address string, refresh bool, say func(string)) (list, error) {
	file := a.listPath(address)
	var meta fetched
	cached, err := os.ReadFile(file)
	if err != nil {
		cached = nil
	}
	known := false // what the mirror said of it
	if b, err := os.ReadFile(file + ".json"); err == nil && cached != nil {
		known = json.Unmarshal(b, &meta) == nil
	}
	if !known {
		meta = fetched{}
	}
	now := a.cfg.Now()
	if known && !refresh && now.Sub(meta.Asked) < fresh && !meta.Asked.After(now) {
		return list{data: cached}, nil
	}
	var body bytes.Buffer
	answer, err := a.get(ctx, address, meta, maxRelease, &body)
	if err != nil {
		if known && isle.CodeOf(err) == isle.Unavailable && ctx.Err() == nil && !refresh {
			say("the mirror is away; using what it said on " + meta.Asked.UTC().Format(time.DateOnly))
			return list{data: cached}, nil
		}
		return list{}, err
	}
	l := list{data: cached, meta: meta, fresh: true}
	if !answer.unchanged {
		l.data, l.meta = body.Bytes(), answer.fetched
		if !bytes.Equal(cached, l.data) {
			l.previous = cached
		}
	}
	l.meta.Asked = now
	return l, nil
}

// keepRelease puts a file that was found right into the cache.
func (a *Archive) keepRelease(address string, l list) error {
	file := a.listPath(address)
	b, err := json.Marshal(l.meta)
	if err != nil {
		return err
	}
	if err := writeAtomic(file, l.data); err != nil {
		return err
	}
	return writeAtomic(file+".json", b)
}

func (a *Archive) listPath(address string) string {
	return filepath.Join(a.cfg.Dir, "lists", isle.DigestOf([]byte(address)).Hex()[:32]+".InRelease")
}

func (a *Archive) forget(address string) { os.Remove(a.listPath(address) + ".json") }

// parse reads the signed text (Debian repository format, "Release files") and
// checks that it is the suite that was asked for and has not expired.
func (rel *release) parse(address string, text []byte, now time.Time, expires bool) error {
	var p paragraph
	for p = range paragraphs(bytes.NewReader(text)) {
		break
	}
	suite, codename := p.get("Suite"), p.get("Codename")
	if rel.repo.suite != suite && rel.repo.suite != codename {
		return isle.Errorf(isle.Untrusted, "%s is the release file of %s (%s), not of %s", address, codename, suite, rel.repo.suite).
			WithHint("the mirror is broken or answers with another suite's file")
	}
	if until := p.get("Valid-Until"); until != "" && expires {
		t, err := parseDate(until)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s has no valid Valid-Until: %w", address, err)
		}
		if now.After(t) {
			return isle.Errorf(isle.Untrusted, "%s expired on %s: the mirror is out of date, or someone holds back updates", address, t.UTC().Format(time.RFC3339)).
				WithHint("use another mirror; for a snapshot of the past set Acquire::Check-Valid-Until \"false\" in apt.conf")
		}
	}
	if d := p.get("Date"); d != "" {
		t, err := parseDate(d)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s has no valid Date: %w", address, err)
		}
		rel.date = t
	}
	rel.byHash = strings.EqualFold(p.get("Acquire-By-Hash"), "yes")
	rel.merged = p.get("No-Support-for-Architecture-all") == "Packages" || !contains(strings.Fields(p.get("Architectures")), "all")
	rel.files = map[string]indexFile{}
	for _, line := range strings.Split(p.get("SHA256"), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if d := isle.Digest("sha256:" + f[0]); err == nil && size >= 0 && d.Valid() {
			rel.files[f[2]] = indexFile{d, size}
		}
	}
	if len(rel.files) == 0 {
		return isle.Errorf(isle.Invalid, "%s names no SHA256 hashes", address)
	}
	return nil
}

func parseDate(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC1123, s)
	if err != nil {
		t, err = time.Parse("Mon, _2 Jan 2006 15:04:05 MST", s)
	}
	return t, err
}
