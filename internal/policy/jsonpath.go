package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A JSONStep is one of a path to values of a JSON document.
type JSONStep struct {
	Name  string
	Index int  // of an array; -1: none
	Any   bool // every member or element
	Deep  bool // at this level or any below
}

// maxJSONSteps bounds a path's length: it is followed at each value.
const maxJSONSteps = 32

// ParseJSONPath reads what of JSONPath (RFC 9535) finds values without looking
// at them: $.a.b, ['a b'], [3], [*], .*, and ..name for a member at any depth.
func ParseJSONPath(s string) ([]JSONStep, error) {
	rest, ok := strings.CutPrefix(s, "$")
	if !ok {
		return nil, errors.New("it does not begin with $")
	}
	var steps []JSONStep
	for rest != "" {
		step := JSONStep{Index: -1}
		switch {
		case strings.HasPrefix(rest, ".."):
			step.Deep = true
			rest = rest[2:]
			if strings.HasPrefix(rest, "[") {
				break
			}
			step.Name, rest = pathName(rest)
		case rest[0] == '.':
			step.Name, rest = pathName(rest[1:])
		case rest[0] != '[':
			return nil, fmt.Errorf("%q is no step", rest)
		}
		if step.Name == "" {
			inside, after, ok := strings.Cut(strings.TrimPrefix(rest, "["), "]")
			if !strings.HasPrefix(rest, "[") || !ok || inside == "" {
				return nil, errors.New("a step has no name")
			}
			rest = after
			if err := step.bracket(inside); err != nil {
				return nil, err
			}
		} else if step.Name == "*" {
			step.Name, step.Any = "", true
		}
		if steps = append(steps, step); len(steps) > maxJSONSteps {
			return nil, fmt.Errorf("it has more than %d steps", maxJSONSteps)
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
func (s *JSONStep) bracket(inside string) error {
	if inside == "*" {
		s.Any = true
		return nil
	}
	for _, q := range []string{"'", `"`} {
		if name, ok := strings.CutPrefix(inside, q); ok {
			name, ok = strings.CutSuffix(name, q)
			if !ok || name == "" || strings.ContainsAny(name, `\'"`) {
				return fmt.Errorf("[%s] is no name", inside)
			}
			s.Name = name
			return nil
		}
	}
	n, err := strconv.Atoi(inside)
	if err != nil || n < 0 {
		return fmt.Errorf("[%s] is neither a name in quotes, nor a number, nor *", inside)
	}
	s.Index = n
	return nil
}
