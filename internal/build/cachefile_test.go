package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/seal"
)

// ring is the keys of a server, and of those that it trusts.
func ring(t *testing.T, name string, trusted ...*seal.Ring) *seal.Ring {
	t.Helper()
	key, err := seal.NewKey(name, bytes.Repeat([]byte(name[:1]), 32))
	if err != nil {
		t.Fatal(err)
	}
	r := seal.NewRing(key, "release", isle.ActionServerCollect)
	for _, o := range trusted {
		if !r.Load(ledger.Record{Key: "trust/" + o.Own().Verifier()}) {
			t.Fatal("no key")
		}
	}
	return r
}

const cached = "FROM scratch AS tools\nCOPY tools /tools\nRUN compile\nFROM scratch\nWORKDIR /app\nCOPY --from=tools /compiled /app/\nRUN finish\n"

// exported is a file of a server that built cached.
func exported(t *testing.T, keys *seal.Ring) (file []byte, m image.Image) {
	t.Helper()
	b := newBench(t)
	b.sandbox.programs["finish"] = writing("finished", "x")
	m = b.mustDocker(cached, map[string]string{"tools/a": "1"})
	var out bytes.Buffer
	f, err := b.ExportCache(context.Background(), keys, "", &out)
	if err != nil || f.Steps != 6 || f.Layers < 4 {
		t.Fatalf("%+v, %v", f, err)
	}
	return out.Bytes(), m
}

func TestAFreshServerMakesNothingOfWhatItImported(t *testing.T) {
	keys := ring(t, "ci")
	file, want := exported(t, keys)
	b := newBench(t)
	f, err := b.ImportCache(t.Context(), ring(t, "fresh", keys), bytes.NewReader(file))
	if err != nil || f.Steps != 6 || f.Layers < 4 || f.Signer != "ci" {
		t.Fatalf("%+v, %v", f, err)
	}
	// The sandbox knows none of the programs: it could make nothing.
	got := b.mustDocker(cached, map[string]string{"tools/a": "1"})
	if made := b.started(); len(made) != 0 || got.Digest() != want.Digest() {
		t.Errorf("made again: %q", made)
	}
	if f, err := b.ImportCache(t.Context(), ring(t, "fresh", keys), bytes.NewReader(file)); err != nil || f.Layers != 0 {
		t.Errorf("a second time: %+v, %v", f, err)
	}
}

func TestTheSameBuildsGiveTheSameCacheFile(t *testing.T) {
	one, _ := exported(t, ring(t, "ci"))
	two, _ := exported(t, ring(t, "ci"))
	if !bytes.Equal(one, two) {
		t.Error("they differ")
	}
}

// entries are those of a cache file.
func entries(t *testing.T, file []byte) (out []cacheEntry) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, cacheEntry{h.Name, content})
	}
}

type cacheEntry struct {
	name    string
	content []byte
}

// packed is a cache file of entries.
func packed(t *testing.T, list []cacheEntry) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(z)
	for _, e := range list {
		if err := tw.WriteHeader(exportHeader(e.name, int64(len(e.content)))); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// nothingTaken fails where a server has anything of a file.
func nothingTaken(t *testing.T, b *bench, name string) {
	t.Helper()
	if n := len(jsonFiles(filepath.Join(b.Cache, "steps"))); n != 0 {
		t.Errorf("%s: %d results were noted", name, n)
	}
	if n := len(jsonFiles(filepath.Join(b.Cache, "bases"))); n != 0 {
		t.Errorf("%s: %d images were noted", name, n)
	}
}

func TestNothingIsTakenInThatNoTrustedKeySigned(t *testing.T) {
	ci, stranger := ring(t, "ci"), ring(t, "stranger")
	file, _ := exported(t, ci)
	good := entries(t, file)
	sign := func(r *seal.Ring, kind string, manifest []byte) []byte {
		sig, err := r.Own().Sign(seal.NoteText(kind, isle.DigestOf(manifest)))
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	with := func(change func(list []cacheEntry) []cacheEntry) []byte { return packed(t, change(slices.Clone(good))) }
	poisoned := bytes.Replace(good[0].content, []byte("compile"), []byte("Compile"), 1)
	for name, c := range map[string]struct {
		file []byte
		code isle.Code
	}{
		"a stranger's": {with(func(l []cacheEntry) []cacheEntry {
			l[1].content = sign(stranger, cacheKind, l[0].content)
			return l
		}), isle.Untrusted},
		"a changed manifest": {with(func(l []cacheEntry) []cacheEntry { l[0].content = poisoned; return l }), isle.Untrusted},
		"a signature of a release": {with(func(l []cacheEntry) []cacheEntry {
			l[1].content = sign(ci, "release", l[0].content)
			return l
		}), isle.Untrusted},
		"no signature": {with(func(l []cacheEntry) []cacheEntry { return append(l[:1], l[2:]...) }), isle.Invalid},
		"other bytes of a layer": {with(func(l []cacheEntry) []cacheEntry {
			l[2].content = bytes.Repeat([]byte{1}, len(l[2].content))
			return l
		}), isle.Invalid},
		"a longer layer":    {with(func(l []cacheEntry) []cacheEntry { l[2].content = append(slices.Clone(l[2].content), 0); return l }), isle.Invalid},
		"a layer less":      {with(func(l []cacheEntry) []cacheEntry { return l[:len(l)-1] }), isle.Invalid},
		"a layer more":      {with(func(l []cacheEntry) []cacheEntry { return append(l, l[2]) }), isle.Invalid},
		"another name":      {with(func(l []cacheEntry) []cacheEntry { l[2].name = "../../etc/passwd"; return l }), isle.Invalid},
		"cut":               {file[:len(file)/2], isle.Invalid},
		"no zstd":           {[]byte("hello"), isle.Invalid},
		"nothing":           {nil, isle.Invalid},
		"a manifest's bomb": {packed(t, []cacheEntry{{cacheManifestEntry, make([]byte, maxCacheManifest+1)}}), isle.Invalid},
	} {
		b := newBench(t)
		_, err := b.ImportCache(t.Context(), ring(t, "fresh", ci), bytes.NewReader(c.file))
		if isle.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
		nothingTaken(t, b, name)
	}
}

// What a trusted server signed by mistake, or by one who broke into it, is checked
// as far as it can be.
func TestATrustedFileIsStillChecked(t *testing.T) {
	ci := ring(t, "ci")
	file, _ := exported(t, ci)
	for name, change := range map[string]func(m *cacheManifest){
		"another format":    func(m *cacheManifest) { m.Format = 9 },
		"another recipe":    func(m *cacheManifest) { m.Steps[0].Inputs.Recipe++ },
		"a step of nothing": func(m *cacheManifest) { m.Steps[0].Layers, m.Steps[0].Empty = nil, false },
		"two sizes": func(m *cacheManifest) {
			for i := range m.Steps {
				for j := range m.Steps[i].Layers {
					m.Steps[i].Layers[j].Size += int64(i)
				}
			}
		},
		"a title that steers": func(m *cacheManifest) { m.Steps[0].Layers[0].Title = "\x1b[2J" },
		"no digest":           func(m *cacheManifest) { m.Steps[0].Layers[0].Digest = "sha256:../../x" },
		"a size below none":   func(m *cacheManifest) { m.Steps[0].Layers[0].Size = -1 },
		"an image of nothing": func(m *cacheManifest) { m.Bases = append(m.Bases, cachedBase{Inputs: inputs{Kind: "image"}}) },
	} {
		list := entries(t, file)
		var m cacheManifest
		if err := json.Unmarshal(list[0].content, &m); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(m.Steps, func(r record) bool { return len(r.Layers) > 0 })
		m.Steps[0], m.Steps[i] = m.Steps[i], m.Steps[0]
		change(&m)
		var err error
		if list[0].content, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if list[1].content, err = ci.Own().Sign(seal.NoteText(cacheKind, isle.DigestOf(list[0].content))); err != nil {
			t.Fatal(err)
		}
		b := newBench(t)
		if _, err := b.ImportCache(t.Context(), ring(t, "fresh", ci), bytes.NewReader(packed(t, list))); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		nothingTaken(t, b, name)
	}
}

// What this server does not know of a step's inputs would be left out of the key
// that its result is found by: it would be found by steps that are other ones.
func TestInputsThatThisServerDoesNotKnowAreNotTakenIn(t *testing.T) {
	ci := ring(t, "ci")
	file, _ := exported(t, ci)
	for _, at := range []string{`"inputs":{`, `"copy":{`, `{"format":`} {
		list := entries(t, file)
		was := string(list[0].content)
		list[0].content = []byte(strings.Replace(was, at, strings.Replace(at, "{", `{"later":"x",`, 1), 1))
		if string(list[0].content) == was {
			t.Fatalf("there is no %s in %s", at, was)
		}
		var err error
		if list[1].content, err = ci.Own().Sign(seal.NoteText(cacheKind, isle.DigestOf(list[0].content))); err != nil {
			t.Fatal(err)
		}
		b := newBench(t)
		if _, err := b.ImportCache(t.Context(), ring(t, "fresh", ci), bytes.NewReader(packed(t, list))); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "later") {
			t.Errorf("in %s: %v", at, err)
		}
		nothingTaken(t, b, at)
	}
}

func TestAnImportReplacesNothingThatIsKnownHere(t *testing.T) {
	ci := ring(t, "ci")
	file, _ := exported(t, ci)
	b := newBench(t)
	b.sandbox.programs["finish"] = writing("finished", "made here")
	own := b.mustDocker(cached, map[string]string{"tools/a": "1"})
	if _, err := b.ImportCache(t.Context(), ring(t, "fresh", ci), bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	if again := b.mustDocker(cached, map[string]string{"tools/a": "1"}); again.Digest() != own.Digest() {
		t.Error("what was made here was replaced")
	}
}

// Who sends a file takes memory before it is known who signed it, and may stop in
// the midst: so few do at once, and none keeps others from the store.
func TestOnlySoManyCacheFilesAreImportedAtOnce(t *testing.T) {
	b := newBench(t)
	keys := ring(t, "fresh")
	var all sync.WaitGroup
	defer all.Wait()
	var ends []*io.PipeWriter
	for range maxCacheImports {
		r, end := io.Pipe()
		defer end.Close()
		ends = append(ends, end)
		all.Go(func() { b.ImportCache(t.Context(), keys, r) })
	}
	for _, end := range ends {
		if _, err := end.Write([]byte{0x28}); err != nil { // it was begun, and waits for more
			t.Error(err)
		}
	}
	if _, err := b.ImportCache(t.Context(), keys, strings.NewReader("")); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("one more: %v", err)
	}
	if _, err := b.Images.Collect(func(isle.Digest) bool { return true }, func(isle.Digest) bool { return true }, true); err != nil {
		t.Errorf("garbage is not collected meanwhile: %v", err)
	}
	for _, end := range ends {
		end.Close()
	}
	all.Wait()
	if _, err := b.ImportCache(t.Context(), keys, strings.NewReader("")); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnExportOfNothingAndWithoutAKeySaysSo(t *testing.T) {
	b := newBench(t)
	if _, err := b.ExportCache(t.Context(), ring(t, "ci"), "", io.Discard); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	b.sandbox.programs["finish"] = writing("finished", "x")
	b.mustDocker(cached, map[string]string{"tools/a": "1"})
	if _, err := b.ExportCache(t.Context(), nil, "", io.Discard); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
	if _, err := b.ExportCache(t.Context(), ring(t, "ci"), "another", io.Discard); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.ExportCache(ctx, ring(t, "ci"), "", io.Discard); err == nil {
		t.Error("it went on without whoever asked")
	}
}

func FuzzCacheFile(f *testing.F) {
	f.Add([]byte(`{"format":1,"steps":[{"inputs":{"recipe":1,"format":1,"kind":"run"},"layers":[{"digest":"sha256:00","size":1}]}]}`))
	f.Add([]byte(`{"format":1,"bases":[{"inputs":{"kind":"image"},"image":{}}]}`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		var m cacheManifest
		if json.Unmarshal(manifest, &m) != nil {
			return
		}
		layers, err := m.check()
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Error(err)
			}
			return
		}
		for _, l := range layers {
			if !l.Digest.Valid() || l.Size < 0 || strings.ContainsAny(l.Title, "\x1b\n") {
				t.Errorf("%+v", l)
			}
		}
	})
}
