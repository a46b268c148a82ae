package debian

import (
	"path"
	"sort"
	"strconv"
	"strings"
)

// An alternative is one choice for a generic name (update-alternatives(1)).
type alternative struct {
	link, name, path string
	priority         int
	slaves           [][3]string // link, name, path
}

// alternatives makes the links that update-alternatives would: those that
// scripts register literally, of each name the one with the highest priority.
func (s *system) alternatives() {
	best := map[string]alternative{}
	for _, p := range s.t.pkgs {
		for _, c := range commands(p.control.scripts) {
			if path.Base(c[0]) != "update-alternatives" {
				continue
			}
			a, ok := parseAlternative(c[1:])
			if !ok || !s.exists(a.path) {
				continue
			}
			if old, ok := best[a.name]; !ok || a.priority > old.priority {
				best[a.name] = a
			}
		}
	}
	names := make([]string, 0, len(best))
	for n := range best {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		a := best[n]
		for _, l := range append([][3]string{{a.link, a.name, a.path}}, a.slaves...) {
			if s.exists(l[2]) {
				s.link("etc/alternatives/"+l[1], l[2])
				s.link(l[0], "/etc/alternatives/"+l[1])
			}
		}
	}
}

// parseAlternative reads the arguments --install LINK NAME PATH PRIORITY
// [--slave LINK NAME PATH]….
func parseAlternative(args []string) (a alternative, ok bool) {
	for i := 0; i < len(args); i++ {
		n := 4
		switch args[i] {
		case "--slave":
			n = 3
		case "--install":
		default:
			continue
		}
		if len(args)-i <= n {
			return a, false
		}
		w := args[i+1 : i+1+n]
		i += n
		for _, word := range w {
			if !known(word) || strings.Contains(word, "..") {
				return a, false
			}
		}
		if !strings.HasPrefix(w[0], "/") || !strings.HasPrefix(w[2], "/") || strings.Contains(w[1], "/") || w[1] == "" {
			return a, false
		}
		if n == 3 {
			a.slaves = append(a.slaves, [3]string(w))
			continue
		}
		p, err := strconv.Atoi(w[3])
		if err != nil {
			return a, false
		}
		a.link, a.name, a.path, a.priority, ok = w[0], w[1], w[2], p, true
	}
	return a, ok
}
