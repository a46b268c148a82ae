package checkout

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// files are what a pattern names below a real repository.
func files(t testing.TB, r *repo, pattern string) (out [][]byte) {
	names, _ := filepath.Glob(filepath.Join(r.dir, pattern))
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// seeded is a repository with an index and a pack that has differences.
func seeded(f *testing.F) *repo {
	r := &repo{f, f.TempDir()}
	for _, args := range [][]string{
		{"init", "-q"}, {"config", "user.name", "x"}, {"config", "user.email", "x@example.com"}, {"config", "pack.window", "10"},
	} {
		r.git(args...)
	}
	for i := range 20 {
		for _, n := range []string{"a", "b", "c", "d", "e"} {
			r.write("folder/"+n+string(rune('a'+i)), "x")
		}
		r.commit()
	}
	r.git("gc", "-q")
	return r
}

func FuzzIndex(f *testing.F) {
	r := seeded(f)
	for _, version := range []string{"2", "4"} {
		r.git("update-index", "--index-version", version)
		for _, b := range files(f, r, ".git/index") {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range []int{20, 32} {
			entries, err := parseIndex(b, n, "")
			if err != nil {
				continue
			}
			s := &scan{c: &Checkout{hashLen: n}, entries: entries}
			s.hashTree(s.nodes(entries, 0, 0))
		}
	})
}

func FuzzPack(f *testing.F) {
	r := seeded(f)
	for i, index := range files(f, r, ".git/objects/pack/*.idx") {
		f.Add(index, files(f, r, ".git/objects/pack/*.pack")[i], int64(12))
	}
	f.Fuzz(func(t *testing.T, index, data []byte, offset int64) {
		p := &pack{hashLen: 20, index: bytes.NewReader(index), data: bytes.NewReader(data), size: int64(len(data))}
		if p.readHeader() != nil {
			return
		}
		p.read(offset)
		for i := range min(p.count, 8) {
			id := make([]byte, 20)
			if _, err := p.index.ReadAt(id, idxNames+i*20); err != nil {
				return
			}
			if at, ok, err := p.find(string(id)); ok && err == nil {
				p.read(at)
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("[core]\n\tbare = false # x\n\texcludesFile = \"~/a\\\"b\"\n", "a/b")
	f.Add("*.o\n!/x/**/y[a-z[:digit:]]\n\\#x\\ \n", "x/z/y1")
	f.Fuzz(func(t *testing.T, text, path string) {
		parseConfig(text)
		parseLog(text)
		ignored{{"", parseIgnore(text)}}.match(t.Context(), path, true)
		if nodes, err := parseTree([]byte(text), 20); err == nil && len(nodes) == 0 && text != "" {
			t.Error("a tree lost what it holds")
		}
	})
}
