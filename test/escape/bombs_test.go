package escape

import (
	"strings"
	"testing"
)

const bomb = `
name: bomb
services:
  it:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, serve, "8083", isle-bomb]
    volumes: {/data: {size: 32MiB}}
    restart: always
  other:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, serve, "8084", isle-other]
    caps: [` + every + `]
limits: {cpus: 1, memory: 128MiB, pids: 96}
`

func TestAForkBombStaysWithinItsEnvironment(t *testing.T) {
	unharmed(t)
	launch(t, "bomb", bomb)
	if got := besiege(t, "bomb", "it", "fork"); got["start one more process"] != "EAGAIN" {
		t.Errorf("%v", got)
	}
	e, err := server.Status("bomb")
	if err != nil || e.Usage.PIDs > 96 {
		t.Errorf("%d processes (%v)", e.Usage.PIDs, err)
	}
	works(t)
	if _, err := server.Isle("down", "bomb", "--volumes"); err != nil {
		t.Errorf("it can't be torn down: %v", err)
	}
}

func TestAMemoryBombEndsInItsOwnEnvironment(t *testing.T) {
	unharmed(t)
	launch(t, "bomb", bomb)
	for _, kind := range []string{"heap", "file", "shared", "kernel"} {
		out, err := server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "memory", kind)
		if err == nil && !strings.Contains(out, "ENOMEM") && !strings.Contains(out, "ENOSPC") && !strings.Contains(out, "EMFILE") && !strings.Contains(out, "ENFILE") {
			t.Errorf("%s: it was never enough: %s", kind, out)
		}
		e, err := server.Status("bomb")
		if err != nil || e.Usage.Memory > 128<<20 {
			t.Errorf("%s: %d bytes in use (%v)", kind, e.Usage.Memory, err)
		}
		works(t)
	}
	eventually(t, "the service comes back", func() error {
		_, err := server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "identity")
		return err
	})
}

func TestWhatIsFilledIsItsOwn(t *testing.T) {
	unharmed(t)
	launch(t, "bomb", bomb)
	for _, dir := range []string{"/data", "/tmp", "/dev/shm", "/run", "/dev"} {
		// Memory may end it before the file system is full: both are its own.
		out, err := server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "fill", dir)
		if err == nil && !strings.Contains(out, "ENOSPC") && !strings.Contains(out, "EROFS") {
			t.Errorf("%s: %s", dir, out)
		}
		out, err = server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "inodes", dir)
		if err == nil && !strings.Contains(out, "ENOSPC") && !strings.Contains(out, "ENOMEM") {
			t.Errorf("%s: %s", dir, out)
		}
		eventually(t, "the service comes back", func() error {
			_, err := server.Isle("exec", "bomb", "-s", "it", "--", "rm", "-rf", dir+"/fill", dir+"/many")
			return err
		})
	}
	if out, err := server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "fill", "/data", "stay"); err != nil || !strings.Contains(out, "ENOSPC") {
		t.Errorf("a volume holds more than its size: %s %v", out, err)
	}
	works(t)
}

// The machine has a limited number of these for all. One environment could take
// the last inotify instance and the last terminal.
func TestWhatTheMachineCountsForAllCannotBeTakenByOne(t *testing.T) {
	unharmed(t)
	file := bomb
	if sandboxed { // its own kernel keeps the lists, in the environment's memory
		file = strings.Replace(bomb, "128MiB", "2GiB", 1)
	}
	launch(t, "bomb", file)
	attacks := [][]string{{"inotify", "terminals", "signals", "queues", "segments", "locks", "pipes"}, {"timers", "files"}}
	if server.Runtime == "runc" { // counts the others for all environments together: docs/security.md says so
		attacks = [][]string{{"terminals", "queues", "segments", "locks", "pipes"}, {"files"}}
	}
	for _, service := range []string{"it", "other"} {
		for _, what := range attacks {
			got := besiege(t, "bomb", service, append([]string{"hold"}, what...)...)
			if len(got) != len(what) {
				t.Errorf("%s: %v", service, got)
			}
			works(t)
		}
	}
}

func TestPID1OutlivesWhatItsChildrenSendIt(t *testing.T) {
	unharmed(t)
	launch(t, "bomb", bomb)
	// Limits of a process may be lowered by its user: whoever does that to the
	// own isle-init has lost the way in, and nothing else.
	if _, err := server.Isle("exec", "bomb", "-s", "it", "--", "/attacker", "end"); err != nil {
		t.Logf("the service's own isle-init: %v", err)
	}
	for name, launch := range map[string]string{"bomb": "other", "target": "plain"} {
		if out, err := server.Isle("exec", name, "-s", launch, "--", "echo", "alive"); err != nil || out != "alive\n" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	if _, err := server.Isle("down", "bomb", "--volumes"); err != nil {
		t.Errorf("it can't be torn down: %v", err)
	}
}
