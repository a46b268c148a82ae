package compose

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle/internal/spec"
)

// valueOf is a variable's value: one without is that of whoever asks, if they
// have it.
func (s *service) valueOf(p pair) (string, bool) {
	if !p.value.null {
		return p.value.str(), true
	}
	return s.vars.lookup(p.key)
}

// readEnvironment reads the variables of the file. They come before those of
// env_file, which may name them, and stand over them, also where they have no
// value.
func (s *service) readEnvironment(n *node) {
	for _, p := range asMapping("environment", n).pairs {
		if v, ok := s.valueOf(p); ok {
			s.setEnv(p.place, p.key, v)
		}
		s.envAt[p.key] = p.place
	}
}

// setEnv sets a variable, and says of what is called like a secret where it goes.
func (s *service) setEnv(at place, key, value string) {
	s.env[key] = value
	upper := strings.ToUpper(key)
	for _, word := range []string{"PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "PRIVATE_KEY", "CREDENTIAL"} {
		if strings.Contains(upper, word) && value != "" && !strings.HasSuffix(upper, "_FILE") {
			s.differs(at, "environment."+key, "is kept as it is, in the server and in each release, as the rest of the file", "if it opens something real, have it opened through a connection (docs/gateway.md)")
			return
		}
	}
}

func (s *service) readEnvFile(n *node) {
	items := n.items
	if n.kind == yaml.ScalarNode {
		items = []*node{n}
	}
	for _, i := range items {
		file, required := i, true
		raw := false
		if i.kind == yaml.MappingNode {
			file = i.get("path")
			required = i.get("required") == nil || i.get("required").yes()
			raw = i.get("format").str() == "raw"
		}
		name, err := below(s.baseOf(i.place), file.str())
		if err != nil {
			s.refuse(i.place, "env_file", quote(file.str())+" "+err.Error(), "")
			continue
		}
		b, err := s.read(name)
		if err != nil {
			if required {
				s.refuse(i.place, "env_file", err.Error(), "make it, or remove it here")
			}
			continue
		}
		pairs, err := readEnv(name, b, func(name string) (string, bool) {
			if v, ok := s.vars.lookup(name); ok {
				return v, true
			}
			_, own := s.envAt[name]
			return s.env[name], own
		}, raw, &s.spent)
		if err != nil {
			s.refuse(i.place, "env_file", err.Error(), "mend it")
			continue
		}
		for _, kv := range pairs {
			if _, own := s.envAt[kv[0]]; !own {
				s.setEnv(i.place, kv[0], kv[1])
			}
		}
		s.differs(i.place, "env_file", strconv.Itoa(len(pairs))+" variables of "+quote(file.str())+" are taken as they are now", "")
	}
}

// readPorts reads what is published: inside counts; outside Isle chooses.
func (s *service) readPorts(n *node) {
	for _, i := range n.items {
		host, target, protocol, name := "", i.str(), "tcp", ""
		if i.kind == yaml.MappingNode {
			host, target, name = i.get("published").str(), i.get("target").str(), i.get("name").str()
			if p := i.get("protocol").str(); p != "" {
				protocol = p
			}
		} else {
			if t, p, ok := strings.Cut(target, "/"); ok {
				target, protocol = t, p
			}
			if at := strings.LastIndexByte(target, ':'); at >= 0 {
				host, target = target[:at], target[at+1:]
				host = host[strings.LastIndexByte(host, ':')+1:]
			}
		}
		if protocol != "tcp" {
			s.refuse(i.place, "ports", quote(target+"/"+protocol)+": only TCP is published", "remove it; services reach each other on any port")
			continue
		}
		from, to, err := portRange(target)
		if err != nil {
			s.refuse(i.place, "ports", quote(i.str())+" "+err.Error(), "write HOST:CONTAINER")
			continue
		}
		for p := from; p <= to; p++ {
			s.addPort(i.place, name, p)
		}
		if hf, ht, err := portRange(host); err == nil && host != "" {
			local := strconv.Itoa(hf) + ":" + strconv.Itoa(from)
			if ht > hf {
				local = "PORT"
			}
			s.differs(i.place, "ports", "is published on a port of 127.0.0.1 that stays the same, which `isle up` and `isle status` show, not on "+host, "for that one: isle port-forward ENV "+local+" -s "+s.name)
		}
	}
}

func (s *service) addPort(at place, name string, number int) {
	if slices.ContainsFunc(s.ports, func(p port) bool { return p.number == number }) {
		return
	}
	if name = serviceName(name); name == "env" || slices.ContainsFunc(s.ports, func(p port) bool { return p.name == name }) {
		name = "port-" + strconv.Itoa(number)
	}
	s.ports = append(s.ports, port{at, name, number})
	s.listens = append(s.listens, listener{at: at, port: number, how: "ports", sure: true})
}

func portRange(s string) (from, to int, err error) {
	first, last, ranged := strings.Cut(s, "-")
	from, err = strconv.Atoi(first)
	to = from
	if ranged && err == nil {
		to, err = strconv.Atoi(last)
	}
	if err != nil || from < 1 || to > 65535 || to < from || to-from >= 64 {
		return 0, 0, errors.New("is no port from 1 to 65535, nor a range of at most 64")
	}
	return from, to, nil
}

func (s *service) readExpose(n *node) {
	for _, i := range n.items {
		text, protocol, _ := strings.Cut(i.str(), "/")
		if from, to, err := portRange(text); err != nil {
			s.refuse(i.place, "expose", quote(i.str())+" "+err.Error(), "")
		} else if protocol != "udp" {
			for p := from; p <= to; p++ {
				s.listens = append(s.listens, listener{at: i.place, port: p, how: "expose", sure: true})
			}
		}
	}
}

func (s *service) readDepends(n *node) {
	for _, p := range asMapping("depends_on", n).pairs {
		d := dependency{p.place, p.key, p.value.get("condition").str(), p.value.get("required") == nil || p.value.get("required").yes()}
		if d.condition == "" {
			d.condition = "service_started"
		}
		if r := p.value.get("restart"); r.yes() {
			s.drop(p.value.keyAt("restart"), "depends_on.restart", "a service is not started again because another one was", "have it connect again")
		}
		s.depends = append(s.depends, d)
	}
}

// readHealth reads a healthcheck. NONE leaves it out.
func (s *service) readHealth(n *node) {
	if n.get("disable").yes() {
		return
	}
	test := n.get("test")
	h := &health{at: n.place}
	if test == nil {
		s.refuse(n.place, "healthcheck", "has no test, and that of the image is not known here", "write the test out")
		return
	}
	if test.kind == yaml.ScalarNode {
		h.command = []string{"/bin/sh", "-c", test.text}
	} else if words := test.texts(); len(words) > 1 && words[0] == "CMD" {
		h.command = words[1:]
	} else if len(words) == 2 && words[0] == "CMD-SHELL" {
		h.command = []string{"/bin/sh", "-c", words[1]}
	} else if len(words) > 0 && words[0] == "NONE" {
		return
	} else {
		s.refuse(test.place, "healthcheck.test", "begins with neither CMD, CMD-SHELL nor NONE", "write [CMD, PROGRAM, ARGUMENT]")
		return
	}
	times := map[string]time.Duration{}
	for _, k := range []string{"interval", "timeout", "start_period", "start_interval"} {
		v := n.get(k)
		if v == nil {
			continue
		}
		d, err := time.ParseDuration(v.str())
		if err != nil || d < 0 {
			s.refuse(v.place, "healthcheck."+k, quote(v.str())+" is no duration", "write it as 30s or 1m30s")
			return
		}
		times[k] = d
	}
	retries := 3
	if v := n.get("retries"); v != nil {
		retries, _ = strconv.Atoi(v.str())
	}
	h.retries = min(max(retries, 1), 100)
	h.interval = min(max(or(times["interval"], 30*time.Second), 100*time.Millisecond), time.Hour)
	h.timeout = min(max(or(times["timeout"], 30*time.Second), 10*time.Millisecond), 10*time.Minute)
	// So long Docker gives it: no failure counts in the start period, and then
	// as many as there are retries.
	h.start = min(max(times["start_period"]+time.Duration(h.retries)*(h.interval+h.timeout), time.Minute), 24*time.Hour)
	s.health = h
	for _, p := range localPorts(strings.Join(h.command, " ")) {
		s.listens = append(s.listens, listener{at: n.place, port: p, how: "healthcheck"})
	}
}

func or(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return d
}

// localPorts are the ports of localhost that a command names.
func localPorts(command string) (ports []int) {
	for _, host := range []string{"localhost:", "127.0.0.1:", "0.0.0.0:"} {
		for rest := command; ; {
			_, after, ok := strings.Cut(rest, host)
			if !ok {
				break
			}
			rest = after
			n := 0
			for n < len(after) && after[n] >= '0' && after[n] <= '9' {
				n++
			}
			if p, err := strconv.Atoi(after[:n]); err == nil && p > 0 && p < 65536 && !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	return ports
}

// completed is the file that a service leaves whose end others wait for.
const completed = "/tmp/.completed"

// waitForEnd makes of a service that others wait for to end well one that is
// healthy from then on: that is what depends_on knows.
func (s *service) waitForEnd(by dependency) {
	if s.once {
		return
	}
	s.once = true
	at := by.at
	if len(s.command) == 0 {
		s.refuse(at, "depends_on."+by.name, "waits until "+s.was+" has ended, whose command is the image's own and not known here", "write its entrypoint and command out")
		return
	}
	if s.asArgs && !s.complete {
		s.differs(s.n.keyAt("command"), "command", "stands for the image's entrypoint too, which a command in Compose leaves as it is, since "+by.name+" is waited for", "if the image has an entrypoint (isle image inspect), write it as `entrypoint`")
	}
	s.asArgs = false
	s.command = append([]string{"/bin/sh", "-c", `"$@" && : > ` + completed + ` && while sleep 3600 & wait $!; do :; done`, "sh"}, s.command...)
	s.health = &health{at: at, command: []string{"/bin/sh", "-c", "test -e " + completed}, interval: time.Minute, timeout: 30 * time.Second, start: time.Hour, retries: 100}
	s.differs(at, "depends_on."+by.name, "when "+s.was+" has ended well it idles, and is healthy from then on: that is what others wait for", "")
}

// split splits a line as a shell does: quotes and backslashes, and nothing else.
func split(line string) (words []string, err error) {
	var word strings.Builder
	var quoted byte
	begun := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\' && quoted != '\'':
			if i+1 == len(line) {
				return nil, errors.New("ends in a backslash")
			}
			i++
			if quoted == '"' && !strings.ContainsRune("\"\\$`", rune(line[i])) {
				word.WriteByte('\\')
			}
			word.WriteByte(line[i])
			begun = true
		case quoted != 0 && c == quoted:
			quoted = 0
		case quoted == 0 && (c == '"' || c == '\''):
			quoted, begun = c, true
		case quoted == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if begun || word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteByte(c)
		}
	}
	if quoted != 0 {
		return words, errors.New("has a quote that does not end")
	}
	if begun || word.Len() > 0 {
		words = append(words, word.String())
	}
	return words, nil
}

// durationText is a duration as isle.yaml has it.
func durationText(d time.Duration) string { return spec.FormatDuration(d) }
