package release

import (
	"context"
	"encoding/json"
	"maps"
	"strings"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/policy"
	"isle/internal/spec"
)

// keyReach begins the key of the record of a Reach: 64 hexadecimal characters
// follow, those of its digest. Stages of which much is alike share one.
const keyReach = "reach/"

// maxChanges bounds how many changes of a Reach an entry of the log has, and
// maxReachText how many bytes they are.
const (
	maxChanges   = 20
	maxReachText = 2000
)

// loadReach takes the record of a Reach in.
func (r *Releases) loadReach(hex string, body []byte) bool {
	var v policy.Reach
	d := isle.Digest("sha256:" + hex)
	if json.Unmarshal(body, &v) != nil || v.Digest() != d {
		return false
	}
	r.reaches[d] = v
	return true
}

// Reach is what was recorded under a digest; ok is false where nothing was.
func (r *Releases) Reach(d isle.Digest) (out policy.Reach, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out, ok = r.reaches[d]
	return out, ok
}

// reachNow is what the policy in force gives to a file in a stage.
func (r *Releases) reachNow(project, stage string, f spec.File) policy.Reach {
	if r.cfg.Reach == nil {
		return policy.Reach{}
	}
	return r.cfg.Reach(project, stage, f)
}

// reached are the digests of what a stage records.
func (s Stage) reached() (out []isle.Digest) {
	out = append(out, s.Reach)
	for _, p := range s.Earlier {
		out = append(out, p.Reach)
	}
	return out
}

// reachRecords are the records that come and go once a stage is as next says; now
// is what it reaches.
func (r *Releases) reachRecords(next Stage, now policy.Reach) (put []ledger.Record, remove []string, after map[isle.Digest]policy.Reach) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	after = maps.Clone(r.reaches)
	if d := next.Reach; d != "" && d == now.Digest() {
		if b, err := json.Marshal(now); err == nil && len(after[d].Doors) == 0 {
			put, after[d] = append(put, ledger.Record{Key: keyReach + d.Hex(), Body: b}), now
		}
	}
	used := map[isle.Digest]bool{}
	for key, s := range r.stages {
		if key == (stageKey{next.Project, next.Name}) {
			continue
		}
		for _, d := range s.reached() {
			used[d] = true
		}
	}
	for _, d := range next.reached() {
		used[d] = true
	}
	for d := range after {
		if !used[d] {
			remove = append(remove, keyReach+d.Hex())
			delete(after, d)
		}
	}
	return put, remove, after
}

// ReachSince says what a stage of a project may do and reach now that it might not
// when it was promoted to what it points at, and the other way round. Where
// nothing was recorded then, as by a server of before, nothing is said.
func (r *Releases) ReachSince(s Stage, f spec.File) []policy.ReachChange {
	was, ok := r.Reach(s.Reach)
	if !ok {
		return nil
	}
	return r.reachNow(s.Project, s.Name, f).Changes(was)
}

// Agree records what a stage may do and reach now, where that differs from what
// was recorded, and the stage points at that release: somebody who may promote it
// there, by rule, has launched it so.
func (r *Releases) Agree(ctx context.Context, actor isle.Actor, rule, project, stage string, d isle.Digest) error {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	s, ok := r.Stage(project, stage)
	if !ok || s.Release != d {
		return nil
	}
	rel, err := r.Use(string(d))
	if err != nil {
		return err
	}
	file, err := s.Values.Apply(rel.Manifest.Spec)
	if err != nil {
		return err
	}
	now := r.reachNow(project, stage, file)
	if now.Digest() == s.Reach {
		return nil
	}
	was, _ := r.Reach(s.Reach)
	s.Reach = now.Digest()
	e := audit.NewEvent(actor, isle.ActionReleasePromote, resourceAt(project, stage), isle.Allow, "launched again").
		With("before", string(d)).With("reach", string(s.Reach)).With("reach_changed", reachText(now.Changes(was)))
	e.Release, e.Rule = d, rule
	return r.pointTo(ctx, s, now, e)
}

// reachFindings are the changes of a Reach as drift.
func reachFindings(changes []policy.ReachChange) (out []Finding) {
	for _, c := range changes {
		kind := DriftDoors
		if c.Role {
			kind = DriftRoles
		}
		out = append(out, Finding{Kind: kind, Message: c.Message + " when it was promoted", Detail: c.Detail})
	}
	return out
}

// reachText is what changed, for the log.
func reachText(changes []policy.ReachChange) string {
	var b strings.Builder
	for i, c := range changes {
		switch {
		case i == maxChanges || b.Len()+len(c.Message)+len(c.Detail) > maxReachText:
			b.WriteString("; and more")
			return b.String()
		case i > 0:
			b.WriteString("; ")
		}
		b.WriteString(c.Message)
		if c.Detail != "" {
			b.WriteString(" (" + c.Detail + ")")
		}
	}
	return b.String()
}
