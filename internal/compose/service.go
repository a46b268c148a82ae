package compose

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

// A service is one of the file on its way to isle.yaml.
type service struct {
	*reader
	name  string // in isle.yaml
	was   string // in the file
	n     *node
	at    place
	image string
	build *build

	entrypoint, arguments []string
	command               []string // both, where they are known
	asArgs, complete      bool     // arguments alone are written; command has the entrypoint too
	setup                 []string // once, while the volumes are empty

	env     map[string]string
	envAt   map[string]place // of those that the file itself names
	user    string
	workdir string
	copies  []copied
	run     []string
	volumes []volume
	tmpfs   []string
	health  *health
	depends []dependency
	ports   []port
	restart string
	caps    []string

	writable bool // its root
	once     bool // others wait until it has ended well
	listens  []listener
	names    []alias // what others may call it besides its name

	cpus         float64
	memory, pids int64
	secrets      []BuildSecret // of its build
	isle         *node         // x-isle
}

type build struct {
	at                          place
	context, dockerfile, target string
	args                        map[string]string
	network                     string // "none", or what is open
	record                      bool   // its steps have the recorded network
}

type copied struct {
	at       place
	from, to string
}

type volume struct {
	at   place
	path string
	name string // in the file; "" is its own
	size int64  // bytes; 0: the default
}

type port struct {
	at     place
	name   string
	number int
}

type dependency struct {
	at        place
	name      string // in the file
	condition string
	required  bool
}

type alias struct {
	at        place
	key, name string
}

// A health is a healthcheck.
type health struct {
	at                       place
	command                  []string
	interval, timeout, start time.Duration
	retries                  int
}

// A keyReader reads the value of one key; without a function others do.
type keyReader struct {
	name string
	read func(*service, *node)
}

// keys are those of a service that are read, in the order in which it is done.
// Those that are said to have no equivalent are in others.
func keys() []keyReader {
	return []keyReader{
		{"image", (*service).readImage}, {"build", (*service).readBuild},
		{"entrypoint", func(s *service, n *node) { s.entrypoint = s.words(n) }},
		{"command", func(s *service, n *node) { s.arguments = s.words(n) }},
		{"environment", (*service).readEnvironment}, {"env_file", (*service).readEnvFile},
		{"user", (*service).readUser},
		{"working_dir", func(s *service, n *node) { s.workdir = path.Clean(n.str()) }},
		{"volumes", (*service).readVolumes}, {"tmpfs", (*service).readTmpfs},
		{"configs", (*service).readConfigs}, {"secrets", (*service).readSecrets},
		{"ports", (*service).readPorts}, {"expose", (*service).readExpose},
		{"depends_on", (*service).readDepends}, {"healthcheck", (*service).readHealth},
		{"restart", (*service).readRestart},
		{"cap_add", func(s *service, n *node) { s.addCaps(n) }}, {"cap_drop", nil},
		{"read_only", func(s *service, n *node) { s.writable = !n.yes() }},
		{"deploy", (*service).readDeploy},
		{"mem_limit", func(s *service, n *node) { s.memory = s.bytes(n) }},
		{"cpus", func(s *service, n *node) { s.cpus = s.number(n) }},
		{"pids_limit", func(s *service, n *node) { s.pids = int64(s.number(n)) }},
		{"networks", (*service).readNetworks}, {"network_mode", (*service).readNetworkMode},
		{"container_name", (*service).readOtherName}, {"hostname", (*service).readOtherName}, {"links", (*service).readLinks},
		{"privileged", (*service).readPrivileged}, {"init", (*service).readInit}, {"scale", (*service).readScale},
		{"security_opt", (*service).readSecurityOpt},
		{"profiles", nil}, {"extends", nil},
	}
}

// convert reads all that a service says.
func (s *service) convert() {
	s.writable, s.env, s.envAt = true, map[string]string{}, map[string]place{}
	table := keys()
	for _, p := range s.n.pairs {
		known := slices.ContainsFunc(table, func(k keyReader) bool { return k.name == p.key })
		switch o, other := others()[p.key]; {
		case p.key == "x-isle":
			s.isle = p.value
		case known, strings.HasPrefix(p.key, "x-"), p.value.null:
		case other:
			s.note(o.kind, p.place, s.was, p.key, o.reason, o.do)
		default:
			s.note(Refused, p.place, s.was, p.key, "no Compose file has such a key", suggest(p.key, table))
		}
	}
	for _, k := range table {
		if n := s.n.get(k.name); n != nil && k.read != nil {
			k.read(s, n)
		}
	}
	s.setCaps()
	s.setCommand()
	s.setNetwork()
	if s.image == "" && s.build == nil {
		s.note(Refused, s.at, s.was, "image", "the service begins with nothing: it has neither an image nor a build", "name one of the two")
	}
}

func suggest(key string, table []keyReader) string {
	var names []string
	for _, k := range table {
		names = append(names, k.name)
	}
	for k := range others() {
		names = append(names, k)
	}
	slices.Sort(names)
	if best, near := problem.Nearest(key, names); near {
		return "did you mean " + best + "?"
	}
	return "remove it"
}

// differs, drop and refuse tell of a key of this service.
func (s *service) differs(at place, key, reason, do string) {
	s.note(Differs, at, s.was, key, reason, do)
}
func (s *service) drop(at place, key, reason, do string) { s.note(Dropped, at, s.was, key, reason, do) }
func (s *service) refuse(at place, key, reason, do string) {
	s.note(Refused, at, s.was, key, reason, do)
}

func (s *service) readImage(n *node) {
	s.image = n.str()
	if s.n.get("build") != nil {
		s.image = ""
		s.drop(n.place, "image", "what is built is called localhost/PROJECT/SERVICE", "push it under this name with `isle image push`")
	}
}

func (s *service) readBuild(n *node) {
	b := &build{at: n.place, context: ".", args: map[string]string{}}
	s.build = b
	context := n
	if n.kind == yaml.MappingNode {
		if context = n.get("context"); context == nil {
			context = &node{place: n.place, kind: yaml.ScalarNode, text: "."}
		}
		b.dockerfile, b.target = n.get("dockerfile").str(), n.get("target").str()
		if args := asMapping("args", n.get("args")); args != nil {
			for _, p := range args.pairs {
				if v, ok := s.valueOf(p); ok {
					b.args[p.key] = v
				}
			}
		}
		for _, p := range n.pairs {
			if p.key == "network" && slices.Contains([]string{"none", "default"}, p.value.str()) {
				b.network = p.value.str()
				continue
			}
			if p.key == "secrets" && !p.value.null {
				s.readBuildSecrets(p.value)
				continue
			}
			if slices.Contains([]string{"context", "dockerfile", "target", "args"}, p.key) || strings.HasPrefix(p.key, "x-") || p.value.null {
				continue
			}
			o, ok := buildOthers()[p.key]
			if !ok {
				o = rule{Refused, "no Compose file has such a key", "remove it"}
			}
			s.note(o.kind, p.place, s.was, "build."+p.key, o.reason, o.do)
		}
	}
	dir, err := below(path.Dir(context.file), context.str())
	if err != nil {
		s.refuse(context.place, "build.context", quote(context.str())+" "+err.Error(), "")
		return
	}
	b.context = dir
	if d := path.Clean(b.dockerfile); b.dockerfile != "" && (path.IsAbs(d) || d == ".." || strings.HasPrefix(d, "../")) {
		s.refuse(n.keyAt("dockerfile"), "build.dockerfile", quote(d)+" is outside of the build's context", "move it there")
	}
}

// words are a command: a list, or a line that is split as a shell does, which
// runs nothing of it.
func (s *service) words(n *node) []string {
	if n.kind != yaml.ScalarNode {
		return append([]string{}, n.texts()...)
	}
	words, err := split(n.text)
	if err != nil {
		s.refuse(n.place, "command", quote(n.text)+" "+err.Error(), "write it as a list")
	}
	return append([]string{}, words...)
}

// setCommand is what is run: a command of isle.yaml, which stands for entrypoint and
// arguments of the image, or arguments alone. What they come to is command where it
// is known.
func (s *service) setCommand() {
	switch {
	case len(s.entrypoint) > 0:
		s.command = slices.Concat(s.entrypoint, s.arguments)
		return
	case s.entrypoint != nil: // an empty one takes the image's away
		s.command = s.arguments
		return
	case s.arguments != nil && len(s.arguments) == 0:
		s.differs(s.n.keyAt("command"), "command", "is empty, and the image's own arguments stay", "write `entrypoint` to have none")
		return
	case len(s.arguments) == 0:
		return
	}
	s.asArgs, s.command = true, s.arguments
	if s.build != nil {
		if e, known := s.dockerEntrypoint(); known {
			s.command, s.complete = slices.Concat(e, s.arguments), true
		}
	} else if e := knownImage(s.image).entrypoint; e != "" {
		s.complete = true
		if s.arguments[0] != e {
			s.command = append([]string{e}, s.arguments...)
		}
	}
}

func (s *service) readUser(n *node) {
	name, group, has := strings.Cut(n.str(), ":")
	_, uid := strconv.Atoi(name)
	_, gid := strconv.Atoi(group)
	if has && (uid != nil || gid != nil) {
		s.differs(n.place, "user", "a name stands alone: its groups are those of the image's /etc/passwd and /etc/group", "write numbers for another group")
		s.user = name
		return
	}
	s.user = n.str()
}

func (s *service) readRestart(n *node) {
	policy, _, limited := strings.Cut(n.str(), ":")
	switch policy {
	case "no", "false":
	case "always":
		s.restart = "always"
	case "unless-stopped":
		s.restart = "always"
	case "on-failure":
		s.restart = "on-failure"
		if limited {
			s.differs(n.place, "restart", "starts again after longer and longer pauses, without a last time", "")
		}
	default:
		s.refuse(n.place, "restart", quote(n.str())+" is no policy", "write no, on-failure, always or unless-stopped")
	}
}

func (s *service) readDeploy(n *node) {
	for _, p := range n.pairs {
		switch p.key {
		case "resources":
			s.readResources(p.value)
		case "replicas":
			if p.value.str() != "1" {
				s.refuse(p.place, "deploy.replicas", "a service is one process tree, and services share a network: two would want the same port", "write it as services of their own with ports of their own")
			}
		case "restart_policy":
			if s.n.get("restart") == nil {
				s.restart = map[string]string{"none": "no", "on-failure": "on-failure"}[p.value.get("condition").str()]
				if s.restart == "" {
					s.restart = "always"
				}
			}
		case "mode", "placement", "update_config", "rollback_config", "endpoint_mode", "labels":
			s.drop(p.place, "deploy."+p.key, "is about a cluster, and an environment is on one machine", "")
		default:
			if !strings.HasPrefix(p.key, "x-") {
				s.refuse(p.place, "deploy."+p.key, "no Compose file has such a key", "remove it")
			}
		}
	}
}

func (s *service) readResources(n *node) {
	if l := n.get("limits"); l != nil {
		for _, p := range l.pairs {
			switch p.key {
			case "cpus":
				s.cpus = s.number(p.value)
			case "memory":
				s.memory = s.bytes(p.value)
			case "pids":
				s.pids = int64(s.number(p.value))
			default:
				s.refuse(p.place, "deploy.resources.limits."+p.key, "there is no such limit here", "remove it")
			}
		}
	}
	if n.get("reservations").get("devices") != nil {
		s.refuse(n.place, "deploy.resources.reservations.devices", "services have no devices", "remove it, or run the service where the device is and reach it through a connection")
	} else if n.get("reservations") != nil {
		s.drop(n.place, "deploy.resources.reservations", "nothing is set aside; limits hold for the environment", "")
	}
}

func (s *service) readPrivileged(n *node) {
	if n.yes() {
		s.refuse(n.place, "privileged", "no service has rights over the machine", "name the capabilities that it needs under cap_add")
	}
}

func (s *service) readInit(*node) {} // isle-init is there already, and reaps

func (s *service) readScale(n *node) {
	if n.str() != "1" {
		s.refuse(n.place, "scale", "a service is one process tree, and services share a network: two would want the same port", "write it as services of their own with ports of their own")
	}
}

func (s *service) readSecurityOpt(n *node) {
	for _, o := range n.texts() {
		if !strings.HasPrefix(o, "no-new-privileges") {
			s.drop(n.place, "security_opt", quote(o)+" is not taken: every service has Isle's own profile, and no new privileges", "remove it")
		}
	}
}

func (s *service) readNetworkMode(n *node) {
	switch m := n.str(); {
	case m == "bridge" || m == "default":
	case m == "none":
		s.differs(n.place, "network_mode", "the service shares the environment's network, which leads nowhere but where egress says", "")
	case strings.HasPrefix(m, "service:"):
	default:
		s.refuse(n.place, "network_mode", quote(m)+" would put the service into a network that is not the environment's", "remove it; publish ports, and name what it has to reach under x-isle: egress")
	}
}

func (s *service) readNetworks(n *node) {
	m := asMapping("networks", n)
	if len(m.pairs) > 1 || len(m.pairs) == 1 && m.pairs[0].key != "default" {
		s.differs(n.place, "networks", "all services of an environment share one network", "put what must not reach one another into environments of their own")
	}
	for _, p := range m.pairs {
		if a := p.value.get("aliases"); a != nil {
			for _, i := range a.texts() {
				s.names = append(s.names, alias{a.place, "networks." + p.key + ".aliases", i})
			}
		}
		for _, k := range []string{"ipv4_address", "ipv6_address"} {
			if v := p.value.get(k).str(); v != "" {
				s.names = append(s.names, alias{p.value.keyAt(k), "networks." + p.key + "." + k, v})
			}
		}
	}
}

func (s *service) readOtherName(n *node) {
	key := "container_name"
	if s.n.get("hostname") == n {
		key = "hostname"
	}
	s.names = append(s.names, alias{n.place, key, n.str()})
}

func (s *service) readLinks(n *node) {
	for _, l := range n.texts() {
		name, other, has := strings.Cut(l, ":")
		s.depends = append(s.depends, dependency{n.place, name, "service_started", true})
		if has && other != name {
			s.names = append(s.names, alias{n.place, "links", other})
		}
	}
}

// defaultCaps are those that a container has of what Isle gives: images whose
// entrypoint begins as root, owns its folders and goes on as somebody else need
// them. None is over the machine.
func defaultCaps() []string {
	return []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"}
}

func (s *service) addCaps(n *node) {
	for _, c := range n.texts() {
		c = strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		switch {
		case c == "ALL" || slices.Contains([]string{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_MODULE", "SYS_TIME", "SYS_RESOURCE", "MKNOD", "SYS_RAWIO", "SYS_BOOT", "BPF", "PERFMON", "SYSLOG"}, c):
			s.refuse(n.place, "cap_add", c+" is over the machine, which no service has", "remove it; docs/security.md says what there is")
		case !slices.Contains(s.caps, c):
			s.caps = append(s.caps, c)
		}
	}
}

// setCaps adds those that Compose has without saying so.
func (s *service) setCaps() {
	drop := s.n.get("cap_drop").texts()
	dropped := func(c string) bool {
		return slices.ContainsFunc(drop, func(d string) bool {
			d = strings.TrimPrefix(strings.ToUpper(d), "CAP_")
			return d == "ALL" || d == c
		})
	}
	root := s.user == "" || s.user == "root" || s.user == "0" || strings.HasPrefix(s.user, "0:")
	for _, c := range defaultCaps() {
		if !dropped(c) && !slices.Contains(s.caps, c) && (root || c == "NET_BIND_SERVICE") {
			s.caps = append(s.caps, c)
		}
	}
	slices.Sort(s.caps)
}

func (s *service) number(n *node) float64 {
	v, err := strconv.ParseFloat(n.str(), 64)
	if err != nil || !(v >= -1 && v < 1e9) {
		s.refuse(n.place, "limits", quote(n.str())+" is no number", "")
		return 0
	}
	return max(v, 0) // -1 is without a limit
}

// bytes reads a size as Docker writes it: units are of 1024.
func (s *service) bytes(n *node) int64 {
	v, err := parseBytes(n.str())
	if err != nil {
		s.refuse(n.place, "limits", quote(n.str())+" is no size", "write a number with b, k, m or g")
	}
	return v
}

func parseBytes(text string) (int64, error) {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(text)), "b"), "i")
	factor := 1.0
	for i, unit := range []string{"k", "m", "g", "t"} {
		if number, ok := strings.CutSuffix(t, unit); ok {
			factor, t = float64(int64(1)<<(10*(i+1))), strings.TrimSpace(number)
			break
		}
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil || !(v >= 0 && v*factor < 1<<52) {
		return 0, fmt.Errorf("%q is no size", problem.Clip(text))
	}
	return int64(v * factor), nil
}

// serviceName is what a service is called in isle.yaml.
func serviceName(was string) string {
	if isle.ValidName(was) {
		return was
	}
	return isle.Slug(was)
}
