package crash

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// knockingFile has a service that says, of each session of a connection that it
// opens one after the other, "open" once it is answered and "over" once it ends.
const knockingFile = `name: NAME
services:
  one:
    packages: [busybox]
    command:
      - bash
      - -c
      - |
        while true; do
          if exec 3<>/dev/tcp/orders-db/PORT; then
            echo hi >&3; read -r answer <&3 && echo "open $answer"
            read -r answer <&3; echo over; exec 3>&-
          fi 2>/dev/null
          busybox sleep 0.05
        done
uses: [orders-db]
`

const knockingPolicy = `
connections:
  orders-db: {kind: tcp, address: "127.0.0.1:PORT", stage: testing, tls: off}
roles:
  user: {actions: [connection:open], resources: [connection:orders-db]}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: user, subjects: [{project: NAME, stage: testing}]}
`

// upKnocking brings the environment up, with a connection to a server that
// answers once and then keeps silent.
func (w *world) upKnocking(t *testing.T, name string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					fmt.Fprintln(c, "real")
				}
			})
		}
	})
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("NAME", name, "PORT", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	for file, text := range map[string]string{"isle.yaml": knockingFile, "policy.yaml": knockingPolicy} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(fill.Replace(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.must(t, "apply", "-f", filepath.Join(dir, "policy.yaml"))
	w.must(t, "up", dir)
}

// opened waits until the service has opened so many sessions, and that one is
// open now.
func (w *world) opened(t *testing.T, name string, least int) (so int) {
	t.Helper()
	eventually(t, "a session is open", func() error {
		out, err := w.isle("logs", name)
		if err != nil {
			return err
		}
		so = strings.Count(out, "open real")
		if over := strings.Count(out, "over"); so < least || over >= so {
			return fmt.Errorf("%d were open and %d are over", so, over)
		}
		return nil
	})
	return so
}

// However the server ends, what was open ends as well, is in the log as closed,
// and the door opens again.
func TestADoorOpensAgainAfterAServerThatDiedOrBecameAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	name := w.name + "-doors"
	w.upKnocking(t, name)
	so := w.opened(t, name, 1)

	w.kill(t)
	w.must(t, "ls") // starts the next
	so = w.opened(t, name, so+1)
	if out := w.must(t, "audit", "search", "--action", "session:close"); !strings.Contains(out, "the server died") {
		t.Errorf("no session is closed as one that the server died in:\n%s", out)
	}

	pid := w.server()
	w.must(t, "server", "reload")
	if w.server() != pid {
		t.Error("a reload is another process")
	}
	w.opened(t, name, so+1)
	if out := w.must(t, "audit", "search", "--action", "session:close"); !strings.Contains(out, "the server is stopping") {
		t.Errorf("no session is closed by the reload:\n%s", out)
	}

	count := func(action string) int {
		return strings.Count(w.must(t, "audit", "search", "--action", action, "-o", "json"), `"action":"`+action+`"`)
	}
	// The closing of one is written a moment after its end.
	open := func(want int) func() error {
		return func() error {
			if opens, closes := count("session:open"), count("session:close"); opens-closes != want {
				return fmt.Errorf("%d sessions began and %d are closed", opens, closes)
			}
			return nil
		}
	}
	eventually(t, "one session is open", open(1))
	w.must(t, "down", name)
	eventually(t, "every session is closed", open(0))
}
