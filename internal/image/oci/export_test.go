package oci

import (
	"bytes"
	"context"
	"reflect"
	"testing"
	"time"

	"isle/internal/image"
)

// archive exports an image.
func (w *world) archive(m image.Image, name string) []byte {
	w.t.Helper()
	p, err := w.im.Pack(context.Background(), m, m.Config, func(image.Layer, bool) {})
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteArchive(context.Background(), w.images, p, name, &b); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsExportedIsTheSameWhenItComesBack(t *testing.T) {
	w := newWorld(t)
	su := reg("bin/su", "su")
	su.Mode, su.Uid, su.Gid, su.ModTime = 0o4755, 7, 8, time.Date(2021, 2, 3, 4, 5, 6, 7000, time.UTC)
	layers := [][]byte{
		tarOf(t, dir("./", 0o711), su, dir("d", 0o1770), reg("d/a", "1"), reg("o/old", "1"), symlink("l", "d/a"), reg("with\nbreak", "x")),
		tarOf(t, reg("d/.wh.a", ""), reg("o/.wh..wh..opq", ""), reg("o/new", "2")),
	}
	l := newLayout(t)
	l.image("shop:1", func(c *configFile) {
		c.Config.User, c.Config.Cmd, c.Config.Labels = "www", []string{"run"}, map[string]string{"a": "b"}
		c.Config.Volumes, c.Config.Healthcheck = map[string]struct{}{"/v": {}}, &healthcheck{Test: []string{"CMD", "ask"}, Interval: 5}
	}, layers...)
	got, err := w.load(l.tar())
	if err != nil {
		t.Fatal(err)
	}
	out := w.archive(got.Image, "localhost/shop:1")
	if again := w.archive(got.Image, "localhost/shop:1"); !bytes.Equal(out, again) {
		t.Error("two exports differ")
	}
	other := newWorld(t)
	back, err := other.load(out)
	if err != nil {
		t.Fatal(err)
	}
	if back.Image.Digest() != got.Image.Digest() {
		t.Errorf("it went as %s and came back as %s", got.Image.Digest(), back.Image.Digest())
		for i := range layers {
			if is, was := other.layer(back.Image, i), w.layer(got.Image, i); !reflect.DeepEqual(is, was) {
				t.Errorf("layer %d was %+v and is %+v", i, was, is)
			}
		}
	}
	// What docker load reads of the file is the same image.
	a, err := other.open(out)
	if err != nil {
		t.Fatal(err)
	}
	delete(a.files, "index.json")
	saved := &Archive{files: a.files, close: func() error { return nil }}
	if err := saved.read(); err != nil {
		t.Fatal(err)
	}
	p, err := saved.Choose(context.Background(), "localhost/shop:1", Here())
	if err != nil {
		t.Fatal(err)
	}
	third, err := newWorld(t).im.Import(context.Background(), p, nil)
	if err != nil || third.Image.Digest() != got.Image.Digest() {
		t.Errorf("what docker load reads is %s (%v)", third.Image.Digest(), err)
	}
}
