package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheServersMemoryIsInNoCoreDump(t *testing.T) {
	if err := keepMemory(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) })
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); n != 0 || err != nil {
		t.Errorf("it may be dumped: %d, %v", n, err)
	}
}

func TestVariablesThatAreSecretsAreForTheServerAndItsSuccessorOnly(t *testing.T) {
	t.Setenv("ISLE_SECRET_DB", "value=with=signs")
	t.Setenv("ISLE_SECRETS", "no secret")
	v := takeVariables()
	if _, ok := os.LookupEnv("ISLE_SECRET_DB"); ok {
		t.Error("what the server starts would have it")
	}
	if os.Getenv("ISLE_SECRETS") == "" {
		t.Error("another variable was taken")
	}
	if got, ok := v.get("ISLE_SECRET_DB"); !ok || got != "value=with=signs" {
		t.Errorf("it is %q", got)
	}
	if _, ok := v.get("ISLE_SECRETS"); ok {
		t.Error("another variable is a secret")
	}
	if !slices.Equal(v.pass(), []string{"ISLE_SECRET_DB=value=with=signs"}) {
		t.Errorf("a successor gets %q", v.pass())
	}
}

func TestAKeyIsSeenToBeInsideTheStateFolder(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(filepath.Join(state, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(state, "folder"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		state: true, state + "/key": true, state + "/folder/none/key": true, dir + "/link/key": true, dir + "/link/none/key": true,
		state + "2/key": false, dir + "/key": false, dir + "/state/../key": false, "/": false,
	} {
		if got := within(state, path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestEachStateFolderHasAKeyOfItsOwn(t *testing.T) {
	a, b := KeysPath("", "/srv/a/isle"), KeysPath("", "/srv/b/isle")
	if a == b || filepath.Dir(a) != DefaultKeys || filepath.Dir(KeysPath("/keys", "/srv/a/isle")) != "/keys" {
		t.Errorf("%s, %s", a, b)
	}
}
