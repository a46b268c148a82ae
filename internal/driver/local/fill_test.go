package local

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"isle"
	"isle/internal/environment"
)

func TestAVolumeIsFilledWithFilesOfItsOwners(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, "crun")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "data", "x")
	if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(name, 42, 42); err != nil {
		t.Fatal(err)
	}
	volume := isle.NewID()
	if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
		t.Fatal(err)
	}
	if err := b.volumes.Fill(t.Context(), volume, dir); err != nil {
		t.Fatal(err)
	}
	l := b.launchOf(isle.NewID(), "owner /data/x", "list /data")
	l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
	b.up(&l)
	if r := b.report(l); r["owner /data/x"] != "42:42 644" || r["list /data"] != "x" {
		t.Errorf("%q", r)
	}
	if err := b.volumes.Fill(t.Context(), volume, dir); isle.CodeOf(err) != isle.Conflict || err == nil {
		t.Errorf("a volume is filled while it is mounted: %v", err)
	}
	if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
		t.Fatal(err)
	}
}

func TestFilesThatDoNotFitFillNoVolume(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, "crun")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "x"), bytes.Repeat([]byte("x"), 12<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := isle.NewID()
	if err := b.volumes.Create(t.Context(), volume, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := b.volumes.Fill(t.Context(), volume, dir); isle.CodeOf(err) != isle.Exhausted || err == nil {
		t.Error(err)
	}
}
