package release

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
	"isle/internal/audit"
)

// A part is an entry of a file.
type part struct {
	name string
	body []byte
}

func partsOf(t testing.TB, file []byte) (out []part) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(file)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, part{h.Name, b})
	}
}

func fileOf(t testing.TB, parts []part) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range parts {
		if err := entry(w, p.name, int64(len(p.body)), bytes.NewReader(p.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The lock is not signed by itself: a provenance says which it is. Whoever has the
// file in hand on the way leaves that out, or puts it elsewhere.
func TestTheLockInAFileIsTheOneThatAProvenanceNames(t *testing.T) {
	w := newWorld(t, "here")
	_, file := exported(t, w, false)
	other := func(p []part) []part {
		p[2].body = bytes.Replace(p[2].body, []byte("libc6"), []byte("libc7"), 1)
		return p
	}
	for name, change := range map[string]func([]part) []part{
		"another lock, the provenance behind":         func(p []part) []part { p = other(p); p[3], p[4] = p[4], p[3]; return p },
		"another lock, without statements":            func(p []part) []part { return other(p)[:3] },
		"another lock, with a bill of materials only": func(p []part) []part { return append(other(p)[:3], p[4]) },
		"a statement twice":                           func(p []part) []part { return append(p, p[4]) },
	} {
		parts := change(partsOf(t, file))
		b := fileOf(t, parts)
		if _, err := VerifyFile(bytes.NewReader(b), []string{w.config.Key.Verifier()}); code(err) != isle.Untrusted && code(err) != isle.Invalid {
			t.Errorf("%s: verified: %v", name, err)
		}
		there := newWorld(t, "there")
		if _, err := there.Trust(t.Context(), alice, w.config.Key.Verifier()); err != nil {
			t.Fatal(err)
		}
		if _, err := there.Import(t.Context(), alice, bytes.NewReader(b), allowAll); code(err) != isle.Untrusted && code(err) != isle.Invalid {
			t.Errorf("%s: taken in: %v", name, err)
		}
	}
}

// Whoever may not import is told so before the server reads what it would keep.
func TestWhoMayImportIsAskedBeforeStatementsAreRead(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	_, file := exported(t, here, false)
	if _, err := there.Trust(t.Context(), alice, here.config.Key.Verifier()); err != nil {
		t.Fatal(err)
	}
	head := fileOf(t, partsOf(t, file)[:2])
	refused := errors.New("not you")
	from := io.MultiReader(bytes.NewReader(head[:len(head)-1024]), unread{t})
	if _, err := there.Import(t.Context(), alice, from, func(string) error { return refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
}

// An unread is what nobody reads.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("more of the file is read")
	return 0, io.ErrUnexpectedEOF
}

// A file that says the same again and again does not count for more, and takes no
// memory for it.
func TestAHistoryThatRepeatsItselfIsRefused(t *testing.T) {
	file, keys := bundled(t, func(p *audit.Proof) {})
	parts := partsOf(t, file)
	last := len(parts) - 1
	for name, repeated := range map[string][]part{
		"an entry":  append(append(append([]part{}, parts[:last]...), parts[1]), parts[last]),
		"a release": append(append([]part{}, parts...), parts[last]),
	} {
		if got, err := VerifyBundle(bytes.NewReader(fileOf(t, repeated)), keys); code(err) != isle.Invalid {
			t.Errorf("%s twice: %d entries, %d releases, %d attestations, %v", name, len(got.Entries), len(got.Releases), got.Vouched, err)
		}
	}
}

// A lock that was changed on disk is not sent out as the release's.
func TestALockThatWasChangedOnDiskIsNotExported(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	path := filepath.Join(w.dir(rel.Digest), fileLock)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), "libc6", "libc7", 1)), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := w.Export(t.Context(), string(rel.Digest), false, io.Discard); code(err) != isle.Untrusted {
		t.Errorf("exported: %v", err)
	}
	if _, err := w.Verify(t.Context(), string(rel.Digest)); code(err) != isle.Untrusted {
		t.Errorf("verified: %v", err)
	}
}

// What is told of a release in lines of its own is not for its signer to write.
func TestASignerWritesNoLinesOfItsOwn(t *testing.T) {
	const forged = "\nrelease 0123456789ab of shop is whole, signed by isle-releases/production"
	for name, change := range map[string]func(*Request){
		"as a commit":     func(r *Request) { r.Source.Commit = "1" + forged },
		"as a branch":     func(r *Request) { r.Source.Branch = "main\x1b[2J" },
		"as a repository": func(r *Request) { r.Source.Repository = forged },
		"as what a layer is of": func(r *Request) {
			img := r.Images["web"]
			img.Layers[1].Kind = "copy" + forged
			r.Images["web"] = img
		},
	} {
		t.Run(name, func(t *testing.T) {
			there := newWorld(t, "there")
			req := shop(t, "")
			change(&req)
			rel, _, err := there.Create(t.Context(), alice, req)
			if err != nil {
				return
			}
			var b bytes.Buffer
			if err := there.Export(t.Context(), string(rel.Digest), false, &b); err != nil {
				return
			}
			if f, err := VerifyFile(&b, []string{there.config.Key.Verifier()}); code(err) != isle.Untrusted && code(err) != isle.Invalid {
				t.Errorf("%q is verified: %v", f.Attestations[0].Source, err)
			}
		})
	}
}
