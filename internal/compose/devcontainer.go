package compose

import (
	"cmp"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

// original is where the image has the project's files, which the workspace, a
// volume, begins with.
const original = "/opt/workspace"

// idle is a command that waits for somebody to come in.
func idle() []string { return []string{"/bin/sh", "-c", "while sleep 3600 & wait $!; do :; done"} }

// A container is a devcontainer.json on its way to a service.
type container struct {
	*service
	folder string // of the workspace, inside
}

// devcontainer reads a devcontainer.json.
func (r *reader) devcontainer() (*draft, error) {
	b, err := r.read(r.src.Name)
	if err != nil {
		return nil, err
	}
	if b, err = plainJSON(r.src.Name, b); err != nil {
		return nil, err
	}
	folder, _ := filepath.Abs(r.src.Dir)
	folder = "/workspaces/" + filepath.Base(folder)
	r.vars.spent = &r.spent
	r.expand = func(s string) (string, error) { return r.local(s, folder) }
	top, err := r.tree(r.src.Name, b)
	if err != nil {
		return nil, err
	}
	if f := top.get("workspaceFolder").str(); path.IsAbs(f) {
		folder, r.values = path.Clean(f), 0
		if top, err = r.tree(r.src.Name, b); err != nil { // what names it is read again
			return nil, err
		}
	}
	r.vars.environ = r.src.Environ
	d, s, err := r.begin(top)
	if err != nil {
		return nil, err
	}
	c := &container{s, folder}
	c.read(top)
	d.finish(r)
	return d, nil
}

// local puts in what ${localEnv:NAME} and the like stand for. ${containerEnv:NAME}
// is left to a shell inside.
func (r *reader) local(s, folder string) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		end := -1
		if i >= 0 {
			end = strings.IndexByte(s[i:], '}')
		}
		if end < 0 {
			break
		}
		end += i
		b.WriteString(s[:i])
		kind, rest, _ := strings.Cut(s[i+2:end], ":")
		name, def, _ := strings.Cut(rest, ":")
		switch kind {
		case "localEnv", "env":
			v, ok := r.vars.lookup(name)
			if !ok {
				v = def
			}
			b.WriteString(v)
		case "containerEnv":
			b.WriteString("${" + name + "}")
		case "localWorkspaceFolder":
			b.WriteByte('.')
		case "containerWorkspaceFolder":
			b.WriteString(folder)
		case "localWorkspaceFolderBasename", "containerWorkspaceFolderBasename":
			b.WriteString(path.Base(folder))
		case "devcontainerId":
			b.WriteString(isle.Slug(path.Base(folder)))
		default:
			b.WriteString(s[i : end+1])
		}
		s = s[end+1:]
		if b.Len() > maxExpanded {
			return "", errTooLarge
		}
	}
	if b.Len() == 0 {
		return s, nil
	}
	b.WriteString(s)
	return b.String(), r.vars.spend(b.Len())
}

// begin is the service that the container is, of its own or of Compose files.
func (r *reader) begin(top *node) (*draft, *service, error) {
	files := top.get("dockerComposeFile")
	if files == nil {
		s := &service{reader: r, name: "dev", was: "dev", n: top, at: top.place, writable: true, env: map[string]string{}, envAt: map[string]place{}}
		r.top = top
		return &draft{name: projectName(top.get("name").str(), r.src.Dir), services: []*service{s}, isle: top.get("x-isle")}, s, nil
	}
	var names []string
	for _, f := range files.texts() {
		n, err := below(path.Dir(r.src.Name), f)
		if err != nil {
			return nil, nil, invalid(files.place, "dockerComposeFile: %s %v", quote(f), err)
		}
		names = append(names, n)
	}
	if len(names) == 0 {
		return nil, nil, invalid(files.place, "dockerComposeFile names no file")
	}
	own := r.src.Name
	r.src.Name, r.src.Over, r.expand = names[0], names[1:], nil
	d, err := r.draft()
	r.src.Name, r.src.Over = own, nil
	if err != nil {
		return nil, nil, err
	}
	s := d.find(top.get("service").str())
	if s == nil {
		return nil, nil, invalid(top.keyAt("service"), "service: the Compose files have no service %s", quote(top.get("service").str()))
	}
	if run := top.get("runServices").texts(); len(run) > 0 {
		d.services = slices.DeleteFunc(d.services, func(o *service) bool { return o != s && !d.needed(o.was, append(run, s.was), 0) })
	}
	return d, s, nil
}

// needed reports whether a service is one of some, or one that they depend on.
func (d *draft) needed(name string, some []string, depth int) bool {
	if slices.Contains(some, name) {
		return true
	}
	return depth < len(d.services) && slices.ContainsFunc(d.services, func(s *service) bool {
		return slices.ContainsFunc(s.depends, func(on dependency) bool { return on.name == name }) && d.needed(s.was, some, depth+1)
	})
}

// read reads all that the file says of the container.
func (c *container) read(top *node) {
	compose := top.get("dockerComposeFile") != nil
	for _, p := range top.pairs {
		if o, ok := containerOthers()[p.key]; ok && !p.value.null {
			c.note(o.kind, p.place, c.was, p.key, o.reason, o.do)
		} else if !ok && !slices.Contains(containerKeys(), p.key) && !strings.HasPrefix(p.key, "x-") {
			do := "remove it"
			if best, near := problem.Nearest(p.key, containerKeys()); near {
				do = "did you mean " + best + "?"
			}
			c.refuse(p.place, p.key, "no devcontainer.json has such a key", do)
		}
	}
	if !compose {
		c.readBegin(top)
	}
	for _, k := range []string{"containerEnv", "remoteEnv"} {
		if n := top.get(k); n != nil {
			for _, p := range n.pairs {
				c.setEnv(p.place, p.key, p.value.str())
			}
			if k == "remoteEnv" {
				c.differs(n.place, k, "is there for all that runs inside", "")
			}
		}
	}
	for _, k := range []string{"containerUser", "remoteUser"} {
		if u := top.get(k); u != nil {
			c.user = u.str()
		}
	}
	if n := top.get("mounts"); n != nil {
		c.readMounts(n)
	}
	for _, k := range []string{"appPort", "forwardPorts"} {
		if n := top.get(k); n != nil {
			c.readForwards(k, n)
		}
	}
	if n := top.get("capAdd"); n != nil {
		c.addCaps(n)
	}
	if n := top.get("privileged"); n != nil {
		c.readPrivileged(n)
	}
	if n := top.get("securityOpt"); n != nil {
		c.readSecurityOpt(n)
	}
	if !compose {
		c.setCaps()
	}
	c.workspace(top, compose)
}

func (c *container) readBegin(top *node) {
	defer c.setNetwork()
	if n := top.get("image"); n != nil {
		c.image = n.str()
	}
	says := top.get("build")
	file, at := says.get("dockerfile"), says
	context, args := says.get("context"), says.get("args")
	if old := top.get("dockerFile"); old != nil {
		file, at, context = old, old, top.get("context")
	}
	if file == nil {
		if c.image == "" {
			c.refuse(top.place, "image", "the container begins with nothing: it has neither an image nor a build", "name one of the two")
		}
		return
	}
	base := path.Dir(c.src.Name)
	dir, err := below(base, cmp.Or(context.str(), "."))
	if err != nil {
		c.refuse(at.place, "build.context", quote(context.str())+" "+err.Error(), "")
		return
	}
	docker, err := below(base, file.str())
	rel, ok := strings.CutPrefix(docker, dir+"/")
	if dir == "." {
		rel, ok = docker, true
	}
	if err != nil || !ok {
		c.refuse(file.place, "build.dockerfile", quote(file.str())+" is outside of the build's context", "move it there, or name a context above both")
		return
	}
	c.build = &build{at: at.place, context: dir, dockerfile: rel, target: says.get("target").str(), args: map[string]string{}}
	if args != nil {
		for _, p := range args.pairs {
			c.build.args[p.key] = p.value.str()
		}
	}
	if says != nil {
		for _, p := range says.pairs {
			switch p.key {
			case "dockerfile", "context", "target", "args":
			case "cacheFrom":
				c.drop(p.place, "build.cacheFrom", "steps are cached by what they are made from", "")
			default:
				c.refuse(p.place, "build."+p.key, "there is no such option of a build here", "remove it")
			}
		}
	}
}

// readMounts reads "source=…,target=…,type=…" or the same as an object.
func (c *container) readMounts(n *node) {
	for _, i := range n.items {
		m := mount{at: i.place, kind: i.get("type").str(), source: i.get("source").str(), target: i.get("target").str()}
		if i.kind == yaml.ScalarNode {
			for _, part := range strings.Split(i.text, ",") {
				k, v, _ := strings.Cut(part, "=")
				switch k {
				case "type":
					m.kind = v
				case "source", "src":
					m.source = v
				case "target", "destination", "dst":
					m.target = v
				case "readonly", "ro":
					m.readOnly = v != "false"
				}
			}
		}
		if !path.IsAbs(m.target) {
			c.refuse(i.place, "mounts", quote(m.target)+" is no absolute path inside", "write it from the root on")
			continue
		}
		m.target = path.Clean(m.target)
		switch m.kind {
		case "volume", "":
			m.source = "" // its name means nothing to others
			c.addVolume(m)
		case "bind":
			c.bindFrom(".", m) // ${localWorkspaceFolder} is what such mounts begin with
		case "tmpfs":
			c.addTmpfs(m.at, m.target, "")
		default:
			c.refuse(i.place, "mounts", "there is no mount of type "+quote(m.kind), "use a volume")
		}
	}
}

func (c *container) readForwards(key string, n *node) {
	items := n.items
	if n.kind == yaml.ScalarNode {
		items = []*node{n}
	}
	for _, i := range items {
		text := i.str()
		if host, port, ok := strings.Cut(text, ":"); ok {
			if _, err := strconv.Atoi(host); key == "forwardPorts" && err != nil {
				c.differs(i.place, key, quote(text)+" is another service's", "for that one: isle port-forward ENV "+port+" -s "+serviceName(host))
				continue
			}
			text = port
		}
		number, err := strconv.Atoi(text)
		if err != nil || number < 1 || number > 65535 {
			c.refuse(i.place, key, quote(i.str())+" is no port", "")
			continue
		}
		c.addPort(i.place, "", number)
		c.differs(i.place, key, strconv.Itoa(number)+" is published on a port of 127.0.0.1 that stays the same, which `isle up` and `isle status` show", "for that one: isle port-forward ENV "+strconv.Itoa(number))
	}
}

// workspace makes the project's folder a volume, and runs what is to be run in it.
func (c *container) workspace(top *node, compose bool) {
	at := top.keyAt("workspaceFolder")
	var steps []string
	if m := top.get("workspaceMount"); m != nil && m.str() != "" && !strings.Contains(m.str(), "source=.,") {
		c.refuse(m.place, "workspaceMount", "the workspace begins with the project's folder, and mounts nothing", "remove it")
	}
	if !compose && (top.get("workspaceMount") == nil || top.get("workspaceMount").str() != "") {
		c.copies = append(c.copies, copied{at, ".", original})
		c.volumes = append(c.volumes, volume{at: at, path: c.folder})
		steps = append(steps, "cp -R "+original+"/. "+shellQuote(c.folder)+"/")
		c.differs(at, "workspaceFolder", "is a volume of 1 GiB that begins with a copy of the project's folder, without .git and what .isleignore names: what changes there does not come back by itself", "send and fetch files with `isle cp`")
	}
	for i, from := range c.copies { // a mount of Compose's is the workspace
		if compose && (c.folder == from.to || strings.HasPrefix(c.folder, from.to+"/")) && strings.HasSuffix(from.from+"/", "/") {
			c.copies[i].to = original
			c.volumes = append(c.volumes, volume{at: from.at, path: from.to})
			steps = append(steps, "cp -R "+original+"/. "+shellQuote(from.to)+"/")
			break
		}
	}
	begins := len(steps) > 0
	c.workdir = c.folder
	steps = append(steps, "cd "+shellQuote(c.folder))
	hooks := 0
	for _, k := range []string{"onCreateCommand", "updateContentCommand", "postCreateCommand"} {
		for _, line := range c.lines(k, top.get(k)) {
			steps = append(steps, line)
			hooks++
			c.differs(top.keyAt(k), k, "is run once, while the workspace is empty, and reaches what egress says", "name what it fetches from under x-isle: {egress: […]}")
		}
	}
	if hooks > 0 && len(c.volumes) == 0 {
		c.volumes = append(c.volumes, volume{at: at, path: "/var/lib/isle-created"}) // setup is for what has a volume to begin
	}
	if hooks > 0 || begins {
		c.setup = []string{"/bin/sh", "-c", strings.Join(steps, " && ")}
	}
	start := c.lines("postStartCommand", top.get("postStartCommand"))
	switch over := top.get("overrideCommand"); {
	case compose && !over.yes(), over != nil && !over.yes():
		if len(start) > 0 {
			c.refuse(top.keyAt("postStartCommand"), "postStartCommand", "runs before the container's own command, which is not known here", "say overrideCommand: true, or run it in the command")
		}
	default:
		c.command, c.asArgs = idle(), false
		if len(start) > 0 {
			c.command[2] = strings.Join(start, " && ") + "; " + c.command[2]
		}
	}
}

// lines are a command as lines of a shell: a text is one, a list is a program and
// its arguments, and an object has several.
func (c *container) lines(key string, n *node) (lines []string) {
	if n == nil {
		return nil
	}
	switch n.kind {
	case yaml.ScalarNode:
		if strings.TrimSpace(n.text) == "" {
			return nil
		}
		return []string{"{ " + strings.TrimRight(n.text, " ;&\n") + "\n}"}
	case yaml.SequenceNode:
		var words []string
		for _, w := range n.texts() {
			words = append(words, shellQuote(w))
		}
		return []string{strings.Join(words, " ")}
	}
	for _, p := range n.pairs {
		if p.value.kind != yaml.MappingNode {
			lines = append(lines, c.lines(key, p.value)...)
		}
	}
	return lines
}

// containerKeys are those that are done, by hand above.
func containerKeys() []string {
	return []string{"name", "image", "build", "dockerFile", "context", "dockerComposeFile", "service", "runServices", "containerEnv", "remoteEnv", "containerUser", "remoteUser", "mounts",
		"appPort", "forwardPorts", "capAdd", "privileged", "securityOpt", "init", "workspaceFolder", "workspaceMount", "onCreateCommand", "updateContentCommand", "postCreateCommand", "postStartCommand", "overrideCommand", "$schema"}
}

// containerOthers are those that are not done.
func containerOthers() map[string]rule {
	editor := rule{Dropped, "is for an editor", ""}
	return map[string]rule{
		"customizations": editor, "settings": editor, "extensions": editor, "userEnvProbe": editor, "waitFor": editor, "secrets": editor,
		"portsAttributes": editor, "otherPortsAttributes": editor, "devPort": editor,
		"shutdownAction":      {Dropped, "the environment stays until it is ended", "end it with `isle down`, or give it an end: x-isle: {ttl: 8h}"},
		"updateRemoteUserUID": {Dropped, "no user of the machine is inside", ""},
		"hostRequirements":    {Dropped, "limits are what the environment may use", "write x-isle: {limits: {memory: 8GiB}}"},
		"postAttachCommand":   {Dropped, "nobody attaches", "run it in `isle shell`"},
		"initializeCommand":   {Refused, "would run on this machine, and nothing of the file does", "run it yourself"},
		"features":            {Refused, "are scripts from elsewhere that run as root with a network", "install what they bring in the Dockerfile"},
		"runArgs":             {Refused, "are options of another program", "write what they mean with keys: containerEnv, mounts, capAdd, x-isle"},
	}
}
