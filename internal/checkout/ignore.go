package checkout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"isle/internal/spec"
)

const (
	maxIgnore   = 4 << 20 // bytes of one file of patterns
	maxPatterns = 100_000 // that count for one folder
	// patternStep is how many patterns are tried between two looks at the time.
	patternStep = 64
)

// An ignored says what gitignore(5) leaves out: lists of patterns, those that
// count least first. The last pattern that matches decides.
type ignored []patterns

// patterns are those of one file; they speak of what is below dir, which is
// relative to the work tree and "" or ends in a slash.
type patterns struct {
	dir  string
	list []ignorePattern
}

type ignorePattern struct {
	parts   []string // split at slashes; "**" is any number of folders
	negate  bool
	dirOnly bool
	name    bool // matches the last part alone, at any depth
}

// match reports whether what is at path, relative to the work tree, is left
// out; its folder is not. It fails when ctx has ended.
func (ig ignored) match(ctx context.Context, path string, dir bool) (bool, error) {
	tried := 0
	for _, l := range slices.Backward(ig) {
		below, ok := strings.CutPrefix(path, l.dir)
		if !ok {
			continue
		}
		parts := strings.Split(below, "/")
		for _, p := range slices.Backward(l.list) {
			if p.dirOnly && !dir {
				continue
			}
			if tried++; tried%patternStep == 0 && ctx.Err() != nil {
				return false, ctx.Err()
			}
			if p.name && globPart(p.parts[0], parts[len(parts)-1]) || !p.name && spec.MatchParts(p.parts, parts, globPart) {
				return !p.negate, nil
			}
		}
	}
	return false, nil
}

// with returns ig and the patterns of a file, which speak of what is below dir.
// A file that is not there, or no file, has none.
func (ig ignored) with(file, dir string) (ignored, error) {
	b, err := readFile(file, maxIgnore)
	if notThere(err) || errors.Is(err, fs.ErrPermission) {
		return ig, nil // git warns of it and goes on
	}
	if err != nil {
		return nil, err
	}
	list := parseIgnore(string(b))
	if len(list) == 0 {
		return ig, nil
	}
	all := len(list)
	for _, l := range ig {
		all += len(l.list)
	}
	if all > maxPatterns {
		return nil, fmt.Errorf("there are more than %d patterns of files to ignore", maxPatterns)
	}
	return append(ig[:len(ig):len(ig)], patterns{dir, list}), nil
}

func parseIgnore(text string) (out []ignorePattern) {
	text = strings.TrimPrefix(text, "\ufeff")
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if p, ok := parsePattern(trimSpaces(line)); ok {
			if out = append(out, p); len(out) > maxPatterns {
				break
			}
		}
	}
	return out
}

func parsePattern(line string) (p ignorePattern, ok bool) {
	line, p.negate = strings.CutPrefix(line, "!")
	line, p.dirOnly = strings.CutSuffix(line, "/")
	if line == "" || len(line) > maxPath { // no path is so long
		return p, false
	}
	p.name = !strings.Contains(line, "/")
	line = strings.TrimPrefix(line, "/")
	// Neighbouring ** mean the same as one, and cost more.
	p.parts = slices.CompactFunc(strings.Split(line, "/"), func(a, b string) bool { return a == "**" && b == "**" })
	return p, true
}

// trimSpaces takes off the spaces at the end that no backslash keeps.
func trimSpaces(s string) string {
	end := 0
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
			end = i + 1
		} else if s[i] != ' ' {
			end = i + 1
		}
	}
	return s[:end]
}

// globPart matches a pattern without slashes, in time proportional to the
// product of both lengths.
func globPart(pattern, name string) bool {
	back, from := -1, 0
	i, j := 0, 0
	for j < len(name) {
		if i < len(pattern) && pattern[i] == '*' {
			i++
			back, from = i, j
			continue
		}
		if i < len(pattern) {
			if n, ok := globByte(pattern[i:], name[j]); ok {
				i, j = i+n, j+1
				continue
			}
		}
		if back < 0 {
			return false
		}
		from++
		i, j = back, from
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}

// globByte matches the first item of a pattern, which is n bytes of it, with
// one byte.
func globByte(p string, c byte) (n int, ok bool) {
	switch p[0] {
	case '?':
		return 1, true
	case '\\':
		if len(p) == 1 {
			return 0, false
		}
		return 2, p[1] == c
	case '[':
		return globClass(p, c)
	}
	return 1, p[0] == c
}

// globClass matches [abc], [a-z], [!a], [^a] and [[:alpha:]].
func globClass(p string, c byte) (n int, ok bool) {
	i := 1
	negate := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negate {
		i++
	}
	found := false
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return i + 1, found != negate
		}
		if strings.HasPrefix(p[i:], "[:") {
			name, _, ended := strings.Cut(p[i+2:], ":]")
			if !ended {
				return 0, false
			}
			found = found || inClass(name, c)
			i += len(name) + 4
			continue
		}
		low, next, whole := classByte(p, i)
		if !whole {
			return 0, false
		}
		high := low
		if next+1 < len(p) && p[next] == '-' && p[next+1] != ']' {
			if high, next, whole = classByte(p, next+1); !whole {
				return 0, false
			}
		}
		found = found || low <= c && c <= high
		i = next
	}
	return 0, false // not ended: it matches nothing
}

// classByte is the byte at i of a class, and where the next one is.
func classByte(p string, i int) (c byte, next int, ok bool) {
	if p[i] == '\\' {
		i++
	}
	if i >= len(p) {
		return 0, i, false
	}
	return p[i], i + 1, true
}

// inClass reports whether c is of a class of POSIX's, in the C locale.
func inClass(name string, c byte) bool {
	lower, upper, digit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
	switch name {
	case "alnum":
		return lower || upper || digit
	case "alpha":
		return lower || upper
	case "blank":
		return c == ' ' || c == '\t'
	case "cntrl":
		return c < 0x20 || c == 0x7f
	case "digit":
		return digit
	case "graph":
		return 0x20 < c && c < 0x7f
	case "lower":
		return lower
	case "print":
		return 0x20 <= c && c < 0x7f
	case "punct":
		return 0x20 < c && c < 0x7f && !lower && !upper && !digit
	case "space":
		return c == ' ' || '\t' <= c && c <= '\r'
	case "upper":
		return upper
	case "xdigit":
		return digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
	}
	return false
}

// ignores are the patterns that count for the whole work tree: the user's, then
// the repository's own.
func (c *Checkout) ignores() (ignored, error) {
	ig, err := ignored(nil).with(c.userIgnore(), "")
	if err != nil {
		return nil, err
	}
	return ig.with(filepath.Join(c.common, "info", "exclude"), "")
}

// userIgnore is the file of patterns that the user has for all repositories.
func (c *Checkout) userIgnore() string {
	home, _ := os.UserHomeDir()
	settings := os.Getenv("XDG_CONFIG_HOME")
	if settings == "" {
		settings = filepath.Join(home, ".config")
	}
	file := filepath.Join(settings, "git", "ignore")
	for _, name := range []string{"/etc/gitconfig", filepath.Join(settings, "git", "config"), filepath.Join(home, ".gitconfig")} {
		if read, err := readConfig(name); err == nil && read.get("core.excludesfile") != "" {
			file = read.get("core.excludesfile")
		}
	}
	if f := c.config.get("core.excludesfile"); f != "" {
		file = f
	}
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		file = filepath.Join(home, rest)
	}
	return resolve(c.root, file)
}
