package debian

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/spec"
)

// Base lists the packages that every image of format 1 has, whatever it asks
// for: what a shell, scripts, TLS, time zones and a terminal need, and those of
// Debian's Essential packages (which others use without saying so) that make
// sense in a container. dpkg, init-system-helpers, login, mount and
// sysvinit-utils are left out: they serve installing and booting.
func Base() []string {
	return []string{
		"base-files", "base-passwd", "bash", "ca-certificates", "coreutils", "dash", "debianutils", "diffutils", "findutils",
		"grep", "gzip", "hostname", "libc-bin", "mawk", "ncurses-base", "netbase", "procps", "sed", "tar", "tzdata",
	}
}

// Resolve chooses the packages that are asked for, NAME or NAME=VERSION, those
// of Base, and all that they need, from a suite with its updates and its
// security archive. It takes the highest version that satisfies everything,
// prefers alternatives that are chosen already, then those that stand first,
// and adds no recommended packages. The same indexes give the same result.
//
// Errors are Invalid for a request that cannot be met, Refused for a release
// that cannot be trusted, Unavailable for a mirror that is away. say is called
// from several goroutines with lines of progress; nil is none.
func (a *Archive) Resolve(ctx context.Context, suite string, requests []string, o ResolveOptions, say func(message string)) ([]spec.LockedPackage, spec.SuiteLock, error) {
	if say == nil {
		say = func(string) {}
	}
	var lock spec.SuiteLock
	if !validSuite(suite) {
		return nil, lock, isle.Errorf(isle.Invalid, "%q is no name of a Debian suite", suite).WithHint("for example `suite: bookworm`")
	}
	wanted, err := parseRequests(requests)
	if err != nil {
		return nil, lock, err
	}
	w, releases, err := a.world(ctx, suite, o, say)
	if err != nil {
		return nil, lock, err
	}
	lock.Releases = releases
	chosen, err := w.solve(ctx, suite, wanted)
	if err != nil {
		return nil, lock, err
	}
	out := make([]spec.LockedPackage, 0, len(chosen))
	for _, c := range chosen {
		out = append(out, spec.LockedPackage{
			Name: c.name, Version: c.version, Architecture: c.arch,
			Path: c.path, Repository: c.repository, Size: c.size, Digest: c.digest,
		})
	}
	slices.SortFunc(out, func(a, b spec.LockedPackage) int { return strings.Compare(a.Name, b.Name) })
	return out, lock, nil
}

// world opens the indexes of a suite's repositories, fetching what is not here.
func (a *Archive) world(ctx context.Context, suite string, o ResolveOptions, say func(string)) (*world, map[string]isle.Digest, error) {
	repos, err := a.repositories(suite, o.Mirror)
	if err != nil {
		return nil, nil, err
	}
	releases := make([]*release, len(repos))
	indexes := make([][]*index, len(repos))
	g, gctx := errgroup.WithContext(ctx)
	for i, repo := range repos {
		g.Go(func() error {
			rel, err := a.release(gctx, repo, o, say)
			if err != nil || rel == nil {
				return err
			}
			releases[i] = rel
			arches := []string{a.cfg.Architecture}
			if !rel.merged {
				arches = append(arches, "all")
			}
			for _, component := range repo.components {
				for _, arch := range arches {
					x, err := a.index(gctx, rel, component, arch, say)
					if err != nil {
						return err
					}
					if x != nil {
						indexes[i] = append(indexes[i], x)
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	w := &world{arch: a.cfg.Architecture, known: map[string][]candidate{}}
	digests := map[string]isle.Digest{}
	for i, rel := range releases {
		if rel == nil {
			if repos[i].name == "security" {
				say("no security archive was found for " + suite + ": its fixes are not considered")
			}
			continue
		}
		digests[rel.path] = rel.digest
		for _, x := range indexes[i] {
			w.repos = append(w.repos, worldIndex{x, repos[i].name})
		}
	}
	if len(w.repos) == 0 || len(indexes[0]) == 0 {
		return nil, nil, isle.Errorf(isle.Invalid, "suite %s has no packages for %s", suite, a.cfg.Architecture)
	}
	return w, digests, nil
}

func validSuite(s string) bool {
	return s != "" && len(s) <= 64 && s[0] != '-' && s[0] != '.' && strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.')
	}) < 0
}

// parseRequests reads NAME and NAME=VERSION and adds Base. Requests made twice
// are one, unless their versions differ.
func parseRequests(requests []string) ([]relation, error) {
	byName := map[string]relation{}
	for _, r := range requests {
		name, v, pinned := strings.Cut(r, "=")
		rel := relation{name: name}
		if pinned {
			rel.operator, rel.version = "=", v
		}
		_, versionOK := compareVersions(v, "0")
		if !validPackageName(name) || pinned && !versionOK {
			return nil, isle.Errorf(isle.Invalid, "package %q: want NAME or NAME=VERSION, as in python3 or python3=3.11.2-1+b1", r)
		}
		old, twice := byName[name]
		if twice && old.operator != "" && pinned && old.version != v {
			return nil, isle.Errorf(isle.Invalid, "package %s is asked for in two versions, %s and %s", name, old.version, v)
		}
		if !twice || pinned {
			byName[name] = rel
		}
	}
	for _, name := range Base() {
		if _, ok := byName[name]; !ok {
			byName[name] = relation{name: name}
		}
	}
	out := make([]relation, 0, len(byName))
	for _, r := range byName {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b relation) int { return strings.Compare(a.name, b.name) })
	return out, nil
}
