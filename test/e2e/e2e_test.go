// Package e2e shows what a user sees: the real command line against a real
// server, real Debian packages, real sandboxes. Each script in testdata is one
// promise, named for it.
package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/internal/spec"
	"isle/test/lab"
)

// bin is the folder of isle and isle-init; state is shared by the scripts, so
// that each package is fetched and each image built once; built holds what most
// scripts with a server of their own build.
var bin, state, built string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if bin = os.Getenv("ISLE_BIN"); bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	if _, err = os.Stat(filepath.Join(bin, "isle-init")); err != nil {
		fmt.Fprintf(os.Stderr, "%v: run `make build` first\n", err)
		return 1
	}
	if state, err = os.MkdirTemp("", "isle-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(state)
	// What servers and clients remember of logs goes with the state.
	os.Setenv("ISLE_CHECKPOINTS", filepath.Join(state, "..", filepath.Base(state)+".checkpoints"))
	defer os.RemoveAll(os.Getenv("ISLE_CHECKPOINTS"))
	os.Setenv("XDG_STATE_HOME", os.Getenv("ISLE_CHECKPOINTS"))
	os.Setenv("ISLE_KEYS", state+".keys")
	defer os.RemoveAll(state + ".keys")
	lab.SeedDownloads(state)
	defer lab.KeepDownloads(state)
	defer func() {
		isle("down", "--all", "--volumes")
		isle("server", "stop")
	}()
	if built, err = buildBase(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(built)
	return m.Run()
}

// buildBase builds a service without packages and one with busybox, in the
// shared state, and returns a folder with what was built.
func buildBase() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "isle-e2e-built-"); err != nil {
		return "", err
	}
	file := "name: base\nservices:\n  none: {command: [sh]}\n  busybox: {packages: [busybox], command: [sh]}\n"
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(file), 0o600); err != nil {
		return dir, err
	}
	if out, err := isle("build", dir); err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	lab.SeedBuilt(state, dir)
	return dir, nil
}

// isle runs the command against the shared server.
func isle(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(bin, "isle"), args...)
	cmd.Env = append(os.Environ(), "ISLE_STATE="+state)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestPromises keeps them in the class that a file gets that names none.
func TestPromises(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, promises("", scripts))
}

// promises are scripts to run with environments of a class of isolation, "" for
// what their files say.
func promises(class string, scripts []string) testscript.Params {
	return testscript.Params{
		Files: scripts,
		Setup: func(env *testscript.Env) error {
			examples, err := filepath.Abs("../../examples")
			if err != nil {
				return err
			}
			if class != "" {
				if examples, err = isolate(env.WorkDir, examples, class); err != nil {
					return err
				}
			}
			env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			env.Setenv("ISLE_STATE", state)
			env.Setenv("ISLE_CHECKPOINTS", os.Getenv("ISLE_CHECKPOINTS"))
			env.Setenv("ISLE_KEYS", os.Getenv("ISLE_KEYS"))
			env.Setenv("XDG_STATE_HOME", os.Getenv("XDG_STATE_HOME"))
			env.Setenv("ISLE_PREPARE", os.Getenv("ISLE_PREPARE")) // all of it holds for launches that are prepared
			env.Setenv("EXAMPLES", examples)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("BIN", bin)
			env.Values["held"] = held{}
			return nil
		},
		// A line that begins with [gvisor] is for that class alone.
		Condition: func(cond string) (bool, error) {
			if cond != spec.Gvisor {
				return false, fmt.Errorf("there is no condition %s", cond)
			}
			return class == spec.Gvisor, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"http":      httpGet,
			"code":      exitCode,
			"within":    within,
			"answer":    answer,
			"web":       web,
			"postgres":  realPostgres,
			"listen":    listen,
			"own":       ownState,
			"small":     smallState,
			"mirror":    mirror,
			"json":      jsonValue,
			"page":      page,
			"flip":      flip,
			"tty":       terminal,
			"post":      post,
			"member":    member,
			"elsewhere": elsewhere,
			"agent":     agent,
		},
	}
}

// httpGet fetches a published port and compares: http ENV PORTNAME PATH WANT.
func httpGet(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: http ENV PORTNAME PATH WANT")
	}
	out, err := output(ts, "isle", "status", args[0], "-o", "json")
	ts.Check(err)
	var e lab.Environment
	ts.Check(json.Unmarshal([]byte(out), &e))
	port := e.Port(args[1])
	if port == 0 {
		ts.Fatalf("%s publishes no port %s:\n%s", args[0], args[1], out)
	}
	client := http.Client{Timeout: 2 * time.Minute}
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, args[2]))
	if err != nil {
		if !neg {
			ts.Fatalf("%v", err)
		}
		return
	}
	defer res.Body.Close()
	body := make([]byte, 1<<20)
	n := 0
	for {
		k, err := res.Body.Read(body[n:])
		n += k
		if err != nil || n == len(body) {
			break
		}
	}
	if strings.Contains(string(body[:n]), args[3]) == neg {
		ts.Fatalf("%s: want %q in:\n%s", args[2], args[3], body[:n])
	}
}

// exitCode runs a command and checks its exit code: code N COMMAND ARGS….
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// within repeats a command until it succeeds: within SECONDS COMMAND ARGS….
func within(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: within SECONDS COMMAND [ARG…]")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	for end := time.Now().Add(time.Duration(seconds) * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err = ts.Exec(args[1], args[2:]...); err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("still failing after %d s: %v", seconds, err)
		}
	}
}

// held are the listeners of one script, by the name of their variable.
type held map[string]net.Listener

// listen holds a TCP port of 127.0.0.1 until the script ends, and puts its
// number into a variable: listen VAR [FILE], FILE holding the number wanted.
// listen -end VAR lets go of it.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: listen [-end] VAR [FILE]")
	}
	if args[0] == "-end" {
		ts.Check(ts.Value("held").(held)[args[1]].Close())
		return
	}
	address := "127.0.0.1:0"
	if len(args) > 1 {
		address = "127.0.0.1:" + strings.TrimSpace(ts.ReadFile(args[1]))
	}
	l, err := net.Listen("tcp", address)
	ts.Check(err)
	ts.Value("held").(held)[args[0]] = l
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// ownState gives the script a state folder and server of its own, which ends
// with it. A service without packages or with busybox is built there already, and
// with own FOLDER the file in the folder; own -new has nothing built, and the
// downloads of the shared one.
func ownState(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: own [-new | FOLDER]")
	}
	dir, err := os.MkdirTemp("", "isle-e2e-own-")
	ts.Check(err)
	switch {
	case len(args) == 0:
		lab.SeedBuilt(built, dir)
	case args[0] == "-new":
		lab.Seed(state, dir)
	default:
		lab.SeedLayers(state, dir, buildShared(ts, ts.MkAbs(args[0])))
	}
	ts.Setenv("ISLE_STATE", dir)
	ts.Defer(func() {
		endServer(dir)
		os.RemoveAll(dir)
	})
}

// buildShared builds a folder's file in the shared state, and returns the digests
// of the layers.
func buildShared(ts *testscript.TestScript, folder string) (layers []string) {
	cmd := exec.Command(filepath.Join(bin, "isle"), "build", folder, "-o", "json")
	cmd.Env = append(os.Environ(), "ISLE_STATE="+state)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		ts.Fatalf("%v: %s", err, said.String())
	}
	var images []struct{ Layers []struct{ Digest string } }
	ts.Check(json.Unmarshal(out, &images))
	for _, i := range images {
		for _, l := range i.Layers {
			layers = append(layers, l.Digest)
		}
	}
	return layers
}

func output(ts *testscript.TestScript, name string, args ...string) (string, error) {
	err := ts.Exec(name, args...)
	return ts.ReadFile("stdout"), err
}
