package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Search looks for values, in each of their forms, in what it is given.
type Search struct {
	Report func(format string, args ...any) // what is found
	Values []string
	Looked int // bytes

	forms map[string][][]byte
}

// In looks into b, and into where it is from.
func (s *Search) In(where string, b []byte) {
	if s.forms == nil {
		s.forms = map[string][][]byte{}
	}
	s.Looked += len(b)
	for _, v := range s.Values {
		if s.forms[v] == nil {
			s.forms[v] = Forms(v)
		}
		for _, f := range s.forms[v] {
			if bytes.Contains(b, f) || strings.Contains(where, string(f)) {
				s.Report("%.200s holds %q, as %q", where, v, f)
			}
		}
	}
}

// Below looks into every file below a folder, in their names too.
func (s *Search) Below(dir string) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			s.In(path, []byte(to))
			return err
		case !e.Type().IsRegular():
			s.In(path, nil)
			return nil
		}
		b, err := os.ReadFile(path)
		s.In(path, b)
		return err
	})
	if err != nil {
		s.Report("%s could not be searched: %v", dir, err)
	}
}

// Process looks into the arguments and the environment of a process.
func (s *Search) Process(pid int) {
	for _, f := range []string{"cmdline", "environ"} {
		path := filepath.Join("/proc", strconv.Itoa(pid), f)
		if b, err := os.ReadFile(path); err == nil { // else it has ended
			s.In(path, b)
		}
	}
}

// Descendants are the processes that a process started, and so on.
func Descendants(pid int) (out []int) {
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	for _, task := range tasks {
		b, _ := os.ReadFile(task) // it may have ended
		for _, child := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(child); err == nil {
				out = append(append(out, n), Descendants(n)...)
			}
		}
	}
	return out
}

// Inside are the processes of an environment, by their control groups.
func (e Environment) Inside() (out []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range all {
		b, _ := os.ReadFile(path) // it may have ended
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && e.Instance != "" && bytes.Contains(b, []byte(e.Instance)) {
			out = append(out, pid)
		}
	}
	return out
}

// Forms are those in which a value could be found: as it is, as hex, as base64 of
// something that holds it, escaped for URLs and for JSON.
func Forms(value string) (out [][]byte) {
	quoted, _ := json.Marshal(value) // text always can be
	for _, s := range []string{
		value, hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(value))),
		url.QueryEscape(value), url.PathEscape(value), string(quoted[1 : len(quoted)-1]),
	} {
		if b := []byte(s); !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, b) }) {
			out = append(out, b)
		}
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for i := range 3 { // at each offset
			b := encoding.EncodeToString(append(bytes.Repeat([]byte{0}, i), value...))
			f := []byte(b[4 : len(b)-4])
			if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, f) }) {
				out = append(out, f)
			}
		}
	}
	return out
}
