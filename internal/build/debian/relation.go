package debian

import (
	"strings"

	"pault.ag/go/debian/version"
)

// A relation is one alternative of a dependency: a name and perhaps a version
// it must have (Debian Policy 7.1).
type relation struct {
	name     string
	operator string // "", "<<", "<=", "=", ">=", ">>"
	version  string
}

func (r relation) String() string {
	if r.operator == "" {
		return r.name
	}
	return r.name + " (" + r.operator + " " + r.version + ")"
}

// A group is a dependency: any one of its alternatives satisfies it.
type group []relation

func (g group) String() string {
	names := make([]string, len(g))
	for i, r := range g {
		names[i] = r.String()
	}
	return strings.Join(names, " | ")
}

// parseRelations reads a relationship field. Alternatives for other
// architectures are left out, and so is what cannot be read: nothing satisfies
// it, and a group without alternatives is dropped only where an architecture
// excluded them all.
func parseRelations(s, arch string) []group {
	var out []group
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		var g group
		for _, alternative := range strings.Split(part, "|") {
			if r, ok := parseRelation(strings.TrimSpace(alternative), arch); ok {
				g = append(g, r)
			}
		}
		if len(g) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// parseRelation reads NAME[:ARCH] [(OP VERSION)] [[ARCHES]] [<PROFILES>].
func parseRelation(s, arch string) (r relation, ok bool) {
	end := strings.IndexAny(s, " \t\n([<")
	if end < 0 {
		end = len(s)
	}
	r.name, s = s[:end], strings.TrimSpace(s[end:])
	if name, qualifier, found := strings.Cut(r.name, ":"); found {
		r.name = name
		if qualifier != "any" && qualifier != "native" && qualifier != arch && qualifier != "all" {
			r.name += ":" + qualifier // another architecture's: nothing has this name
		}
	}
	if strings.HasPrefix(s, "(") {
		constraint, rest, found := strings.Cut(s[1:], ")")
		if !found {
			return r, false
		}
		s = strings.TrimSpace(rest)
		constraint = strings.TrimSpace(constraint)
		n := strings.IndexFunc(constraint, func(c rune) bool { return !strings.ContainsRune("<>=", c) })
		if n <= 0 {
			return r, false
		}
		r.operator, r.version = constraint[:n], strings.TrimSpace(constraint[n:])
		switch r.operator { // the two old forms mean "or equal"
		case "<":
			r.operator = "<="
		case ">":
			r.operator = ">="
		}
	}
	if strings.HasPrefix(s, "[") {
		list, _, _ := strings.Cut(s[1:], "]")
		negative, here := false, false
		for _, a := range strings.Fields(list) {
			name, not := strings.CutPrefix(a, "!")
			negative = negative || not
			here = here || name == arch || name == "any" || name == "linux-any"
		}
		if here == negative {
			return r, false
		}
	}
	return r, r.name != ""
}

// allows reports whether version v satisfies the relation's constraint.
func (r relation) allows(v string) bool {
	if r.operator == "" {
		return true
	}
	c, ok := compareVersions(v, r.version)
	if !ok {
		return false
	}
	switch r.operator {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	case ">>":
		return c > 0
	}
	return false
}

// compareVersions orders two versions as dpkg does (Debian Policy 5.6.12). It
// is not ok if one of them is no version.
func compareVersions(a, b string) (c int, ok bool) {
	if a == b {
		return 0, a != ""
	}
	va, err := version.Parse(a)
	if err != nil {
		return 0, false
	}
	vb, err := version.Parse(b)
	if err != nil {
		return 0, false
	}
	return version.Compare(va, vb), true
}
