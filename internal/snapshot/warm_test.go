package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isle"
)

// keep seals a ready state with some memory.
func (w *world) keep(key, memory string, owner isle.Actor) (Snapshot, error) {
	w.t.Helper()
	d, err := w.Draft()
	if err != nil {
		return Snapshot{}, err
	}
	defer d.Discard()
	w.put(d.Volume("db", "/data"), 8<<20, nil)
	m := manifest()
	m.Message, m.Memory = "ready state "+key, &Memory{Runtime: isle.DigestOf([]byte("runsc"))}
	if err := os.WriteFile(filepath.Join(d.Memory(), "pages.img"), []byte(memory), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return d.SealWarm(w.t.Context(), isle.Actor{Kind: isle.System, Name: "warm"}, m, Warm{Key: isle.DigestOf([]byte(key)), Owner: owner})
}

func (w *world) mustKeep(key string, owner isle.Actor) Snapshot {
	w.t.Helper()
	s, err := w.keep(key, "pages of "+key, owner)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// warm lists which of the keys have a ready state.
func (w *world) warm(keys ...string) (out string) {
	for _, k := range keys {
		if _, ok := w.Warm(isle.DigestOf([]byte(k))); ok {
			out += k
		}
	}
	return out
}

// at sets the clock, in hours.
func (w *world) at(hour int) {
	w.config.Now = func() time.Time { return time.Date(2026, 11, 22, hour, 0, 0, 0, time.UTC) }
	w.open()
}

func TestThereIsOneReadyStateForAKey(t *testing.T) {
	w := newWorld(t, "own")
	made := w.mustKeep("a", alice)
	if _, err := w.keep("a", "others", alice); code(err) != isle.Conflict {
		t.Error(err)
	}
	w.open()
	d, ok := w.Warm(isle.DigestOf([]byte("a")))
	got, err := w.Get(string(d))
	if !ok || d != made.Digest || err != nil || got.Warm == nil || got.Warm.Owner != alice || !got.Warm.Used.Equal(w.config.Now()) || !got.Trusted {
		t.Errorf("%v, %+v, %v", ok, got, err)
	}
	if plain := w.seal("rows", "pages"); plain.Warm != nil {
		t.Errorf("%+v", plain)
	}
	if folders, volumes := w.left(); len(folders) != 2 || len(volumes) != 2 {
		t.Errorf("left: %v, %v", folders, volumes)
	}
	entries := w.store.Entries()
	if e := entries[0]; e.Action != isle.ActionSnapshotCreate || e.Details["warm"] != string(made.Warm.Key) {
		t.Errorf("%+v", e)
	}
}

func TestThoseUsedTheLongestAgoMakeRoom(t *testing.T) {
	w := newWorld(t, "own")
	w.config.WarmCount = 2
	bob := isle.Actor{Kind: isle.Human, Name: "bob"}
	w.at(1)
	a := w.mustKeep("a", alice)
	w.mustKeep("o", bob)
	w.at(2)
	w.mustKeep("b", alice)
	w.at(3)
	w.Used(a.Digest)
	w.at(4)
	w.mustKeep("c", alice)
	if got := w.warm("a", "b", "c", "o"); got != "aco" {
		t.Errorf("there are %s", got)
	}
	// By what they hold; and one that alone is too large is none.
	w.config.WarmCount, w.config.WarmBytes = 10, 40
	w.at(5)
	w.mustKeep("d", alice) // 10 bytes each
	if got := w.warm("a", "c", "d"); got != "acd" {
		t.Errorf("there are %s", got)
	}
	if _, err := w.keep("e", "0123456789012345678901234567890123456789!", alice); code(err) != isle.Exhausted {
		t.Error(err)
	}
	if _, err := w.keep("f", "01234567890123456789", alice); err != nil {
		t.Error(err)
	}
	if got := w.warm("a", "c", "d", "e", "f"); got != "cdf" {
		t.Errorf("there are %s", got)
	}
	// What is in use stays.
	c, _ := w.Warm(isle.DigestOf([]byte("c")))
	_, done, err := w.Use(t.Context(), string(c))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.keep("g", "01234567890123456789", alice); err != nil {
		t.Error(err)
	}
	done()
	if got := w.warm("c", "d", "f", "g"); got != "cg" {
		t.Errorf("there are %s", got)
	}
}

func TestAReadyStateThatNothingBeginsWithGoes(t *testing.T) {
	w := newWorld(t, "own")
	gc := isle.Actor{Kind: isle.System, Name: "gc"}
	w.at(1)
	w.mustKeep("a", alice)
	b := w.mustKeep("b", alice)
	w.seal("rows", "pages")
	tagged := w.mustKeep("c", alice)
	if _, err := w.Tag(t.Context(), alice, string(tagged.Digest), "mine", false); err != nil {
		t.Fatal(err)
	}
	w.at(5)
	w.Used(b.Digest)
	since := w.config.Now().Add(-time.Hour)
	if got, err := w.Collect(t.Context(), gc, since, true); err != nil || got.Count != 1 || got.Bytes < 8<<20 || w.warm("a", "b") != "ab" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := w.Collect(t.Context(), gc, since, false); err != nil || got.Count != 1 || w.warm("a", "b", "c") != "bc" {
		t.Errorf("%+v, %v, %s", got, err, w.warm("a", "b", "c"))
	}
	if list, _ := w.List(); len(list) != 3 {
		t.Errorf("%d are left", len(list))
	}
}

func TestAReadyStateKeepsNothingAndNothingKeepsIt(t *testing.T) {
	w := newWorld(t, "own")
	w.config.InUse = func(isle.Digest) []string { return []string{"shop"} }
	w.open()
	a := w.mustKeep("a", alice)
	images := func() (n int) {
		w.Images(func(Service) { n++ })
		return n
	}
	if n := images(); n != 0 {
		t.Errorf("%d images are kept", n)
	}
	if _, err := w.Tag(t.Context(), alice, string(a.Digest), "mine", false); err != nil {
		t.Fatal(err)
	}
	if n := images(); n != 1 {
		t.Errorf("%d images are kept of what has a tag", n)
	}
	if err := w.Untag(t.Context(), alice, "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), alice, a.Digest.Short(), false); err != nil {
		t.Error(err)
	}
	if folders, volumes := w.left(); len(folders)+len(volumes) != 0 {
		t.Errorf("left: %v, %v", folders, volumes)
	}
}

func TestNothingBeginsWithACooledState(t *testing.T) {
	w := newWorld(t, "own")
	a, b := w.mustKeep("a", alice), w.mustKeep("b", alice)
	if _, err := w.Tag(t.Context(), alice, string(b.Digest), "mine", false); err != nil {
		t.Fatal(err)
	}
	for _, d := range []isle.Digest{a.Digest, b.Digest, a.Digest} {
		if err := w.Cool(context.Background(), alice, d); err != nil {
			t.Error(err)
		}
	}
	w.open()
	if got := w.warm("a", "b"); got != "" {
		t.Errorf("there are %s", got)
	}
	if got, err := w.Get("mine"); err != nil || got.Warm != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := w.keep("b", "newer", alice); err != nil {
		t.Error(err)
	}
}
