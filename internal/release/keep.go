package release

import "isle"

// kept is why a release is not to be removed, whatever runs: a stage points at it,
// goes back to it, or has it marked. What a rollback would bring back is there
// exactly as it was.
func (r *Releases) kept(d isle.Digest) error {
	for _, s := range r.StagesOf("") {
		back, _ := s.back()
		_, marked := s.marked(d)
		switch {
		case s.Release == d:
			return isle.Errorf(isle.Conflict, "stage %s of %s points at release %s", s.Name, s.Project, d.Short()).WithHint("promote another one there first")
		case back.Release == d:
			return isle.Errorf(isle.Conflict, "stage %s of %s goes back to release %s: isle rollback %s@%s would need it", s.Name, s.Project, d.Short(), s.Project, s.Name).
				WithHint("it can be removed once another release was promoted there after the present one")
		case marked:
			return isle.Errorf(isle.Conflict, "stage %s of %s was rolled back from release %s, and nobody has cleared that", s.Name, s.Project, d.Short()).
				WithHint("isle release clear %s@%s %s, once it is known why", s.Project, s.Name, d.Short())
		}
	}
	return nil
}

// back is what a rollback of the stage goes back to where nothing else is said; ok
// is false where there is nothing.
func (s Stage) back() (p Pointer, ok bool) {
	for i := len(s.Earlier) - 1; i >= 0; i-- {
		if p := s.Earlier[i]; !s.is(p) && s.allows(s.Project, p.Release) == nil {
			return p, true
		}
	}
	return Pointer{}, false
}
