package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger/ledgertest"
	"isle/internal/seal"
	"isle/internal/spec"
)

// A folder is Volumes in plain files.
type folder struct{ dir string }

func (f folder) Path(id isle.ID) string { return filepath.Join(f.dir, string(id)+".ext4") }

func (f folder) Create(_ context.Context, id isle.ID, size int64) error {
	if err := os.WriteFile(f.Path(id), nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(f.Path(id), size)
}

func (f folder) Fill(ctx context.Context, id isle.ID, dir string) error {
	cmd := exec.CommandContext(ctx, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", dir, f.Path(id))
	if out, err := cmd.CombinedOutput(); err != nil {
		return isle.Errorf(isle.Failed, "mke2fs: %s: %w", out, err)
	}
	return nil
}

func (f folder) Delete(_ context.Context, id isle.ID) error {
	if err := os.Remove(f.Path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (f folder) Used(id isle.ID) (int64, error) {
	fi, err := os.Stat(f.Path(id))
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// A world is a server's snapshots with all that they stand on.
type world struct {
	t       testing.TB
	state   string
	volumes folder
	store   *ledgertest.Memory
	config  Config
	*Snapshots
}

var (
	alice = isle.Actor{Kind: isle.Human, Name: "alice"}
	shop  = isle.Ref{Name: "shop", Stage: "testing"}
)

func keyOf(t testing.TB, name string) *seal.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	k, err := seal.NewKey(name, seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{t: t, state: t.TempDir(), store: ledgertest.New()}
	w.volumes = folder{filepath.Join(w.state, "volumes")}
	if err := os.Mkdir(w.volumes.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.config = Config{
		Dir: filepath.Join(w.state, "snapshots"), Volumes: w.volumes, Store: w.store, Key: keyOf(t, name),
		Now: func() time.Time { return time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC) },
	}
	w.open()
	return w
}

// open opens the snapshots, as a server does that starts.
func (w *world) open() {
	w.t.Helper()
	s, err := Open(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Snapshots = s
}

// put writes a volume's file of a size, with pieces of content.
func (w *world) put(id isle.ID, size int64, pieces map[int64]string) {
	w.t.Helper()
	f, err := os.OpenFile(w.volumes.Path(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		w.t.Fatal(err)
	}
	for at, text := range pieces {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			w.t.Fatal(err)
		}
	}
}

// manifest is that of an environment with one service and a volume of it.
func manifest() Manifest {
	return Manifest{
		Ref: shop, Project: "shop", Instance: "06v0000000000000000000000g", Isolation: "gvisor", Author: alice, Message: "before the migration",
		Spec: spec.File{Name: "shop", Isolation: "gvisor", Limits: spec.Limits{CPUs: 2, Memory: 2 << 30, PIDs: 1024}, Services: []spec.Service{{
			Name: "db", Suite: "bookworm", Restart: "no", Volumes: []spec.Volume{{Path: "/data", Size: 8 << 20}}, Env: map[string]string{"A": "<b>", "B": "c"},
		}}},
		Services: []Service{{Name: "db", Launch: "06v0000000000000000000000h", Image: image.Image{
			Format: image.FormatVersion, Architecture: "amd64", Layers: []image.Layer{{Digest: isle.DigestOf([]byte("layer")), Size: 5, Kind: "packages", Title: "postgresql"}},
		}}},
	}
}

// seal makes a snapshot of a volume with some content, and of memory if there is
// any.
func (w *world) seal(text, memory string, tags ...string) Snapshot {
	w.t.Helper()
	snap, err := w.try(w.t.Context(), text, memory, tags...)
	if err != nil {
		w.t.Fatal(err)
	}
	return snap
}

func (w *world) try(ctx context.Context, text, memory string, tags ...string) (Snapshot, error) {
	w.t.Helper()
	d, err := w.Draft()
	if err != nil {
		return Snapshot{}, err
	}
	defer d.Discard()
	w.put(d.Volume("db", "/data"), 8<<20, map[int64]string{3<<20 + 5: text})
	m := manifest()
	if memory != "" {
		m.Memory = &Memory{Runtime: isle.DigestOf([]byte("runsc"))}
		if err := os.WriteFile(filepath.Join(d.Memory(), "pages.img"), []byte(memory), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	return d.Seal(ctx, alice, m, tags...)
}

// left lists what there is on disk: folders of snapshots, and volumes.
func (w *world) left() (folders, volumes []string) {
	w.t.Helper()
	for _, l := range []struct {
		dir string
		out *[]string
	}{{w.config.Dir, &folders}, {w.volumes.dir, &volumes}} {
		entries, err := os.ReadDir(l.dir)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			*l.out = append(*l.out, e.Name())
		}
	}
	return folders, volumes
}

// tamper writes into a file that is read-only, as root can.
func tamper(t testing.TB, path string, at int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), at); err != nil {
		t.Fatal(err)
	}
}

func code(err error) isle.Code {
	if err == nil {
		return ""
	}
	return isle.CodeOf(err)
}
