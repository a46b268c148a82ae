package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/ledger"
	"isle/internal/seal"
)

func TestASnapshotIsThereAfterTheServerStartsAgain(t *testing.T) {
	w := newWorld(t, "own")
	made := w.seal("rows", "pages", "before")
	w.open()
	for _, name := range []string{"before", made.Digest.Short(), made.Digest.Hex(), string(made.Digest), made.Digest.Hex()[:seal.MinPrefix]} {
		got, err := w.Get(name)
		if err != nil || got.Digest != made.Digest || !got.Trusted || got.Signer != "own" || !slices.Equal(got.Tags, []string{"before"}) {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
	got, done, err := w.Use(t.Context(), "before")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	m := got.Manifest
	if m.Version != Version || m.Message != "before the migration" || len(m.Volumes) != 1 || m.Volumes[0].Size != 8<<20 || m.Volumes[0].Bytes != 1<<20 || len(m.Memory.Files) != 1 {
		t.Errorf("%+v", m)
	}
	if b, err := os.ReadFile(filepath.Join(got.Memory, "pages.img")); err != nil || string(b) != "pages" {
		t.Errorf("%q %v", b, err)
	}
	if fi, err := os.Stat(w.volumes.Path(got.Local["db:/data"])); err != nil || fi.Mode().Perm() != 0o400 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	entries := w.store.Entries()
	last := entries[len(entries)-1]
	if last.Action != isle.ActionSnapshotCreate || last.Details["snapshot"] != string(made.Digest) || last.Bound == nil || last.Environment != "shop@testing" {
		t.Errorf("%+v", last)
	}
	list, err := w.List()
	if err != nil || len(list) != 1 || list[0].Broken != nil || list[0].Used < 8<<20 {
		t.Errorf("%+v %v", list, err)
	}
	if v, err := w.Verify(t.Context(), "before"); err != nil || v.Bytes != 1<<20+5 {
		t.Errorf("%+v %v", v, err)
	}
}

func TestANameThatNearlyFitsIsSuggested(t *testing.T) {
	w := newWorld(t, "own")
	if _, err := w.Get("anything"); code(err) != isle.NotFound || !strings.Contains(err.Error(), "isle snapshot ENV") {
		t.Error(err)
	}
	made := w.seal("rows", "", "before")
	for name, want := range map[string]string{"befor": "before", made.Digest.Hex()[:5]: made.Digest.Short(), "zzz": "isle snapshot ls"} {
		if _, err := w.Get(name); code(err) != isle.NotFound || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhateverIsTamperedWithIsNotUsed(t *testing.T) {
	for name, change := range map[string]func(w *world, s Snapshot, dir string){
		"a byte of a volume": func(w *world, s Snapshot, _ string) { tamper(w.t, w.volumes.Path(s.Local["db:/data"]), 3<<20+5, "R") },
		"a byte of a hole":   func(w *world, s Snapshot, _ string) { tamper(w.t, w.volumes.Path(s.Local["db:/data"]), 7<<20, "x") },
		"a longer volume":    func(w *world, s Snapshot, _ string) { os.Truncate(w.volumes.Path(s.Local["db:/data"]), 9<<20) },
		"a volume away":      func(w *world, s Snapshot, _ string) { os.Remove(w.volumes.Path(s.Local["db:/data"])) },
		"a volume replaced": func(w *world, s Snapshot, _ string) {
			os.Remove(w.volumes.Path(s.Local["db:/data"]))
			w.put(s.Local["db:/data"], 8<<20, map[int64]string{3<<20 + 5: "r0ws"})
		},
		"a link in place of a volume": func(w *world, s Snapshot, dir string) {
			os.Remove(w.volumes.Path(s.Local["db:/data"]))
			os.Symlink("/etc/passwd", w.volumes.Path(s.Local["db:/data"]))
		},
		"a byte of the memory": func(w *world, _ Snapshot, dir string) { tamper(w.t, filepath.Join(dir, "memory/pages.img"), 0, "P") },
		"the memory away":      func(w *world, _ Snapshot, dir string) { os.RemoveAll(filepath.Join(dir, "memory")) },
		"the manifest":         func(w *world, _ Snapshot, dir string) { tamper(w.t, filepath.Join(dir, "manifest.json"), 30, "XX") },
		"no manifest":          func(w *world, _ Snapshot, dir string) { os.Remove(filepath.Join(dir, "manifest.json")) },
		"no signature":         func(w *world, _ Snapshot, dir string) { os.Remove(filepath.Join(dir, "signature")) },
		"a wrong signature": func(w *world, _ Snapshot, dir string) {
			b, _ := os.ReadFile(filepath.Join(dir, "signature"))
			tamper(w.t, filepath.Join(dir, "signature"), int64(len(b)-10), "AAAA")
		},
		"another's signature": func(w *world, s Snapshot, dir string) {
			b, _ := w.config.Key.Sign(seal.NoteText(shelfKind, isle.DigestOf([]byte("another"))))
			os.WriteFile(filepath.Join(dir, "signature"), b, 0o400)
		},
		"the folder away": func(w *world, _ Snapshot, dir string) { os.RemoveAll(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "own")
			other := w.seal("other", "")
			made := w.seal("rows", "pages", "before")
			change(w, made, w.dir(made.Digest))
			for range 2 { // before the server starts again and after
				if _, _, err := w.Use(t.Context(), "before"); code(err) != isle.Untrusted {
					t.Errorf("use: %v", err)
				}
				if _, err := w.Verify(t.Context(), "before"); code(err) != isle.Untrusted {
					t.Errorf("verify: %v", err)
				}
				list, err := w.List()
				if err != nil || len(list) != 2 || list[0].Broken != nil || list[1].Manifest.Ref != shop {
					t.Errorf("%+v %v", list, err)
				}
				w.open()
			}
			if _, done, err := w.Use(t.Context(), other.Digest.Hex()); err != nil {
				t.Errorf("the other: %v", err)
			} else {
				done()
			}
			if _, err := w.Remove(t.Context(), alice, "before", false); err != nil {
				t.Errorf("it cannot be removed: %v", err)
			}
			if folders, volumes := w.left(); len(folders) != 1 || len(volumes) != 1 {
				t.Errorf("%v %v", folders, volumes)
			}
		})
	}
}

func TestWhatIsChangedBehindTheLogIsNotUsed(t *testing.T) {
	w := newWorld(t, "own")
	a, b := w.seal("one", "", "good"), w.seal("two", "")
	w.store.Edit(shelfKind, func(rs []ledger.Record) []ledger.Record {
		for i := range rs {
			if rs[i].Key == keyTag+"good" {
				rs[i].Body = []byte(strings.ReplaceAll(string(rs[i].Body), string(a.Digest), string(b.Digest)))
			}
		}
		return rs
	})
	w.open()
	if _, err := w.Get("good"); code(err) != isle.Unavailable || !strings.Contains(err.Error(), "behind the log") {
		t.Error(err)
	}
	if folders, volumes := w.left(); len(folders) != 2 || len(volumes) != 2 {
		t.Errorf("something was taken away: %v %v", folders, volumes)
	}
	if len(w.Volumes()) != 2 {
		t.Errorf("gc would remove volumes: %v are held", w.Volumes())
	}
}

func TestNothingIsLeftOfASnapshotThatFails(t *testing.T) {
	w := newWorld(t, "own")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.try(canceled, "rows", "pages"); err == nil {
		t.Error("it was sealed though nobody waited for it")
	}
	if _, err := w.try(t.Context(), "rows", "", "Not A Tag"); code(err) != isle.Invalid {
		t.Error(err)
	}
	w.store.Fail(isle.Errorf(isle.Exhausted, "no space left"))
	if _, err := w.try(t.Context(), "rows", "pages"); code(err) != isle.Exhausted {
		t.Error(err)
	}
	w.store.Fail(nil)
	d, err := w.Draft()
	if err != nil {
		t.Fatal(err)
	}
	d.Volume("db", "/data") // nothing was captured into it
	if _, err := d.Seal(t.Context(), alice, manifest()); err == nil {
		t.Error("a volume that is not there was sealed")
	}
	if folders, volumes := w.left(); len(folders)+len(volumes) != 0 {
		t.Errorf("%v %v", folders, volumes)
	}
	if len(w.Volumes()) != 0 {
		t.Error(w.Volumes())
	}
	made := w.seal("rows", "", "before")
	if _, err := w.try(t.Context(), "others", "", "before"); code(err) != isle.Conflict {
		t.Error(err)
	}
	if _, err := w.try(t.Context(), "rows", ""); code(err) != isle.Conflict { // the clock stands still: it is the same
		t.Error(err)
	}
	if _, done, err := w.Use(t.Context(), made.Digest.Hex()); err != nil {
		t.Error(err)
	} else {
		done()
	}
}

func TestAServerThatDiesLeavesTheSnapshotOrNothing(t *testing.T) {
	for _, point := range FaultPoints() {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, "own")
			w.seal("kept", "pages", "kept")
			func() {
				defer func() {
					if p := recover(); p != point {
						panic(p)
					}
				}()
				w.config.Fault = func(p string) {
					if p == point {
						panic(p) // what is deferred must not clean up: see Discard
					}
				}
				w.open()
				d, err := w.Draft()
				if err != nil {
					t.Fatal(err)
				}
				w.put(d.Volume("db", "/data"), 8<<20, map[int64]string{0: "rows"})
				if err := os.WriteFile(filepath.Join(d.Memory(), "pages.img"), []byte("pages"), 0o600); err != nil {
					t.Fatal(err)
				}
				m := manifest()
				m.Memory = &Memory{Runtime: isle.DigestOf([]byte("runsc"))}
				snap, err := d.Seal(t.Context(), alice, m)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Remove(t.Context(), alice, snap.Digest.Hex(), false); err != nil {
					t.Fatal(err)
				}
			}()
			w.config.Fault = nil
			w.open()
			list, err := w.List()
			if err != nil {
				t.Fatal(err)
			}
			folders, volumes := w.left()
			if len(folders) != len(list) || len(volumes) != len(list) || len(w.Volumes()) != len(list) {
				t.Errorf("%d snapshots, and %v %v", len(list), folders, volumes)
			}
			for _, s := range list {
				if _, err := w.Verify(t.Context(), s.Digest.Hex()); err != nil {
					t.Error(err)
				}
			}
			if _, err := w.Get("kept"); err != nil || (point == "snapshot.recorded") != (len(list) == 2) {
				t.Errorf("after %s there are %d", point, len(list))
			}
		})
	}
}

func TestASnapshotIsRemovedWhenNothingStandsOnIt(t *testing.T) {
	w := newWorld(t, "own")
	parent := w.seal("one", "", "first")
	d, err := w.Draft()
	if err != nil {
		t.Fatal(err)
	}
	w.put(d.Volume("db", "/data"), 8<<20, nil)
	m := manifest()
	m.Parent = parent.Digest
	child, err := d.Seal(t.Context(), alice, m)
	if err != nil {
		t.Fatal(err)
	}
	users := map[isle.Digest][]string{child.Digest: {"shop-f1"}}
	w.cfg.InUse = func(d isle.Digest) []string { return users[d] }
	if _, err := w.Remove(t.Context(), alice, child.Digest.Hex(), false); code(err) != isle.Conflict || !strings.Contains(err.Error(), "shop-f1") {
		t.Error(err)
	}
	_, done, err := w.Use(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), alice, "first", true); code(err) != isle.Conflict || !strings.Contains(err.Error(), "in use") {
		t.Error(err)
	}
	done()
	done() // twice is once
	// Its child has all that it needs.
	if _, err := w.Remove(t.Context(), alice, "first", false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get("first"); code(err) != isle.NotFound {
		t.Error(err)
	}
	v, err := w.Verify(t.Context(), child.Digest.Hex())
	if err != nil || v.Gone != parent.Digest {
		t.Errorf("%+v %v", v, err)
	}
	users[child.Digest] = nil
	if _, err := w.Remove(t.Context(), alice, child.Digest.Hex(), false); err != nil {
		t.Fatal(err)
	}
	if folders, volumes := w.left(); len(folders)+len(volumes) != 0 {
		t.Errorf("%v %v", folders, volumes)
	}
}

func TestATagIsOfOneSnapshot(t *testing.T) {
	w := newWorld(t, "own")
	a, b := w.seal("one", ""), w.seal("two", "")
	for _, bad := range []string{"", "Up", "a b", "deadbeef", "facade", "a/b"} {
		if _, err := w.Tag(t.Context(), alice, a.Digest.Hex(), bad, false); code(err) != isle.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := w.Tag(t.Context(), alice, a.Digest.Hex(), "good", false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Tag(t.Context(), alice, b.Digest.Hex(), "good", false); code(err) != isle.Conflict || !strings.Contains(err.Error(), "--move") {
		t.Error(err)
	}
	if got, err := w.Tag(t.Context(), alice, b.Digest.Hex(), "good", true); err != nil || got.Digest != b.Digest {
		t.Error(got, err)
	}
	w.open()
	if got, err := w.Get("good"); err != nil || got.Digest != b.Digest {
		t.Error(got, err)
	}
	if err := w.Untag(t.Context(), alice, "good"); err != nil {
		t.Error(err)
	}
	if err := w.Untag(t.Context(), alice, "good"); code(err) != isle.NotFound {
		t.Error(err)
	}
	var did []string
	for _, e := range w.store.Entries() {
		if e.Action == isle.ActionSnapshotTag {
			did = append(did, isle.Digest(e.Details["before"]).Short()+">"+isle.Digest(e.Details["snapshot"]).Short())
		}
	}
	if want := []string{">" + a.Digest.Short(), a.Digest.Short() + ">" + b.Digest.Short(), b.Digest.Short() + ">"}; !slices.Equal(did, want) {
		t.Errorf("the log has %v, want %v", did, want)
	}
}

func TestKeysOfOtherServersAreTrustedUntilTheyAreNot(t *testing.T) {
	w, other := newWorld(t, "own"), keyOf(t, "other")
	for _, bad := range []string{"", "x", "own+00000000+AAAA", other.Verifier() + "x"} {
		if _, err := w.Trust(t.Context(), alice, bad); code(err) != isle.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := w.Trust(t.Context(), alice, other.Verifier()+"\n"); err != nil {
		t.Fatal(err)
	}
	w.open()
	keys, err := w.Keys()
	if err != nil || len(keys) != 2 || !keys[0].Own || keys[1].Key != other.Verifier() {
		t.Errorf("%+v %v", keys, err)
	}
	d := isle.DigestOf([]byte("x"))
	sig, err := other.Sign(seal.NoteText(shelfKind, d))
	if err != nil {
		t.Fatal(err)
	}
	if name, trusted, err := w.shelf.OpenNote(sig, d); err != nil || !trusted || name != "other" {
		t.Error(name, trusted, err)
	}
	if _, err := w.Distrust(t.Context(), alice, "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Distrust(t.Context(), alice, "other"); code(err) != isle.NotFound {
		t.Error(err)
	}
	if name, trusted, err := w.shelf.OpenNote(sig, d); err != nil || trusted || name != "other" {
		t.Error(name, trusted, err)
	}
}
