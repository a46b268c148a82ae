package compose

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A listener is a port that a service listens on.
type listener struct {
	at   place
	port int
	how  string // which key, or what else, says so
	sure bool   // or it may be
}

// checkPorts tells two services apart that would listen on one port: they share
// a network.
func (d *draft) checkPorts(r *reader) {
	type holder struct {
		s *service
		l listener
	}
	held := map[int][]holder{}
	for _, s := range d.services {
		s.guessListeners()
		for _, l := range s.listens {
			if !slices.ContainsFunc(held[l.port], func(h holder) bool { return h.s == s }) {
				held[l.port] = append(held[l.port], holder{s, l})
			}
		}
	}
	for _, port := range sortedKeys(held) {
		all := held[port]
		for i, b := range all[min(1, len(all)):] {
			a := all[i]
			if b.l.at.line == 0 {
				b.l.at = b.s.at
			}
			reason := fmt.Sprintf("services %s (%s) and %s (%s) both listen on port %d, and services share one network", a.s.was, a.l.how, b.s.was, b.l.how, port)
			do := fmt.Sprintf("have one listen elsewhere%s, or put it into an environment of its own and reach it through a connection that names it (docs/compose.md)", b.s.portVariable())
			if a.l.sure && b.l.sure {
				b.s.refuse(b.l.at, "ports", reason, do)
			} else if a.l.how != "healthcheck" && b.l.how != "healthcheck" {
				b.s.differs(b.l.at, "ports", strings.Replace(reason, "both listen", "may both listen", 1), do)
			}
		}
	}
}

func sortedKeys[V any](m map[int]V) []int {
	var out []int
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// portVariable says which variable changes the port of a known image.
func (s *service) portVariable() string {
	if v := knownImage(s.image).variable; v != "" {
		return fmt.Sprintf(" (%s: environment: {%s: …})", s.was, v)
	}
	return ""
}

// guessListeners adds the port of a known image, or of a Dockerfile's EXPOSE,
// where the service runs what the image runs.
func (s *service) guessListeners() {
	runs := slices.Concat(s.entrypoint, s.arguments)
	own := portArgument(runs)
	if s.build != nil && len(runs) == 0 {
		for _, p := range s.exposes() {
			s.listens = append(s.listens, listener{at: s.build.at, port: p, how: "EXPOSE of its Dockerfile"})
		}
		return
	}
	fact := knownImage(s.image)
	if fact.port == 0 || len(s.entrypoint) > 0 {
		return
	}
	if len(runs) > 0 && !strings.HasPrefix(runs[0], "-") && !slices.Contains([]string{"postgres", "redis-server", "valkey-server", "mysqld", "mariadbd", "mongod", "memcached", "nginx"}, runs[0]) {
		return // something else of the image
	}
	port := fact.port
	if n, err := strconv.Atoi(s.env[fact.variable]); err == nil && fact.variable != "" {
		port = n
	}
	if own > 0 {
		port = own
	}
	s.listens = append(s.listens, listener{at: s.n.keyAt("image"), port: port, how: "as its image does", sure: true})
}

// portArgument is the port that a command names, 0 if none.
func portArgument(command []string) int {
	for i, word := range command {
		value := ""
		switch {
		case (word == "-p" || word == "--port" || word == "-port") && i+1 < len(command):
			value = command[i+1]
		default:
			for _, prefix := range []string{"--port=", "-p", "port="} {
				if v, ok := strings.CutPrefix(word, prefix); ok {
					value = v
					break
				}
			}
		}
		if n, err := strconv.Atoi(value); err == nil && n > 0 && n < 65536 {
			return n
		}
	}
	return 0
}
