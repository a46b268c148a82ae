package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
)

func TestANameThatLeadsOutOfTheRootIsRefused(t *testing.T) {
	for _, name := range []string{"../escape", "a/../../escape", "..", "a/..", "./../x"} {
		w := newWorld(t)
		_, err := w.layers(tarOf(t, reg(name, "x")))
		wantCode(t, err, isle.Invalid)
		w.empty()
	}
}

func TestAnAbsoluteNameIsOneInTheRoot(t *testing.T) {
	w := newWorld(t)
	m := w.must(tarOf(t, reg("/etc/passwd", "mine"), reg("//double//slash", "x"), reg("./dot/./x", "y")))
	for name, want := range map[string]string{"/etc/passwd": "mine", "/double/slash": "x", "/dot/x": "y"} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

// What an extraction onto a file system would write through a link to the
// machine's own files goes to the image's.
func TestALinkToTheMachineLeadsToTheImagesOwnFile(t *testing.T) {
	w := newWorld(t)
	victim := filepath.Join(t.TempDir(), "victim")
	up := strings.Repeat("../", 30)
	m := w.must(
		tarOf(t, symlink("abs", filepath.Dir(victim)), symlink("rel", up+filepath.Dir(victim)), symlink("loop", "."), reg("abs/victim", "one"), reg("rel/other", "two"), reg("loop/loop/loop/three", "three")),
		tarOf(t, reg("abs/victim2", "later"), symlink("abs", "/tmp"), reg("abs/raced", "raced")),
	)
	inside := filepath.Dir(victim)
	for name, want := range map[string]string{inside + "/victim": "one", inside + "/other": "two", "/three": "three", inside + "/victim2": "later", "/tmp/raced": "raced"} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	if _, err := os.Lstat(victim); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is on the machine: %v", victim, err)
	}
}

func TestLinksThatLeadInCirclesEnd(t *testing.T) {
	w := newWorld(t)
	_, err := w.layers(tarOf(t, symlink("a", "b"), symlink("b", "a"), reg("a/x", "x")))
	wantCode(t, err, isle.Invalid)
	// Each link stands for two of the next: 2^40 steps, if somebody took them.
	var items []item
	for i := range 40 {
		items = append(items, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d/l%d", i+1, i+1)))
	}
	_, err = w.layers(tarOf(t, append(items, symlink("l40", "."), reg("l0/x", "x"))...))
	wantCode(t, err, isle.Invalid)
	w.empty()
}

func TestAHardLinkOutsideTheImageIsRefused(t *testing.T) {
	for _, to := range []string{"../../etc/shadow", "/etc/shadow", "etc/shadow", "x/../../etc/shadow"} {
		w := newWorld(t)
		_, err := w.layers(tarOf(t, hardlink("mine", to)))
		wantCode(t, err, isle.Invalid)
		w.empty()
	}
}

func TestAHardLinkThroughALinkStaysInTheImage(t *testing.T) {
	w := newWorld(t)
	m := w.must(tarOf(t, reg("etc/shadow", "the image's"), symlink("out", "/etc"), hardlink("copy", "out/shadow")))
	if got := w.read(m, "/copy"); got != "the image's" {
		t.Errorf("the link has %q", got)
	}
}

func TestDevicesAndPipesAreLeftOutAndNamed(t *testing.T) {
	w := newWorld(t)
	device := func(kind byte, name string, major, minor int64) item {
		return item{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}}
	}
	got, err := w.layers(
		tarOf(t, reg("below", "x"), reg("kept", "x")),
		tarOf(t, device(tar.TypeBlock, "dev/sda", 8, 0), device(tar.TypeChar, "dev/mem", 1, 1), device(tar.TypeFifo, "pipe", 0, 0), device(tar.TypeChar, "below", 0, 0)),
	)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.LeftOut) != 4 || !strings.Contains(got.LeftOut[0], "/dev/sda (block device 8:0)") {
		t.Errorf("left out: %q", got.LeftOut)
	}
	for name, want := range map[string]string{"/dev/sda": "-", "/dev/mem": "-", "/pipe": "-", "/below": "-", "/kept": "x"} {
		if is := w.read(got.Image, name); is != want {
			t.Errorf("%s is %q, not %q", name, is, want)
		}
	}
	for path, f := range w.layer(got.Image, 1) {
		if f.Mode&fs.ModeDevice != 0 && (f.Mode.Type() != image.Whiteout || path != "/below") {
			t.Errorf("%s is a device: %v", path, f.Mode)
		}
	}
}

// A bomb is small and unpacks to much.
func TestABombOfZerosEndsBeforeItFillsTheDisk(t *testing.T) {
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"gzip": gzipped, "zstd": zstandard} {
		w := newWorld(t)
		w.im.bounds = &bounds{files: 1000, names: 1 << 20, bytes: 1 << 30, ratio: 50, plain: 1 << 20, steps: 1 << 20}
		plain := tarOf(t, reg("zeros", strings.Repeat("\x00", 16<<20)))
		l := newLayout(t)
		packed := l.blob(typeLayerGzip, pack(t, plain))
		l.list("", manifest{SchemaVersion: 2, Config: l.json(typeConfig, config(plain)), Layers: []Descriptor{packed}})
		_, err := w.load(l.tar())
		wantCode(t, err, isle.Exhausted)
		if err == nil || !strings.Contains(err.Error(), "made to fill a disk") {
			t.Errorf("%s: %v", name, err)
		}
		w.empty()
	}
}

func TestABombOfBombsEnds(t *testing.T) {
	w := newWorld(t)
	w.im.bounds = &bounds{files: 1000, names: 1 << 20, bytes: 8 << 20, ratio: 50, plain: 64 << 20, steps: 1 << 20}
	_, err := w.layers(tarOf(t, reg("a", strings.Repeat("a", 5<<20)), reg("b", strings.Repeat("b", 5<<20))))
	wantCode(t, err, isle.Exhausted)
	w.empty()
}

// Holes are no bytes of the archive, and would be bytes of the layer.
func TestASparseBombEnds(t *testing.T) {
	w := newWorld(t)
	// PAX sparse format 1.0 (tar's manual, "Storing Sparse Files"): one block of a
	// file of 8 EiB is there.
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/big", Mode: 0o644, Size: 512, Format: tar.FormatPAX}
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "big") + record("GNU.sparse.realsize", "9000000000000000000")
	x := &tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders.0/big", Mode: 0o644, Size: int64(len(pax))}
	if err := tw.WriteHeader(x); err != nil {
		t.Fatal(err)
	}
	io.WriteString(tw, pax)
	if err := tw.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	tw.Write(append([]byte("1\n0\n0\n"), make([]byte, 506)...))
	tw.Close()
	raw := b.Bytes()
	raw[156] = 'x' // the first entry is the second's extended header
	sum := 0
	copy(raw[148:156], "        ")
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if h, err := tar.NewReader(bytes.NewReader(raw)).Next(); err != nil || h.Size < 1<<60 {
		t.Fatalf("this is no bomb: %+v, %v", h, err)
	}
	w.im.bounds = &bounds{files: 1000, names: 1 << 20, bytes: 8 << 20, ratio: 50, plain: 4 << 20, steps: 1 << 20}
	_, err := w.layers(raw)
	wantCode(t, err, isle.Exhausted)
	w.empty()
}

func TestHardLinksCountWithTheirContent(t *testing.T) {
	w := newWorld(t)
	w.im.bounds = &bounds{files: 1000, names: 1 << 20, bytes: 8 << 20, ratio: 1000, plain: 64 << 20, steps: 1 << 20}
	items := []item{reg("a", strings.Repeat("x", 1<<20))}
	for i := range 20 {
		items = append(items, hardlink(fmt.Sprint("l", i), "a"))
	}
	_, err := w.layers(tarOf(t, items...))
	wantCode(t, err, isle.Exhausted)
	w.empty()
}

func TestOfTwoFilesOfOneNameTheLastCounts(t *testing.T) {
	w := newWorld(t)
	m := w.must(
		tarOf(t, reg("d/old", "old"), reg("f", "x")),
		tarOf(t, reg("f", "1"), reg("./f", "22"), reg("d", "file"), dir("d", 0o700), reg("d/new", "new"), dir("x/y", 0o755), reg("x/y/z", "z"), reg("x", "gone")),
	)
	for name, want := range map[string]string{"/f": "22", "/d": "/", "/d/new": "new", "/d/old": "-", "/x": "gone", "/x/y/z": "-"} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestSetuidIsKeptAndOwnersAbove65535AreRefused(t *testing.T) {
	w := newWorld(t)
	su := reg("su", "x")
	su.Mode, su.Uid, su.Gid = 0o6755, 65535, 7
	m := w.must(tarOf(t, su, dir("tmp", 0o1777)))
	files := w.layer(m, 0)
	if f := files["/su"]; f.Mode != 0o755|fs.ModeSetuid|fs.ModeSetgid || f.UID != 65535 || f.GID != 7 {
		t.Errorf("su is %v of %d:%d", f.Mode, f.UID, f.GID)
	}
	if f := files["/tmp"]; f.Mode != 0o777|fs.ModeDir|fs.ModeSticky {
		t.Errorf("tmp is %v", f.Mode)
	}
	su.Uid = 65536
	_, err := w.layers(tarOf(t, su))
	wantCode(t, err, isle.Invalid)
}

func TestDeepNestingEnds(t *testing.T) {
	w := newWorld(t)
	m := w.must(tarOf(t, reg(strings.Repeat("d/", 100)+"f", "deep")))
	if got := w.read(m, "/"+strings.Repeat("d/", 100)+"f"); got != "deep" {
		t.Errorf("the deepest file is %q", got)
	}
	for _, deep := range []int{maxDepth, 2000, 100_000} {
		_, err := w.layers(tarOf(t, reg(strings.Repeat("d/", deep)+"f", "x")))
		wantCode(t, err, isle.Invalid)
	}
	_, err := w.layers(tarOf(t, reg(strings.Repeat("n", 300), "x")))
	wantCode(t, err, isle.Invalid)
}

func TestManyDeepDirectoriesOfALowerLayerEnd(t *testing.T) {
	w := newWorld(t)
	w.im.bounds = &bounds{files: 1000, names: 1 << 20, bytes: 1 << 20, ratio: 50, plain: 1 << 20, steps: 100_000}
	deep := strings.Repeat("d/", 100)
	_, err := w.layers(tarOf(t, reg(deep+"f", "x")), tarOf(t, reg(deep+"g", "x")))
	wantCode(t, err, isle.Exhausted)
}

// endless is a tar file of empty files without an end.
type endless struct {
	n   int
	buf []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.buf) == 0 {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for range 1000 {
			e.n++
			tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", e.n), Mode: 0o644})
		}
		e.buf = b.Bytes()
	}
	n := copy(p, e.buf)
	e.buf = e.buf[n:]
	return n, nil
}

func TestMillionsOfFilesEnd(t *testing.T) {
	w := newWorld(t)
	if most := layerBounds().files; most > 1<<20 {
		t.Errorf("a layer may have %d files, which take more than some hundred MiB of memory", most)
	}
	w.im.bounds = &bounds{files: 20_000, names: 1 << 20, bytes: 1 << 20, ratio: 50, plain: 1 << 30, steps: 1 << 20}
	e := &endless{}
	p := Picture{Layers: []PictureLayer{{DiffID: isle.DigestOf(nil), Size: 1, open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(e), nil }}}}
	_, err := w.im.Import(context.Background(), p, nil)
	wantCode(t, err, isle.Exhausted)
	if e.n > 30_000 {
		t.Errorf("it ended after %d files", e.n)
	}
	w.empty()
}

func TestNamesTakeABoundedSpace(t *testing.T) {
	w := newWorld(t)
	w.im.bounds = &bounds{files: 1000, names: 1 << 10, bytes: 1 << 20, ratio: 50, plain: 1 << 20, steps: 1 << 20}
	_, err := w.layers(tarOf(t, reg(strings.Repeat("dddddddd/", 100)+"f", "x"), reg(strings.Repeat("eeeeeeee/", 100)+"f", "x")))
	wantCode(t, err, isle.Exhausted)
}

func TestAWhiteoutOfNothingNamableIsRefused(t *testing.T) {
	for _, name := range []string{".wh.", ".wh..", ".wh...", "d/.wh..."} {
		w := newWorld(t)
		_, err := w.layers(tarOf(t, reg("d/f", "x")), tarOf(t, reg(name, "")))
		wantCode(t, err, isle.Invalid)
	}
}

func TestEntriesOfUnknownKindsAreRefused(t *testing.T) {
	w := newWorld(t)
	b := tarOf(t, reg("x", ""))
	b[156] = 'Z'
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	_, err := w.layers(b)
	wantCode(t, err, isle.Invalid)
}

// What is said of the bytes must be so: otherwise nothing is kept.
func TestALayerThatIsNotWhatItsDigestsSayIsRefused(t *testing.T) {
	good := tarOf(t, reg("x", "good"))
	evil := tarOf(t, reg("x", "evil"))
	cases := map[string]func(l *layout){
		"another tar file than its diff_id": func(l *layout) { l.image("", func(c *configFile) { c.RootFS.DiffIDs[0] = isle.DigestOf(good) }, evil) },
		"another blob than its digest": func(l *layout) {
			l.image("", nil, good)
			l.files["blobs/sha256/"+isle.DigestOf(good).Hex()] = evil
		},
		"a tar file with something behind its end": func(l *layout) {
			l.image("", func(c *configFile) { c.RootFS.DiffIDs[0] = isle.DigestOf(good) }, append(bytes.Clone(good), make([]byte, 512)...))
		},
		"a shorter blob": func(l *layout) {
			l.image("", nil, good)
			l.files["blobs/sha256/"+isle.DigestOf(good).Hex()] = good[:len(good)-512]
		},
		"another manifest than its digest": func(l *layout) {
			d := l.image("", nil, good)
			b := bytes.Replace(l.files["blobs/sha256/"+d.Digest.Hex()], []byte(`2`), []byte(`3`), 1)
			l.files["blobs/sha256/"+d.Digest.Hex()] = b
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l := newLayout(t)
			change(l)
			_, err := w.load(l.tar())
			wantCode(t, err, isle.Untrusted)
			w.empty()
		})
	}
}

func TestWhatIsNoImageIsInvalid(t *testing.T) {
	layer := tarOf(t, reg("x", "x"))
	cases := map[string]func(l *layout) []byte{
		"nothing":               func(*layout) []byte { return nil },
		"text":                  func(*layout) []byte { return []byte("hello") },
		"a cut gzip":            func(l *layout) []byte { b := gzipped(t, l.tar()); return b[:len(b)/2] },
		"an empty tar":          func(*layout) []byte { return tarOf(t) },
		"an index of nothing":   func(l *layout) []byte { return l.tar() },
		"an index that is text": func(l *layout) []byte { l.files["index.json"] = []byte("x"); return l.tar() },
		"a manifest that is a list": func(l *layout) []byte {
			l.index.Manifests = append(l.index.Manifests, l.blob(typeManifest, []byte("[]")))
			return l.tar()
		},
		"more layers than diff_ids": func(l *layout) []byte {
			l.image("", func(c *configFile) { c.RootFS.DiffIDs = nil }, layer)
			return l.tar()
		},
		"a diff_id of another kind": func(l *layout) []byte {
			l.image("", func(c *configFile) { c.RootFS.DiffIDs[0] = "sha512:00" }, layer)
			return l.tar()
		},
		"another architecture": func(l *layout) []byte {
			l.image("", func(c *configFile) { c.Architecture = "z80" }, layer)
			return l.tar()
		},
		"a manifest that is huge": func(l *layout) []byte {
			d := l.image("", nil, layer)
			l.index.Manifests[0].Size = maxManifest + 1
			l.files["blobs/sha256/"+d.Digest.Hex()] = make([]byte, maxManifest+1)
			return l.tar()
		},
		"a layer elsewhere": func(l *layout) []byte {
			d := l.blob(typeLayer, layer)
			d.URLs = []string{"http://198.51.100.7/layer"}
			l.list("", manifest{Config: l.json(typeConfig, config(layer)), Layers: []Descriptor{d}})
			return l.tar()
		},
		"two files of one name": func(*layout) []byte { return tarOf(t, reg("index.json", "{}"), reg("index.json", "{}")) },
		"a file outside":        func(*layout) []byte { return tarOf(t, reg("../index.json", "{}")) },
	}
	for name, archive := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.load(archive(newLayout(t)))
			wantCode(t, err, isle.Invalid)
			w.empty()
		})
	}
}

func TestIndexesThatLeadIntoOneAnotherEnd(t *testing.T) {
	w := newWorld(t)
	l := newLayout(t)
	d := l.json(typeIndex, index{})
	for range 10 {
		d = l.json(typeIndex, index{Manifests: []Descriptor{d}})
	}
	l.index.Manifests = []Descriptor{d}
	_, err := w.load(l.tar())
	wantCode(t, err, isle.Invalid)
	// Each lists the next a hundred times.
	d = l.json(typeIndex, index{})
	for range 4 {
		ix := index{}
		for range 100 {
			ix.Manifests = append(ix.Manifests, d)
		}
		d = l.json(typeIndex, ix)
	}
	l = newLayout(t)
	l.index.Manifests = []Descriptor{d}
	_, err = w.load(l.tar())
	if err == nil {
		t.Error("it was taken")
	}
}

func TestTooManyLayersAreRefused(t *testing.T) {
	w := newWorld(t)
	l := newLayout(t)
	empty := tarOf(t)
	var layers [][]byte
	for range maxLayers + 1 {
		layers = append(layers, empty)
	}
	l.image("", nil, layers...)
	_, err := w.load(l.tar())
	wantCode(t, err, isle.Exhausted)
}

func TestAConfigurationThatNothingCanRunIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, change := range []func(*configFile){
		func(c *configFile) { c.Config.Env = []string{"A=\x00"} },
		func(c *configFile) { c.Config.Labels = map[string]string{"big": strings.Repeat("x", maxConfig)} },
	} {
		l := newLayout(t)
		l.image("", change, tarOf(t, reg("x", "x")))
		if _, err := w.load(l.tar()); err == nil {
			t.Error("it was taken")
		}
	}
}

func FuzzLayer(f *testing.F) {
	f.Add(tarOf(f, dir("d", 0o755), reg("d/f", "x"), symlink("l", "d"), reg("l/g", "y"), hardlink("h", "d/f")), tarOf(f, reg("d/.wh.f", ""), reg(".wh..wh..opq", ""), reg("l/z", "z")))
	f.Add(gzipped(f, tarOf(f, reg("a/b/c", "x"))), tarOf(f, reg("a", "x"), reg(".wh.a", "")))
	f.Add(zstandard(f, tarOf(f, reg("a/b/c", "x"))), tarOf(f, symlink("a", "/"), hardlink("a/x", "a/b/c")))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		w := newWorld(t)
		w.im.bounds = &bounds{files: 100, names: 1 << 16, bytes: 1 << 20, ratio: 100, plain: 1 << 20, steps: 1 << 20}
		var below image.Image
		for _, b := range [][]byte{first, second} {
			raw := b
			l := PictureLayer{Size: int64(len(b)), open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
			m, err := w.im.layer(context.Background(), image.Image{Format: image.FormatVersion, Layers: below.Layers}, anyDiff(w.im, l), func(int64, bool) {})
			if err != nil {
				continue
			}
			below.Format = image.FormatVersion
			below.Layers = append(below.Layers, m.Layer)
			// What was taken can be read, and holds no more than it may.
			for path, file := range w.layer(below, len(below.Layers)-1) {
				if file.UID > maxOwner || file.GID > maxOwner || file.Mode&fs.ModeDevice != 0 && file.Mode.Type() != image.Whiteout {
					t.Errorf("%s: %v of %d:%d", path, file.Mode, file.UID, file.GID)
				}
			}
		}
	})
}

// anyDiff gives a layer the diff_id that its bytes have.
func anyDiff(im *Importer, l PictureLayer) PictureLayer {
	r, _ := l.open(context.Background())
	plain, err := decompress(r)
	if err != nil {
		return l
	}
	defer plain.Close()
	b, _ := io.ReadAll(io.LimitReader(plain, 1<<22))
	l.DiffID = isle.DigestOf(b)
	return l
}

func FuzzArchive(f *testing.F) {
	l := newLayout(f)
	l.image("a:1", nil, tarOf(f, reg("x", "x")))
	f.Add(l.tar())
	f.Add(gzipped(f, l.tar()))
	saved, _ := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": []string{"a:1"}, "Layers": []string{"l/layer.tar"}}})
	layer := tarOf(f, reg("x", "x"))
	c, _ := json.Marshal(config(layer))
	f.Add(tarOf(f, reg("manifest.json", string(saved)), reg("c.json", string(c)), reg("m/layer.tar", string(layer)), symlink("l/layer.tar", "../m/layer.tar")))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t)
		w.im.bounds = &bounds{files: 100, names: 1 << 16, bytes: 1 << 20, ratio: 100, plain: 1 << 20, steps: 1 << 20}
		if len(b) < 1<<16 {
			w.load(b)
		}
	})
}

// FuzzManifest gives bytes in place of index, manifest and configuration.
func FuzzManifest(f *testing.F) {
	layer := tarOf(f, reg("x", "x"))
	c, _ := json.Marshal(config(layer))
	f.Add([]byte(`{"manifests":[]}`), []byte(`{"config":{},"layers":[]}`), c)
	f.Fuzz(func(t *testing.T, ix, m, c []byte) {
		all := map[isle.Digest][]byte{}
		for _, b := range [][]byte{ix, m, c} {
			all[isle.DigestOf(b)] = b
		}
		content := func(_ context.Context, d Descriptor) (io.ReadCloser, error) {
			b, ok := all[d.Digest]
			if !ok {
				return nil, isle.Errorf(isle.NotFound, "no %s", d.Digest)
			}
			return io.NopCloser(bytes.NewReader(b)), nil
		}
		for _, kind := range []string{typeIndex, typeManifest} {
			Choose(context.Background(), content, Descriptor{MediaType: kind, Digest: isle.DigestOf(ix), Size: int64(len(ix))}, Here())
		}
		var cf configFile
		if json.Unmarshal(c, &cf) == nil {
			newPicture(isle.DigestOf(c), cf, len(cf.RootFS.DiffIDs), Here())
		}
		var d Descriptor
		if json.Unmarshal(m, &d) == nil {
			Choose(context.Background(), content, d, Here())
		}
	})
}
