package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

func signer(t testing.TB) *Signer {
	t.Helper()
	s, err := OpenSigner(filepath.Join(t.TempDir(), "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheKeyIsMadeOnceAndForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := OpenSigner(path, false); isle.CodeOf(err) != isle.Unavailable {
		t.Fatalf("a key that is lost: %v", err)
	}
	a, err := OpenSigner(path, true)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	b, err := OpenSigner(path, true)
	if err != nil || a.Key() != b.Key() {
		t.Fatalf("%s, then %s (%v)", a.Key(), b.Key(), err)
	}
	if err := os.WriteFile(path, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSigner(path, true); isle.CodeOf(err) != isle.Invalid {
		t.Fatalf("a damaged key: %v", err)
	}
}

func TestACheckpointIsReadAndItsSignatureChecked(t *testing.T) {
	s, other := signer(t), signer(t)
	c, err := s.Sign(Head{3, tlog.RecordHash([]byte("x"))})
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCheckpoint(c.Note, s.Key())
	if err != nil || got.Head != c.Head || got.Origin != s.Origin() {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := ParseCheckpoint(c.Note, other.Key()); err == nil {
		t.Error("another log's key is taken")
	}
	forged := []byte(strings.Replace(string(c.Note), "\n3\n", "\n4\n", 1))
	if _, err := ParseCheckpoint(forged, s.Key()); err == nil {
		t.Error("a forged size is taken")
	}
	extended := strings.Replace(string(c.Note), "\n\n", "\nextension\n\n", 1)
	if got, err := ParseCheckpoint([]byte(extended), ""); err != nil || got.Head != c.Head {
		t.Errorf("an extension line: %v", err)
	}
	for _, bad := range []string{"", "a\n1\n", "a\n01\n" + c.Root.String() + "\n\n— a x\n", "a\n-1\n" + c.Root.String() + "\n\n", "a\n1\nxx\n\n", "\n1\n" + c.Root.String() + "\n\n", "a b\n1\n" + c.Root.String() + "\n\n"} {
		if _, err := ParseCheckpoint([]byte(bad), ""); isle.CodeOf(err) != isle.Invalid || err == nil {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAWitnessCosignatureIsCheckedAndSaysWhen(t *testing.T) {
	c, err := signer(t).Sign(Head{3, tlog.RecordHash([]byte("x"))})
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	// c2sp.org/tlog-cosignature, by hand.
	key := append([]byte{4}, public...)
	id := sha256.Sum256(append([]byte("witness.example\n"), key...))
	vkey := fmt.Sprintf("witness.example+%08x+%s", binary.BigEndian.Uint32(id[:4]), base64.StdEncoding.EncodeToString(key))
	text, _, _ := strings.Cut(string(c.Note), "\n\n")
	sig := append(id[:4:4], binary.BigEndian.AppendUint64(nil, 1_700_000_000)...)
	sig = append(sig, ed25519.Sign(private, []byte("cosignature/v1\ntime 1700000000\n"+text+"\n"))...)
	note := string(c.Note) + "— witness.example " + base64.StdEncoding.EncodeToString(sig) + "\n"

	got, err := Cosignatures([]byte(note), []string{vkey})
	if err != nil || len(got) != 1 || got[0].Time.Unix() != 1_700_000_000 {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := Cosignatures(c.Note, []string{vkey}); err != nil || len(got) != 0 {
		t.Errorf("none is there: %+v %v", got, err)
	}
	if _, err := Cosignatures([]byte(strings.Replace(note, "\n3\n", "\n4\n", 1)), []string{vkey}); err == nil {
		t.Error("a cosignature of something else is taken")
	}
	if _, err := Cosignatures([]byte(note), []string{strings.Replace(vkey, "+", "+0", 1)}); err == nil {
		t.Error("a key that is none is taken")
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	s := signer(f)
	c, err := s.Sign(Head{3, tlog.RecordHash([]byte("x"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Note)
	f.Fuzz(func(t *testing.T, msg []byte) {
		got, err := ParseCheckpoint(msg, "")
		if err == nil && !strings.HasPrefix(string(msg), got.text()) {
			t.Fatalf("%q is read as %q", msg, got.text())
		}
		if got, err := ParseCheckpoint(msg, s.Key()); err == nil && got.Head != c.Head {
			t.Fatalf("a checkpoint that was never signed is taken: %q", msg)
		}
	})
}

func TestAClientRefusesALogThatDoesNotGoOn(t *testing.T) {
	s := signer(t)
	m := newLog(t, 40)
	say := func(m *memoryLog, since uint64, s *Signer) (string, []byte, [][]byte) {
		head := m.head(t)
		c, err := s.Sign(head)
		if err != nil {
			t.Fatal(err)
		}
		var proof []tlog.Hash
		if since <= head.Size {
			if proof, err = ProveExtends(since, head.Size, m); err != nil {
				t.Fatal(err)
			}
		}
		return s.Key(), c.Note, toBytes(proof)
	}
	mem := Memory{Dir: filepath.Join(t.TempDir(), "seen")}
	var seen *Seen
	c, err := seen.Check(say(m, 0, s))
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.Remember(Seen{"/sock", s.Key(), string(c.Note)}); err != nil {
		t.Fatal(err)
	}
	if seen, err = mem.Last("/sock"); err != nil || seen.Size() != 40 {
		t.Fatal(seen, err)
	}
	for range 10 {
		m.add(t, event("more", 50))
	}
	if _, err := seen.Check(say(m, 40, s)); err != nil {
		t.Errorf("it goes on, and is refused: %v", err)
	}
	refused := func(name string, key string, note []byte, proof [][]byte) {
		t.Helper()
		if _, err := seen.Check(key, note, proof); isle.CodeOf(err) != isle.Untrusted || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	older := newLog(t, 39)
	k, n, p := say(older, 40, s)
	refused("an older log", k, n, p)
	other := newLog(t, 3)
	for other.head(t).Size < 60 {
		other.add(t, event("other", 60))
	}
	k, n, p = say(other, 40, s)
	refused("another history", k, n, p)
	k, n, p = say(m, 40, signer(t))
	refused("another key", k, n, p)
	k, n, p = say(m, 40, s)
	refused("a proof that is cut", k, n, p[1:])

	// Of two clients the one that saw less does not undo the other.
	c, _ = seen.Check(say(m, 40, s))
	if err := mem.Remember(Seen{"/sock", s.Key(), string(c.Note)}); err != nil {
		t.Fatal(err)
	}
	if err := mem.Remember(*seen); err != nil {
		t.Fatal(err)
	}
	if again, err := mem.Last("/sock"); err != nil || again.Size() != 50 {
		t.Fatal(again.Size(), err)
	}
	if err := os.WriteFile(mem.Path("/sock"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Last("/sock"); err == nil {
		t.Error("a memory that cannot be read counts as none")
	}
}

func TestWhatIsKeptOutsideIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kept", "x")
	s := signer(t)
	k, last, err := OpenKeep(path)
	if err != nil || last != nil {
		t.Fatal(last, err)
	}
	m := newLog(t, 5)
	k.Put(m.head(t)) // not armed: what is kept is not replaced before it was compared
	if _, err := ReadKept(path); isle.CodeOf(err) != isle.NotFound {
		t.Fatal(err)
	}
	k.Arm(s)
	k.Put(m.head(t))
	m.add(t, event("x", 9))
	k.Put(m.head(t))
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k, last, err = OpenKeep(path)
	if err != nil || last == nil || last.Head != m.head(t) {
		t.Fatal(last, err)
	}
	k.Close()
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenKeep(path); isle.CodeOf(err) != isle.Invalid {
		t.Fatal(err)
	}
}
