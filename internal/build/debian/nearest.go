package debian

import (
	"cmp"
	"slices"
	"strings"

	"isle/internal/problem"
)

// nearest returns up to three package names like the one that was not found,
// the likeliest first: those it is the beginning of, and those a few letters
// away.
func (w *world) nearest(name string) []string {
	type scored struct {
		name  string
		score int
	}
	best := []scored{}
	limit := 2
	if len(name) < 5 {
		limit = 1
	}
	for _, x := range w.repos {
		for i := range len(x.records)/4 - 1 {
			n := string(x.nameAt(i))
			score := 0
			switch {
			case strings.HasPrefix(n, name) && len(n) <= len(name)+6:
				score = 2 + len(n) - len(name)
			case len(n)-len(name) <= limit && len(name)-len(n) <= limit:
				d := problem.Distance(n, name)
				if d > limit {
					continue
				}
				score = 2 * d
			default:
				continue
			}
			best = append(best, scored{n, score})
		}
	}
	slices.SortFunc(best, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.score, b.score), strings.Compare(a.name, b.name))
	})
	best = slices.Compact(best)
	var out []string
	for _, b := range best[:min(3, len(best))] {
		out = append(out, b.name)
	}
	return out
}
