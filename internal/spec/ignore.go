package spec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"isle"
)

// IgnoreFile is the file beside isle.yaml that says what `copy` leaves out.
const IgnoreFile = ".isleignore"

const (
	maxIgnoreSize = 64 << 10 // bytes
	maxIgnore     = 1000     // patterns
)

// An ignore is a parsed .isleignore: a subset of gitignore(5). The reference
// (docs/isle-yaml.md) says which.
type ignore struct {
	patterns []ignorePattern
}

type ignorePattern struct {
	parts   []string // split at slashes; "**" is any number of folders
	negate  bool
	dirOnly bool
}

// parseIgnore reads patterns, one a line.
func parseIgnore(b []byte) (ignore, error) {
	bad := func(line int, format string, args ...any) (ignore, error) {
		e := isle.Errorf(isle.Invalid, format, args...)
		if line > 0 {
			e.Message = IgnoreFile + ":" + strconv.Itoa(line) + ": " + e.Message
		} else {
			e.Message = IgnoreFile + ": " + e.Message
		}
		return ignore{}, e
	}
	if len(b) > maxIgnoreSize {
		return bad(0, "is %d bytes long; at most %d are possible", len(b), maxIgnoreSize)
	}
	var ig ignore
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimRight(line, " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		var p ignorePattern
		line, p.negate = strings.CutPrefix(line, "!")
		line, p.dirOnly = strings.CutSuffix(line, "/")
		line = strings.TrimPrefix(line, `\`) // \# and \!
		anchored := strings.Contains(line, "/")
		line = strings.TrimPrefix(line, "/")
		if line == "" || path.Clean(line) != line || strings.HasPrefix(line, "../") || line == ".." {
			return bad(i+1, "%q is no pattern; want names, *, ?, [a-z] and **, separated by single slashes", clip(line))
		}
		whole := line
		if !anchored {
			whole = "**/" + line
		}
		// Neighbouring ** mean the same as one, and cost more.
		p.parts = slices.CompactFunc(strings.Split(whole, "/"), func(a, b string) bool { return a == "**" && b == "**" })
		for _, part := range p.parts {
			if _, err := path.Match(part, "x"); err != nil {
				return bad(i+1, "%q is no pattern: a [ or \\ is not ended", clip(line))
			}
		}
		if ig.patterns = append(ig.patterns, p); len(ig.patterns) > maxIgnore {
			return bad(i+1, "holds more than %d patterns", maxIgnore)
		}
	}
	return ig, nil
}

// match reports whether what is at p, relative to the project folder, is left
// out. The last pattern that matches decides.
func (ig ignore) match(p string, dir bool) bool {
	name := path.Base(p)
	if name == ".git" || name == "isle.lock" {
		return true
	}
	if len(ig.patterns) == 0 {
		return false
	}
	parts := strings.Split(p, "/")
	for _, pattern := range slices.Backward(ig.patterns) {
		if (dir || !pattern.dirOnly) && MatchParts(pattern.parts, parts, matchPart) {
			return !pattern.negate
		}
	}
	return false
}

// MatchParts matches a pattern with ** against a path, both split at slashes; one
// says whether a part without ** matches a name. It takes time proportional to the
// product of their lengths: after a ** that is followed by another, only the last
// needs to be tried again.
func MatchParts(pattern, parts []string, one func(pattern, name string) bool) bool {
	back, from := -1, 0 // where to go on after a mismatch: behind the last **, at the next part
	i, j := 0, 0
	for j < len(parts) {
		if i < len(pattern) && pattern[i] == "**" {
			if i == len(pattern)-1 {
				return true // a/** is everything below a
			}
			back, from = i+1, j
			i++
			continue
		}
		if i < len(pattern) && one(pattern[i], parts[j]) {
			i, j = i+1, j+1
			continue
		}
		if back < 0 {
			return false
		}
		from++
		i, j = back, from
	}
	return i == len(pattern)
}

// matchPart matches as path.Match does.
func matchPart(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
