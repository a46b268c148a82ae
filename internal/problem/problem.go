// Package problem says what is wrong in a file that a person wrote.
//
// A Problem has a place (line, column, path of keys) and says what is wrong and
// what to do. A FileError is every problem of one file, so that all of them can
// be mended at once. Nearest finds the word that was meant.
package problem

import (
	"fmt"
	"strings"

	"isle"
)

// A Problem is one thing that is wrong in a file.
type Problem struct {
	Line    int    `json:"line,omitempty"`   // from 1; 0 if it belongs to no line
	Column  int    `json:"column,omitempty"` // from 1; 0 if unknown
	Path    string `json:"path,omitempty"`   // "services.web.ports"; "" is the file as a whole
	Message string `json:"message"`          // what is wrong and what to do
}

// A FileError is every problem of one file. It unwraps to an *isle.Error with
// code Invalid whose message is the same text, so that a caller that knows
// only isle.Error shows all of it.
type FileError struct {
	File     string // as given to whoever read it
	Problems []Problem
	Hint     string // what to do about all of them; may be empty
}

// Error lists the problems, one a line, each "isle.yaml:12:5: path: message".
func (e *FileError) Error() string {
	s := strings.Join(e.lines(), "\n")
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the same as an *isle.Error.
func (e *FileError) Unwrap() error {
	return &isle.Error{Code: isle.Invalid, Message: strings.Join(e.lines(), "\n"), Hint: e.Hint}
}

func (e *FileError) lines() []string {
	out := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		var b strings.Builder
		b.WriteString(e.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
			if p.Column > 0 {
				fmt.Fprintf(&b, ":%d", p.Column)
			}
		}
		b.WriteString(": ")
		if p.Path != "" {
			b.WriteString(p.Path + ": ")
		}
		b.WriteString(p.Message)
		out = append(out, b.String())
	}
	return out
}

// Nearest returns the candidate with the smallest edit distance to word, and
// whether it is near enough to have been meant.
func Nearest(word string, candidates []string) (best string, near bool) {
	if len(word) > 64 {
		word = word[:64]
	}
	least := -1
	for _, c := range candidates {
		if d := Distance(word, c); least < 0 || d < least {
			best, least = c, d
		}
	}
	return best, least >= 0 && least <= max(1, len(word)/3)
}

// Distance is the optimal string alignment distance, in bytes: insertions,
// deletions, substitutions and swaps of neighbours count one each.
func Distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			d := row[j-1]
			if a[i-1] != b[j-1] {
				d++
			}
			next[j] = min(d, row[j]+1, next[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}

// Clip shortens text from a file for a message, so that a hostile file cannot
// fill a terminal. The result is printed with %q.
func Clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}
