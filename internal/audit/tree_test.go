package audit

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// memoryLog is a log in memory, kept by tlog and not by Tree.
type memoryLog struct {
	entries [][]byte
	hashes  []tlog.Hash
}

func (m *memoryLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("hash %d is not there", x)
		}
		out[i] = m.hashes[x]
	}
	return out, nil
}

func (m *memoryLog) add(t testing.TB, e Entry) {
	t.Helper()
	e.Sequence = uint64(len(m.entries))
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	h, err := tlog.StoredHashes(int64(len(m.entries)), b, m)
	if err != nil {
		t.Fatal(err)
	}
	m.entries, m.hashes = append(m.entries, b), append(m.hashes, h...)
}

func (m *memoryLog) head(t testing.TB) Head {
	t.Helper()
	root, err := tlog.TreeHash(int64(len(m.entries)), m)
	if err != nil {
		t.Fatal(err)
	}
	return Head{uint64(len(m.entries)), root}
}

// fetch serves the log, written from the specification.
func (m *memoryLog) fetch(signer *Signer, head Head) Fetch {
	return func(_ context.Context, path string) ([]byte, error) {
		if path == CheckpointPath {
			c, err := signer.Sign(head)
			return c.Note, err
		}
		tile, err := ParseTile(path)
		if err != nil {
			return nil, err
		}
		if !tile.In(head.Size) {
			return nil, isle.Errorf(isle.NotFound, "no %s", path)
		}
		if tile.Level == Entries {
			at := tile.Index * TileWidth
			return Bundle(m.entries[at : at+uint64(tile.Width)])
		}
		return tile.Data(m)
	}
}

func newLog(t testing.TB, n int) *memoryLog {
	m := &memoryLog{}
	var open Entry
	for i := range n {
		e := event(fmt.Sprint(i), i)
		switch i % 3 {
		case 1:
			e.Kind, e.Result = Intent, ""
			open = e
		case 2:
			id := e.ID
			e = open.Outcome(nil)
			e.ID, e.Time = id, at(i)
		}
		m.add(t, e)
	}
	return m
}

func TestTheTreeIsThatOfTlog(t *testing.T) {
	m := &memoryLog{}
	var tree Tree
	for i := range 600 {
		if got, want := tree.Head(), m.head(t); got != want {
			t.Fatalf("of %d entries: %v, tlog says %v", i, got, want)
		}
		again, err := NewTree(uint64(i), m)
		if err != nil || again.Head() != tree.Head() {
			t.Fatalf("read again at %d: %v", i, err)
		}
		before := len(m.hashes)
		m.add(t, event(fmt.Sprint(i), i))
		next, completed := tree.Add(tlog.RecordHash(m.entries[i]))
		if fmt.Sprint(completed) != fmt.Sprint(m.hashes[before:]) {
			t.Fatalf("entry %d completes %v, tlog says %v", i, completed, m.hashes[before:])
		}
		tree = next
	}
}

func TestARangeIsProvenAndNothingElse(t *testing.T) {
	m := newLog(t, 70)
	for size := range uint64(71) {
		root, err := tlog.TreeHash(int64(size), m)
		if err != nil {
			t.Fatal(err)
		}
		for from := uint64(0); from <= size; from += 3 {
			for to := from; to <= size; to += 5 {
				proof, err := ProveRange(size, from, to, m)
				if err != nil {
					t.Fatal(err)
				}
				var leaves []tlog.Hash
				for i := from; i < to; i++ {
					leaves = append(leaves, tlog.RecordHash(m.entries[i]))
				}
				if got, err := RangeRoot(size, from, leaves, proof); err != nil || got != root {
					t.Fatalf("[%d,%d) of %d: %v %v", from, to, size, got, err)
				}
				if len(leaves) > 0 {
					leaves[len(leaves)/2][0] ^= 1
					if got, err := RangeRoot(size, from, leaves, proof); err == nil && got == root {
						t.Fatalf("[%d,%d) of %d: a changed leaf makes the same root", from, to, size)
					}
				}
				if _, err := RangeRoot(size, from, leaves, append(proof, root)); err == nil {
					t.Fatal("a proof with a hash too many is taken")
				}
			}
		}
	}
}

func TestATileHasOnePathAndBack(t *testing.T) {
	for _, g := range []struct {
		path string
		tile Tile
	}{
		{"tile/0/000", Tile{0, 0, 256}},
		{"tile/3/x001/x234/067", Tile{3, 1234067, 256}},
		{"tile/63/x001/000.p/1", Tile{63, 1000, 1}},
		{"tile/entries/999.p/255", Tile{Entries, 999, 255}},
	} {
		if got := g.tile.Path(); got != g.path {
			t.Errorf("%v is at %s, want %s", g.tile, got, g.path)
		}
		if got, err := ParseTile(g.path); err != nil || got != g.tile {
			t.Errorf("%s is %v (%v)", g.path, got, err)
		}
	}
	for _, bad := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "tile/0/0", "tile/0/0000", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/+1/000", "tile/data/000",
		"tile/0/x000/001", "tile/0/001/002", "tile/0/x001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/", "tile/0/000.p/1/", "/tile/0/000",
		"tile/0/../000", "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
	} {
		if got, err := ParseTile(bad); isle.CodeOf(err) != isle.Invalid || err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

// The example of c2sp.org/tlog-tiles.
func TestATreeOf70000HasTheTilesThatTheSpecificationSays(t *testing.T) {
	const size = 70_000
	for path, want := range map[string]bool{
		"tile/0/000": true, "tile/0/272": true, "tile/0/273": false, "tile/0/273.p/112": true, "tile/0/273.p/113": false, "tile/0/274.p/1": false,
		"tile/1/000": true, "tile/1/001": false, "tile/1/001.p/17": true, "tile/1/001.p/18": false, "tile/2/000.p/1": true, "tile/2/000.p/2": false,
		"tile/3/000.p/1": false, "tile/63/000.p/1": false, "tile/entries/273.p/112": true, "tile/entries/273.p/113": false,
	} {
		tile, err := ParseTile(path)
		if err != nil {
			t.Fatal(err)
		}
		if tile.In(size) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
	if first := (Tile{1, 0, 1}); !first.In(256) || first.In(255) {
		t.Error("a tree of 256 has a partial tile of width 1 at level 1")
	}
}

func FuzzParseTile(f *testing.F) {
	f.Add("tile/3/x001/x234/067.p/9")
	f.Add("tile/entries/000")
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := ParseTile(path)
		if err != nil {
			return
		}
		if tile.Path() != path {
			t.Fatalf("%q is %v, at %q", path, tile, tile.Path())
		}
		tile.In(1 << 62)
	})
}

func FuzzParseBundle(f *testing.F) {
	b, _ := Bundle([][]byte{[]byte("a"), nil, []byte("bc")})
	f.Add(b, 3)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		list, err := ParseBundle(b, n%300)
		if err != nil {
			return
		}
		if again, err := Bundle(list); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is %q (%v)", b, list, err)
		}
	})
}
