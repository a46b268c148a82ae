package escape

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

// harmlessText checks that nothing in the text can steer a terminal.
func harmlessText(t *testing.T, what, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control)) {
			t.Errorf("%s has the character %U: %.200q", what, r, text)
			return
		}
	}
}

// inside runs a shell command in target's service plain.
func inside(t *testing.T, script string) {
	t.Helper()
	if out, err := server.Isle("exec", "target", "-s", "plain", "--", "sh", "-c", script); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func TestWhatIsCopiedOutStaysWhereItIsPut(t *testing.T) {
	unharmed(t)
	inside(t, "rm -rf /data/tree /data/link")
	for what, how := range attack(t, "plain", "trap", "/data/tree") {
		if how != "DONE" {
			t.Fatalf("the trap: %s: %s", what, how)
		}
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(victim, "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	copyOut := func(from, to string) error {
		cmd := server.Command("cp", "target/plain:"+from, to)
		out, err := cmd.CombinedOutput()
		harmlessText(t, "isle cp", string(out))
		return err
	}
	if err := copyOut("/data/tree", filepath.Join(to, "tree")); err != nil {
		t.Errorf("a tree with traps is not copied at all: %v", err)
	}
	// The second time, what were links are folders with files to write.
	inside(t, "cd /data/tree && rm -rf absolute above root victim && for d in absolute above root victim; do mkdir $d; echo evil > $d/file; echo evil > $d/passwd; done")
	if err := copyOut("/data/tree", filepath.Join(to, "tree")); err != nil {
		t.Errorf("the second copy: %v", err)
	}
	for _, d := range []string{"absolute", "above", "victim"} {
		if err := copyOut("/data/tree/"+d, filepath.Join(to, "tree", d)); err != nil {
			t.Errorf("the copy of %s: %v", d, err)
		}
	}
	// What is copied is itself a link first, and a folder then.
	inside(t, "ln -s "+victim+" /data/link")
	if err := copyOut("/data/link", filepath.Join(to, "link")); err == nil {
		t.Error("a link to anywhere is copied without a word")
	}
	inside(t, "rm /data/link; mkdir /data/link; echo evil > /data/link/file; echo evil > /data/link/link")
	if err := copyOut("/data/link", filepath.Join(to, "link")); err != nil {
		t.Error(err)
	}
	if err := copyOut("/data/link/file", filepath.Join(to, "link")); err != nil {
		t.Error(err)
	}

	entries, _ := os.ReadDir(victim)
	b, _ := os.ReadFile(filepath.Join(victim, "file"))
	if len(entries) != 1 || string(b) != "kept" {
		t.Errorf("outside there is %v, the file is %q", entries, b)
	}
	files := 0
	err := filepath.WalkDir(to, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		switch mode := info.Mode(); {
		case mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0, mode&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0:
			t.Errorf("%s has mode %v", p, mode)
		case mode&fs.ModeSymlink != 0:
			if at, err := filepath.EvalSymlinks(p); err == nil && !strings.HasPrefix(at, to) {
				t.Errorf("%s leads to %s", p, at)
			}
		}
		return nil
	})
	if err != nil || files < 15 {
		t.Errorf("only %d files came (%v)", files, err)
	}
}

func TestWhatIsCopiedInGoesNowhereElse(t *testing.T) {
	unharmed(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "evil")
	if err := os.WriteFile(file, []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside(t, "cd /data && rm -rf in && mkdir in && cd in && ln -s /etc etc && ln -s ../../../../../../../.. up && ln -s /proc/1/root root && "+
		"ln -s /proc/self/fd fd && ln -s /isle isle && ln -s /usr usr && mkfifo pipe && ln -s "+dir+" host")
	for _, to := range []string{"etc/evil", "up/etc/evil", "up/evil", "root/evil", "root/etc/evil", "fd/1", "isle/init", "usr/evil", "pipe/evil", "../../../../../../etc/evil", "../../evil"} {
		if _, err := server.Isle("cp", file, "target/plain:/data/in/"+to); err == nil {
			t.Errorf("%s was written", to)
		}
	}
	// This makes a folder of that name inside.
	if _, err := server.Isle("cp", file, "target/plain:/data/in/host/there"); err != nil {
		t.Error(err)
	}
	for _, p := range []string{"/etc/evil", "/evil", "/usr/evil", filepath.Join(dir, "there")} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("the machine has %s", p)
		}
	}
	// And nothing of the kernel's or of isle-init's is read through such links.
	for _, from := range []string{"/proc/1/environ", "/proc/1/mem", "/proc/1/root", "/data/in/fd"} {
		if out, err := server.Isle("cp", "target/plain:"+from, filepath.Join(dir, "got")); err == nil {
			t.Errorf("%s was copied out: %s", from, out)
		}
	}
}

const loud = `
name: loud
services:
  escapes:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, shout, escapes]
  giant:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, shout, giant]
  flood:
    copy: [{from: attacker, to: /attacker}]
    command: [/attacker, shout, flood, "64"]
  tricks:
    copy: [{from: attacker, to: /attacker}]
    command: ["/bin/no\e[2Jsuch\u202e"]
limits: {cpus: 1, memory: 256MiB, pids: 128}
`

func TestOutputCannotSteerATerminalNorFillTheMachine(t *testing.T) {
	unharmed(t)
	t.Cleanup(func() { server.Isle("down", "loud", "--volumes") })
	_, err := up(t.TempDir(), loud)
	if err == nil {
		t.Error("services that end at once are called healthy")
	} else {
		harmlessText(t, "isle up", err.Error())
	}
	logs := func(service string) string {
		out, err := server.Isle("logs", "loud", "-s", service)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	for service, last := range map[string]string{"escapes": "after the escapes\n", "giant": "after the giant\n", "flood": "after the flood\n"} {
		eventually(t, service, func() error {
			if !strings.HasSuffix(logs(service), last) {
				return fmt.Errorf("the last line is not there")
			}
			return nil
		})
		harmlessText(t, "isle logs -s "+service, logs(service))
	}
	for line := range strings.Lines(logs("giant")) {
		if len(line) > 128<<10 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	works(t)
	size := int64(0)
	filepath.WalkDir(filepath.Join(server.State, "logs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil
	})
	if size > 64<<20 {
		t.Errorf("logs take %d bytes", size)
	}
	for _, args := range [][]string{{"status", "loud"}, {"ls"}, {"logs", "loud"}, {"audit"}} {
		out, err := server.Isle(args...)
		harmlessText(t, fmt.Sprint(args), out+errorText(err))
	}
}

func TestNamesFromInsideCannotSteerATerminal(t *testing.T) {
	unharmed(t)
	attack(t, "plain", "whisper")
	attack(t, "plain", "trap", "/data/names")
	for _, args := range [][]string{{"doors", "target"}, {"diff", "target"}, {"audit"}} {
		out, err := server.Isle(args...)
		if err != nil {
			t.Error(err)
		}
		harmlessText(t, fmt.Sprint(args), out)
		if args[0] == "doors" && !strings.Contains(out, "owned") {
			t.Errorf("the question is not recorded:\n%s", out)
		}
	}
}
