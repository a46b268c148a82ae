package oci

import (
	"context"
	"encoding/json"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/image"
)

func TestALayerHidesWhatItSaysOfLowerOnesAndNothingOfItsOwn(t *testing.T) {
	w := newWorld(t)
	m := w.must(
		tarOf(t, dir("d", 0o750), reg("d/a", "1"), reg("d/b", "1"), dir("o", 0o755), reg("o/old", "1"), reg("o/sub/old", "1"), reg("same", "1"), reg("whole/x", "1"), reg("whole/y", "1"), symlink("link", "d")),
		tarOf(t, reg("d/.wh.a", ""), reg("o/.wh..wh..opq", ""), reg("o/new", "2"), reg("same", "2"), reg(".wh.same", ""), reg(".wh.whole", ""), reg("whole/z", "2"), reg(".wh.nothing", ""), reg("n/.wh.n", ""), reg(".wh..wh.plnk", "")),
		tarOf(t, reg(".wh.link", ""), reg("o/third", "3"), reg("link/x", "3")),
	)
	for name, want := range map[string]string{
		"/d/a": "-", "/d/b": "1", "/o/old": "-", "/o/sub": "-", "/o/new": "2", "/o/third": "3", "/same": "2",
		"/whole/x": "-", "/whole/y": "-", "/whole/z": "2", "/nothing": "-", "/link": "/", "/link/x": "3", "/d/x": "-",
	} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	second := w.layer(m, 1)
	if f := second["/d"]; f.Mode.Perm() != 0o750 {
		t.Errorf("a whiteout made its directory %v", f.Mode)
	}
	for _, name := range []string{"/nothing", "/n", "/n/n", "/.wh..wh.plnk"} {
		if _, ok := second[name]; ok {
			t.Errorf("%s is in the layer, and hides nothing", name)
		}
	}
}

func TestAnOpaqueRootHidesAllBelow(t *testing.T) {
	w := newWorld(t)
	m := w.must(tarOf(t, reg("a", "1"), reg("d/x", "1")), tarOf(t, reg(".wh..wh..opq", ""), reg("d/y", "2")))
	for name, want := range map[string]string{"/a": "-", "/d/x": "-", "/d/y": "2"} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestDirectoriesThatAreNotInTheArchiveStayAsTheyWere(t *testing.T) {
	w := newWorld(t)
	sticky := dir("tmp", 0o1777)
	sticky.Uid = 5
	root := dir("./", 0o711)
	m := w.must(tarOf(t, root, sticky), tarOf(t, reg("tmp/f", "x"), reg("new/f", "x")))
	files := w.layer(m, 1)
	if f := files["/tmp"]; f.Mode != fs.ModeDir|fs.ModeSticky|0o777 || f.UID != 5 {
		t.Errorf("/tmp is %v of %d", f.Mode, f.UID)
	}
	if f := files["/"]; f.Mode != fs.ModeDir|0o711 {
		t.Errorf("/ is %v", f.Mode)
	}
	if f := files["/new"]; f.Mode != fs.ModeDir|0o755 {
		t.Errorf("/new is %v", f.Mode)
	}
}

func TestFilesGoThroughTheLinksOfLowerLayers(t *testing.T) {
	w := newWorld(t)
	m := w.must(
		tarOf(t, dir("usr/lib", 0o755), symlink("lib", "usr/lib"), reg("usr/lib/a", "1")),
		tarOf(t, reg("lib/b", "2"), hardlink("c", "lib/a"), reg("lib/.wh.a", "")),
	)
	for name, want := range map[string]string{"/lib": "-> usr/lib", "/usr/lib/b": "2", "/c": "1", "/usr/lib/a": "-"} {
		if got := w.read(m, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestTimesAreKept(t *testing.T) {
	w := newWorld(t)
	at := func(name string, when time.Time) item {
		i := reg(name, "x")
		i.ModTime = when
		return i
	}
	when := time.Date(2023, 4, 5, 6, 7, 8, 0, time.UTC)
	m := w.must(tarOf(t, at("a", when), at("old", time.Unix(-5, 0)), at("isle", image.Time)))
	files := w.layer(m, 0)
	if got := files["/a"].Time; !got.Equal(when) {
		t.Errorf("it changed at %v", got)
	}
	if got := files["/old"].Time; got.Unix() != 0 {
		t.Errorf("what is older than 1970 changed at %v", got)
	}
	if got := files["/isle"].Time; !got.IsZero() {
		t.Errorf("Isle's own time is %v", got)
	}
}

func TestTheSameImageIsTheSameHoweverItCame(t *testing.T) {
	one := tarOf(t, dir("d", 0o755), reg("d/a", "1"))
	two := tarOf(t, reg("d/.wh.a", ""), reg("d/b", "2"))
	change := func(c *configFile) {
		c.Config.User, c.Config.Env, c.Config.Cmd, c.Config.WorkingDir = "www", []string{"A=1"}, []string{"run"}, "d"
		c.Config.Volumes = map[string]struct{}{"/v": {}, "/u": {}}
	}
	l := newLayout(t)
	l.image("shop:1", change, one, two)
	plain := l.tar()
	packed := newLayout(t)
	c := config(one, two)
	change(&c)
	packed.list("", manifest{SchemaVersion: 2, Config: packed.json(typeConfig, c), Layers: []Descriptor{packed.blob(typeLayerGzip, gzipped(t, one)), packed.blob("application/vnd.oci.image.layer.v1.tar+zstd", zstandard(t, two))}})
	b, err := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": []string{"shop:1", "shop:latest"}, "Layers": []string{"1/layer.tar", "2/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	cb, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	saved := tarOf(t, reg("x/layer.tar", string(one)), reg("2/layer.tar", string(two)), symlink("1/layer.tar", "../x/layer.tar"), reg("c.json", string(cb)), reg("manifest.json", string(b)))
	var digests []isle.Digest
	for name, archive := range map[string][]byte{"layout": plain, "layout, packed": packed.tar(), "layout in gzip": gzipped(t, plain), "docker save": saved, "docker save in zstd": zstandard(t, saved)} {
		w := newWorld(t)
		got, err := w.load(archive)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		digests = append(digests, got.Image.Digest())
		want := &image.Config{User: "www", Env: []string{"A=1"}, Cmd: []string{"run"}, Workdir: "/d", Volumes: []string{"/u", "/v"}}
		if !reflect.DeepEqual(got.Image.Config, want) {
			t.Errorf("%s: it is run as %+v", name, got.Image.Config)
		}
		// Again it is there: no layer is read.
		p := Picture{Platform: Here(), Config: *got.Image.Config, Layers: []PictureLayer{{DiffID: isle.DigestOf(one)}, {DiffID: isle.DigestOf(two)}}}
		known, ok := w.im.Known(p)
		if again, err := w.im.Import(context.Background(), p, nil); err != nil || !ok || again.Image.Digest() != got.Image.Digest() || known.Image.Digest() != got.Image.Digest() {
			t.Errorf("%s: again it is %v (%v), known %v", name, again.Image.Digest(), err, ok)
		}
	}
	for _, d := range digests {
		if d != digests[0] {
			t.Errorf("the digests are %v", digests)
		}
	}
}

func TestThePlatformOfThisMachineIsChosen(t *testing.T) {
	here := Here()
	other := Platform{OS: "linux", Architecture: "z80"}
	l := newLayout(t)
	add := func(p *Platform, architecture, body string) Descriptor {
		layer := tarOf(t, reg("which", body))
		c := config(layer)
		c.Architecture = architecture
		d := l.json(typeManifest, manifest{SchemaVersion: 2, Config: l.json(typeConfig, c), Layers: []Descriptor{l.blob(typeLayer, layer)}})
		d.Platform = p
		return d
	}
	inner := l.json(typeIndex, index{Manifests: []Descriptor{
		add(&Platform{OS: "unknown", Architecture: "unknown"}, here.Architecture, "attestation"),
		add(&other, "z80", "other"),
		add(&Platform{OS: "linux", Architecture: here.Architecture, Variant: "v9"}, here.Architecture, "variant"),
		add(&here, here.Architecture, "this"),
	}})
	l.index.Manifests = []Descriptor{inner}
	w := newWorld(t)
	got, err := w.load(l.tar())
	if err != nil {
		t.Fatal(err)
	}
	if which := w.read(got.Image, "/which"); which != "this" {
		t.Errorf("it is %s", which)
	}
	a, err := w.open(l.tar())
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Choose(context.Background(), "", Platform{OS: "linux", Architecture: "s390x"})
	wantCode(t, err, isle.NotFound)
	if err == nil || !strings.Contains(err.Error(), "linux/z80") {
		t.Errorf("it does not say what there is: %v", err)
	}
}

func TestOfSeveralImagesOneIsNamed(t *testing.T) {
	l := newLayout(t)
	l.image("a:1", nil, tarOf(t, reg("which", "a")))
	l.image("b:1", nil, tarOf(t, reg("which", "b")))
	w := newWorld(t)
	_, err := w.load(l.tar())
	wantCode(t, err, isle.Invalid)
	a, err := w.open(l.tar())
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Choose(context.Background(), "b:1", Here())
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.im.Import(context.Background(), p, nil)
	if err != nil || w.read(got.Image, "/which") != "b" {
		t.Errorf("it is not b: %v", err)
	}
	_, err = a.Choose(context.Background(), "c:1", Here())
	wantCode(t, err, isle.NotFound)
}
