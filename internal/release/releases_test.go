package release

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/ledger"
	"isle/internal/seal"
)

func TestEqualInputsGiveAnEqualReleaseWhoeverMakesItWhenAndWhere(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	there.config.Now = func() time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) }
	there.open()
	a := here.create(shop(t, "postgresql-15 and 84 more"))
	req := shop(t, "another title")
	req.Source = Source{Dirty: true}
	b, made, err := there.Create(t.Context(), isle.Actor{Kind: isle.Machine, Name: "ci"}, req)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if a.Digest != b.Digest {
		t.Errorf("%s and %s", a.Digest, b.Digest)
	}
	if a.Manifest.Services[0].Digest != req.Images["db"].Digest() {
		t.Error("its image is not the one that was built")
	}
	req.Spec.Limits.Memory++
	if c := there.create(req); c.Digest == a.Digest {
		t.Error("another limit, and the same release")
	}
	req = shop(t, "")
	req.Spec.Uses = []string{"another-db"}
	if c := there.create(req); c.Digest == a.Digest {
		t.Error("another door, and the same release")
	}
}

func TestARepeatedReleaseAddsOnlyWhereItComesFrom(t *testing.T) {
	w := newWorld(t, "here")
	req := shop(t, "")
	commit := req.Source.Commit
	req.Source = Source{Commit: commit, Dirty: true}
	first := w.create(req)
	if again := w.create(req); len(again.Attestations) != 2 || again.Digest != first.Digest {
		t.Errorf("%d attestations", len(again.Attestations))
	}
	req.Source = Source{Commit: commit}
	clean, made, err := w.Create(t.Context(), alice, req)
	if err != nil || made || len(clean.Attestations) != 3 || clean.Attestations[2].Source != req.Source {
		t.Fatalf("%v %v %v", made, clean.Attestations, err)
	}
	w.open()
	if v, err := w.Verify(t.Context(), string(first.Digest)); err != nil || len(v.Release.Attestations) != 3 {
		t.Error(v.Release.Attestations, err)
	}
}

func TestWhatWasChangedIsNeverLaunched(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(w *world, rel Release)
		want   isle.Code
		verify bool // found by Verify alone
	}{
		{"manifest", func(w *world, rel Release) { damage(t, filepath.Join(w.dir(rel.Digest), seal.FileManifest)) }, isle.Untrusted, false},
		{"signature", func(w *world, rel Release) { damage(t, filepath.Join(w.dir(rel.Digest), seal.FileSignature)) }, isle.Untrusted, false},
		{"another's signature", func(w *world, rel Release) {
			b, _ := w.config.Key.Sign(seal.NoteText(shelfKind, isle.DigestOf([]byte("another"))))
			path := filepath.Join(w.dir(rel.Digest), seal.FileSignature)
			os.Remove(path)
			os.WriteFile(path, b, 0o400)
		}, isle.Untrusted, false},
		{"manifest gone", func(w *world, rel Release) { os.Remove(filepath.Join(w.dir(rel.Digest), seal.FileManifest)) }, isle.Untrusted, false},
		{"layer", func(w *world, rel Release) { w.images.damaged[rel.Manifest.Services[1].Image.Layers[1].Digest] = true }, isle.Invalid, false},
		{"provenance", func(w *world, rel Release) {
			damage(t, filepath.Join(w.dir(rel.Digest), rel.Attestations[0].file()))
		}, isle.Untrusted, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, "here")
			rel := w.create(shop(t, ""))
			if _, images, err := w.Launch(t.Context(), rel.Digest.Hex()[:8]); err != nil || len(images) != 2 {
				t.Fatal(images, err)
			}
			if _, err := w.Verify(t.Context(), string(rel.Digest)); err != nil {
				t.Fatal(err)
			}
			test.change(w, rel)
			if _, _, err := w.Launch(t.Context(), string(rel.Digest)); code(err) != test.want && !test.verify {
				t.Errorf("launched: %v", err)
			}
			if _, err := w.Verify(t.Context(), string(rel.Digest)); code(err) != test.want {
				t.Errorf("verified: %v", err)
			}
		})
	}
}

func TestARecordThatTheLogDoesNotVouchForIsNotUsed(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	w.store.Edit(shelfKind, func(records []ledger.Record) []ledger.Record {
		records[0].Body = []byte(`{}`)
		return records
	})
	w.open()
	if _, err := w.Use(string(rel.Digest)); code(err) != isle.Unavailable {
		t.Error(err)
	}
	if _, err := os.Stat(w.dir(rel.Digest)); err != nil {
		t.Error("what is in doubt was taken away:", err)
	}
}

func TestWhatNobodyTrustedSignedIsNotLaunched(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	other := keyOf(t, "other")
	w.config.Key = other
	w.open()
	if _, _, err := w.Launch(t.Context(), string(rel.Digest)); code(err) != isle.Untrusted || !strings.Contains(err.Error(), "here") {
		t.Fatal(err)
	}
	if _, err := w.Trust(t.Context(), alice, keyOf(t, "here").Verifier()); err != nil {
		t.Fatal(err)
	}
	w.open()
	if _, _, err := w.Launch(t.Context(), string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Distrust(t.Context(), alice, "here"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Launch(t.Context(), string(rel.Digest)); code(err) != isle.Untrusted {
		t.Fatal(err)
	}
}

func TestACrashLeavesAReleaseOrNone(t *testing.T) {
	for _, point := range FaultPoints()[:4] {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, "here")
			died := errors.New("died")
			w.config.Fault = func(at string) {
				if at == point {
					panic(died)
				}
			}
			w.open()
			func() {
				defer func() {
					if r := recover(); r != nil && r != died {
						panic(r)
					}
				}()
				rel := w.create(shop(t, ""))
				w.Remove(t.Context(), alice, string(rel.Digest))
			}()
			w.config.Fault = nil
			w.open()
			list, err := w.List()
			want := 0
			if point == "release.recorded" {
				want = 1
			}
			if err != nil || len(list) != want {
				t.Fatal(list, err)
			}
			entries, _ := os.ReadDir(w.config.Dir)
			if len(entries) != want {
				t.Errorf("left behind: %v", entries)
			}
			if rel := w.create(shop(t, "")); rel.Broken != nil || !rel.Trusted {
				t.Error(rel)
			}
		})
	}
}

func TestAReleaseThatRunsIsNotRemoved(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	w.Releases.cfg.InUse = func(isle.Digest) []string { return []string{"shop@production"} }
	if _, err := w.Remove(t.Context(), alice, string(rel.Digest)); code(err) != isle.Conflict || !strings.Contains(err.Error(), "shop@production") {
		t.Fatal(err)
	}
	w.Releases.cfg.InUse = func(isle.Digest) []string { return nil }
	if _, err := w.Remove(t.Context(), alice, string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Look(string(rel.Digest)); code(err) != isle.NotFound {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	m, err := New(shop(f, "").Spec, shop(f, "").Images)
	if err != nil {
		f.Fatal(err)
	}
	b, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"project":"a","spec":{},"services":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s was read, and is written as %s: %v", b, again, err)
		}
	})
}
