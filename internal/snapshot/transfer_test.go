package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/seal"
	"isle/internal/spec"
)

// database makes a snapshot of a volume with files in it.
func (w *world) database(memory string) Snapshot {
	w.t.Helper()
	dir := w.t.TempDir()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, "data", name) }
	must(os.MkdirAll(at("base/1"), 0o700))
	must(os.WriteFile(at("base/1/table"), bytes.Repeat([]byte("row "), 100_000), 0o600))
	must(os.Link(at("base/1/table"), at("base/again")))
	must(os.Symlink("/etc/passwd", at("out")))
	must(os.WriteFile(at("script"), []byte("#!/bin/sh\n"), 0o644))
	must(os.Chown(at("script"), 70, 71))
	must(os.Chmod(at("script"), 0o4755|os.ModeSetuid))
	must(os.Chtimes(at("script"), time.Unix(1e9, 5), time.Unix(1e9, 5)))
	must(unix.Mkfifo(at("pipe"), 0o640))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Setxattr(at("script"), "user.note", []byte("x"), 0))
	must(unix.Setxattr(at("script"), "trusted.note", []byte("x"), 0))
	sparse, err := os.Create(at("sparse"))
	must(err)
	_, err = sparse.WriteAt([]byte("end"), 30<<20)
	must(err)
	must(sparse.Close())

	d, err := w.Draft()
	must(err)
	id := d.Volume("db", "/data")
	must(w.volumes.Create(w.t.Context(), id, 64<<20))
	must(w.volumes.Fill(w.t.Context(), id, dir))
	m := manifest()
	if memory != "" {
		m.Memory = &Memory{Runtime: isle.DigestOf([]byte("runsc"))}
		must(os.WriteFile(filepath.Join(d.Memory(), "pages.img"), []byte(memory), 0o600))
		must(os.WriteFile(filepath.Join(d.Memory(), "checkpoint.img"), []byte("state"), 0o600))
	}
	snap, err := d.Seal(w.t.Context(), alice, m)
	must(err)
	return snap
}

func (w *world) export(name string) []byte {
	w.t.Helper()
	var b bytes.Buffer
	if err := w.Export(w.t.Context(), name, &b); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

func anything(Manifest) error { return nil }

func (w *world) take(b []byte) (Snapshot, error) {
	return w.Import(w.t.Context(), alice, bytes.NewReader(b), anything)
}

func TestASnapshotGoesToAnotherServerInOneFile(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	made := here.database("pages")
	file := here.export(made.Digest.Hex())
	if again := here.export(made.Digest.Hex()); !bytes.Equal(file, again) {
		t.Error("the same snapshot gives other bytes")
	}
	if len(file) > 200<<10 {
		t.Errorf("64 MiB, sparse, take %d bytes", len(file))
	}
	got, err := there.take(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != made.Digest || got.Trusted || !got.Imported || !got.NoMemory || got.Signer != "here" {
		t.Errorf("%+v", got)
	}
	used, done, err := there.Use(t.Context(), got.Digest.Hex())
	if err != nil {
		t.Fatal(err)
	}
	done()
	if used.Memory != "" {
		t.Error("memory of an unknown signer would be restored")
	}
	if _, err := there.Verify(t.Context(), got.Digest.Hex()); code(err) != isle.Untrusted || !strings.Contains(err.Error(), "is whole") {
		t.Error(err)
	}
	compareFiles(t, here, made, there, got)
	there.open()
	if _, err := there.take(file); code(err) != isle.Conflict {
		t.Error(err)
	}
	if err := there.Export(t.Context(), got.Digest.Hex(), io.Discard); code(err) != isle.Refused {
		t.Error(err)
	}
	entries := there.store.Entries()
	if last := entries[len(entries)-1]; last.Action != isle.ActionSnapshotImport || last.Details["signer"] != "here" || last.Details["trusted"] != "false" {
		t.Errorf("%+v", last)
	}
	there.mu.RLock()
	v := there.known[got.Digest].Volumes["db:/data"]
	there.mu.RUnlock()
	if v.Digest == "" || v.Digest == made.Manifest.Volumes[0].Digest || v.Files == "" || v.LeftOut != 2 {
		t.Errorf("%+v", v)
	}
}

// compareFiles compares what two snapshots have in their volume.
func compareFiles(t *testing.T, w1 *world, s1 Snapshot, w2 *world, s2 Snapshot) {
	t.Helper()
	open := func(w *world, s Snapshot) *os.File {
		f, err := os.Open(w.volumes.Path(s.Local["db:/data"]))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, b := open(w1, s1), open(w2, s2)
	x, out, err := sumFiles(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	y, left, err := sumFiles(t.Context(), b)
	if err != nil || x != y || out != 2 || left != 0 {
		t.Errorf("%s with %d more, and %s with %d more: %v", x, out, y, left, err)
	}
	t1, err := treeOf(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	t2, err := treeOf(t.Context(), b)
	if err != nil || !slices.Equal(t1.Entries, t2.Entries) || len(t1.Entries) != 8 {
		t.Errorf("%+v\n%+v %v", t1, t2, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(b.Fd()), &st); err != nil || st.Blocks*512 > 8<<20 {
		t.Errorf("%d bytes on disk: %v", st.Blocks*512, err)
	}
}

func TestMemoryComesWithATrustedSignatureOnly(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	made := here.database("pages")
	if _, err := there.Trust(t.Context(), alice, here.config.Key.Verifier()); err != nil {
		t.Fatal(err)
	}
	got, err := there.take(here.export(made.Digest.Hex()))
	if err != nil || !got.Trusted || got.NoMemory {
		t.Fatal(got, err)
	}
	there.open()
	used, done, err := there.Use(t.Context(), got.Digest.Hex())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if b, err := os.ReadFile(filepath.Join(used.Memory, "pages.img")); err != nil || string(b) != "pages" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := there.Verify(t.Context(), got.Digest.Hex()); err != nil {
		t.Error(err)
	}
	if _, err := there.Distrust(t.Context(), alice, "here"); err != nil {
		t.Fatal(err)
	}
	if used, done, err := there.Use(t.Context(), got.Digest.Hex()); err != nil || used.Memory != "" {
		t.Errorf("%+v %v", used, err)
	} else {
		done()
	}
}

// unzip and zip take the file of a snapshot apart and together.
type part struct {
	name string
	body []byte
}

func unzip(t *testing.T, b []byte) (out []part) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, part{h.Name, body})
	}
}

func zip(t testing.TB, parts []part) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, p := range parts {
		if err := w.WriteHeader(&tar.Header{Name: p.name, Typeflag: tar.TypeReg, Size: int64(len(p.body)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		w.Write(p.body)
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

func TestAHostileFileOfASnapshotIsRefusedWhole(t *testing.T) {
	here := newWorld(t, "here")
	made := here.database("pages")
	good := here.export(made.Digest.Hex())
	resign := func(parts []part, m Manifest) []part {
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		sig, err := keyOf(t, "mallory").Sign(seal.NoteText(shelfKind, isle.DigestOf(b)))
		if err != nil {
			t.Fatal(err)
		}
		parts[0].body, parts[1].body = b, sig
		return parts
	}
	for name, c := range map[string]struct {
		code   isle.Code
		change func(p []part) []part
	}{
		"a byte of the volume":   {isle.Untrusted, func(p []part) []part { p[2].body[1000] ^= 1; return p }},
		"a byte of the memory":   {isle.Untrusted, func(p []part) []part { p[3].body[0] ^= 1; return p }},
		"another block's number": {isle.Untrusted, func(p []part) []part { p[2].body[len(p[2].body)-BlockSize-1] ^= 1; return p }},
		"a block twice":          {isle.Invalid, func(p []part) []part { p[2].body[BlockSize+15] = p[2].body[7]; return p }},
		"a block beyond the end": {isle.Invalid, func(p []part) []part { p[2].body[len(p[2].body)-BlockSize-6] = 9; return p }},
		"the manifest changed": {isle.Untrusted, func(p []part) []part {
			p[0].body = bytes.Replace(p[0].body, []byte("alice"), []byte("admin"), 1)
			return p
		}},
		"no signature":    {isle.Untrusted, func(p []part) []part { p[1].body = nil; return p }},
		"a volume less":   {isle.Invalid, func(p []part) []part { return slices.Delete(p, 2, 3) }},
		"an entry more":   {isle.Invalid, func(p []part) []part { return append(p, part{"isle-snapshot/more", nil}) }},
		"a longer volume": {isle.Invalid, func(p []part) []part { p[2].body = append(p[2].body, 0); return p }},
		"a path out":      {isle.Invalid, func(p []part) []part { p[3].name = "../../etc/passwd"; return p }},
		"another order":   {isle.Invalid, func(p []part) []part { p[3], p[4] = p[4], p[3]; return p }},
		"a field more":    {isle.Invalid, func(p []part) []part { p[0].body = append([]byte(`{"x":1,`), p[0].body[1:]...); return p }},
		"a huge manifest": {isle.Invalid, func(p []part) []part { p[0].body = bytes.Repeat([]byte{' '}, MaxManifest+1); return p }},
		"a volume that is no ext4": {isle.Invalid, func(p []part) []part {
			m := made.Manifest
			body := append(make([]byte, 8), bytes.Repeat([]byte("x"), BlockSize)...)
			f, _ := os.Create(filepath.Join(t.TempDir(), "v"))
			f.Write(body[8:])
			c, err := readContent(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			m.Volumes = []Volume{{Service: "db", Path: "/data", Size: c.size, Digest: c.digest, Bytes: c.bytes}}
			p[2].body = body
			return resign(p, m)
		}},
		"a file that nobody could write": {isle.Invalid, func(p []part) []part {
			m := made.Manifest
			m.Spec.Services = slices.Clone(m.Spec.Services)
			m.Spec.Services[0].Caps = []string{"CAP_SYS_ADMIN"}
			return resign(p, m)
		}},
		"a class that its file is not of": {isle.Invalid, func(p []part) []part {
			m := made.Manifest
			m.Spec.Isolation = spec.Container
			return resign(p, m)
		}},
		"a project that its file is not of": {isle.Invalid, func(p []part) []part {
			m := made.Manifest
			m.Project = "other"
			return resign(p, m)
		}},
		"the last generation of all": {isle.Invalid, func(p []part) []part {
			m := made.Manifest
			m.Generation = math.MaxInt64 / 2
			return resign(p, m)
		}},
		"a volume larger than any disk": {isle.Exhausted, func(p []part) []part {
			m := made.Manifest
			m.Volumes = slices.Clone(m.Volumes)
			m.Volumes[0].Size, m.Volumes[0].Bytes = maxSize, maxSize
			p = resign(p, m)
			p[2].body = nil
			return p
		}},
	} {
		t.Run(name, func(t *testing.T) {
			there := newWorld(t, "there")
			parts := c.change(unzip(t, good))
			var b []byte
			if c.code == isle.Exhausted { // its size is said and not there
				b = zipHuge(t, parts)
			} else {
				b = zip(t, parts)
			}
			if _, err := there.take(b); code(err) != c.code {
				t.Errorf("%s: %v", code(err), err)
			}
			if folders, volumes := there.left(); len(folders)+len(volumes) != 0 {
				t.Errorf("%v %v", folders, volumes)
			}
		})
	}
	there := newWorld(t, "there")
	for _, n := range []int{0, 1, 100, len(good) / 2, len(good) - 1} {
		if _, err := there.take(good[:n]); err == nil {
			t.Errorf("the first %d bytes are taken", n)
		}
	}
	if _, err := there.Import(t.Context(), alice, bytes.NewReader(good), func(m Manifest) error {
		return isle.Errorf(isle.Refused, "not in stage %s", m.Ref.Stage)
	}); code(err) != isle.Refused {
		t.Error(err)
	}
	if folders, volumes := there.left(); len(folders)+len(volumes) != 0 {
		t.Errorf("%v %v", folders, volumes)
	}
	if _, err := there.take(good); err != nil {
		t.Error(err)
	}
}

// zipHuge says of its third entry that it is as large as its manifest says.
func zipHuge(t *testing.T, parts []part) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for i, p := range parts[:3] {
		size := int64(len(p.body))
		if i == 2 {
			m, err := DecodeManifest(parts[0].body)
			if err != nil {
				t.Fatal(err)
			}
			size = m.Volumes[0].entrySize()
		}
		if err := w.WriteHeader(&tar.Header{Name: p.name, Typeflag: tar.TypeReg, Size: size, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		w.Write(p.body)
	}
	w.Flush()
	z.Close()
	return b.Bytes()
}

func TestAnImportThatIsKilledLeavesNothing(t *testing.T) {
	here, there := newWorld(t, "here"), newWorld(t, "there")
	file := here.export(here.database("pages").Digest.Hex())
	dead := make(chan struct{})
	var killed sync.WaitGroup
	t.Cleanup(func() { close(dead); killed.Wait() })
	for _, point := range []string{"snapshot.drafted", "snapshot.volume", "snapshot.renamed", "snapshot.recorded"} {
		at := make(chan struct{})
		there.config.Fault = func(p string) {
			if p == point {
				close(at)
				<-dead // it does nothing more while there is anybody to see it
			}
		}
		there.open()
		s := there.Snapshots
		killed.Go(func() { s.Import(context.Background(), alice, bytes.NewReader(file), anything) })
		<-at
		there.config.Fault = nil
		there.open()
		list, err := there.List()
		folders, volumes := there.left()
		if err != nil || len(folders) != len(list) || len(volumes) != len(list) || (len(list) == 1) != (point == "snapshot.recorded") {
			t.Errorf("%s: %v %v %v %v", point, list, folders, volumes, err)
		}
	}
}

// FuzzImport changes bytes of what a right file unpacks to: each change is an
// offset of three bytes and a byte.
func FuzzImport(f *testing.F) {
	here := newWorld(f, "here")
	made := here.database("pages")
	z, err := zstd.NewReader(bytes.NewReader(here.export(made.Digest.Hex())))
	if err != nil {
		f.Fatal(err)
	}
	good, err := io.ReadAll(z)
	z.Close()
	if err != nil {
		f.Fatal(err)
	}
	there := newWorld(f, "there")
	f.Add([]byte{}, uint32(len(good)))
	f.Add([]byte{0, 2, 0, 'x'}, uint32(len(good)))
	f.Add([]byte{}, uint32(700))
	f.Fuzz(func(t *testing.T, patch []byte, length uint32) {
		there.t = t
		b := slices.Clone(good[:min(int(length), len(good))])
		for ; len(patch) >= 4 && len(b) > 0; patch = patch[4:] {
			b[int(binary.BigEndian.Uint32(append([]byte{0}, patch[:3]...)))%len(b)] = patch[3]
		}
		var packed bytes.Buffer
		w, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
		snap, err := there.Import(t.Context(), alice, &packed, anything)
		if err == nil {
			_, err = there.Remove(t.Context(), alice, snap.Digest.Hex(), false)
		}
		switch code(err) {
		case "", isle.Invalid, isle.Untrusted, isle.Exhausted:
		default:
			t.Errorf("%v has the code %s", err, code(err))
		}
		if folders, volumes := there.left(); len(folders)+len(volumes) != 0 {
			t.Errorf("%v %v", folders, volumes)
		}
	})
}
