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
		return nil, isle.Errorf(isle.Invalid, "no suite %q at %s", r.suite, strings.Join(r.bases, ", ")).
			WithHint("use the code name of a Debian release the mirror has, as in `suite: bookworm`")
	}
	return nil, last
}

func (a *Archive) releaseAt(ctx context.Context, r repository, base string, o ResolveOptions, say func(string)) (*release, error) {
	rel := &release{repo: r, base: base, path: "dists/" + r.suite + "/InRelease"}
	address := joinURL(base, rel.path)
	data, err := a.releaseBytes(ctx, address, o.Refresh, say)
	if err != nil {
		return nil, err
	}
	keys, files := a.keyring(r.keys)
	text, err := verifyRelease(address, data, keys, files, a.cfg.Now())
	if err != nil {
		a.forget(address)
		return nil, err
	}
	rel.digest = isle.DigestOf(data)
	return rel, rel.parse(address, text, a.cfg.Now(), !a.apt.off("acquire::check-valid-until"))
}

// releaseBytes returns the file from the cache while it is fresh, and otherwise
// asks for it if it changed. Its signature is for the caller to check, every
// time, so the cache needs no trust.
func (a *Archive) releaseBytes(ctx context.Context, address string, refresh bool, say func(string)) ([]byte, error) {
	file := a.listPath(address)
	var meta fetched
	cached, err := os.ReadFile(file)
	if err == nil {
		if b, err := os.ReadFile(file + ".json"); err != nil || json.Unmarshal(b, &meta) != nil {
			cached = nil
		}
	}
	now := a.cfg.Now()
	if cached != nil && !refresh && now.Sub(meta.Asked) < fresh && !meta.Asked.After(now) {
		return cached, nil
	}
	if cached == nil {
		meta = fetched{}
	}
	var body bytes.Buffer
	answer, err := a.get(ctx, address, meta, maxRelease, &body)
	if err != nil {
		if cached != nil && isle.CodeOf(err) == isle.Unavailable && ctx.Err() == nil && !refresh {
			say("the mirror is away; using what it said on " + meta.Asked.UTC().Format(time.DateOnly))
			return cached, nil
		}
		return nil, err
	}
	if !answer.unchanged {
		cached, meta = body.Bytes(), answer.fetched
	}
	meta.Asked = now
	b, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if err := writeAtomic(file, cached); err != nil {
		return nil, err
	}
	return cached, writeAtomic(file+".json", b)
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
		return isle.Errorf(isle.Refused, "%s is the release file of %s (%s), not of %s", address, codename, suite, rel.repo.suite).
			WithHint("the mirror is broken or answers with another suite's file")
	}
	if until := p.get("Valid-Until"); until != "" && expires {
		t, err := parseDate(until)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s has no valid Valid-Until: %w", address, err)
		}
		if now.After(t) {
			return isle.Errorf(isle.Refused, "%s expired on %s: the mirror is out of date, or someone holds back updates", address, t.UTC().Format(time.RFC3339)).
				WithHint("use another mirror; for a snapshot of the past set Acquire::Check-Valid-Until \"false\" in apt.conf")
		}
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
