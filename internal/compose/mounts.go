package compose

import (
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Of what Compose gives no size: what a service may write to its root, and to a
// volume, in bytes.
const (
	writableSize = 64 << 20
	volumeSize   = 1 << 30
)

// A mount is a volume entry of either syntax.
type mount struct {
	at                   place
	kind, source, target string
	readOnly             bool
	size                 string
}

func (s *service) readVolumes(n *node) {
	for _, i := range n.items {
		m, ok := s.mount(i)
		if !ok {
			continue
		}
		switch m.kind {
		case "volume":
			s.addVolume(m)
		case "bind":
			s.bind(m)
		case "tmpfs":
			s.addTmpfs(m.at, m.target, m.size)
		default:
			s.refuse(m.at, "volumes", "there is no mount of type "+quote(m.kind), "use a volume, or copy files into the image")
		}
	}
}

// mount reads SOURCE:TARGET:MODE or the long form.
func (s *service) mount(n *node) (m mount, ok bool) {
	m.at = n.place
	if n.kind == yaml.MappingNode {
		m.kind, m.source, m.target, m.readOnly = n.get("type").str(), n.get("source").str(), n.get("target").str(), n.get("read_only").yes()
		m.size = n.get("tmpfs").get("size").str()
		if sub := n.get("volume").get("subpath"); sub != nil {
			s.refuse(sub.place, "volumes.volume.subpath", "a volume is mounted as a whole", "make it a volume of its own")
		}
	} else {
		parts := strings.Split(n.text, ":")
		m.kind = "volume"
		switch len(parts) {
		case 1:
			m.target = parts[0]
		case 3:
			m.readOnly = slices.Contains(strings.Split(parts[2], ","), "ro")
			fallthrough
		case 2:
			m.source, m.target = parts[0], parts[1]
		default:
			s.refuse(n.place, "volumes", quote(n.text)+" is no mount", "write SOURCE:TARGET, with :ro or not")
			return m, false
		}
		if strings.HasPrefix(m.source, ".") || strings.HasPrefix(m.source, "/") || strings.HasPrefix(m.source, "~") || strings.Contains(m.source, "/") {
			m.kind = "bind"
		}
	}
	if !path.IsAbs(m.target) {
		s.refuse(n.place, "volumes", quote(m.target)+" is no absolute path inside", "write it from the root on")
		return m, false
	}
	m.target = path.Clean(m.target)
	return m, true
}

func (s *service) addVolume(m mount) {
	s.volumes = slices.DeleteFunc(s.volumes, func(v volume) bool { return v.path == m.target })
	s.volumes = append(s.volumes, volume{at: m.at, path: m.target, name: m.source})
	what := quote(m.target)
	if m.source != "" {
		what = m.source
	}
	s.differs(m.at, "volumes", what+" begins empty, whatever the image has there, and holds 1 GiB", "for another size write x-isle: {volumes: {"+m.target+": {size: 10GiB}}} in the service")
}

// bind copies what would be mounted: nothing of the machine is inside.
func (s *service) bind(m mount) { s.bindFrom(s.baseOf(m.at), m) }

// bindFrom is bind with the folder that the source is relative to.
func (s *service) bindFrom(base string, m mount) {
	if strings.HasSuffix(m.source, "docker.sock") {
		s.refuse(m.at, "volumes", "nothing inside may have the machine's container engine", "remove it")
		return
	}
	name, err := below(base, m.source)
	if err != nil {
		s.refuse(m.at, "volumes", quote(m.source)+" "+err.Error()+", or make it a named volume", "")
		return
	}
	st, err := s.root.Stat(filepath.FromSlash(name))
	switch {
	case err != nil && m.readOnly:
		s.refuse(m.at, "volumes", quote(m.source)+" is not there", "make it, or remove the mount")
		return
	case err != nil: // Docker makes a folder: it is for data
		s.volumes = append(s.volumes, volume{at: m.at, path: m.target})
		s.differs(m.at, "volumes", quote(m.source)+" is not there: "+m.target+" is a volume, which holds 1 GiB, in place of a folder of the machine", "get files out with `isle cp`")
		return
	}
	do := "run `isle up` after a change, or `isle up --watch`"
	if !m.readOnly {
		do += "; make it a named volume if the service writes there"
	}
	s.differs(m.at, "volumes", quote(m.source)+" is copied into the image, not mounted: what the service writes there does not come back", do)
	s.copyIn(m.at, name, m.target, st)
}

// copyIn puts a file or folder of the project into the image.
func (s *service) copyIn(at place, from, to string, st fs.FileInfo) {
	if st.IsDir() && from != "." {
		from += "/"
	}
	s.copies = append(s.copies, copied{at, from, to})
}

// baseOf is the folder that paths of a file are relative to.
func (s *service) baseOf(at place) string { return path.Dir(at.file) }

func (s *service) readTmpfs(n *node) {
	for _, t := range n.texts() {
		target, options, _ := strings.Cut(t, ":")
		size := ""
		for _, o := range strings.Split(options, ",") {
			if v, ok := strings.CutPrefix(o, "size="); ok {
				size = v
			}
		}
		s.addTmpfs(n.place, target, size)
	}
}

func (s *service) addTmpfs(at place, target, size string) {
	target = path.Clean(target)
	if size != "" {
		s.drop(at, "tmpfs", "a folder in memory has no size of its own: it counts as memory", "limit memory")
	}
	if target != "/tmp" && target != "/run" && target != "/dev/shm" && !slices.Contains(s.tmpfs, target) {
		s.tmpfs = append(s.tmpfs, target)
	}
}

// readConfigs puts configs into the image.
func (s *service) readConfigs(n *node) {
	for _, i := range n.items {
		name, target := i.str(), ""
		if i.kind == yaml.MappingNode {
			name, target = i.get("source").str(), i.get("target").str()
			for _, k := range []string{"uid", "gid", "mode"} {
				if i.get(k) != nil {
					s.drop(i.keyAt(k), "configs."+k, "files that are copied are root's, and everybody may read them", "")
				}
			}
		}
		if target == "" {
			target = "/" + name
		}
		if !path.IsAbs(target) {
			target = "/" + target
		}
		def := s.top.get("configs").get(name)
		if def == nil {
			s.refuse(i.place, "configs", "there is no config "+quote(name), "name it under configs at the top")
			continue
		}
		s.config(i.place, def, path.Clean(target))
	}
}

func (s *service) config(at place, def *node, target string) {
	var content string
	switch {
	case def.get("external").yes():
		s.refuse(def.place, "configs", "nothing is kept outside of the file", "keep it as a file of the project")
		return
	case def.get("file") != nil:
		file := def.get("file")
		name, err := below(s.baseOf(file.place), file.str())
		if err != nil {
			s.refuse(file.place, "configs", quote(file.str())+" "+err.Error(), "")
			return
		}
		st, err := s.root.Stat(filepath.FromSlash(name))
		if err != nil {
			s.refuse(file.place, "configs", quote(file.str())+" cannot be read", "make it, or remove the config")
			return
		}
		s.copyIn(at, name, target, st)
		return
	case def.get("content") != nil:
		content = def.get("content").str()
	case def.get("environment") != nil:
		content = s.vars.value(def.get("environment").str())
	}
	s.run = append(s.run, "mkdir -p "+shellQuote(path.Dir(target))+" && printf %s "+shellQuote(content)+" > "+shellQuote(target))
}

// shellQuote is s as one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// readSecrets refuses them: nothing secret is inside.
func (s *service) readSecrets(n *node) {
	for _, i := range n.items {
		name := i.str()
		if i.kind == yaml.MappingNode {
			name = i.get("source").str()
		}
		s.refuse(i.place, "secrets", quote(name)+" would be inside, where whoever gets in can read it, and nothing secret is",
			"keep it with `isle secret set`, and have the service use what it opens through a connection (x-isle: {uses: [NAME]}; docs/gateway.md)")
	}
}
