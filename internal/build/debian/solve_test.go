package debian

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"isle"
)

// worldOf makes a world of packages written as "name version; Field: value; …".
func worldOf(t testing.TB, lines ...string) *world {
	var text strings.Builder
	for _, l := range lines {
		parts := strings.Split(l, "; ")
		name, version, _ := strings.Cut(parts[0], " ")
		fmt.Fprintf(&text, "Package: %s\nVersion: %s\nArchitecture: amd64\nPriority: optional\nFilename: pool/%s.deb\nSize: 1\nSHA256: %s\n%s\n\n",
			name, version, name, strings.Repeat("0", 64), strings.Join(parts[1:], "\n"))
	}
	x, err := openIndex(buildIndex(strings.NewReader(text.String()), "amd64"))
	if err != nil {
		t.Fatal(err)
	}
	return &world{arch: "amd64", repos: []worldIndex{{x, ""}}, known: map[string][]candidate{}}
}

func solveNames(t testing.TB, w *world, requests ...string) (string, error) {
	var rs []relation
	for _, r := range requests {
		name, v, pinned := strings.Cut(r, "=")
		rel := relation{name: name}
		if pinned {
			rel.operator, rel.version = "=", v
		}
		rs = append(rs, rel)
	}
	chosen, err := w.solve(context.Background(), "trial", rs)
	var names []string
	for _, c := range chosen {
		names = append(names, c.name+"="+c.version)
	}
	slices.Sort(names)
	return strings.Join(names, " "), err
}

// long makes the tables' one-letter names two letters long, as names must be.
func long(s string) string { return regexp.MustCompile(`\b([a-z])\b`).ReplaceAllString(s, "$1$1") }

func each(list []string, f func(string) string) (out []string) {
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}

func TestSolve(t *testing.T) {
	for _, c := range []struct {
		name     string
		world    []string
		requests []string
		want     string // or an error's words after "!"
	}{
		{"depends and pre-depends, not recommends", []string{"a 1; Depends: b; Pre-Depends: c; Recommends: d", "b 1", "c 1", "d 1"}, []string{"a"}, "a=1 b=1 c=1"},
		{"the first alternative", []string{"a 1; Depends: b | c", "b 1", "c 1"}, []string{"a"}, "a=1 b=1"},
		{"the first alternative that exists", []string{"a 1; Depends: x | c", "c 1"}, []string{"a"}, "a=1 c=1"},
		{"an alternative that is chosen already", []string{"a 1; Depends: b | c", "b 1", "c 1", "z 1; Depends: c"}, []string{"a", "z"}, "a=1 c=1 z=1"},
		{"an alternative that goes with the rest", []string{"a 1; Depends: b | c", "b 1; Conflicts: z", "c 1", "z 1"}, []string{"a", "z"}, "a=1 c=1 z=1"},
		{"a provider of a virtual package", []string{"a 1; Depends: v", "p 1; Provides: v", "q 1; Provides: v"}, []string{"a"}, "a=1 p=1"},
		{"a versioned provision", []string{"a 1; Depends: v (>= 2)", "p 1; Provides: v", "q 1; Provides: v (= 2)"}, []string{"a"}, "a=1 q=1"},
		{"the highest version", []string{"a 1", "a 1.10", "a 1.9", "a 1.10~rc1"}, []string{"a"}, "a=1.10"},
		{"epochs", []string{"a 1:0.1", "a 9"}, []string{"a"}, "a=1:0.1"},
		{"the version asked for", []string{"a 1; Depends: l (= 1)", "a 2; Depends: l (= 2)", "l 1", "l 2"}, []string{"a=1"}, "a=1 l=1"},
		{"a version that must be lower than the highest", []string{"a 1; Depends: b, c", "b 1; Depends: l", "c 1; Depends: l (<< 2)", "l 1", "l 2"}, []string{"a"}, "a=1 b=1 c=1 l=1"},
		{"any and the own architecture", []string{"a 1; Depends: b:any, c:amd64", "b 1", "c 1"}, []string{"a"}, "a=1 b=1 c=1"},
		{"another architecture's", []string{"a 1; Depends: b:i386", "b 1"}, []string{"a"}, "!needs b:i386"},
		{"restricted to architectures", []string{"a 1; Depends: b [i386], c [!i386]", "b 1", "c 1"}, []string{"a"}, "a=1 c=1"},
		{"circles", []string{"a 1; Depends: b", "b 1; Depends: a"}, []string{"a"}, "a=1 b=1"},
		{"a conflict", []string{"a 1; Depends: b", "b 1; Conflicts: c", "c 1"}, []string{"a", "c"}, "!packages conflict"},
		{"breaks of an older version only", []string{"a 1; Breaks: b (<< 2)", "b 2"}, []string{"a", "b"}, "a=1 b=2"},
		{"a conflict with what it provides itself", []string{"a 1; Provides: v; Conflicts: v"}, []string{"a"}, "a=1"},
		{"a conflict over a virtual package", []string{"a 1; Provides: v; Conflicts: v", "b 1; Provides: v; Conflicts: v"}, []string{"a", "b"}, "!packages conflict"},
		{"what is not there", []string{"a 1; Depends: gone (>= 3)"}, []string{"a"}, "!a 1 needs gone (>= 3), which the suite does not have"},
		{"an optional choice that turns out wrong", []string{"a 1; Depends: b | c", "b 1; Depends: gone", "c 1"}, []string{"a"}, "a=1 c=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 3 { // the same each time
				got, err := solveNames(t, worldOf(t, each(c.world, long)...), each(c.requests, long)...)
				if words, ok := strings.CutPrefix(long(c.want), "!"); ok {
					wantError(t, err, isle.Invalid, words)
				} else if err != nil || got != long(c.want) {
					t.Fatalf("%s, %v; want %s", got, err, c.want)
				}
			}
		})
	}
}

func TestVersionsCompareAsInPolicy(t *testing.T) {
	order := []string{"1.0~~", "1.0~~a", "1.0~", "1.0", "1.0-1", "1.0-1+b1", "1.0a", "1.0+a", "1.2", "1.10", "1:0"}
	for i := range order {
		for j := range order {
			c, ok := compareVersions(order[i], order[j])
			if !ok || (c < 0) != (i < j) || (c == 0) != (i == j) {
				t.Errorf("compare %s and %s: %d %v", order[i], order[j], c, ok)
			}
		}
	}
}
