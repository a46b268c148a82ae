package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestASecretIsFoundWhereverItIs(t *testing.T) {
	secret := []byte("correct horse battery staple")
	for name, content := range map[string][]byte{
		"plain":       secret,
		"base64":      []byte(base64.StdEncoding.EncodeToString(secret)),
		"hexadecimal": []byte(hex.EncodeToString(secret)),
		"two blocks":  append(bytes.Repeat([]byte{'x'}, 1<<20-5), secret...),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		s := search{secret: forms(secret), word: []byte("nowhere")}
		if err := s.tree(dir); err != nil {
			t.Fatal(err)
		}
		if len(s.found) != 1 || s.files != 1 || s.words != 0 {
			t.Errorf("%s: found %v in %d files", name, s.found, s.files)
		}
	}
}

func TestASecretIsFoundInAProcess(t *testing.T) {
	secret := []byte("correct horse battery staple")
	cmd := exec.Command("cat")
	cmd.Env = []string{"KEPT=" + string(secret)}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	// It runs once it answers; from then on its environment is in its memory.
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s := search{secret: forms(secret), word: []byte("KEPT=")}
	if err := s.memory(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if len(s.found) == 0 || s.words == 0 {
		t.Errorf("found %v, the word in %d places", s.found, s.words)
	}
}
