package compose

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// plainJSON takes comments and commas before a closing bracket out of JSON as
// editors write it. Lines stay where they are.
func plainJSON(name string, b []byte) ([]byte, error) {
	b = []byte(strings.TrimPrefix(string(b), "\ufeff"))
	out := make([]byte, 0, len(b))
	comma := -1 // of out, with nothing but space behind it
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			comma = -1
			end := i + 1
			for end < len(b) && b[end] != '"' && b[end] != '\n' {
				if b[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end, len(b)-1)
			out = append(out, b[i:end+1]...)
			i = end
		case c == '/' && i+1 < len(b) && b[i+1] == '/':
			for i+1 < len(b) && b[i+1] != '\n' {
				i++
			}
		case c == '/' && i+1 < len(b) && b[i+1] == '*':
			length := bytes.Index(b[i+2:], []byte("*/"))
			if length < 0 {
				length = len(b) - i - 4
			}
			length = max(length, 0)
			end := min(i+2+length, len(b))
			out = append(out, bytes.Repeat([]byte("\n"), bytes.Count(b[i:end], []byte("\n")))...)
			out = append(out, ' ')
			i = end + 1
		default:
			switch {
			case c == '\t' || c == '\r':
				c = ' ' // YAML's reader takes no tabs
			case c == ',':
				comma = len(out)
			case c == '}' || c == ']':
				if comma >= 0 {
					out[comma] = ' '
				}
				comma = -1
			case c != ' ' && c != '\n':
				comma = -1
			}
			out = append(out, c)
		}
	}
	var v any
	if err := json.Unmarshal(out, &v); err != nil {
		at := place{name, 0}
		if se, ok := errors.AsType[*json.SyntaxError](err); ok {
			at.line = 1 + strings.Count(string(out[:min(int(se.Offset), len(out))]), "\n")
		}
		return nil, invalid(at, "this is not JSON: %v", err)
	}
	return out, nil
}
