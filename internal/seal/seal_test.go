package seal

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"isle"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

func keyOf(t testing.TB, name string) *Key {
	t.Helper()
	k, err := NewKey(name, bytes.Repeat([]byte(name[:1]), ed25519.SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestANoteIsOfItsTextAndItsKey(t *testing.T) {
	k, other := keyOf(t, "server"), keyOf(t, "other")
	signed, err := k.Sign("a text\n")
	if err != nil {
		t.Fatal(err)
	}
	verifier := func(k *Key) note.Verifier {
		v, err := ParseVerifier(k.Verifier())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if name, trusted, err := OpenNote(signed, "it", "a text\n", []note.Verifier{verifier(other), verifier(k)}); err != nil || !trusted || name != "server" {
		t.Error(name, trusted, err)
	}
	if name, trusted, err := OpenNote(signed, "it", "a text\n", []note.Verifier{verifier(other)}); err != nil || trusted || name != "server" {
		t.Error(name, trusted, err)
	}
	for name, b := range map[string][]byte{"another text": signed, "no note": []byte("a text\n"), "too long": bytes.Repeat([]byte("a"), MaxNote+1)} {
		text := "a text\n"
		if name == "another text" {
			text = "b text\n"
		}
		if _, _, err := OpenNote(b, "it", text, []note.Verifier{verifier(k)}); isle.CodeOf(err) != isle.Untrusted {
			t.Errorf("%s: %v", name, err)
		}
	}
	public, err := PublicOf(k.Verifier())
	if err != nil || !public.Equal(k.Public()) || !ed25519.Verify(public, []byte("m"), k.SignBytes([]byte("m"))) {
		t.Error(public, err)
	}
	for _, bad := range []string{"", "a+b", "server+00000000+AAAA", k.Verifier() + "\x00"} {
		if _, err := PublicOf(bad); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOnlyASealedFileIsOpened(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := Write(at("whole"), []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if b, err := Read(at("whole"), 5); err != nil || string(b) != "whole" {
		t.Error(string(b), err)
	}
	if _, err := Read(at("whole"), 4); isle.CodeOf(err) != isle.Untrusted {
		t.Error(err)
	}
	os.Symlink(at("whole"), at("link"))
	os.Mkdir(at("folder"), 0o700)
	os.WriteFile(at("open"), nil, 0o600)
	os.Chmod(at("open"), 0o622)
	os.WriteFile(at("one"), nil, 0o400)
	os.Link(at("one"), at("two"))
	for _, name := range []string{"link", "folder", "open", "one"} {
		if f, err := Open(at(name)); isle.CodeOf(err) != isle.Untrusted {
			f.Close()
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := SyncFolder(dir); err != nil {
		t.Error(err)
	}
}

func TestARingIsWhatItsLedgerSays(t *testing.T) {
	store := ledgertest.New()
	open := func() (*Ring, *ledger.Ledger) {
		l, records, err := ledger.Open(t.Context(), store, "seal")
		if err != nil {
			t.Fatal(err)
		}
		r := NewRing(keyOf(t, "server"), "release", isle.ActionReleaseTrust)
		for _, rec := range records {
			if !r.Load(rec) {
				t.Fatalf("%s is no record of a key", rec.Key)
			}
		}
		return r, l
	}
	alice := isle.Actor{Kind: isle.Human, Name: "alice"}
	r, l := open()
	other := keyOf(t, "other")
	for range 2 { // again it changes nothing
		if k, err := r.Trust(t.Context(), l, alice, " "+other.Verifier()+"\n"); err != nil || k.Name != "other" || k.Own {
			t.Fatal(k, err)
		}
	}
	if k, err := r.Trust(t.Context(), l, alice, r.Own().Verifier()); err != nil || !k.Own {
		t.Error(k, err)
	}
	if _, err := r.Trust(t.Context(), l, alice, "nonsense"); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "isle release trust") {
		t.Error(err)
	}
	r, l = open()
	if keys := r.Keys(); len(keys) != 2 || !keys[0].Own || keys[1].Name != "other" || len(r.Verifiers()) != 2 {
		t.Error(keys)
	}
	if _, err := r.Distrust(t.Context(), l, alice, "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Distrust(t.Context(), l, alice, "other"); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	if r, _ := open(); len(r.Keys()) != 1 {
		t.Error(r.Keys())
	}
	if n := len(store.Entries()); n != 2 {
		t.Errorf("%d entries", n)
	}
}
