package build

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/spec"
)

// Why says, in a few words, why the image to differs from the image from: the
// first input that changed. It is "" if they are the same, or if nothing is
// known of one of them.
func (b *Builder) Why(from, to isle.Digest) string {
	if from == to {
		return ""
	}
	var old, now []inputs
	if !readJSON(b.imageStepsPath(from), &old) || !readJSON(b.imageStepsPath(to), &now) {
		return ""
	}
	return b.reason(old, now)
}

// reason compares what two images were made of; "" is no difference.
func (b *Builder) reason(old, now []inputs) string {
	if len(old) == 0 {
		return ""
	}
	for i, in := range now {
		before := counterpart(old, now[:i], in)
		if before == nil {
			return stepTitle(in) + " is new"
		}
		if d := b.difference(*before, in); d != "" {
			return d
		}
	}
	for i, in := range old {
		if counterpart(now, old[:i], in) == nil {
			return stepTitle(in) + " is gone"
		}
	}
	return ""
}

// why says why a step is not in the cache.
func (b *Builder) why(last, done []inputs, in inputs) string {
	if len(last) == 0 {
		return "first build"
	}
	before := counterpart(last, done, in)
	switch {
	case before == nil:
		return "new step"
	case before.key() == in.key():
		return "no longer in the cache"
	}
	if d := b.difference(*before, in); d != "" {
		return d
	}
	// What it stands on changed: name that.
	for i, below := range done {
		before := counterpart(last, done[:i], below)
		if before == nil {
			return "below it, " + stepTitle(below) + " is new"
		}
		if d := b.difference(*before, below); d != "" {
			return "below it, " + d
		}
	}
	return "the layers below changed"
}

// counterpart finds the step of another build that stands where in does: the
// nth of its kind, done being the steps before in.
func counterpart(other, done []inputs, in inputs) *inputs {
	nth := 0
	for _, d := range done {
		if d.Kind == in.Kind && d.Stage == in.Stage {
			nth++
		}
	}
	for i := range other {
		if other[i].Kind != in.Kind || other[i].Stage != in.Stage {
			continue
		}
		if nth == 0 {
			return &other[i]
		}
		nth--
	}
	return nil
}

// difference names the input of a step that changed, its parents aside.
func (b *Builder) difference(was, is inputs) string {
	switch {
	case was.Format != is.Format || was.Recipe != is.Recipe:
		return "isle builds images in another way now"
	case was.Architecture != is.Architecture:
		return fmt.Sprintf("architecture %s -> %s", was.Architecture, is.Architecture)
	case !slices.Equal(was.Packages, is.Packages):
		return packagesChange(was.Packages, is.Packages)
	case !slices.Equal(was.Paths, is.Paths) && is.Kind == "folder":
		return "folder " + strings.Join(is.Paths, " ")
	case !slices.Equal(was.Paths, is.Paths):
		return "volumes, tmpfs or workdir: " + listDifference(was.Paths, is.Paths)
	case is.Kind == "image" && was.From != is.From:
		return fmt.Sprintf("image %s became image %s", was.From, is.From)
	case is.Kind == "image" && was.Tree != is.Tree:
		return fmt.Sprintf("image %s changed", is.From)
	case was.From != is.From:
		return fmt.Sprintf("copy %s became copy %s", was.From, is.From)
	case was.Tree != is.Tree && is.Context != "":
		return b.contextChange(was, is)
	case was.Tree != is.Tree:
		return b.treeChange(was, is)
	case was.To != is.To:
		return fmt.Sprintf("copy %s goes to %s, was %s", is.From, is.To, was.To)
	case !slices.Equal(was.Command, is.Command) || was.Script != is.Script:
		return "command changed: " + stepTitle(is)
	case !maps.Equal(was.Env, is.Env):
		return "the build environment changed" + changedVariables(was.Env, is.Env)
	case was.User != is.User:
		return fmt.Sprintf("user %q became %q", was.User, is.User)
	case was.Dir != is.Dir:
		return fmt.Sprintf("workdir %s became %s", was.Dir, is.Dir)
	case !reflect.DeepEqual(was.Copy, is.Copy):
		return "flags changed: " + stepTitle(is)
	case !slices.Equal(was.Materials, is.Materials):
		return "what is copied from changed: " + stepTitle(is)
	case !reflect.DeepEqual(was.Network, is.Network):
		return networkChange(was.Network, is.Network)
	case !reflect.DeepEqual(was.Mounts, is.Mounts):
		return "what is mounted changed: " + stepTitle(is)
	}
	return ""
}

// changedVariables names at most three variables.
func changedVariables(was, is map[string]string) string {
	all := maps.Clone(is)
	maps.Copy(all, was)
	var names []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		a, had := was[k]
		if b, has := is[k]; had != has || a != b {
			names = append(names, k)
		}
	}
	if len(names) > 3 {
		names = append(names[:3], fmt.Sprintf("and %d more", len(names)-3))
	}
	return ": " + strings.Join(names, ", ")
}

// contextChange names the first file of what a COPY takes that differs, if the
// context of before is still known.
func (b *Builder) contextChange(was, is inputs) string {
	taken := func(in inputs) (map[string]string, bool) {
		t, err := b.tree(in.Context)
		if err != nil || in.Copy == nil {
			return nil, false
		}
		from := newTreeSource(b.Images, t)
		items, err := choose(context.Background(), from, &dockerfile.Copy{Sources: in.Copy.Sources, Inline: in.Copy.Inline, Exclude: in.Copy.Exclude, Parents: in.Copy.Parents})
		if err != nil {
			return nil, false
		}
		out := map[string]string{}
		for _, it := range items {
			for _, p := range it.files {
				e := from.entries[p.entry.Path]
				out[e.Path] = fmt.Sprint(e.Type, e.Exec, e.Digest, e.Target)
			}
		}
		return out, true
	}
	old, ok1 := taken(was)
	now, ok2 := taken(is)
	if !ok1 || !ok2 {
		return is.From + " changed"
	}
	all := maps.Clone(now)
	maps.Copy(all, old)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		a, had := old[k]
		c, has := now[k]
		switch {
		case !had:
			return k + " is new"
		case !has:
			return k + " is gone"
		case a != c:
			return k + " changed"
		}
	}
	return is.From + " changed"
}

func stepTitle(in inputs) string {
	switch in.Kind {
	case "copy":
		return "copy " + in.From
	case "image":
		return "image " + in.From
	case "run":
		cmd := in.Command[len(in.Command)-1]
		if _, rest, ok := strings.Cut(cmd, "\n"); ok && strings.HasPrefix(cmd, "cd '") {
			cmd = rest
		}
		return "run " + title(cmd)
	case "paths":
		return "volumes, tmpfs or workdir"
	case "folder":
		return "workdir " + strings.Join(in.Paths, " ")
	}
	return in.Kind
}

// packagesChange names at most four packages.
func packagesChange(was, is []packageInput) string {
	locked := func(in []packageInput) []spec.LockedPackage {
		out := make([]spec.LockedPackage, len(in))
		for i, p := range in {
			out[i] = spec.LockedPackage{Name: p.Name, Version: p.Version, Digest: p.Digest}
		}
		return out
	}
	d := packageDifferences(locked(was), locked(is))
	if len(d) == 0 {
		return "packages: another order"
	}
	if len(d) > 4 {
		d = append(d[:4], fmt.Sprintf("and %d more", len(d)-4))
	}
	return "packages: " + strings.Join(d, ", ")
}

// treeChange names the first file that differs, if the old tree is still known.
func (b *Builder) treeChange(was, is inputs) string {
	old, err1 := b.tree(was.Tree)
	now, err2 := b.tree(is.Tree)
	if err1 != nil || err2 != nil {
		return is.From + " changed"
	}
	before := map[string]spec.TreeEntry{}
	for _, e := range old.Entries {
		before[e.Path] = e
	}
	after := map[string]bool{}
	var first, what string
	see := func(path, how string) {
		if what == "" || path < first {
			first, what = path, how
		}
	}
	for _, e := range now.Entries {
		after[e.Path] = true
		switch o, ok := before[e.Path]; {
		case !ok:
			see(e.Path, "is new")
		case o != e:
			see(e.Path, "changed")
		}
	}
	for _, e := range old.Entries {
		if !after[e.Path] {
			see(e.Path, "is gone")
		}
	}
	if first == "" {
		return is.From + " changed"
	}
	return strings.TrimSuffix(is.From, "/") + "/" + first + " " + what
}
