package policy

import (
	"isle"
)

// maxGrants bounds what the bindings of a policy come to: for each the subjects
// times the stages times the resources of its role. A few kilobytes of file can
// otherwise say more than a memory holds.
const maxGrants = 1_000_000

// grants counts what a binding comes to.
func (b *Binding) grants(r *Role) int {
	return min(len(b.Subjects), maxGrants+1) * max(min(len(b.Stages), maxGrants+1), 1) * len(r.Resources)
}

// Bounds of hand-written Cedar. The parser, the compiler and the evaluator call
// themselves for each operator, as deep as they nest; Go ends a program whose
// stack grows beyond a gigabyte. Chains nest too: a && b && c is (a && b) && c.
const (
	maxDepth  = 200      // brackets inside each other
	maxPolicy = 64 << 10 // bytes of one policy, without space, strings and comments
)

// bounded reports that a text could be too deep to be parsed. It needs no more
// than the text's tokens, and takes strings and comments for what Cedar does: a
// text about which the two disagree is none that Cedar reads.
func bounded(name string, b []byte) error {
	depth, size := 0, 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			i = endOfString(b, i)
			size++
		case '/':
			if end, ok := endOfComment(b, i); ok {
				i = end
				continue
			}
			size++
		case ' ', '\t', '\r', '\n':
		case ';':
			depth, size = 0, 0
		case '(', '[', '{':
			depth++
			size++
		case ')', ']', '}':
			depth = max(depth-1, 0)
			size++
		default:
			size++
		}
		if depth > maxDepth {
			return isle.Errorf(isle.Invalid, "%s nests brackets deeper than %d", name, maxDepth)
		}
		if size > maxPolicy {
			return isle.Errorf(isle.Invalid, "%s: one policy is longer than %d characters, strings and comments not counted", name, maxPolicy).
				WithHint("make several policies of it")
		}
	}
	return nil
}

// endOfString is where the string that begins at i ends.
func endOfString(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i
}

// endOfComment is where the comment that begins at i ends, if one does begin.
func endOfComment(b []byte, i int) (end int, ok bool) {
	if i+1 >= len(b) || b[i+1] != '/' && b[i+1] != '*' {
		return i, false
	}
	line := b[i+1] == '/'
	for i += 2; i < len(b); i++ {
		if line && b[i] == '\n' || !line && b[i] == '*' && i+1 < len(b) && b[i+1] == '/' {
			if !line {
				i++
			}
			return i, true
		}
	}
	return i, true
}
