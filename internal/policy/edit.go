package policy

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"go.yaml.in/yaml/v3"

	"isle"
)

// MachinesDocument is the name of the document that holds the bindings of
// machine identities which were made together with them.
const MachinesDocument = "machines"

// machinesHead begins that document.
const machinesHead = `# Roles of machine identities. ` + "`isle identity create --role`" + ` adds a binding here
# and ` + "`isle identity revoke`" + ` removes it; the rest is yours to edit:
# isle policy show machines > machines.yaml, isle apply -f machines.yaml --document machines
`

// Bind returns a document with more bindings: comments, order and what else it
// says stay. An empty one, or none (nil), is begun.
func Bind(body []byte, bindings ...Binding) ([]byte, error) {
	doc, root, err := editable(body)
	if err != nil {
		return nil, err
	}
	list := valueOf(root, "bindings")
	if list == nil {
		list = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		root.Content = append(root.Content, scalar("bindings"), list)
		root.Style = 0
	}
	if list.Kind != yaml.SequenceNode {
		return nil, unreadable("its bindings are no list")
	}
	list.Style &^= yaml.FlowStyle
	for _, b := range bindings {
		list.Content = append(list.Content, b.node())
	}
	return encode(doc)
}

// Unbind returns a document without a subject in any binding, and without the
// bindings that are of nobody then. It says how many bindings it changed.
func Unbind(body []byte, subject Subject) ([]byte, int, error) {
	doc, root, err := editable(body)
	if err != nil {
		return nil, 0, err
	}
	list := valueOf(root, "bindings")
	if list == nil || list.Kind != yaml.SequenceNode {
		return body, 0, nil
	}
	changed := 0
	list.Content = slices.DeleteFunc(list.Content, func(b *yaml.Node) bool {
		subjects := valueOf(b, "subjects")
		if subjects == nil || subjects.Kind != yaml.SequenceNode {
			return false
		}
		before := len(subjects.Content)
		subjects.Content = slices.DeleteFunc(subjects.Content, func(s *yaml.Node) bool {
			return s.Kind == yaml.ScalarNode && s.Value == subject.String()
		})
		if len(subjects.Content) == before {
			return false
		}
		changed++
		return len(subjects.Content) == 0
	})
	if changed == 0 {
		return body, 0, nil
	}
	if len(list.Content) == 0 {
		list.Style = yaml.FlowStyle
	}
	out, err := encode(doc)
	return out, changed, err
}

func unreadable(why string) error {
	return isle.Errorf(isle.Conflict, "the policy document cannot be edited: %s", why).WithHint("edit it by hand: `isle policy show`, `isle apply -f`")
}

// editable reads a document as nodes. An empty one has an empty mapping.
func editable(body []byte) (doc, root *yaml.Node, err error) {
	if body == nil {
		body = []byte(machinesHead)
	}
	doc = &yaml.Node{}
	if err := yaml.Unmarshal(body, doc); err != nil {
		return nil, nil, unreadable(err.Error())
	}
	if doc.Kind == 0 || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" { // comments at most
		doc = &yaml.Node{Kind: yaml.DocumentNode, HeadComment: strings.TrimSpace(string(body)), Content: []*yaml.Node{{Kind: yaml.MappingNode, Tag: "!!map"}}}
	}
	root = doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, nil, unreadable("it is no mapping")
	}
	return doc, root, nil
}

func encode(doc *yaml.Node) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, unreadable(err.Error())
	}
	return out.Bytes(), nil
}

// valueOf is the value of a key of a mapping; nil if it has none. An alias is
// followed nowhere: what is shared is edited by hand.
func valueOf(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalar(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// node is a binding on one line: {role: R, subjects: [S], stages: [T]}.
func (b Binding) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Style: yaml.FlowStyle}
	add := func(key string, v *yaml.Node) { n.Content = append(n.Content, scalar(key), v) }
	list := func(of []string) *yaml.Node {
		l := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
		for _, s := range of {
			l.Content = append(l.Content, scalar(s))
		}
		return l
	}
	var subjects []string
	for _, s := range b.Subjects {
		subjects = append(subjects, s.String())
	}
	add("role", scalar(b.Role))
	add("subjects", list(subjects))
	if len(b.Stages) > 0 {
		add("stages", list(b.Stages))
	}
	if !b.Expires.IsZero() {
		add("expires", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!timestamp", Value: b.Expires.UTC().Format(time.RFC3339)})
	}
	if b.Reason != "" {
		add("reason", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: b.Reason})
	}
	return n
}

// RolesOf are the roles that bindings give to a subject by its name, and that
// have not ended: built-in and others, in the order of the bindings.
func (s *Set) RolesOf(subject Subject, now time.Time) (out []string) {
	for _, m := range s.members[subject] {
		if m.active(now) && !slices.Contains(out, m.role.Name) {
			out = append(out, m.role.Name)
		}
	}
	return out
}

// Awaits reports whether the policy gives something to a machine by its name,
// at a time: a binding does, or hand-written Cedar that says the name. It takes
// no account of what every machine has.
func (s *Set) Awaits(machine string, now time.Time) bool {
	for _, m := range s.members[Subject{Kind: "machine", Name: machine}] {
		if m.active(now) {
			return true
		}
	}
	said := []byte(strconv.Quote(machine)) // as the canonical text has it, however it was written
	for _, r := range s.byID {
		if r.role == nil && r.policy.Effect() == cedar.Permit && bytes.Contains(r.policy.MarshalCedar(), said) {
			return true
		}
	}
	return false
}
