package httpdoor

import (
	"slices"
	"strconv"
	"strings"

	"isle"
	"isle/internal/policy"
)

// A jsonPath names values of a document: what of JSONPath (RFC 9535) finds
// without looking at values. $.a.b, ['a b'], [3], [*], .*, and ..name for a
// member at any depth.
type jsonPath struct {
	steps []jsonStep
	show  string
}

type jsonStep struct {
	name  string
	index int  // of an array; -1: none
	any   bool // every member or element
	deep  bool // at this level or any below
}

// maxSteps bounds a path's length: it is followed at each value.
const maxSteps = 32

// compileMasks reads the paths of a connection's masks.
func compileMasks(masks []policy.Mask) ([]jsonPath, error) {
	var out []jsonPath
	for _, m := range masks {
		steps, err := parsePath(m.Column)
		if err != nil {
			return nil, isle.Errorf(isle.Invalid, "%s: mask %q: %w", m.At, m.Column, err).
				WithHint("write a path as $.customer.email, $.customers[*].email or $..email")
		}
		out = append(out, jsonPath{steps, m.Show})
	}
	return out, nil
}

func parsePath(s string) ([]jsonStep, error) {
	rest, ok := strings.CutPrefix(s, "$")
	if !ok {
		return nil, isle.Errorf(isle.Invalid, "it does not begin with $")
	}
	var steps []jsonStep
	for rest != "" {
		step := jsonStep{index: -1}
		switch {
		case strings.HasPrefix(rest, ".."):
			step.deep = true
			rest = rest[2:]
			if strings.HasPrefix(rest, "[") {
				break
			}
			step.name, rest = pathName(rest)
		case rest[0] == '.':
			step.name, rest = pathName(rest[1:])
		case rest[0] != '[':
			return nil, isle.Errorf(isle.Invalid, "%q is no step", rest)
		}
		if step.name == "" {
			inside, after, ok := strings.Cut(strings.TrimPrefix(rest, "["), "]")
			if !strings.HasPrefix(rest, "[") || !ok || inside == "" {
				return nil, isle.Errorf(isle.Invalid, "a step has no name")
			}
			rest = after
			if err := step.bracket(inside); err != nil {
				return nil, err
			}
		} else if step.name == "*" {
			step.name, step.any = "", true
		}
		if steps = append(steps, step); len(steps) > maxSteps {
			return nil, isle.Errorf(isle.Invalid, "it has more than %d steps", maxSteps)
		}
	}
	return steps, nil
}

func pathName(s string) (name, rest string) {
	i := strings.IndexAny(s, ".[")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// bracket reads what stands in [ ].
func (s *jsonStep) bracket(inside string) error {
	if inside == "*" {
		s.any = true
		return nil
	}
	for _, q := range []string{"'", `"`} {
		if name, ok := strings.CutPrefix(inside, q); ok {
			name, ok = strings.CutSuffix(name, q)
			if !ok || name == "" || strings.ContainsAny(name, `\'"`) {
				return isle.Errorf(isle.Invalid, "[%s] is no name", inside)
			}
			s.name = name
			return nil
		}
	}
	n, err := strconv.Atoi(inside)
	if err != nil || n < 0 {
		return isle.Errorf(isle.Invalid, "[%s] is neither a name in quotes, nor a number, nor *", inside)
	}
	s.index = n
	return nil
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
	return follow(dst, places, func(s *jsonStep) bool { return s.any || s.index < 0 && s.name == string(name) })
}

// element appends to dst the places of an array's element.
func element(dst, places []place, index int) []place {
	return follow(dst, places, func(s *jsonStep) bool { return s.any || s.index == index && s.name == "" })
}

func follow(dst, places []place, fits func(*jsonStep) bool) []place {
	mark := len(dst)
	for _, p := range places {
		if p.at == len(p.path.steps) {
			continue
		}
		s := &p.path.steps[p.at]
		if s.deep && !slices.Contains(dst[mark:], p) {
			dst = append(dst, p)
		}
		if next := (place{p.path, p.at + 1}); fits(s) && !slices.Contains(dst[mark:], next) {
			dst = append(dst, next)
		}
	}
	return dst
}
