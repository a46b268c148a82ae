package spec

import (
	"slices"
	"strings"
)

// A TreeChange is one path that differs between two trees.
type TreeChange struct {
	Path string // relative to the tree
	Kind string // "added", "modified", "deleted"
	Size int64
}

// CompareTrees lists what differs, sorted by path. Folders count when they come
// or go, and not for what is in them; an ext4 file system's own lost+found
// never does.
func CompareTrees(was, is Tree) (out []TreeChange) {
	skip := func(e TreeEntry) bool {
		return e.Path == "" || e.Path == "." || e.Path == "lost+found" || strings.HasPrefix(e.Path, "lost+found/")
	}
	before := map[string]TreeEntry{}
	for _, e := range was.Entries {
		if !skip(e) {
			before[e.Path] = e
		}
	}
	for _, e := range is.Entries {
		if skip(e) {
			continue
		}
		old, ok := before[e.Path]
		delete(before, e.Path)
		switch {
		case !ok:
			out = append(out, TreeChange{Path: e.Path, Kind: "added", Size: e.Size})
		case old != e:
			out = append(out, TreeChange{Path: e.Path, Kind: "modified", Size: e.Size})
		}
	}
	for _, e := range before {
		out = append(out, TreeChange{Path: e.Path, Kind: "deleted", Size: e.Size})
	}
	slices.SortFunc(out, func(a, b TreeChange) int { return strings.Compare(a.Path, b.Path) })
	return out
}
