package secret

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

var ann = isle.Actor{Kind: isle.Human, Name: "ann"}

// A world is a store with its key and secrets.
type world struct {
	t     *testing.T
	store *ledgertest.Memory
	cfg   Config
	key   *Keyring
	s     *Secrets
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: ledgertest.New()}
	dir := t.TempDir()
	w.cfg = Config{Files: []string{dir}, Getenv: func(name string) (string, bool) {
		v, ok := map[string]string{"ISLE_SECRET_DB": "from outside"}[name]
		return v, ok
	}}
	w.key = w.useKey(filepath.Join(dir, "keys", "key"))
	w.open()
	return w
}

func (w *world) useKey(path string) *Keyring {
	w.t.Helper()
	k, err := UseKey(w.t.Context(), KeyConfig{Store: w.store, Path: path})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// open opens the secrets again, as after a start.
func (w *world) open() {
	w.t.Helper()
	w.cfg.Store, w.cfg.Sealer, w.cfg.Log = w.store, w.key, w.store
	s, err := Open(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
}

func (w *world) set(name, value string) Secret {
	w.t.Helper()
	v, err := w.s.Set(w.t.Context(), ann, name, []byte(value))
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) resolve(name, want string) {
	w.t.Helper()
	v, err := w.s.Resolve(w.t.Context(), name)
	if err != nil || string(v.Reveal()) != want {
		w.t.Errorf("%s is %q, %v; want %q", name, v.Reveal(), err, want)
	}
}

func (w *world) last() audit.Entry {
	all := w.store.Entries()
	return all[len(all)-1]
}

func TestASecretHasTheLastValueThatWasSet(t *testing.T) {
	w := newWorld(t)
	w.set("db", "first")
	if v := w.set("db", "second"); v.Last().Number != 2 || v.Last().CreatedBy != ann || v.Last().Backend != Stored {
		t.Errorf("%+v", v)
	}
	w.set("other", "third")
	for range 2 {
		w.resolve("db", "second")
		w.resolve("other", "third")
		if _, err := w.s.Resolve(t.Context(), "none"); isle.CodeOf(err) != isle.NotFound {
			t.Error(err)
		}
		list, err := w.s.List()
		if err != nil || len(list) != 2 || list[0].Name != "db" || len(list[0].Versions) != 2 || list[1].Name != "other" {
			t.Errorf("%+v, %v", list, err)
		}
		w.open()
	}
	if err := w.s.Delete(t.Context(), ann, "db", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Delete(t.Context(), ann, "db", nil); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	w.open()
	if _, err := w.s.Resolve(t.Context(), "db"); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	records, _, err := w.store.Ledger(t.Context(), ledgerName)
	if err != nil || len(records) != 1 {
		t.Errorf("%d records are left, %v", len(records), err)
	}
}

func TestOldVersionsLoseTheirValueAndThenTheirRecord(t *testing.T) {
	w := newWorld(t)
	for i := range KnownVersions + 3 {
		w.set("db", fmt.Sprint("value ", i))
	}
	for range 2 {
		list, err := w.s.List()
		if err != nil {
			t.Fatal(err)
		}
		v := list[0].Versions
		if len(v) != KnownVersions || v[0].Number != 4 {
			t.Errorf("%d versions from %d on", len(v), v[0].Number)
		}
		for i, v := range v {
			if gone := i < KnownVersions-KeptVersions; v.Destroyed != gone || (v.sealed == nil) != gone {
				t.Errorf("version %d: destroyed %v, %d sealed bytes", v.Number, v.Destroyed, len(v.sealed))
			}
		}
		w.resolve("db", fmt.Sprint("value ", KnownVersions+2))
		w.open()
	}
}

func TestNothingOfAValueIsInTheStoreOrTheLog(t *testing.T) {
	w := newWorld(t)
	const canary = "canary-3f9c1e0b77"
	w.set("db", canary)
	if _, _, err := w.s.Check(t.Context(), ann, "db"); err != nil {
		t.Fatal(err)
	}
	records, _, _ := w.store.Ledger(t.Context(), ledgerName)
	all, err := json.Marshal(struct{ A, B any }{records, w.store.Entries()})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		all = append(all, r.Body...)
	}
	for _, needle := range Encodings(canary) {
		if bytes.Contains(all, []byte(needle)) {
			t.Errorf("found %q", needle)
		}
	}
	for _, e := range w.store.Entries() {
		if e.Resource.Kind == "secret" && (len(e.Details) > 2 || e.Summary != "") {
			t.Errorf("an entry says more than it must: %+v", e)
		}
	}
}

func TestEachChangeIsInTheLogWithItsVersion(t *testing.T) {
	w := newWorld(t)
	check := func(action isle.Action, details map[string]string, result string) {
		t.Helper()
		e := w.last()
		if e.Action != action || e.Resource != (isle.Resource{Kind: "secret", Name: "db"}) || e.Actor != ann || e.Result != result || fmt.Sprint(e.Details) != fmt.Sprint(details) {
			t.Errorf("%+v", e)
		}
	}
	w.set("db", "x")
	check(isle.ActionSecretSet, map[string]string{"version": "1", "backend": Stored}, "ok")
	if _, err := w.s.Refer(t.Context(), ann, "db", Environment, "ISLE_SECRET_NONE"); err != nil {
		t.Fatal(err)
	}
	check(isle.ActionSecretSet, map[string]string{"version": "2", "backend": Environment, "reference": "ISLE_SECRET_NONE"}, "ok")
	if _, _, err := w.s.Check(t.Context(), ann, "db"); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
	check(isle.ActionSecretCheck, map[string]string{"version": "2"}, "unavailable")
	if err := w.s.Delete(t.Context(), ann, "db", []string{"orders"}); err != nil {
		t.Fatal(err)
	}
	check(isle.ActionSecretDelete, map[string]string{"version": "2", "used_by": "orders"}, "ok")
}

func TestWhatIsNoSecretIsRefused(t *testing.T) {
	w := newWorld(t)
	before := len(w.store.Entries())
	for _, c := range []struct {
		name, value string
	}{{"", "x"}, {"DB", "x"}, {"a/b", "x"}, {"../x", "x"}, {strings.Repeat("a", 41), "x"}, {"db", ""}, {"db", strings.Repeat("x", MaxValue+1)}} {
		if _, err := w.s.Set(t.Context(), ann, c.name, []byte(c.value)); isle.CodeOf(err) != isle.Invalid || strings.Contains(err.Error(), "xx") {
			t.Errorf("%q: %v", c.name, err)
		}
	}
	for _, c := range [][2]string{{"stored", ""}, {"", "x"}, {"s3", "x"}, {Environment, "PATH"}, {Environment, "ISLE_SECRET_"}, {Environment, "ISLE_SECRET_a"}, {Environment, "ISLE_SECRET_A=B"}, {File, "relative"}, {File, w.cfg.Files[0] + "/../x"}, {File, ""}, {Vault, "kv/a#b"}, {Environment, strings.Repeat("A", 2000)}, {File, w.cfg.Files[0] + "/a\nb"}} {
		if _, err := w.s.Refer(t.Context(), ann, "db", c[0], c[1]); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q: %v", c, err)
		}
	}
	if _, err := w.s.Refer(t.Context(), ann, "db", File, "/etc/shadow"); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "--secret-files") {
		t.Errorf("a file that is not for connections: %v", err)
	}
	if n := len(w.store.Entries()); n != before {
		t.Errorf("%d entries of what did not happen", n-before)
	}
	w.set("db", strings.Repeat("x", MaxValue))
	w.resolve("db", strings.Repeat("x", MaxValue))
}

func TestAWriteThatFailsLeavesWhatWasThere(t *testing.T) {
	w := newWorld(t)
	w.set("db", "first")
	w.store.Fail(isle.Errorf(isle.Exhausted, "the disk is full"))
	if _, err := w.s.Set(t.Context(), ann, "db", []byte("second")); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	if err := w.s.Delete(t.Context(), ann, "db", nil); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	if _, _, err := w.s.Check(t.Context(), ann, "db"); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("a value was taken though that could not be recorded: %v", err)
	}
	w.resolve("db", "first")
	w.store.Fail(nil)
	if v := w.set("db", "third"); v.Last().Number != 2 {
		t.Errorf("version %d", v.Last().Number)
	}
}

func TestRecordsThatWereMovedBehindTheLogAreNotUsed(t *testing.T) {
	body := func(rs []ledger.Record, key string) *[]byte {
		i := slices.IndexFunc(rs, func(r ledger.Record) bool { return r.Key == key })
		return &rs[i].Body
	}
	for name, edit := range map[string]func([]ledger.Record) []ledger.Record{
		"two swapped": func(rs []ledger.Record) []ledger.Record {
			a, b := body(rs, "db/2"), body(rs, "other/1")
			*a, *b = *b, *a
			return rs
		},
		"an old version put back": func(rs []ledger.Record) []ledger.Record {
			*body(rs, "db/2") = bytes.Clone(*body(rs, "db/1"))
			return rs
		},
		"the last one taken away": func(rs []ledger.Record) []ledger.Record {
			return slices.DeleteFunc(rs, func(r ledger.Record) bool { return r.Key == "db/2" })
		},
		"one added": func(rs []ledger.Record) []ledger.Record {
			return append(rs, ledger.Record{Key: "third/1", Body: bytes.Clone(*body(rs, "db/1"))})
		},
		"a reference pointed elsewhere": func(rs []ledger.Record) []ledger.Record {
			*body(rs, "db/2") = []byte(`{"backend":"environment","reference":"ISLE_SECRET_DB"}`)
			return rs
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.set("db", "first")
			w.set("db", "second")
			w.set("other", "third")
			w.store.Edit(ledgerName, edit)
			w.open()
			if err := w.s.Err(); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "changed behind the log") {
				t.Errorf("not noticed: %v", err)
			}
			if _, err := w.s.Resolve(t.Context(), "db"); isle.CodeOf(err) != isle.Unavailable {
				t.Errorf("used: %v", err)
			}
			if _, err := w.s.List(); isle.CodeOf(err) != isle.Unavailable {
				t.Error(err)
			}
			if _, err := w.s.Set(t.Context(), ann, "db", []byte("x")); isle.CodeOf(err) != isle.Unavailable {
				t.Errorf("written over: %v", err)
			}
		})
	}
}

// Whoever can write the log's key too could make the ledger fit: the seal still
// says what a value is for.
func TestASealedValueIsNoOtherSecretsAndNoOtherVersions(t *testing.T) {
	w := newWorld(t)
	w.set("db", "first")
	w.set("db", "second")
	w.set("other", "third")
	for name, from := range map[string]Version{"an old version": w.s.secrets["db"].Versions[0], "another secret": w.s.secrets["other"].Last()} {
		moved := w.s.secrets["db"]
		moved.Versions = slices.Clone(moved.Versions)
		moved.Versions[1].sealed = from.sealed
		if v, err := w.s.take(t.Context(), moved); isle.CodeOf(err) != isle.Unavailable || v.Reveal() != nil {
			t.Errorf("%s opened: %v", name, err)
		}
	}
}

func TestAMissingOrAnotherKeyIsSaidAndNeverReplaced(t *testing.T) {
	w := newWorld(t)
	w.set("db", "first")
	path, good := w.key.Path(), w.key.ID()
	kept := path + ".kept"
	if err := os.Rename(path, kept); err != nil {
		t.Fatal(err)
	}
	expect := func(text string) {
		t.Helper()
		w.key = w.useKey(path)
		w.open()
		for _, err := range []error{
			w.key.Err(),
			func() error { _, err := w.s.Resolve(t.Context(), "db"); return err }(),
			func() error { _, err := w.s.Set(t.Context(), ann, "new", []byte("x")); return err }(),
		} {
			if isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v; want %q", err, text)
			}
		}
		if list, err := w.s.List(); err != nil || len(list) != 1 {
			t.Errorf("what is there is not listed: %v", err)
		}
		if _, err := w.s.Refer(t.Context(), ann, "outside", Environment, "ISLE_SECRET_DB"); err != nil {
			t.Errorf("a reference needs no key: %v", err)
		}
		w.resolve("outside", "from outside")
		if err := w.s.Delete(t.Context(), ann, "outside", nil); err != nil {
			t.Errorf("what cannot be opened can be deleted: %v", err)
		}
	}
	expect("is missing")
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a new key was made over what another one sealed")
	}
	if _, err := OpenKeyring(path, true); err != nil {
		t.Fatal(err)
	}
	expect("is another one")
	os.Chmod(path, 0o644)
	expect("others than its owner may use it")
	os.WriteFile(path, []byte("isle-key-1"), 0o600)
	os.Chmod(path, 0o600)
	expect("is no key")

	if err := os.Rename(kept, path); err != nil {
		t.Fatal(err)
	}
	if w.key = w.useKey(path); w.key.ID() != good {
		t.Errorf("the key that was put back is %s", w.key.ID())
	}
	w.open()
	w.resolve("db", "first")
}

func TestAKeyThatCannotBeRecordedCountsAtTheNextStart(t *testing.T) {
	store, path := ledgertest.New(), filepath.Join(t.TempDir(), "keys", "key")
	full := isle.Errorf(isle.Exhausted, "the disk is full")
	k, err := UseKey(t.Context(), KeyConfig{Store: failing{store, full}, Path: path})
	if err != nil || isle.CodeOf(k.Err()) != isle.Unavailable || !strings.Contains(k.Err().Error(), "the disk is full") {
		t.Fatalf("%v, %v", k.Err(), err)
	}
	made, err := OpenKeyring(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = UseKey(t.Context(), KeyConfig{Store: store, Path: path}); err != nil || k.ID() != made.ID() {
		t.Errorf("%v, %v", k.Err(), err)
	}
}

// failing is a store that can be read only.
type failing struct {
	*ledgertest.Memory
	err error
}

func (f failing) ChangeLedger(context.Context, ledger.Change) error { return f.err }

func TestANewKeyGivesUpWhatTheOldOneSealed(t *testing.T) {
	w := newWorld(t)
	w.set("db", "first")
	old := w.key.ID()
	os.Remove(w.key.Path())
	anew := KeyConfig{Store: w.store, Path: w.key.Path(), Anew: true}
	for range 2 { // given again it changes nothing
		k, err := UseKey(t.Context(), anew)
		if err != nil || k.ID() == old || k.Err() != nil {
			t.Fatal(k, err)
		}
		w.key = k
		w.open()
	}
	if e := w.last(); e.Action != isle.ActionSecretKey || e.Details["instead_of"] != old || e.Details["key"] != w.key.ID() {
		t.Errorf("%+v", e)
	}
	if _, err := w.s.Resolve(t.Context(), "db"); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "sealed under the key "+old) {
		t.Error(err)
	}
	w.set("db", "second")
	w.resolve("db", "second")
}

func TestManyAtOnceGetOneWholeVersionEach(t *testing.T) {
	w := newWorld(t)
	w.set("db", "value 0")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 10 {
				if _, err := w.s.Set(t.Context(), ann, "db", fmt.Appendf(nil, "value %d-%d", i, j)); err != nil {
					t.Error(err)
				}
				v, err := w.s.Resolve(t.Context(), "db")
				if err != nil || !strings.HasPrefix(string(v.Reveal()), "value ") {
					t.Errorf("%q, %v", v.Reveal(), err)
				}
				v.Destroy()
				if _, err := w.s.List(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	list, err := w.s.List()
	if err != nil || list[0].Last().Number != 41 {
		t.Errorf("%+v, %v", list[0].Last(), err)
	}
	for i, v := range list[0].Versions {
		if v.Number != i+1 {
			t.Errorf("version %d is the %d.", v.Number, i+1)
		}
	}
	w.open()
	if err := w.s.Err(); err != nil {
		t.Error(err)
	}
}

func TestAValueDoesNotPrintItself(t *testing.T) {
	const canary = "canary-value"
	v := newValue([]byte(canary))
	held := struct {
		V   Value
		v   Value
		Map map[string]Value
	}{v, v, map[string]Value{"a": v}}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "v", v, "held", held)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "v", v, "held", held)
	j, err := json.Marshal(held)
	if err != nil {
		t.Fatal(err)
	}
	all := logged.String() + string(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b"} {
		all += fmt.Sprintf(verb, v) + fmt.Sprintf(verb, held) + fmt.Sprintf(verb, &held) + fmt.Errorf(verb, v).Error()
	}
	for _, needle := range append(Encodings(canary), fmt.Sprint(v.Reveal()), fmt.Sprintf("%#v", v.Reveal())) {
		if strings.Contains(all, strings.Trim(needle, "[]")) {
			t.Errorf("printed as %q in %s", needle, all)
		}
	}
	if string(v.Reveal()) != canary {
		t.Error("it does not reveal itself when asked to")
	}
	b := v.Reveal()
	v.Destroy()
	if string(b) != strings.Repeat("\x00", len(canary)) {
		t.Errorf("it is still there: %q", b)
	}
	Value{}.Destroy()
}

func TestAKeyForAPurposeIsTheSameEachTimeAndNoOther(t *testing.T) {
	w := newWorld(t)
	a, err := w.key.Derive("masks")
	if err != nil {
		t.Fatal(err)
	}
	again, _ := w.key.Derive("masks")
	other, _ := w.key.Derive("mask")
	if !bytes.Equal(a, again) || bytes.Equal(a, other) || len(a) != 32 {
		t.Errorf("%x, %x, %x", a, again, other)
	}
}
