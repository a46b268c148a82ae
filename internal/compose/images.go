package compose

import (
	"encoding/json"
	"path"
	"strconv"
	"strings"
)

// An imageFact is what is known of an image as it is published: what cannot be
// asked before it is pulled.
type imageFact struct {
	entrypoint string
	port       int
	variable   string // that changes the port
}

// knownImage is what is known of an image by its name. localhost/ and
// registries' folders are left out of account: copies are called alike.
func knownImage(ref string) imageFact {
	ref, _, _ = strings.Cut(ref, "@")
	base := path.Base(ref)
	base, _, _ = strings.Cut(base, ":")
	if strings.HasPrefix(ref, "localhost/") || strings.HasPrefix(ref, "./") {
		return imageFact{} // this project's own, whatever it is called
	}
	const docker = "docker-entrypoint.sh"
	return map[string]imageFact{
		"postgres": {docker, 5432, "PGPORT"}, "postgis": {docker, 5432, "PGPORT"}, "mysql": {docker, 3306, ""}, "mariadb": {docker, 3306, ""},
		"redis": {docker, 6379, ""}, "valkey": {docker, 6379, ""}, "mongo": {docker, 27017, ""}, "memcached": {docker, 11211, ""},
		"rabbitmq": {docker, 5672, ""}, "nginx": {"/docker-entrypoint.sh", 80, ""}, "httpd": {"", 80, ""}, "caddy": {"", 80, ""}, "traefik": {"/entrypoint.sh", 80, ""},
		"node": {docker, 0, ""}, "wordpress": {docker, 80, ""}, "adminer": {"entrypoint.sh", 8080, ""}, "elasticsearch": {"", 9200, ""}, "grafana": {"", 3000, ""}, "prometheus": {"", 9090, ""},
	}[base]
}

// dockerfile is the text of what a build is made by, "" where it cannot be read
// now: the build says so then.
func (s *service) dockerfile() string {
	name := s.build.dockerfile
	if name == "" {
		name = "Dockerfile"
	}
	reads := len(s.reads)
	b, err := s.read(path.Join(s.build.context, name))
	s.reads = s.reads[:reads] // the build reads it, and says so
	if err != nil {
		return ""
	}
	return string(b)
}

// instructions are the lines of a Dockerfile from its last FROM, or that of the
// target, continued ones joined. It is read for what is said ahead of the build,
// which has the real parser.
func (s *service) instructions() (lines [][2]string) {
	text := strings.NewReplacer("\\\r\n", " ", "\\\n", " ").Replace(s.dockerfile())
	done := false
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		word, rest = strings.ToUpper(word), strings.TrimSpace(rest)
		if word == "FROM" {
			if done {
				break
			}
			lines = nil
			f := strings.Fields(rest)
			done = s.build.target != "" && len(f) > 2 && strings.EqualFold(f[len(f)-1], s.build.target)
		}
		lines = append(lines, [2]string{word, rest})
	}
	return lines
}

// setNetwork gives a build the recorded network where it has steps: in Compose
// they reach the world.
func (s *service) setNetwork() {
	if s.build == nil || s.build.network == "none" {
		return
	}
	for line := range strings.Lines(s.dockerfile()) {
		if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.EqualFold(word, "RUN") {
			s.build.record = true
			s.differs(s.build.at, "build", "steps reach the internet through a recorder: GET and HEAD over HTTP and HTTPS, each answer pinned in the lock, and the next build has the same without a network",
				"write build: {network: none} if they need none (docs/dockerfile.md)")
			return
		}
	}
}

// dockerEntrypoint is the entrypoint of a build's image, and whether it is known:
// not where it may be that of the image it begins with.
func (s *service) dockerEntrypoint() (entrypoint []string, known bool) {
	for _, l := range s.instructions() {
		switch l[0] {
		case "FROM":
			f := strings.Fields(l[1])
			known = len(f) > 0 && f[0] == "scratch"
			entrypoint = nil
			if e := knownImage(first(f)).entrypoint; e != "" {
				entrypoint, known = []string{e}, true
			}
		case "ENTRYPOINT":
			var list []string
			if json.Unmarshal([]byte(l[1]), &list) == nil {
				entrypoint, known = list, true
			} else { // a shell takes no arguments
				entrypoint, known = []string{"/bin/sh", "-c", l[1]}, true
			}
		}
	}
	return entrypoint, known
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// exposes are the ports that a build's image says it listens on.
func (s *service) exposes() (ports []int) {
	for _, l := range s.instructions() {
		if l[0] != "EXPOSE" {
			continue
		}
		for _, f := range strings.Fields(l[1]) {
			number, protocol, _ := strings.Cut(f, "/")
			if n, err := strconv.Atoi(number); err == nil && protocol != "udp" {
				ports = append(ports, n)
			}
		}
	}
	return ports
}
