package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/test/lab"
)

// elsewhere starts a server of its own that listens to callers from elsewhere,
// and goes with the script: REMOTE is its URL, PIN its key, CA its certificate
// and SOCKET where its own machine reaches it.
func elsewhere(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: elsewhere")
	}
	dir, err := os.MkdirTemp("", "isle-e2e-far-")
	ts.Check(err)
	state, socket := filepath.Join(dir, "state"), filepath.Join(dir, "isle.sock")
	ts.Check(os.Mkdir(state, 0o700))
	lab.SeedBuilt(built, state)
	server := exec.Command(filepath.Join(bin, "isle"), "server", "--state", state, "--server", socket, "--keys", filepath.Join(dir, "keys"),
		"--listen", "127.0.0.1:0", "--log", filepath.Join(dir, "log"))
	ts.Defer(func() {
		for _, rest := range [][]string{{"down", "--all", "--volumes"}, {"server", "stop"}} {
			exec.Command(filepath.Join(bin, "isle"), append([]string{"--server", socket}, rest...)...).Run() // it may have ended
		}
		if server.Process != nil {
			server.Process.Kill() // it has ended, unless stop failed
			server.Wait()
		}
		os.RemoveAll(dir)
	})
	ts.Check(server.Start())
	var told struct{ URL, Pin string }
	for end := time.Now().Add(time.Minute); told.URL == ""; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command(filepath.Join(bin, "isle"), "--server", socket, "version", "-o", "json").Output()
		if err == nil {
			err = json.Unmarshal(out, &told)
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			ts.Fatalf("it does not listen: %v\n%s", err, log)
		}
	}
	ts.Setenv("SOCKET", socket)
	ts.Setenv("REMOTE", told.URL)
	ts.Setenv("PIN", told.Pin)
	ts.Setenv("CA", filepath.Join(state, "tls.crt"))
}
