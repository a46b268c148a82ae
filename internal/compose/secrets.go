package compose

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// A BuildSecret is what the steps of a service's build are given under an id. It is
// in no isle.yaml: whoever reads the file gives it.
type BuildSecret struct {
	Service string // in isle.yaml
	ID      string
	From    string // where it is, for people: "file token.txt", "environment TOKEN"
	Value   []byte
}

// readBuildSecrets reads the secrets that a build names.
func (s *service) readBuildSecrets(n *node) {
	for _, i := range n.items {
		name, id := i.str(), ""
		if i.kind == yaml.MappingNode {
			name, id = i.get("source").str(), i.get("target").str()
			for _, k := range []string{"uid", "gid", "mode"} {
				if i.get(k) != nil {
					s.drop(i.keyAt(k), "build.secrets."+k, "the Dockerfile's own says it: RUN --mount=type=secret,"+k+"=…", "")
				}
			}
		}
		if id == "" {
			id = name
		}
		if name == "" || slices.ContainsFunc(s.secrets, func(o BuildSecret) bool { return o.ID == id }) {
			s.refuse(i.place, "build.secrets", quote(id)+" names no secret, or is there twice", "name each once")
			continue
		}
		def := s.top.get("secrets").get(name)
		if def == nil {
			s.refuse(i.place, "build.secrets", "there is no secret "+quote(name), "name it under secrets at the top")
			continue
		}
		if from, value, ok := s.secret(def, name, id); ok {
			s.secrets = append(s.secrets, BuildSecret{Service: s.name, ID: id, From: from, Value: value})
		}
	}
}

// secret is the value of one that the file defines.
func (s *service) secret(def *node, name, id string) (from string, value []byte, ok bool) {
	switch file, variable := def.get("file"), def.get("environment"); {
	case file != nil:
		path, err := below(s.baseOf(file.place), file.str())
		if err == nil {
			value, err = s.read(path)
		}
		if err != nil {
			s.refuse(file.place, "secrets."+name, quote(file.str())+" "+err.Error(), "or give it on the command line, with a file of any place: remove it here, and --secret id="+id+",src=FILE")
			return "", nil, false
		}
		return "file " + file.str(), value, true
	case variable != nil:
		v, set := s.vars.lookup(variable.str())
		if !set {
			s.refuse(variable.place, "secrets."+name, "there is no variable "+quote(variable.str()), "set it in the environment or .env")
			return "", nil, false
		}
		return "environment " + variable.str(), []byte(v), true
	}
	s.refuse(def.place, "secrets."+name, "is neither of a file nor of the environment", "keep it with `isle secret set NAME`, and name it in the service: x-isle: {build: {secrets: {"+id+": {secret: NAME}}}}")
	return "", nil, false
}
