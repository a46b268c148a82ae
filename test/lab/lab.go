// Package lab gives black-box tests a server of their own: a state folder, the
// command line, and the downloads of earlier runs.
package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A Server is a state folder and the server that the command line starts for
// it by itself.
type Server struct {
	Bin   string // folder of isle and isle-init
	State string

	// Runtime is the OCI runtime that ISLE_TEST_RUNTIME names; "" is the
	// server's own choice.
	Runtime string
	process *exec.Cmd
	bare    bool
}

// New makes a state folder with what earlier runs have downloaded. The binaries
// are those of ISLE_BIN, or of the folder named.
func New(bin string) (*Server, error) {
	s, err := Bare(bin)
	if err != nil {
		return nil, err
	}
	s.bare = false
	SeedDownloads(s.State)
	if s.Runtime != "" {
		if err := s.start(); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Bare is New without what was downloaded, for who needs none of it or looks
// into every file, and without a server for ISLE_TEST_RUNTIME.
func Bare(bin string) (*Server, error) {
	if b := os.Getenv("ISLE_BIN"); b != "" {
		bin = b
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, "isle-init")); err != nil {
		return nil, fmt.Errorf("%w: run `make build` first", err)
	}
	state, err := os.MkdirTemp("", "isle-lab-")
	if err != nil {
		return nil, err
	}
	return &Server{Bin: bin, State: state, Runtime: os.Getenv("ISLE_TEST_RUNTIME"), bare: true}, nil
}

// start starts a server that the command line would not start by itself.
func (s *Server) start() error {
	s.process = s.Command("server", "--runtime", s.Runtime)
	s.process.Stderr = os.Stderr
	if err := s.process.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.State, "isle.sock")); err == nil {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("the server does not listen: %w", err)
		}
	}
}

// Program builds a program of a test that runs inside sandboxes: it needs
// nothing of their roots.
func Program(out, folder string) error {
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, folder)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", folder, err, said)
	}
	return nil
}

// Environ is what makes a command speak to the server of a state folder. What
// it and its clients remember of the audit log, and its keys, are kept beside the
// folder.
func Environ(state string) []string {
	seen := state + ".seen"
	return []string{"ISLE_STATE=" + state, "ISLE_CHECKPOINTS=" + seen, "ISLE_KEYS=" + state + ".keys", "XDG_STATE_HOME=" + seen}
}

// Close tears everything down, and keeps what was downloaded for later runs.
func (s *Server) Close() {
	s.Isle("down", "--all", "--volumes")
	s.Isle("server", "stop")
	if s.process != nil {
		s.process.Wait()
	}
	if !s.bare {
		KeepDownloads(s.State)
	}
	os.RemoveAll(s.State)
	os.RemoveAll(s.State + ".seen")
	os.RemoveAll(s.State + ".keys")
}

// Command is the command line, not started yet.
func (s *Server) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.Bin, "isle"), args...)
	cmd.Env = append(os.Environ(), Environ(s.State)...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Isle runs the command line. Its error says what it wrote to standard error.
func (s *Server) Isle(args ...string) (stdout string, err error) {
	cmd := s.Command(args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("isle %v: %w\n%s", args, err, said.String())
	}
	return out.String(), nil
}

// An Environment is what `isle status -o json` says, as far as tests look.
type Environment struct {
	Name     string
	Instance string
	Phase    string
	Usage    struct {
		Memory   int64
		PIDs     int `json:"pids"`
		OOMKills int `json:"oom_kills"`
		CPU      float64
	}
	Services []struct {
		Name     string
		Launch   string
		Phase    string
		Restarts int
		Ports    []struct {
			Name string
			Host int
		}
	}
}

// Status asks for one environment.
func (s *Server) Status(name string) (e Environment, err error) {
	out, err := s.Isle("status", name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &e)
	}
	return e, err
}

// Port finds the machine's port of a published one; 0 if there is none.
func (e Environment) Port(name string) int {
	for _, s := range e.Services {
		for _, p := range s.Ports {
			if p.Name == name {
				return p.Host
			}
		}
	}
	return 0
}

// Launch finds the launch of a service; "" if there is none.
func (e Environment) Launch(service string) string {
	for _, s := range e.Services {
		if s.Name == service {
			return s.Launch
		}
	}
	return ""
}
