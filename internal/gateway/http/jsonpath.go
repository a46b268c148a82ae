package httpdoor

import (
	"slices"

	"isle"
	"isle/internal/policy"
)

// A jsonPath names values of a document.
type jsonPath struct {
	steps []policy.JSONStep
	show  string
}

// compileMasks reads the paths of a connection's masks.
func compileMasks(masks []policy.Mask) ([]jsonPath, error) {
	var out []jsonPath
	for _, m := range masks {
		steps, err := policy.ParseJSONPath(m.Column)
		if err != nil {
			return nil, isle.Errorf(isle.Invalid, "%s: mask %q: %w", m.At, m.Column, err).
				WithHint("write a path as $.customer.email, $.customers[*].email or $..email")
		}
		out = append(out, jsonPath{steps, m.Show})
	}
	return out, nil
}

// A place says how far a path has been followed to a value.
type place struct {
	path *jsonPath
	at   int // steps that fit
}

// start is where the document itself is.
func start(paths []jsonPath) []place {
	out := make([]place, len(paths))
	for i := range paths {
		out[i].path = &paths[i]
	}
	return out
}

// show is how a value at these places is shown; "" as it is. Of several paths
// the first counts.
func show(places []place) string {
	for _, p := range places {
		if p.at == len(p.path.steps) {
			return p.path.show
		}
	}
	return ""
}

// member appends to dst the places of an object's member.
func member(dst, places []place, name []byte) []place {
	return follow(dst, places, func(s *policy.JSONStep) bool { return s.Any || s.Index < 0 && s.Name == string(name) })
}

// element appends to dst the places of an array's element.
func element(dst, places []place, index int) []place {
	return follow(dst, places, func(s *policy.JSONStep) bool { return s.Any || s.Index == index && s.Name == "" })
}

func follow(dst, places []place, fits func(*policy.JSONStep) bool) []place {
	mark := len(dst)
	for _, p := range places {
		if p.at == len(p.path.steps) {
			continue
		}
		s := &p.path.steps[p.at]
		if s.Deep && !slices.Contains(dst[mark:], p) {
			dst = append(dst, p)
		}
		if next := (place{p.path, p.at + 1}); fits(s) && !slices.Contains(dst[mark:], next) {
			dst = append(dst, next)
		}
	}
	return dst
}
