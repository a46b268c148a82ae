package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/api"
	"isle/internal/audit"
)

func logged(t *testing.T, b *logbook, n int) {
	t.Helper()
	for range n {
		e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "test"}, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: "a"}, isle.Allow, "")
		if err := b.store.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func mustOpen(t *testing.T, cfg Config) *logbook {
	t.Helper()
	b, err := openLogbook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustClose(t *testing.T, b *logbook) {
	t.Helper()
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestAStateThatWentBackIsRefusedUntilItIsAccepted(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept")}
	backup := filepath.Join(dir, "backup")
	b := mustOpen(t, cfg)
	logged(t, b, 5)
	mustClose(t, b)
	copyFolder(t, cfg.State, backup)
	b = mustOpen(t, cfg)
	logged(t, b, 1)
	// Killed here: what was acknowledged is kept outside all the same.
	kept, err := audit.ReadKept(KeptPath(cfg.Checkpoints, cfg.State))
	if err != nil || kept.Size != 6 {
		t.Fatal(kept, err)
	}
	mustClose(t, b)

	copyFolder(t, backup, cfg.State)
	_, err = openLogbook(cfg)
	if isle.CodeOf(err) != isle.Untrusted || !strings.Contains(err.Error(), "the last 1 are gone") || !strings.Contains(err.Error(), "--accept-rollback") {
		t.Fatalf("an older state: %v", err)
	}
	if _, err = openLogbook(cfg); isle.CodeOf(err) != isle.Untrusted {
		t.Fatalf("the second time: %v", err)
	}
	accepting := cfg
	accepting.AcceptRollback = true
	b = mustOpen(t, accepting)
	all, err := b.store.Entries(t.Context(), 0, 100)
	if err != nil || len(all) != 6 || all[5].Action != isle.ActionAuditAccept || all[5].Details["kept_size"] != "6" {
		t.Fatalf("accepting it is not recorded: %+v %v", all, err)
	}
	mustClose(t, b)
	b = mustOpen(t, cfg) // accepted for good
	mustClose(t, b)
	b = mustOpen(t, accepting) // and nothing to accept is nothing to record
	if n := b.store.Head().Size; n != 6 {
		t.Fatal(n)
	}
	mustClose(t, b)
}

func TestAnotherHistoryOrKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept")}
	b := mustOpen(t, cfg)
	logged(t, b, 5)
	mustClose(t, b)
	other := Config{State: filepath.Join(dir, "other"), Checkpoints: filepath.Join(dir, "kept")}
	b = mustOpen(t, other)
	logged(t, b, 9)
	mustClose(t, b)
	original := filepath.Join(dir, "original")
	copyFolder(t, cfg.State, original)

	copyFolder(t, other.State, cfg.State)
	if _, err := openLogbook(cfg); isle.CodeOf(err) != isle.Untrusted {
		t.Errorf("another log in its place: %v", err)
	}
	copyFolder(t, original, cfg.State)
	key, err := os.ReadFile(KeyPath(other.State))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(KeyPath(cfg.State), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogbook(cfg); isle.CodeOf(err) != isle.Untrusted {
		t.Errorf("another key: %v", err)
	}
	if err := os.Remove(KeyPath(cfg.State)); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogbook(cfg); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("no key: %v", err)
	}
	if err := os.RemoveAll(cfg.State); err != nil {
		t.Fatal(err)
	}
	begun := mustOpen(t, cfg) // nothing of before comes to life in a state that is new; that it is, is recorded
	if size := begun.store.Head().Size; size != 1 {
		t.Errorf("a state that is new begins with %d entries, not with the one that says so", size)
	}
	mustClose(t, begun)
	if err := os.WriteFile(KeptPath(cfg.Checkpoints, cfg.State), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogbook(cfg); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("a checkpoint that cannot be read: %v", err)
	}
	cfg.AcceptRollback = true
	mustClose(t, mustOpen(t, cfg))
}

func TestTheDoctorSaysWhyNothingIsDone(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, 0); err != nil {
			t.Error(err)
		}
	})
	b := mustOpen(t, Config{State: state, Checkpoints: filepath.Join(dir, "kept")})
	defer b.close()
	if c := b.check(); c.State != api.CheckOK {
		t.Fatalf("%+v", c)
	}
	var err error
	for i := 0; i < 10_000 && err == nil; i++ {
		e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "test"}, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: "a"}, isle.Allow, "")
		err = b.store.Append(t.Context(), e.With("fill", strings.Repeat("x", 2000)))
	}
	if err == nil {
		t.Fatal("it never fills up")
	}
	if c := b.check(); c.State != api.CheckMissing || !strings.Contains(c.Message, "nothing is done") || c.Remedy == "" {
		t.Fatalf("the disk is full: %+v", c)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	logged(t, b, 1)
	if c := b.check(); c.State != api.CheckOK {
		t.Fatalf("with space again: %+v", c)
	}
}
