package release

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"isle"
)

// exported is the file of a release of the shop, made here.
func exported(t testing.TB, w *world, layers bool) (Release, []byte) {
	t.Helper()
	for _, name := range []string{"base", "db", "web"} {
		if err := w.images.PutLayer(t.Context(), isle.DigestOf([]byte(name)), strings.NewReader(name)); err != nil && !os.IsPermission(err) {
			t.Fatal(err)
		}
	}
	rel := w.create(shop(t, ""))
	var b bytes.Buffer
	if err := w.Export(t.Context(), string(rel.Digest), layers, &b); err != nil {
		t.Fatal(err)
	}
	return rel, b.Bytes()
}

func allowAll(string) error { return nil }

func TestAReleaseGoesElsewhereInOneFile(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	rel, file := exported(t, here, true)
	if _, again := exported(t, here, true); !bytes.Equal(file, again) {
		t.Error("the same release gives other bytes")
	}
	if _, err := there.Import(t.Context(), alice, bytes.NewReader(file), allowAll); code(err) != isle.Untrusted {
		t.Fatalf("taken in although nobody trusts it: %v", err)
	}
	if list, _ := there.List(); len(list) != 0 || there.images.HasLayer(isle.DigestOf([]byte("base"))) {
		t.Error("something of it was taken in")
	}
	if _, err := there.Trust(t.Context(), alice, here.config.Key.Verifier()); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("not you")
	if _, err := there.Import(t.Context(), alice, bytes.NewReader(file), func(string) error { return refused }); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	got, err := there.Import(t.Context(), alice, bytes.NewReader(file), allowAll)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != rel.Digest || !got.Trusted || !got.Imported || got.Source != rel.Source || len(got.Attestations) != 2 {
		t.Errorf("%+v", got)
	}
	if _, err := there.Verify(t.Context(), string(rel.Digest)); err != nil {
		t.Error(err)
	}
	var b bytes.Buffer
	if err := there.Export(t.Context(), string(rel.Digest), true, &b); err != nil || !bytes.Equal(b.Bytes(), file) {
		t.Error("it is another file from there:", err)
	}
	if again, err := there.Import(t.Context(), alice, bytes.NewReader(file), allowAll); err != nil || again.Digest != rel.Digest {
		t.Error(err)
	}
	there.open()
	if _, _, err := there.Launch(t.Context(), string(rel.Digest)); err != nil {
		t.Error(err)
	}
}

func TestTheFileOfAReleaseIsVerifiedWithoutAServer(t *testing.T) {
	w := newWorld(t, "here")
	rel, file := exported(t, w, true)
	keys := []string{keyOf(t, "other").Verifier(), w.config.Key.Verifier()}
	f, err := VerifyFile(bytes.NewReader(file), keys)
	if err != nil || f.Digest != rel.Digest || f.Layers != 3 || f.Attestations[0].Source != rel.Source {
		t.Fatal(f.Digest, f.Layers, f.Attestations, err)
	}
	if _, err := VerifyFile(bytes.NewReader(file), keys[:1]); code(err) != isle.Untrusted {
		t.Error(err)
	}
	for i := 0; i < len(file); i += 41 { // one bit, anywhere that is read
		bad := bytes.Clone(file)
		bad[i] ^= 1
		f, err := VerifyFile(bytes.NewReader(bad), keys)
		if err == nil && (f.Digest != rel.Digest || len(f.Attestations) != 2 || f.Layers != 3) {
			t.Fatalf("byte %d was changed, and it is %s with %d attestations and %d layers", i, f.Digest, len(f.Attestations), f.Layers)
		}
	}
	for n := 0; n < len(file); n += 97 {
		if f, err := VerifyFile(bytes.NewReader(file[:n]), keys); err == nil && f.Layers == 3 && n < len(file)-2048 {
			t.Fatalf("cut after %d of %d bytes, and it is whole", n, len(file))
		}
	}
}

func TestAFileThatIsPutTogetherByOthersIsRefused(t *testing.T) {
	w := newWorld(t, "here")
	_, file := exported(t, w, true)
	req := shop(t, "")
	req.Spec.Limits.PIDs++
	other := w.create(req)
	foreign, err := w.Statement(other.Digest, other.Attestations[0])
	if err != nil {
		t.Fatal(err)
	}
	type part struct {
		name string
		body []byte
	}
	var parts []part
	for r := tar.NewReader(bytes.NewReader(file)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		b, _ := io.ReadAll(r)
		parts = append(parts, part{h.Name, b})
	}
	for name, change := range map[string]func([]part) []part{
		"another's provenance": func(p []part) []part {
			p[3] = part{entryAttestation + isle.DigestOf(foreign).Hex(), foreign}
			return p
		},
		"another lock": func(p []part) []part {
			p[2].body = bytes.Replace(p[2].body, []byte("libc6"), []byte("libc7"), 1)
			return p
		},
		"a foreign layer":   func(p []part) []part { p[5].body = []byte("evil"); return p },
		"a layer twice":     func(p []part) []part { return append(p, p[5]) },
		"something besides": func(p []part) []part { return append(p, part{"isle-release/../../etc/passwd", []byte("x")}) },
		"no signature":      func(p []part) []part { return append(p[:1:1], p[2:]...) },
		"nothing":           func([]part) []part { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			out := tar.NewWriter(&b)
			for _, p := range change(append([]part{}, parts...)) {
				if err := entry(out, p.name, int64(len(p.body)), bytes.NewReader(p.body)); err != nil {
					t.Fatal(err)
				}
			}
			out.Close()
			there := newWorld(t, "there")
			if _, err := there.Trust(t.Context(), alice, w.config.Key.Verifier()); err != nil {
				t.Fatal(err)
			}
			_, err := there.Import(t.Context(), alice, bytes.NewReader(b.Bytes()), allowAll)
			_, offline := VerifyFile(bytes.NewReader(b.Bytes()), []string{w.config.Key.Verifier()})
			for _, err := range []error{err, offline} {
				if c := code(err); c != isle.Invalid && c != isle.Untrusted {
					t.Errorf("%q: %v", c, err)
				}
			}
			if list, _ := there.List(); len(list) != 0 {
				t.Error("it was taken in")
			}
		})
	}
}

func FuzzVerifyFile(f *testing.F) {
	w := newWorld(f, "here")
	rel, file := exported(f, w, true)
	f.Add(file)
	f.Add(file[:len(file)/2])
	keys := []string{w.config.Key.Verifier()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := VerifyFile(bytes.NewReader(b), keys); err == nil && v.Digest != rel.Digest {
			t.Errorf("%s counts as signed", v.Digest)
		}
	})
}
