package debian

import (
	"cmp"
	"slices"
	"strings"
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
				d := distance(n, name)
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

// distance is the number of insertions, deletions, substitutions and swaps of
// neighbours between two strings.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			d := row[j-1]
			if a[i-1] != b[j-1] {
				d++
			}
			next[j] = min(d, row[j]+1, next[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
