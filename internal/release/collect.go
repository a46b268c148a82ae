package release

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/policy"
)

// Keep keeps a release until a time, whatever rules say; the zero time: it is not
// kept any more.
func (r *Releases) Keep(ctx context.Context, actor isle.Actor, name string, until time.Time) (isle.Digest, error) {
	d, err := r.find(name)
	if err != nil {
		return "", err
	}
	r.shelf.Lock()
	defer r.shelf.Unlock()
	rec, ok := r.record(d)
	if !ok {
		return d, isle.Errorf(isle.NotFound, "there is no release %s any more", d.Short())
	}
	if until.IsZero() && rec.Keep.IsZero() {
		return d, isle.Errorf(isle.NotFound, "release %s is not kept by hand", d.Short()).WithHint("isle release inspect %s says what keeps it", d.Short())
	}
	rec.Keep = until.UTC().Truncate(time.Second)
	b, err := json.Marshal(rec)
	if err != nil {
		return d, isle.Errorf(isle.Internal, "cannot encode a release's record: %w", err)
	}
	e := audit.NewEvent(actor, isle.ActionReleaseKeep, resourceOf(rec.Project), isle.Allow, "")
	if e.Release = d; !rec.Keep.IsZero() {
		e = e.With("until", rec.Keep.Format(time.RFC3339))
	}
	if err := r.shelf.Change(ctx, []ledger.Record{{Key: keyRelease + d.Hex(), Body: b}}, nil, e); err != nil {
		return d, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[d] = rec
	return d, nil
}

// Stale are the releases that nothing names: that no stage points at, goes back to
// or has marked, that nothing runs or keeps frozen, that nobody keeps by hand, and
// that none of the rules of their project keeps, of which there is one at least.
func (r *Releases) Stale(rules func(project string) []policy.Keep) (out []isle.Digest) {
	r.mu.RLock()
	byProject := map[string][]aged{}
	for d, rec := range r.known {
		byProject[rec.Project] = append(byProject[rec.Project], aged{d, rec.Created, rec.Keep})
	}
	r.mu.RUnlock()
	now := r.cfg.Now()
	for project, all := range byProject {
		of := rules(project)
		if len(of) == 0 {
			continue
		}
		slices.SortFunc(all, func(a, b aged) int { return b.at.Compare(a.at) })
		for i, m := range all {
			if now.Before(m.keep) || slices.ContainsFunc(of, func(k policy.Keep) bool { return r.keeps(k, project, m, i, now) }) ||
				len(r.cfg.InUse(m.digest)) > 0 || r.kept(m.digest) != nil {
				continue
			}
			out = append(out, m.digest)
		}
	}
	slices.Sort(out)
	return out
}

// An aged is a release, when it came here, and until when somebody keeps it.
type aged struct {
	digest   isle.Digest
	at, keep time.Time
}

// keeps reports whether a rule keeps a release, which is number i of its project
// from the last one.
func (r *Releases) keeps(k policy.Keep, project string, m aged, i int, now time.Time) bool {
	if k.For > 0 && now.Sub(m.at) < k.For || len(k.Stages) == 0 && i < k.Last {
		return true
	}
	for _, stage := range k.Stages {
		s, _ := r.Stage(project, stage)
		if slices.Contains(s.last(k.Last), m.digest) {
			return true
		}
	}
	return false
}

// last are the last n releases that a stage pointed at, each once, this one first.
func (s Stage) last(n int) (out []isle.Digest) {
	out = append(out, s.Release)
	for _, p := range slices.Backward(s.Earlier) {
		if !slices.Contains(out, p.Release) {
			out = append(out, p.Release)
		}
	}
	return out[:min(n, len(out))]
}

// Collect removes what is Stale. One that something names by now is left.
func (r *Releases) Collect(ctx context.Context, actor isle.Actor, stale []isle.Digest) (removed int, err error) {
	for _, d := range stale {
		_, err := r.remove(ctx, actor, d, "no rule keeps it, and nothing names it")
		switch {
		case err == nil:
			removed++
		case isle.CodeOf(err) != isle.Conflict && isle.CodeOf(err) != isle.NotFound:
			return removed, err
		}
	}
	return removed, nil
}
