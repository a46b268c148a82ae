package checkout

import (
	"errors"
	"io/fs"
	"strings"
)

// A config is what git-config(1) keeps, as far as it matters here: the last
// value of each key, by "section.key" in lower case. Sections with a
// subsection, and files that a file includes, are left out.
type config map[string]string

// get returns a value, "" if there is none.
func (c config) get(key string) string { return c[key] }

// off reports whether a key that is true unless said is said to be false.
func (c config) off(key string) bool {
	switch strings.ToLower(c[key]) {
	case "false", "no", "off", "0":
		return true
	}
	return false
}

// readConfig reads a file; one that is not there is an empty one.
func readConfig(name string) (config, error) {
	b, err := readFile(name, maxSmall)
	if errors.Is(err, fs.ErrNotExist) {
		return config{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseConfig(string(b)), nil
}

// parseConfig reads what it knows, and goes past what it does not.
func parseConfig(text string) config {
	out := config{}
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		line = strings.TrimSpace(line)
		if head, ok := strings.CutPrefix(line, "["); ok {
			name, rest, _ := strings.Cut(head, "]")
			if section = strings.ToLower(strings.TrimSpace(name)); strings.ContainsAny(section, " \"") {
				section = ""
			}
			line = strings.TrimSpace(rest)
		}
		if line == "" || line[0] == '#' || line[0] == ';' || section == "" {
			continue
		}
		key, value, said := strings.Cut(line, "=")
		if !said {
			value = "true"
		}
		out[section+"."+strings.ToLower(strings.TrimSpace(key))] = configValue(value)
	}
	return out
}

// configValue takes the comment, the quotes and the escapes off a value.
func configValue(s string) string {
	var b strings.Builder
	quoted := false
	s = strings.TrimSpace(s)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case !quoted && (c == '#' || c == ';'):
			return strings.TrimRight(b.String(), " \t")
		default:
			b.WriteByte(c)
		}
	}
	return strings.TrimRight(b.String(), " \t")
}
