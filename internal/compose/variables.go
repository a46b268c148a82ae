package compose

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"isle/internal/problem"
)

// variables are what a file's ${NAME} are taken from.
type variables struct {
	file    map[string]string // of .env
	environ func(string) (string, bool)
	// spent counts the bytes that variables came to, in all; nil: nobody does.
	spent *int
	// What was asked for, each once, in order: from the environment of whoever
	// asks, and nowhere to be found.
	taken, unset []string
}

// lookup finds a variable: whoever asks before .env.
func (v *variables) lookup(name string) (string, bool) {
	if v.environ != nil {
		if s, ok := v.environ(name); ok {
			if !slices.Contains(v.taken, name) {
				v.taken = append(v.taken, name)
			}
			return s, true
		}
	}
	s, ok := v.file[name]
	return s, ok
}

// maxExpanded bounds a value with its variables, and maxSpent all of them, in
// bytes.
const (
	maxExpanded = 256 << 10
	maxSpent    = 8 << 20
)

// spend counts what a value came to.
func (v *variables) spend(n int) error {
	if v.spent == nil {
		return nil
	}
	if *v.spent += n; *v.spent > maxSpent {
		return errTooLarge
	}
	return nil
}

// expand puts values into $NAME and ${NAME}, with the forms that Compose has:
// :-, -, :?, ?, :+ and +, defaults within defaults, and $$ for one $.
func (v *variables) expand(s string) (string, error) { return v.expandAt(s, 0) }

func (v *variables) expandAt(s string, depth int) (string, error) {
	if !strings.ContainsRune(s, '$') {
		return s, nil
	}
	if depth > 16 {
		return "", errors.New("defaults of variables stand in one another more than 16 deep")
	}
	var b strings.Builder
	for len(s) > 0 {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		switch {
		case strings.HasPrefix(s, "$"):
			b.WriteByte('$')
			s = s[1:]
		case strings.HasPrefix(s, "{"):
			end := closing(s)
			if end < 0 {
				return "", fmt.Errorf("%s has no end; write $$ for a $ that is meant", quote("$"+s))
			}
			value, err := v.braced(s[1:end], depth)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
			s = s[end+1:]
		default:
			n := nameLength(s)
			if n == 0 {
				b.WriteByte('$')
				continue
			}
			b.WriteString(v.value(s[:n]))
			s = s[n:]
		}
		if b.Len() > maxExpanded {
			return "", errors.New("is longer than 256 KiB with its variables")
		}
	}
	return b.String(), v.spend(b.Len())
}

// value is a variable's, "" where it is not set, which is noted.
func (v *variables) value(name string) string {
	s, ok := v.lookup(name)
	if !ok && !slices.Contains(v.unset, name) {
		v.unset = append(v.unset, name)
	}
	return s
}

// braced is the value of what stands between braces.
func (v *variables) braced(s string, depth int) (string, error) {
	n := nameLength(s)
	if n == 0 {
		return "", fmt.Errorf("%s names no variable; write $$ for a $ that is meant", quote("${"+s+"}"))
	}
	name, rest := s[:n], s[n:]
	if rest == "" {
		return v.value(name), nil
	}
	rest, filled := strings.CutPrefix(rest, ":")
	if rest == "" || !strings.ContainsRune("-?+", rune(rest[0])) {
		return "", fmt.Errorf("%s is no variable; want ${NAME}, or one with :-, -, :?, ?, :+ or + after the name", quote("${"+s+"}"))
	}
	value, ok := v.lookup(name)
	if filled && value == "" {
		ok = false
	}
	switch op, word := rest[0], rest[1:]; {
	case op == '+' && ok, op == '-' && !ok:
		return v.expandAt(word, depth+1)
	case op == '+':
		return "", nil
	case op == '?' && !ok:
		said, err := v.expandAt(word, depth+1)
		if err != nil {
			return "", err
		}
		if said == "" {
			said = "it is required"
		}
		return "", fmt.Errorf("variable %s is not set: %s; set it in .env or the environment", name, problem.Clip(said))
	}
	return value, nil
}

// nameLength is how many bytes at the start of s name a variable.
func nameLength(s string) int {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}

// closing is where the brace ends that s begins with, -1 if nowhere. Braces in a
// default count, as in {"a": {}}; what stands right behind one that opens does
// not, and where they do not fit it is the last one, as in Compose.
func closing(s string) int {
	deep := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '{':
			deep++
			i++
		case '}':
			if deep--; deep == 0 {
				return i
			}
		}
	}
	return strings.LastIndexByte(s, '}')
}

// readEnv reads a file of NAME=VALUE lines, as .env and env_file are: comments,
// `export`, quotes, escapes in double quotes, and variables outside of single
// quotes: those that lookup finds, and those of lines before. raw takes values as
// they are; spent is as in variables.
func readEnv(name string, b []byte, lookup func(string) (string, bool), raw bool, spent *int) ([][2]string, error) {
	if lookup == nil {
		lookup = func(string) (string, bool) { return "", false }
	}
	seen := map[string]string{}
	inner := variables{environ: lookup, file: seen, spent: spent}
	var out [][2]string
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	lines.Buffer(nil, maxFile+1)
	for at := (place{name, 1}); lines.Scan(); at.line++ {
		line := strings.TrimSpace(lines.Text())
		line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := line, "", false
		if i := strings.IndexAny(line, "=:"); i >= 0 {
			key, value, ok = line[:i], line[i+1:], true
		}
		key = strings.TrimSpace(key)
		if key == "" || strings.ContainsAny(key, " \t\"'") {
			return nil, invalid(at, "%s is no NAME=VALUE", quote(line))
		}
		if !ok { // the value of whoever asks, if there is one
			if value, ok = lookup(key); !ok {
				continue
			}
			out, seen[key] = append(out, [2]string{key, value}), value
			continue
		}
		value, more, literal := strings.TrimSpace(value), byte(0), true
		if !raw {
			value, more, literal = unquote(value)
		}
		for start := at.line; more != 0; { // a quoted value goes on
			if !lines.Scan() {
				return nil, invalid(place{name, start}, "the quote that begins here does not end")
			}
			at.line++
			next := lines.Text()
			if end := closingQuote(next, more); end >= 0 {
				next, more = next[:end], 0
			}
			value += "\n" + next
		}
		if !literal {
			var err error
			if value, err = inner.expand(value); err != nil {
				return nil, invalid(at, "%v", err)
			}
		}
		out, seen[key] = append(out, [2]string{key, value}), value
	}
	return out, nil
}

// unquote takes the quotes off a value. open is the quote where it does not end;
// literal says that variables in it are none.
func unquote(s string) (value string, open byte, literal bool) {
	if s == "" || s[0] != '"' && s[0] != '\'' {
		for i := 0; i < len(s); i++ { // a comment stands after a space
			if s[i] == '#' && i > 0 && (s[i-1] == ' ' || s[i-1] == '\t') {
				return strings.TrimSpace(s[:i]), 0, false
			}
		}
		return s, 0, false
	}
	q := s[0]
	end := closingQuote(s[1:], q)
	if end < 0 {
		return s[1:], q, q == '\''
	}
	value = s[1 : 1+end]
	if q == '"' {
		value = strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`, `\$`, "$$").Replace(value)
	}
	return value, 0, q == '\''
}

// closingQuote is where a quote ends, -1 if nowhere.
func closingQuote(s string, q byte) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && q == '"':
			i++
		case s[i] == q:
			return i
		}
	}
	return -1
}
