package build

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/debian"
	"isle/internal/image"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// Copied is the content of one copy of a service, as hashed on the client's
// side.
type Copied struct {
	Service  string
	From, To string // as in the spec.Copy
	Tree     isle.Digest
}

// LockOptions change how Lock works.
type LockOptions struct {
	Update bool   // choose the newest packages again
	Mirror string // as in debian.ResolveOptions
	Locked bool   // fail with Conflict rather than change anything
	// Credentials are for registries, and Pull says whether an image may be pulled;
	// nil: any.
	Credentials Credentials
	Pull        func(registry.Reference) error
}

// Lock pins every input of f by hash. Packages that old pins stay as they are
// where suite and requests are; copies and run steps are pinned anew. changes
// says, for people, how the result differs from old, which may be nil.
func (b *Builder) Lock(ctx context.Context, f spec.File, old *spec.Lock, copies []Copied, o LockOptions, p Progress) (lock *spec.Lock, changes []string, err error) {
	p = serial(p)
	if old != nil && old.ImageFormat != image.FormatVersion {
		if !o.Update {
			return nil, nil, formatError(old)
		}
		old = nil
	}
	if old != nil && old.Architecture != b.Archive.Architecture() {
		if !o.Update {
			return nil, nil, architectureError(old, b.Archive.Architecture())
		}
		old = nil
	}
	lock = &spec.Lock{
		Version: spec.LockVersion, ImageFormat: image.FormatVersion, Architecture: b.Archive.Architecture(),
		Suites: map[string]spec.SuiteLock{}, Services: map[string]spec.ServiceLock{},
	}
	var stale []string
	for _, s := range f.Services {
		sl := spec.ServiceLock{Suite: s.Suite, Requests: requestsOf(s), Run: slices.Clone(s.Run), Network: keptNetwork(old, s, o)}
		if sl.Copy, err = copiesOf(s, copies); err != nil {
			return nil, nil, err
		}
		if s.Image != "" {
			if sl.Image = pinnedImage(old, s.Name, s.Image); sl.Image == nil || o.Update {
				if o.Locked && sl.Image == nil && !archived(s) {
					return nil, nil, isle.Errorf(isle.Conflict, "isle.lock does not fit the file any more: %s: image %s is not pinned", s.Name, s.Image).WithHint("`isle lock` brings it up to date")
				}
				if sl.Image, err = b.lockImage(ctx, s, copies, o, p); err != nil {
					return nil, nil, err
				}
			}
			lock.Services[s.Name] = sl
			continue
		}
		if s.Build != nil {
			if sl.Build, err = b.lockBuild(ctx, s, old, copies, o, p); err != nil {
				return nil, nil, err
			}
			lock.Services[s.Name] = sl
			continue
		}
		if kept, ok := pinned(old, s.Name, sl); ok && !o.Update {
			sl.Packages = kept
			lock.Suites[s.Suite] = old.Suites[s.Suite]
		} else {
			stale = append(stale, s.Name)
		}
		lock.Services[s.Name] = sl
	}
	if o.Locked {
		changes = b.differences(old, lock)
		if len(stale) > 0 || len(changes) > 0 {
			return nil, nil, isle.Errorf(isle.Conflict, "isle.lock does not fit the file any more: %s", strings.Join(changes, "; ")).WithHint("`isle lock` brings it up to date")
		}
		return lock, nil, nil
	}
	if err := b.resolvePackages(ctx, lock, stale, o, p); err != nil {
		return nil, nil, err
	}
	return lock, b.differences(old, lock), nil
}

// archived reports whether a service's image is an archive of the project.
func archived(s spec.Service) bool {
	_, ok := s.ImagePath()
	return ok
}

// resolvePackages fills in the packages of the services named; equal requests are
// resolved once, and so get equal packages.
func (b *Builder) resolvePackages(ctx context.Context, lock *spec.Lock, services []string, o LockOptions, p Progress) error {
	known := map[string][]spec.LockedPackage{}
	for _, name := range services {
		sl := lock.Services[name]
		id := sl.Suite + " " + strings.Join(sl.Requests, " ")
		pkgs, ok := known[id]
		if !ok {
			p(Event{Service: name, Step: "resolve", State: "start", Message: fmt.Sprintf("%s from %s", count(len(sl.Requests), "package"), sl.Suite)})
			var suite spec.SuiteLock
			var err error
			say := func(m string) { p(Event{Service: name, Step: "resolve", State: "log", Message: m}) }
			pkgs, suite, err = b.Archive.Resolve(ctx, sl.Suite, sl.Requests, debian.ResolveOptions{Mirror: o.Mirror, Refresh: o.Update}, say)
			if err != nil {
				return prefix(name, err)
			}
			known[id] = pkgs
			merged := spec.SuiteLock{Releases: maps.Clone(lock.Suites[sl.Suite].Releases)}
			if merged.Releases == nil {
				merged.Releases = map[string]isle.Digest{}
			}
			maps.Copy(merged.Releases, suite.Releases)
			lock.Suites[sl.Suite] = merged
			p(Event{Service: name, Step: "resolve", State: "done", Message: count(len(pkgs), "package")})
		}
		sl.Packages = pkgs
		lock.Services[name] = sl
	}
	return nil
}

// pinned returns the packages that old has for the same suite and requests.
func pinned(old *spec.Lock, service string, sl spec.ServiceLock) ([]spec.LockedPackage, bool) {
	if old == nil {
		return nil, false
	}
	before, ok := old.Services[service]
	if ok && before.Suite == sl.Suite && slices.Equal(before.Requests, sl.Requests) {
		return before.Packages, true
	}
	// The same wish under another service's name has the same answer.
	for _, name := range slices.Sorted(maps.Keys(old.Services)) {
		if o := old.Services[name]; o.Suite == sl.Suite && slices.Equal(o.Requests, sl.Requests) {
			return o.Packages, true
		}
	}
	return nil, false
}

func requestsOf(s spec.Service) []string {
	r := append([]string{}, s.Packages...)
	slices.Sort(r)
	return slices.Compact(r)
}

// copiesOf pairs a service's copies with what was hashed.
func copiesOf(s spec.Service, copies []Copied) ([]spec.LockedCopy, error) {
	var out []spec.LockedCopy
	for _, c := range s.Copy {
		i := slices.IndexFunc(copies, func(k Copied) bool { return k.Service == s.Name && k.From == c.From && k.To == c.To })
		if i < 0 || !copies[i].Tree.Valid() {
			return nil, isle.Errorf(isle.Invalid, "%s: nothing was sent for copy %s to %s", s.Name, c.From, c.To)
		}
		out = append(out, spec.LockedCopy{From: c.From, To: c.To, Tree: copies[i].Tree})
	}
	return out, nil
}

// differences says how a lock differs from another, service by service.
func (b *Builder) differences(old, lock *spec.Lock) []string {
	if old == nil {
		old = &spec.Lock{}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(lock.Services)) {
		was, ok := old.Services[name]
		is := lock.Services[name]
		if !ok {
			out = append(out, fmt.Sprintf("%s: new", name))
			continue
		}
		if d := imageDifference(was.Image, is.Image); d != "" {
			out = append(out, name+": "+d)
		}
		for _, d := range b.buildDifference(was.Build, is.Build) {
			out = append(out, name+": "+d)
		}
		if was.Suite != is.Suite && was.Suite != "" && is.Suite != "" {
			out = append(out, fmt.Sprintf("%s: suite %s -> %s", name, was.Suite, is.Suite))
		}
		if !slices.Equal(was.Requests, is.Requests) {
			out = append(out, name+": packages: "+listDifference(was.Requests, is.Requests))
		}
		if len(is.Packages) > 0 || slices.Equal(was.Requests, is.Requests) && was.Suite == is.Suite && len(was.Packages) == 0 {
			for _, d := range packageDifferences(was.Packages, is.Packages) {
				out = append(out, name+": "+d)
			}
		}
		out = append(out, copyDifferences(name, was.Copy, is.Copy)...)
		if !slices.Equal(was.Run, is.Run) {
			out = append(out, name+": run changed")
		}
		if d := networkDifference(was.Network, is.Network); d != "" {
			out = append(out, name+": "+d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old.Services)) {
		if _, ok := lock.Services[name]; !ok {
			out = append(out, fmt.Sprintf("%s: removed", name))
		}
	}
	return out
}

func imageDifference(was, is *spec.LockedImage) string {
	if was == nil {
		was = &spec.LockedImage{}
	}
	if is == nil {
		is = &spec.LockedImage{}
	}
	switch {
	case was.Request != is.Request:
		return fmt.Sprintf("image %q -> %q", was.Request, is.Request)
	case was.Digest != is.Digest:
		return fmt.Sprintf("image %s: %s -> %s", is.Request, was.Digest.Short(), is.Digest.Short())
	case was.Tree != is.Tree:
		return fmt.Sprintf("image %s changed", is.Request)
	}
	return ""
}

func copyDifferences(service string, was, is []spec.LockedCopy) (out []string) {
	for _, c := range is {
		i := slices.IndexFunc(was, func(o spec.LockedCopy) bool { return o.From == c.From && o.To == c.To })
		switch {
		case i < 0:
			out = append(out, fmt.Sprintf("%s: copy %s to %s is new", service, c.From, c.To))
		case was[i].Tree != c.Tree:
			out = append(out, fmt.Sprintf("%s: %s changed", service, c.From))
		}
	}
	for _, c := range was {
		if !slices.ContainsFunc(is, func(o spec.LockedCopy) bool { return o.From == c.From && o.To == c.To }) {
			out = append(out, fmt.Sprintf("%s: copy %s to %s is gone", service, c.From, c.To))
		}
	}
	return out
}

// packageDifferences names every package that came, went or has other bytes.
func packageDifferences(was, is []spec.LockedPackage) (out []string) {
	id := func(p spec.LockedPackage) string { return p.Name + ":" + p.Architecture }
	before := map[string]spec.LockedPackage{}
	for _, p := range was {
		before[id(p)] = p
	}
	for _, p := range is {
		o, ok := before[id(p)]
		delete(before, id(p))
		switch {
		case !ok:
			out = append(out, "+ "+p.Name+" "+p.Version)
		case o.Version != p.Version:
			out = append(out, fmt.Sprintf("%s %s -> %s", p.Name, o.Version, p.Version))
		case o.Digest != p.Digest:
			out = append(out, fmt.Sprintf("%s %s has other bytes", p.Name, p.Version))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		out = append(out, "- "+before[k].Name+" "+before[k].Version)
	}
	return out
}

func listDifference(was, is []string) string {
	var out []string
	for _, s := range is {
		if !slices.Contains(was, s) {
			out = append(out, "+ "+s)
		}
	}
	for _, s := range was {
		if !slices.Contains(is, s) {
			out = append(out, "- "+s)
		}
	}
	return strings.Join(out, ", ")
}

// checkLock reports a lock that does not pin everything that f asks for.
func (b *Builder) checkLock(f spec.File, lock *spec.Lock) error {
	if lock == nil {
		return isle.Errorf(isle.Invalid, "there is no lock").WithHint("`isle lock` writes it")
	}
	if lock.ImageFormat != image.FormatVersion {
		return formatError(lock)
	}
	if lock.Architecture != b.Archive.Architecture() {
		return architectureError(lock, b.Archive.Architecture())
	}
	for _, s := range f.Services {
		sl, ok := lock.Services[s.Name]
		stale := func(what string) error {
			return isle.Errorf(isle.Conflict, "isle.lock does not fit the file: %s: %s", s.Name, what).WithHint("`isle lock` brings it up to date")
		}
		want := make([]spec.LockedCopy, len(s.Copy))
		for i, c := range s.Copy {
			want[i] = spec.LockedCopy{From: c.From, To: c.To}
			if i < len(sl.Copy) {
				want[i].Tree = sl.Copy[i].Tree
			}
		}
		switch {
		case !ok:
			return stale("it is not in the lock")
		case (sl.Image != nil) != (s.Image != "") || sl.Image != nil && sl.Image.Request != s.Image:
			return stale("image changed")
		case sl.Image != nil && !sl.Image.Digest.Valid() && !sl.Image.Tree.Valid():
			return stale("image is not pinned by a digest")
		case checkBuild(s, sl.Build) != "":
			return stale(checkBuild(s, sl.Build))
		case sl.Suite != s.Suite:
			return stale(fmt.Sprintf("suite is %s, locked is %s", s.Suite, sl.Suite))
		case !slices.Equal(sl.Requests, requestsOf(s)):
			return stale("packages: " + listDifference(sl.Requests, requestsOf(s)))
		case !slices.Equal(sl.Copy, want):
			return stale("copy changed")
		case !slices.Equal(sl.Run, s.Run):
			return stale("run changed")
		case s.Network == "" && len(sl.Network) > 0:
			return stale("its steps have no network any more")
		}
		for _, p := range sl.Packages {
			if !p.Digest.Valid() || p.Name == "" {
				return stale(fmt.Sprintf("package %q is not pinned by a digest", p.Name))
			}
		}
		for _, c := range sl.Copy {
			if !c.Tree.Valid() {
				return stale(fmt.Sprintf("copy %s is not pinned by a digest", c.From))
			}
		}
	}
	return nil
}

func formatError(lock *spec.Lock) error {
	return isle.Errorf(isle.Invalid, "isle.lock is for image format %d, this server makes format %d: the digests would differ", lock.ImageFormat, image.FormatVersion).WithHint("`isle lock --update` pins everything anew")
}

func architectureError(lock *spec.Lock, here string) error {
	return isle.Errorf(isle.Invalid, "isle.lock is for %s, this machine is %s", lock.Architecture, here).WithHint("`isle lock --update` pins packages for %s", here)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
