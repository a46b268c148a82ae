package server

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/api"
)

// Who can delete files of a state folder must not get a new log for its images
// and volumes without the operator's word.
func TestALogThatWasTakenAwayIsNotBegunAnew(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept")}
	if err := os.Mkdir(cfg.State, 0o700); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, cfg)
	logged(t, b, 3)
	mustClose(t, b)
	if err := os.MkdirAll(filepath.Join(cfg.State, "volumes"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"isle.db", "isle.db-wal", "isle.db-shm", keyFile} {
		if err := os.Remove(filepath.Join(cfg.State, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	b, err := openLogbook(cfg)
	if isle.CodeOf(err) != isle.Untrusted || !strings.Contains(err.Error(), "--accept-rollback") {
		b.close()
		t.Fatalf("%v", err)
	}
	// And not at the second try either: the first leaves nothing that passes for a log.
	if b, err = openLogbook(cfg); isle.CodeOf(err) != isle.Untrusted {
		b.close()
		t.Fatalf("the second time: %v", err)
	}
	cfg.AcceptRollback = true
	mustClose(t, mustOpen(t, cfg))
}

// A checkpoint that is kept in a file that is no more, nobody will read.
func TestTheDoctorSeesThatTheKeptCheckpointWasTakenAway(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Checkpoints: filepath.Join(dir, "kept")}
	if err := os.Mkdir(cfg.State, 0o700); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, cfg)
	defer b.close()
	path := KeptPath(cfg.Checkpoints, cfg.State)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, replace := range []bool{false, true} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if replace {
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := b.check()
		if c.State != api.CheckWarning || !strings.Contains(c.Message, "would not be seen") || strings.Contains(c.Message, "nothing is done") || c.Remedy == "" {
			t.Errorf("%+v", c)
		}
	}
}

// Who keeps the policy has to be somebody.
func TestOnlyWhoIsThereReachesTheServer(t *testing.T) {
	known := reaches("root")
	for who, want := range map[string]bool{
		"human:root": true, "human:no-such-person": false, "human:nobody": false, // known, and not of the group
		"group:root": true, "group:no-such-group": false, "group:nogroup": false, "machine:ci": true,
	} {
		if known(who) != want {
			t.Errorf("%s: %v", who, !want)
		}
	}
	if m := membersOf("root"); !slices.Contains(m, "root") {
		t.Errorf("a user's first group is none of %v", m)
	}
}
