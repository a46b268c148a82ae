// Package escape attacks environments from inside, with a real server and real
// sandboxes. Each test is one way to get out, to look out, or to hurt what else
// runs on the machine; it passes if the attempt is refused or contained, and if
// afterwards the machine is as it was, the server answers, and a neighbour
// environment works as if nothing had happened.
//
// The attempts themselves are in attacker. Addresses are of documentation
// ranges (RFC 5737, RFC 3849) or of the environment itself.
package escape

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle/test/lab"
)

// server is shared by all tests, and so are the environments "target", whose
// service plain is root without capabilities and whose service armed has every
// capability that a file may name, and "neighbour".
var server *lab.Server

// attacker is the path of the attacking program.
var attacker string

const every = "AUDIT_WRITE, CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, IPC_LOCK, IPC_OWNER, KILL, LEASE, " +
	"NET_BIND_SERVICE, SETFCAP, SETGID, SETPCAP, SETUID, SYS_CHROOT, SYS_NICE"

const target = `
name: target
services:
  plain:
    copy: [{from: attacker, to: /attacker}]
    run: [cp /attacker /setuid && chmod 6755 /setuid]
    command: [/attacker, serve, "8081", isle-plain]
    volumes: {/data: {size: 64MiB}}
  armed:
    copy: [{from: attacker, to: /attacker}]
    run: [cp /attacker /setuid && chmod 6755 /setuid]
    command: [/attacker, serve, "8082", isle-armed]
    volumes: {/data: {size: 64MiB}}
    caps: [` + every + `]
egress: ["granted.example.com:443"]
limits: {cpus: 1, memory: 256MiB, pids: 128}
`

const neighbour = `
name: neighbour
services:
  web:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, serve, "8080", isle-neighbour]
    volumes: {/data: {size: 64MiB}}
    ports: {web: 8080}
    healthcheck: {http: "http://localhost:8080/"}
limits: {cpus: 1, memory: 256MiB, pids: 128}
`

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "attacker", func(dir, program string) (func(), error) {
		var err error
		attacker = program
		if server, err = lab.New("../../bin"); err != nil {
			return nil, err
		}
		if _, err = up(filepath.Join(dir, "target"), target); err == nil {
			_, err = up(filepath.Join(dir, "neighbour"), neighbour)
		}
		return server.Close, err
	}))
}

// up brings up an environment of the file, in a folder with the attacker.
func up(dir, file string) (string, error) { return server.Up(dir, file, attacker) }

// launch brings up an environment for one test.
func launch(t *testing.T, name, file string) {
	t.Helper()
	t.Cleanup(func() { server.Isle("down", name, "--volumes") })
	if _, err := up(t.TempDir(), file); err != nil {
		t.Fatal(err)
	}
}

// attack runs the attacker in a service of target and returns what became of
// each attempt.
func attack(t *testing.T, service string, args ...string) map[string]string {
	t.Helper()
	return attackIn(t, "target", service, args...)
}

func attackIn(t *testing.T, environment, service string, args ...string) map[string]string {
	t.Helper()
	out, err := server.Isle(append([]string{"exec", environment, "-s", service, "--", "/attacker"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := outcomes(out)
	if len(got) == 0 {
		t.Fatalf("the attacker tried nothing:\n%s", out)
	}
	return got
}

func outcomes(out string) map[string]string {
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if what, how, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			if old, twice := got[what]; !twice || old != "DONE" {
				got[what] = how
			}
		}
	}
	return got
}

// refusals are how the kernel says no.
var refusals = []string{"EPERM", "EACCES", "EROFS", "ENOSYS"}

// refused checks that every attempt was refused, but for those in other, which
// have one of the outcomes named there, separated by spaces.
func refused(t *testing.T, service string, got map[string]string, least int, other map[string]string) {
	t.Helper()
	if len(got) < least {
		t.Errorf("%s: only %d attempts were made, want at least %d: %v", service, len(got), least, got)
	}
	for _, what := range slices.Sorted(maps.Keys(got)) {
		want := refusals
		if w, ok := other[what]; ok {
			want = strings.Fields(w)
		}
		if sandboxed {
			want = slices.Concat(want, lacks, strings.Fields(inSandbox[what]))
		}
		if how := got[what]; !slices.Contains(want, how) {
			t.Errorf("%s: %s: %s, want one of %v", service, what, how, want)
		}
	}
	for what := range other {
		if _, tried := got[what]; !tried {
			t.Errorf("%s: %s: was not tried", service, what)
		}
	}
}

// absent is the outcome of what there is not, be it hidden or unknown to this
// kernel.
const absent = "EPERM EACCES EROFS ENOENT ENXIO"

// both runs a group of attempts as root without capabilities and as root with
// every capability that a file may name, watching the machine.
func both(t *testing.T, group string, least int, other map[string]string) {
	t.Helper()
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		refused(t, service, attack(t, service, group), least, other)
	}
}

// unharmed checks, when the test ends, that the machine is as it was, the
// server is the one that it was, and the neighbour works.
func unharmed(t *testing.T) {
	t.Helper()
	before := machine(t)
	t.Cleanup(func() {
		after := machine(t)
		for what, was := range before {
			if is := after[what]; is != was {
				t.Errorf("%s was %q and is %q", what, was, is)
			}
		}
		works(t)
	})
}

// works checks that the neighbour answers and does what a program does.
func works(t *testing.T) {
	t.Helper()
	e, err := server.Status("neighbour")
	if err != nil {
		t.Errorf("the server: %v", err)
		return
	}
	client := http.Client{Timeout: 2 * time.Minute}
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", e.Port("web")))
	if err != nil {
		t.Errorf("the neighbour: %v", err)
		return
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "well\n" {
		t.Errorf("the neighbour answers %q (%v)", b, err)
	}
	for what, how := range attackIn(t, "neighbour", "web", "live") {
		if how != "DONE" {
			t.Errorf("the neighbour can't %s: %s", what, how)
		}
	}
}

// machine is what no environment may change.
func machine(t *testing.T) map[string]string {
	t.Helper()
	is := map[string]string{}
	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/kernel/sysrq",
		"/proc/sys/kernel/randomize_va_space", "/proc/sys/kernel/panic", "/proc/sys/kernel/pid_max", "/proc/sys/fs/suid_dumpable", "/proc/sys/fs/file-max",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/vm/overcommit_memory", "/proc/swaps", "/proc/sys/kernel/random/boot_id", "/etc/hosts", "/etc/hostname"} {
		b, err := os.ReadFile(p)
		is[p] = string(b)
		if err != nil {
			is[p] = err.Error()
		}
	}
	users, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	is["root in /etc/passwd"], _, _ = strings.Cut(string(users), "\n") // other tests add users of their own meanwhile
	programs := []string{filepath.Join(server.Bin, "isle"), filepath.Join(server.Bin, "isle-init")}
	for _, name := range []string{"crun", "runc", "sh"} {
		if p, err := exec.LookPath(name); err == nil {
			programs = append(programs, p)
		}
	}
	for _, p := range programs {
		b, err := os.ReadFile(p)
		is[p] = fmt.Sprintf("%x %v", sha256.Sum256(b), err)
	}
	for _, p := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/", "/tmp", "/etc", "/root"} {
		var st syscall.Stat_t
		if err := syscall.Stat(p, &st); err == nil {
			is["owner of "+p] = fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode)
		}
	}
	if e, err := server.Status("neighbour"); err == nil {
		is["the neighbour"] = fmt.Sprint(e.Instance, e.Phase, e.Services)
	} else {
		is["the neighbour"] = err.Error()
	}
	return is
}

// besiege starts an attack that says "holding" once it is at its worst, and
// returns then. It ends with the test.
func besiege(t *testing.T, environment, service string, args ...string) map[string]string {
	t.Helper()
	cmd := server.Command(append([]string{"exec", environment, "-s", service, "--", "/attacker"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	var said []byte
	buffer := make([]byte, 4096)
	for !bytes.Contains(said, []byte("holding\n")) {
		n, err := out.Read(buffer)
		said = append(said, buffer[:n]...)
		if err != nil {
			t.Fatalf("the attack ended early: %v\n%s%s", err, said, complaint.String())
		}
	}
	return outcomes(string(said))
}

// eventually tries until it works, for two minutes at most: for what the
// machine does in its own time.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}
