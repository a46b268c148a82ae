package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Main is what TestMain of a package is whose tests look from inside of what a
// server runs. It builds the program in the package's folder named, for inside,
// and has setup make what all tests share, before the first, and end it. It
// returns the exit code.
func Main(m *testing.M, folder string, setup func(dir, program string) (end func(), err error)) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getuid() != 0 {
		return fail(fmt.Errorf("these tests need root: sandboxes are made by root"))
	}
	dir, err := os.MkdirTemp("", "isle-"+folder+"-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, folder)
	if err := Program(program, "./"+folder); err != nil {
		return fail(err)
	}
	end, err := setup(dir, program)
	if end != nil {
		defer end()
	}
	if err != nil {
		return fail(err)
	}
	return m.Run()
}

// Isolation is the class that ISLE_TEST_ISOLATION names, for files that name
// none: the tests that attack and use environments are for every class. ""
// leaves them as they are.
func Isolation() string { return os.Getenv("ISLE_TEST_ISOLATION") }

// Isolated is an environment file with the class of ISLE_TEST_ISOLATION, where
// it names no other.
func Isolated(file string) string { return IsolatedAs(file, Isolation()) }

// IsolatedAs is an environment file with a class, where it names no other. ""
// leaves it as it is.
func IsolatedAs(file, class string) string {
	if class == "" || strings.Contains(file, "isolation:") {
		return file
	}
	return strings.TrimRight(file, "\n") + "\nisolation: " + class + "\n"
}

// Up brings up an environment of a file, in a folder that has the program beside
// the file. It returns what was said.
func (s *Server) Up(dir, file, program string, args ...string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(Isolated(file)), 0o644); err != nil {
		return "", err
	}
	code, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(program)), code, 0o755); err != nil {
		return "", err
	}
	return s.Isle(append([]string{"up", dir}, args...)...)
}
