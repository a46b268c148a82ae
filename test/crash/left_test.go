package crash

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"isle/test/lab"
)

// A process is one of the machine's.
type process struct{ pid int }

func processes() (all []process) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, process{pid})
		}
	}
	return all
}

func (p process) path(name string) string { return fmt.Sprintf("/proc/%d/%s", p.pid, name) }

func (p process) file(name string) []byte {
	b, _ := os.ReadFile(p.path(name))
	return b
}

// dead reports whether it has ended, though nobody may have waited for it. The
// thread that it began with may end before others, which keep its files open.
func (p process) dead() bool {
	threads, err := os.ReadDir(p.path("task"))
	if err != nil || len(threads) > 1 {
		return err != nil
	}
	stat := string(p.file("stat"))
	_, state, ok := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	return !ok || strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// decode reads what isle status -o json says.
func decode(out string) (e lab.Environment, err error) {
	err = json.Unmarshal([]byte(out), &e)
	return e, err
}

// group is what the control groups and the folder in /run are called.
func (w *world) group() string {
	sum := sha256.Sum256([]byte(w.State))
	return "isle-" + hex.EncodeToString(sum[:4])
}

// launched are the processes of all environments.
func (w *world) launched() (all []process) {
	for _, p := range processes() {
		if strings.Contains(string(p.file("cgroup")), "/"+w.group()+"/") && !p.dead() {
			all = append(all, p)
		}
	}
	return all
}

// clear takes everything down, ends the server, and sees that nothing is left.
func (w *world) clear(t *testing.T) {
	t.Helper()
	w.disarm()
	w.must(t, "down", "--all", "--volumes")
	w.must(t, "server", "stop")
	w.nothingLeft(t)
}

// nothingLeft looks for everything that there is while environments run. The
// kernel takes some of it back a moment after what held it has gone.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is left", func() error {
		if left := w.left(); len(left) > 0 {
			return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
		return nil
	})
}

func (w *world) left() (left []string) {
	say := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
	for _, f := range []string{"sandboxes", "airlocks", "logs", "volumes", "build/scratch", "sandboxes/.runtime", "forks"} {
		entries, _ := os.ReadDir(filepath.Join(w.State, f))
		for _, e := range entries {
			switch e.Name() {
			case ".runtime", ".empty", "baselines": // folders that stay
			default:
				say("%s/%s", f, e.Name())
			}
		}
	}
	for _, name := range []string{w.group(), w.group() + ".gvisor"} {
		if _, err := os.Lstat(filepath.Join("/run", name)); err == nil {
			say("/run/%s", name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + w.group())
		for _, g := range found {
			say("control group %s", g)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); strings.HasPrefix(string(b), w.State+"/") {
			say("loop device %s of %s", l, strings.TrimSpace(string(b)))
		}
	}
	if len(left) > 0 {
		return left // and a look at every file of every process would be for nothing
	}
	return w.held()
}

// held is what processes hold: themselves, mounts in whatever mount namespace,
// and network namespaces, joined or by descriptor.
func (w *world) held() (left []string) {
	w.forget()
	own, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{}
	for _, p := range processes() {
		if p.dead() {
			continue
		}
		if strings.Contains(string(p.file("cgroup")), "/"+w.group()) || strings.Contains(string(p.file("cmdline")), w.State) {
			left = append(left, fmt.Sprintf("process %d: %q", p.pid, p.file("cmdline")))
		}
		if ns, err := os.Readlink(p.path("ns/mnt")); err == nil && !seen[ns] {
			seen[ns] = true
			for line := range strings.Lines(string(p.file("mountinfo"))) {
				if ns != own && strings.Contains(line, " - tmpfs isle-airlocks ") {
					continue // who copied the machine's mounts has an empty folder more
				}
				if strings.Contains(line, w.State) || strings.Contains(line, w.group()) || w.ours(line) {
					left = append(left, fmt.Sprintf("mount of process %d: %s", p.pid, strings.TrimSpace(line)))
				}
			}
		}
		links := []string{"ns/net"}
		if fds, err := os.Open(p.path("fd")); err == nil {
			names, _ := fds.Readdirnames(-1)
			fds.Close()
			for _, n := range names {
				links = append(links, "fd/"+n)
			}
		}
		for _, l := range links {
			if to, err := os.Readlink(p.path(l)); err == nil && w.ours(to) {
				left = append(left, fmt.Sprintf("%s of process %d is %s", l, p.pid, to))
			}
		}
	}
	return left
}

// forget drops the numbers of namespaces that have been given to others since.
func (w *world) forget() {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(string(mounts)) {
		if n, ok := namespace(line); ok && !strings.Contains(line, w.State) {
			delete(w.namespaces, n)
		}
	}
}

// namespace finds the number of a network namespace in a text.
func namespace(text string) (n uint64, ok bool) {
	_, rest, ok := strings.Cut(text, "net:[")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, "]")
	n, err := strconv.ParseUint(number, 10, 64)
	return n, err == nil
}

// ours reports whether the text names one of the network namespaces seen.
func (w *world) ours(text string) bool {
	n, ok := namespace(text)
	w.mu.Lock()
	defer w.mu.Unlock()
	return ok && w.namespaces[n]
}
