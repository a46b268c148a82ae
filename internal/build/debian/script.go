package debian

import "strings"

// commands reads a shell script as far as that can be done without running it:
// the simple commands, words unquoted, with the variables that were given a
// literal value before. Conditions are not looked at: a command counts wherever
// it stands; the body of a for loop over literal words, once for each of them.
// A word with anything else in it that the shell would expand is
// unknown: its text is kept and begins with "$".
func commands(script string) [][]string {
	budget := maxCommands
	return commandsWith(strings.ReplaceAll(script, "\\\n", " "), map[string]string{}, 0, &budget)
}

// maxCommands bounds the commands and turns of loops of one package, a turn of
// a long loop counting for more, and maxLoops how deep loops are followed.
const (
	maxCommands = 10000
	maxLoops    = 3
	maxWord     = 4096 // bytes that a variable may make a word long
)

func commandsWith(script string, vars map[string]string, depth int, budget *int) (out [][]string) {
	var words []string
	end := func() {
		if depth < maxLoops && len(words) > 3 && words[0] == "for" && words[2] == "in" {
			if body, after, ok := loop(script); ok {
				for _, value := range strings.Fields(strings.Join(words[3:], " ")) {
					if *budget -= 1 + len(body)>>10; *budget < 0 {
						break
					}
					if !known(value) {
						continue
					}
					vars[words[1]] = value
					out = append(out, commandsWith(body, vars, depth+1, budget)...)
				}
				delete(vars, words[1])
				script = after
			}
			words = nil
			return
		}
		for len(words) > 0 {
			switch w := words[0]; {
			case w == "if" || w == "then" || w == "else" || w == "elif" || w == "!" || w == "do" || w == "while" || w == "exec" || w == "{" || w == "(":
				words = words[1:]
				continue
			case assignment(w) > 0:
				n := assignment(w)
				// A computed value is often under a condition: a literal given before stays the best guess.
				if value := w[n+1:]; !strings.ContainsAny(value, "$`") {
					vars[w[:n]] = value
				}
				words = words[1:]
				continue
			}
			out = append(out, words)
			*budget--
			break
		}
		words = nil
	}
	for len(script) > 0 && *budget > 0 {
		switch c := script[0]; {
		case c == ' ' || c == '\t' || c == '\r':
			script = script[1:]
		case c == '#':
			_, after, found := strings.Cut(script, "\n")
			if script = after; found {
				end()
			}
		case strings.IndexByte("\n;|&()", c) >= 0:
			script = script[1:]
			end()
		case c == '<' || c == '>':
			script = strings.TrimLeft(script, "<>&-") // the file's name becomes a word; harmless
		default:
			var w string
			w, script = word(script, vars)
			words = append(words, w)
		}
	}
	end()
	return out
}

// loop splits what follows "for … in …;" into the body, between do and its
// done, and what is behind.
func loop(s string) (body, after string, ok bool) {
	start, nesting := 0, 0
	for i := 0; i < len(s); {
		n := strings.IndexFunc(s[i:], func(c rune) bool { return c < 'a' || c > 'z' })
		if n < 0 {
			n = len(s) - i
		}
		lone := i == 0 || strings.IndexByte(" \t\n;", s[i-1]) >= 0
		switch {
		case lone && s[i:i+n] == "do":
			if nesting++; nesting == 1 {
				start = i + n
			}
		case lone && s[i:i+n] == "done" && nesting > 0:
			if nesting--; nesting == 0 {
				return s[start:i], s[i+n:], true
			}
		}
		i += n + 1
	}
	return "", "", false
}

// assignment returns where the "=" of NAME=value stands, or 0.
func assignment(w string) int {
	n := strings.IndexByte(w, '=')
	if n <= 0 {
		return 0
	}
	for i, c := range w[:n] {
		if !(c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9') {
			return 0
		}
	}
	return n
}

// word reads one word from the beginning of s, which is not empty.
func word(s string, vars map[string]string) (string, string) {
	var b strings.Builder
	quote := byte(0)
	i := 0
	for ; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == quote && quote != 0:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == '$':
			name, n := variable(s[i+1:])
			// A value that is made of itself over and over doubles each time.
			if v, ok := vars[name]; ok && n > 0 && b.Len()+len(v) <= maxWord {
				b.WriteString(v)
			} else {
				b.WriteString("$" + s[i+1:i+1+n])
			}
			i += n
		case quote == 0 && strings.IndexByte(" \t\r\n;|&()<>", c) >= 0:
			return b.String(), s[i:]
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

// variable reads NAME or {NAME} and says how many bytes that was.
func variable(s string) (name string, n int) {
	if strings.HasPrefix(s, "{") {
		if end := strings.IndexByte(s[:min(len(s), maxWord)], '}'); end > 0 {
			return s[1:end], end + 1
		}
		return "", 0
	}
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return s[:n], n
}

// known reports whether a word is free of what the shell would have expanded.
func known(w string) bool { return !strings.ContainsAny(w, "$`*") }
