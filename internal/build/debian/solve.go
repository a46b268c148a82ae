package debian

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"isle"
)

// A world is everything there is to choose from.
type world struct {
	arch  string
	repos []worldIndex
	known map[string][]candidate // by name, highest version first
}

type worldIndex struct {
	*index
	repository string
}

// named returns the candidates of that name, highest version first; of equal
// versions that of the earlier repository.
func (w *world) named(name string) []candidate {
	if list, ok := w.known[name]; ok {
		return list
	}
	var list []candidate
	for _, r := range w.repos {
		for _, c := range r.named(name, w.arch, r.repository) {
			if !slices.ContainsFunc(list, func(o candidate) bool { return o.version == c.version && o.arch == c.arch }) {
				list = append(list, c)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		c, _ := compareVersions(b.version, a.version)
		return c
	})
	w.known[name] = list
	return list
}

// providers returns the names of packages that provide r, the most important
// first, then by name.
func (w *world) providers(r relation) []string {
	var names []string
	for _, x := range w.repos {
		names = append(names, x.providers(r.name)...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(w.rank(a), w.rank(b)) })
	return names
}

// rank orders package names by priority (Debian Policy 2.5).
func (w *world) rank(name string) int {
	if list := w.named(name); len(list) > 0 {
		if i := slices.Index([]string{"required", "important", "standard", "optional"}, list[0].priority); i >= 0 {
			return i
		}
	}
	return 4
}

// provided reports whether c provides r. Only a provision with a version
// satisfies a constraint on it (Debian Policy 7.5).
func (c candidate) provided(r relation) bool {
	for _, g := range c.provides {
		for _, p := range g {
			if p.name == r.name && (r.operator == "" || p.operator == "=" && r.allows(p.version)) {
				return true
			}
		}
	}
	return false
}

// satisfies reports whether c is or provides r.
func (c candidate) satisfies(r relation) bool {
	return c.name == r.name && r.allows(c.version) || c.provided(r)
}

// A need is a dependency with who has it.
type need struct {
	by    string // "web asks for it" or "postgresql-15"
	group group
}

// maxRestarts bounds how often solving begins anew with what it learned.
const maxRestarts = 200

// maxChosen bounds one image's packages.
const maxChosen = 20000

// A solver chooses greedily: what has no alternative first, then one
// alternative at a time. Where that runs into a conflict it learns one thing
// (this name not as an alternative; this name only in such versions) and begins
// anew. It finds what apt finds for nearly everything, and says so where not.
type solver struct {
	w         *world
	avoid     map[string]bool       // never as one of several
	limits    map[string][]relation // constraints on versions, learned
	chosen    map[string]candidate
	why       map[string]need   // who brought it
	optional  map[string]bool   // it was one of several
	conflicts map[string][]edge // by the name that is refused
	provides  map[string][]string
}

type edge struct {
	by string
	r  relation
}

// errAgain says that something was learned and solving must begin anew.
type errAgain struct{}

func (errAgain) Error() string { return "again" }

// solve returns the chosen packages in no particular order.
func (w *world) solve(ctx context.Context, suite string, requests []relation) ([]candidate, error) {
	for _, r := range requests {
		if err := w.check(suite, r); err != nil {
			return nil, err
		}
	}
	// usrmerge would turn a root into what ours is from the start, with perl;
	// usr-is-merged, its alternative everywhere, says that it is.
	s := &solver{w: w, avoid: map[string]bool{"usrmerge": true}, limits: map[string][]relation{}}
	for range maxRestarts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := s.run(requests)
		if _, again := err.(errAgain); again {
			continue
		}
		if err != nil {
			return nil, err
		}
		out := make([]candidate, 0, len(s.chosen))
		for _, c := range s.chosen {
			out = append(out, c)
		}
		return out, nil
	}
	return nil, isle.Errorf(isle.Invalid, "no set of packages of %s was found that satisfies all dependencies", suite).
		WithHint("ask for fewer packages at once to see which of them do not go together")
}

// check gives a request that names nothing an error that helps.
func (w *world) check(suite string, r relation) error {
	list := w.named(r.name)
	if slices.ContainsFunc(list, func(c candidate) bool { return r.allows(c.version) }) {
		return nil
	}
	if len(list) > 0 {
		versions := make([]string, len(list))
		for i, c := range list {
			versions[i] = c.version
		}
		return isle.Errorf(isle.Invalid, "package %s has no version %s in %s", r.name, r.version, suite).
			WithHint("there is %s; older ones are on a snapshot mirror: --mirror URL", strings.Join(versions, ", "))
	}
	if providers := w.providers(r); len(providers) > 0 {
		if len(providers) > 5 {
			providers = providers[:5]
		}
		return isle.Errorf(isle.Invalid, "package %s is virtual in %s", r.name, suite).WithHint("choose one that provides it: %s", strings.Join(providers, ", "))
	}
	e := isle.Errorf(isle.Invalid, "no package %q in %s", r.name, suite)
	if near := w.nearest(r.name); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, ", "))
	}
	return e.WithHint("look for its name with `apt-cache search`")
}

func (s *solver) run(requests []relation) error {
	s.chosen, s.why, s.optional = map[string]candidate{}, map[string]need{}, map[string]bool{}
	s.conflicts, s.provides = map[string][]edge{}, map[string][]string{}
	var plain, alternatives []need
	for _, r := range requests {
		plain = append(plain, need{"", group{r}})
	}
	for len(plain)+len(alternatives) > 0 {
		var n need
		if len(plain) > 0 {
			n, plain = plain[0], plain[1:]
		} else {
			n, alternatives = alternatives[0], alternatives[1:]
		}
		if s.satisfied(n.group) {
			continue
		}
		c, err := s.pick(n)
		if err != nil {
			return err
		}
		if err := s.take(c, n); err != nil {
			return err
		}
		for _, g := range c.depends {
			if len(g) == 1 && len(s.w.named(g[0].name)) > 0 {
				plain = append(plain, need{c.name, g})
			} else {
				alternatives = append(alternatives, need{c.name, g})
			}
		}
	}
	return nil
}

func (s *solver) satisfied(g group) bool {
	for _, r := range g {
		if c, ok := s.chosen[r.name]; ok && r.allows(c.version) {
			return true
		}
		for _, name := range s.provides[r.name] {
			if s.chosen[name].provided(r) {
				return true
			}
		}
	}
	return false
}

// pick finds a candidate for the first alternative that has one which goes with
// everything chosen.
func (s *solver) pick(n need) (candidate, error) {
	var options []candidate
	for _, r := range n.group {
		options = append(options, s.versions(r.name, r)...)
	}
	for _, r := range n.group {
		for _, name := range s.w.providers(r) {
			for _, c := range s.versions(name, relation{name: name}) {
				if c.provided(r) {
					options = append(options, c)
					break
				}
			}
		}
	}
	for _, strict := range []bool{true, false} {
		for _, c := range options {
			if strict && s.avoid[c.name] && len(options) > 1 {
				continue
			}
			if _, other := s.chosen[c.name]; !other && s.clash(c) == "" {
				return c, nil
			}
		}
	}
	return candidate{}, s.learn(n, options)
}

// versions are the candidates of a name that satisfy r and what was learned.
func (s *solver) versions(name string, r relation) (out []candidate) {
	for _, c := range s.w.named(name) {
		ok := r.allows(c.version)
		for _, l := range s.limits[name] {
			ok = ok && l.allows(c.version)
		}
		if ok {
			out = append(out, c)
		}
	}
	return out
}

// clash returns the name of a chosen package that c cannot be with, or "".
func (s *solver) clash(c candidate) string {
	for _, g := range c.conflicts {
		r := g[0]
		if o, ok := s.chosen[r.name]; ok && o.name != c.name && r.allows(o.version) {
			return o.name
		}
		for _, name := range s.provides[r.name] {
			if name != c.name && s.chosen[name].provided(r) {
				return name
			}
		}
	}
	names := []string{c.name}
	for _, g := range c.provides {
		names = append(names, g[0].name)
	}
	for _, name := range names {
		for _, e := range s.conflicts[name] {
			if e.by != c.name && c.satisfies(e.r) {
				return e.by
			}
		}
	}
	return ""
}

func (s *solver) take(c candidate, n need) error {
	if len(s.chosen) >= maxChosen {
		return isle.Errorf(isle.Exhausted, "more than %d packages", maxChosen)
	}
	s.chosen[c.name], s.why[c.name] = c, n
	s.optional[c.name] = len(n.group) > 1 || n.group[0].name != c.name
	for _, g := range c.conflicts {
		s.conflicts[g[0].name] = append(s.conflicts[g[0].name], edge{c.name, g[0]})
	}
	for _, g := range c.provides {
		s.provides[g[0].name] = append(s.provides[g[0].name], c.name)
	}
	return nil
}

// learn turns a dependency that cannot be met into something to do otherwise
// next time, or into the error that a person reads.
func (s *solver) learn(n need, options []candidate) error {
	for _, r := range n.group { // chosen in a version that will not do: ask for another from the start
		c, ok := s.chosen[r.name]
		if ok && len(s.versions(r.name, r)) > 0 && !slices.Contains(s.limits[r.name], r) {
			if why := s.why[r.name].group[0]; why.operator != "=" || s.why[r.name].by != "" {
				s.limits[r.name] = append(s.limits[r.name], r)
				return errAgain{}
			}
		}
		_ = c
	}
	for _, c := range options { // kept out by something that was one of several
		if other := s.clash(c); other != "" && s.optional[other] && !s.avoid[other] {
			s.avoid[other] = true
			return errAgain{}
		}
	}
	if n.by != "" { // who needs this may itself have been one of several
		for by := n.by; by != ""; by = s.why[by].by {
			if s.optional[by] && !s.avoid[by] {
				s.avoid[by] = true
				return errAgain{}
			}
		}
	}
	return s.explain(n, options)
}

func (s *solver) explain(n need, options []candidate) error {
	who := "the environment asks for " + n.group.String()
	if n.by != "" {
		who = s.chain(n.by) + " needs " + n.group.String()
	}
	for _, c := range options {
		if other := s.clash(c); other != "" {
			return isle.Errorf(isle.Invalid, "packages conflict: %s, and %s %s cannot be installed with %s", who, c.name, c.version, s.chain(other)).
				WithHint("they cannot be in one image: put them into different services")
		}
	}
	for _, r := range n.group {
		if c, ok := s.chosen[r.name]; ok {
			return isle.Errorf(isle.Invalid, "packages conflict: %s, but %s is at %s", who, r.name, c.version).
				WithHint("drop or change the version that is asked for")
		}
	}
	return isle.Errorf(isle.Invalid, "%s, which the suite does not have for %s", who, s.w.arch).
		WithHint("the mirror may be half updated: try again later or name another with --mirror URL")
}

// chain tells how a package came to be chosen: "b 1.0 (needed by a)".
func (s *solver) chain(name string) string {
	text := fmt.Sprintf("%s %s", name, s.chosen[name].version)
	var path []string
	for by := s.why[name].by; by != "" && len(path) < 8; by = s.why[by].by {
		path = append(path, by)
	}
	if len(path) > 0 {
		text += " (needed by " + strings.Join(path, ", needed by ") + ")"
	}
	return text
}
