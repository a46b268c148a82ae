package compose

import (
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

// A draft is an isle.yaml that is being made.
type draft struct {
	name     string
	services []*service
	isle     *node // x-isle
}

// compose reads a Compose file and what is laid over it.
func (r *reader) compose() (*draft, error) {
	d, err := r.draft()
	if err != nil {
		return nil, err
	}
	d.finish(r)
	return d, nil
}

// draft is a Compose file, service by service.
func (r *reader) draft() (*draft, error) {
	r.vars.environ, r.vars.spent = r.src.Environ, &r.spent
	if err := r.readDotEnv(); err != nil {
		return nil, err
	}
	top, err := r.flat(r.src.Name)
	if err != nil {
		return nil, err
	}
	for _, name := range r.src.Over {
		over, err := r.flat(name)
		if err != nil {
			return nil, err
		}
		top = lay("", top, over)
	}
	r.top = top
	d := &draft{name: projectName(top.get("name").str(), r.src.Dir), isle: top.get("x-isle")}
	r.readTop(top)
	services := top.get("services")
	if services == nil || services.kind != yaml.MappingNode {
		return nil, invalid(top.place, "names no services")
	}
	if err := r.addServices(d, services); err != nil {
		return nil, err
	}
	return d, nil
}

// finish looks at what services mean to each other.
func (d *draft) finish(r *reader) {
	r.tellVariables()
	d.connect(r)
	d.checkVolumes(r)
	d.checkNames(r)
	d.checkPorts(r)
}

// projectName is what a file says, or else the folder's name.
func projectName(said, dir string) string {
	if said != "" {
		return isle.Slug(said)
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return isle.Slug(filepath.Base(dir))
}

func (r *reader) readDotEnv() error {
	const name = ".env"
	if _, err := r.root.Stat(name); err != nil {
		return nil
	}
	r.reads = append(r.reads, r.src.Name) // the first of all
	b, err := r.read(name)
	if err != nil {
		return err
	}
	pairs, err := readEnv(name, b, r.src.Environ, false, &r.spent)
	if err != nil {
		return err
	}
	r.vars.file = map[string]string{}
	for _, kv := range pairs {
		r.vars.file[kv[0]] = kv[1]
	}
	return nil
}

// tellVariables says what was taken from the environment of whoever asks, and
// what was nowhere.
func (r *reader) tellVariables() {
	at := place{file: r.src.Name}
	if len(r.vars.taken) > 0 {
		r.note(Differs, at, "", "variables", "taken from your environment: "+strings.Join(r.vars.taken, ", "), "")
	}
	if len(r.vars.unset) > 0 {
		r.note(Differs, at, "", "variables", "set nowhere, so empty: "+strings.Join(r.vars.unset, ", "), "set them in .env or the environment, or give a default: ${NAME:-value}")
	}
}

// readTop tells of what stands beside the services.
func (r *reader) readTop(top *node) {
	known := []string{"name", "services", "volumes", "networks", "secrets", "configs", "include"}
	for _, p := range top.pairs {
		switch {
		case p.key == "version":
			r.note(Dropped, p.place, "", "version", "files have one version by now", "remove it")
		case p.key == "models", p.key == "jobs", p.key == "providers":
			r.note(Refused, p.place, "", p.key, "there is nothing that runs them", "remove it")
		case slices.Contains(known, p.key) || strings.HasPrefix(p.key, "x-"):
		default:
			do := "remove it"
			if best, near := problem.Nearest(p.key, known); near {
				do = "did you mean " + best + "?"
			}
			r.note(Refused, p.place, "", p.key, "no Compose file has such a key", do)
		}
	}
	if v := top.get("volumes"); v != nil {
		for _, p := range v.pairs {
			switch {
			case p.value.get("external").yes():
				r.note(Refused, p.place, "", "volumes."+p.key, "an environment's volumes are its own", "remove `external`, and fill it with `isle cp`")
			case p.value.get("driver_opts") != nil, p.value.get("driver") != nil && p.value.get("driver").str() != "local":
				r.note(Refused, p.place, "", "volumes."+p.key, "there are no drivers: volumes are on this machine, and mount nothing of it", "remove the driver and its options")
			}
		}
	}
	if n := top.get("networks"); n != nil {
		for _, p := range n.pairs {
			if p.value.get("external").yes() {
				r.note(Refused, p.place, "", "networks."+p.key, "an environment's network is its own", "reach the other project through a connection that names its environment (docs/gateway.md)")
			} else if p.key != "default" || len(p.value.pairs) > 0 {
				r.note(Dropped, p.place, "", "networks."+p.key, "all services of an environment share one network, which leads nowhere but where egress says", "")
			}
		}
	}
}

// addServices converts those whose profiles are asked for.
func (r *reader) addServices(d *draft, services *node) error {
	names := map[string]string{}
	var skipped []string
	for _, p := range services.pairs {
		if len(d.services) == 64 {
			return invalid(p.place, "there are more than 64 services")
		}
		n := p.value
		if n.kind != yaml.MappingNode {
			return invalid(p.place, "services.%s: want a mapping", quote(p.key))
		}
		if profiles := n.get("profiles").texts(); len(profiles) > 0 && !r.asked(profiles) {
			skipped = append(skipped, p.key)
			continue
		}
		s := &service{reader: r, name: serviceName(p.key), was: p.key, n: n, at: p.place}
		if other, twice := names[s.name]; twice {
			return invalid(p.place, "services %s and %s would both be called %s; give one another name", quote(other), quote(p.key), s.name)
		}
		names[s.name] = p.key
		s.convert()
		d.services = append(d.services, s)
	}
	if len(d.services) == 0 {
		return isle.Errorf(isle.Invalid, "%s: no service is without a profile", r.src.Name).WithHint("name profiles with --profile")
	}
	if len(skipped) > 0 {
		r.note(Differs, services.place, "", "profiles", "left out, whose profiles were not asked for: "+problem.Clip(strings.Join(skipped, ", ")), "name them with --profile")
	}
	return nil
}

func (r *reader) asked(profiles []string) bool {
	return slices.ContainsFunc(profiles, func(p string) bool { return slices.Contains(r.src.Profiles, p) }) || slices.Contains(r.src.Profiles, "*")
}

// find is a service by its name in the file.
func (d *draft) find(was string) *service {
	for _, s := range d.services {
		if s.was == was {
			return s
		}
	}
	return nil
}

// connect follows depends_on.
func (d *draft) connect(r *reader) {
	for _, s := range d.services {
		s.depends = slices.DeleteFunc(s.depends, func(on dependency) bool {
			to := d.find(on.name)
			key := "depends_on." + on.name
			if to == nil {
				if on.required {
					s.refuse(on.at, key, "there is no such service", "name one, ask for its profile with --profile, or say required: false")
				}
				return true
			}
			switch on.condition {
			case "service_started":
				if to.health != nil && !to.once {
					s.differs(on.at, key, "waits until "+to.was+" is healthy: it has a healthcheck", "")
				}
			case "service_healthy":
				if to.health == nil && !to.once {
					s.refuse(on.at, key, to.was+" has no healthcheck here, and that of its image does nothing", "give "+to.was+" a healthcheck")
				}
			case "service_completed_successfully":
				to.waitForEnd(dependency{on.at, to.was, on.condition, true})
			default:
				s.refuse(on.at, key, quote(on.condition)+" is no condition", "write service_started, service_healthy or service_completed_successfully")
			}
			return false
		})
	}
}

// checkVolumes refuses one that two services have.
func (d *draft) checkVolumes(r *reader) {
	holders := map[string]*service{}
	for _, s := range d.services {
		for _, v := range s.volumes {
			if v.name == "" {
				continue
			}
			if other := holders[v.name]; other != nil && other != s {
				s.refuse(v.at, "volumes", "volume "+v.name+" is "+other.was+"'s too, and volumes are not shared between services", "have one of them hold the data and the other ask it over the network, or run both in one service")
			} else if other == s {
				s.refuse(v.at, "volumes", "volume "+v.name+" is mounted twice", "name two volumes")
			}
			holders[v.name] = s
			if def := r.top.get("volumes"); def == nil || !slices.ContainsFunc(def.pairs, func(p pair) bool { return p.key == v.name }) {
				s.refuse(v.at, "volumes", "there is no volume "+v.name, "name it under volumes at the top, or write ./"+v.name+" for a folder of the project")
			}
		}
	}
}

// checkNames refuses names that others use and that lead nowhere here: inside
// are the services' names.
func (d *draft) checkNames(r *reader) {
	for _, s := range d.services {
		if s.name != s.was {
			s.names = append(s.names, alias{s.at, "services." + s.was, s.was})
		}
		for _, a := range s.names {
			switch user := d.userOf(a.name); {
			case a.name == s.name || d.find(a.name) != nil && a.key == "links":
			case user != "":
				s.refuse(a.at, a.key, quote(a.name)+" leads nowhere inside, and "+user+" uses it: services have one name", "write "+s.name+" there")
			case a.key == "services."+s.was:
				s.differs(a.at, a.key, "is called "+s.name+" here", "")
			default:
				s.drop(a.at, a.key, "a service is called "+s.name+" inside, and has no other name", "")
			}
		}
	}
}

// userOf is which service names a host in a command or variable, "" if none.
func (d *draft) userOf(name string) string {
	for _, s := range d.services {
		for _, word := range s.command {
			if names(word, name) {
				return "the command of " + s.was
			}
		}
		for k, v := range s.env {
			if names(v, name) {
				return k + " of " + s.was
			}
		}
	}
	return ""
}

// names reports whether a text has a host's name, as a word of its own.
func names(text, name string) bool {
	part := func(c byte) bool {
		return c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	for at := 0; name != ""; {
		i := strings.Index(text[at:], name)
		if i < 0 {
			return false
		}
		i += at
		end := i + len(name)
		if (i == 0 || !part(text[i-1])) && (end == len(text) || !part(text[end])) {
			return true
		}
		at = i + 1
	}
	return false
}
