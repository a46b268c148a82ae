package crash

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// counts are the numbers that the service has logged.
func (w *world) counts(t *testing.T) (all []int) {
	t.Helper()
	for line := range strings.Lines(w.must(t, "logs", w.name, "-s", "db")) {
		if _, text, ok := strings.Cut(line, "count "); ok {
			var n int
			if _, err := fmt.Sscan(text, &n); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

func (w *world) count(t *testing.T) int {
	t.Helper()
	n := 0
	fmt.Sscan(w.must(t, "exec", w.name, "-s", "db", "--", "cat", "/data/count"), &n)
	return n
}

// init is the process of a launch's isle-init.
func (w *world) init(t *testing.T, launch string) int {
	t.Helper()
	for _, p := range w.launched() {
		if launch != "" && strings.HasPrefix(string(p.file("cmdline")), "/isle/init\x00") && strings.Contains(string(p.file("cgroup")), "/"+launch+"\n") {
			return p.pid
		}
	}
	t.Fatalf("launch %q has no isle-init", launch)
	return 0
}

// tryDoor has the environment try what it may not.
func (w *world) tryDoor(t *testing.T, address string) {
	t.Helper()
	_, err := w.isle("exec", w.name, "-s", "web", "--", "busybox", "nc", "-w", "5", address, "80")
	if err == nil {
		t.Errorf("%s was reached", address)
	}
	eventually(t, "the refusal is recorded", func() error {
		if doors := w.must(t, "doors", w.name, "-o", "json"); !strings.Contains(doors, address+":80") {
			return errors.New(doors)
		}
		return nil
	})
}

func TestEnvironmentsOutliveTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up(t, w)
	before := w.running(t, 1)
	inits := map[string]int{}
	for _, s := range before.Services {
		inits[s.Launch] = w.init(t, s.Launch)
	}
	w.tryDoor(t, "192.0.2.1")
	w.kill(t)
	if err := get(before.Port("web"), ""); err == nil {
		t.Error("the port answers without a server")
	}
	left := w.counted()
	eventually(t, "it goes on counting", func() error {
		if n := w.counted(); n < left+20 {
			return fmt.Errorf("from %d to %d", left, n)
		}
		return nil
	})

	after := w.running(t, 1)
	for _, s := range before.Services {
		got := after.Launch(s.Name)
		if pid := w.init(t, got); got != s.Launch || pid != inits[got] {
			t.Errorf("%s was launch %s of process %d and is %s of %d", s.Name, s.Launch, inits[s.Launch], got, pid)
		}
	}
	if before.Port("web") != after.Port("web") || after.Port("web") == 0 {
		t.Errorf("the port was %d and is %d", before.Port("web"), after.Port("web"))
	}
	w.tryDoor(t, "192.0.2.2")
	reached := w.count(t)
	eventually(t, "what was said meanwhile arrives, whole", func() error {
		counts := w.counts(t)
		for i, n := range counts {
			if i > 0 && n > counts[i-1]+1 {
				return fmt.Errorf("after %d comes %d", counts[i-1], n)
			}
		}
		if len(counts) == 0 || counts[len(counts)-1] < reached {
			return fmt.Errorf("%d lines, and %d is not among them", len(counts), reached)
		}
		return nil
	})
	w.clear(t)
}

// counted is how far the service has counted, asked from outside: no server is
// needed.
func (w *world) counted() (n int) {
	for _, p := range w.launched() {
		b, err := os.ReadFile(p.path("root/data/count"))
		if err == nil {
			fmt.Sscan(string(b), &n)
			return n
		}
	}
	return 0
}

func TestAfterARebootWhatWasUpIsUpAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up(t, w)
	before := w.running(t, 1)
	w.kill(t)
	// What a reboot does: no process, control group, mount or folder in /run is
	// left, and the machine's boot has another name than the record's.
	for _, p := range w.launched() {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	eventually(t, "all processes end", func() error {
		if n := len(w.launched()); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
	pins, _ := filepath.Glob(filepath.Join(w.State, "airlocks", "*", "*"))
	for _, pin := range pins {
		syscall.Unmount(pin, syscall.MNT_DETACH)
	}
	if err := syscall.Unmount(filepath.Join(w.State, "airlocks"), syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join("/run", w.group()))
	for range 3 { // the deepest first, at last
		for _, pattern := range []string{"/*/*", "/*", ""} {
			found, _ := filepath.Glob("/sys/fs/cgroup/*/" + w.group() + pattern)
			more, _ := filepath.Glob("/sys/fs/cgroup/" + w.group() + pattern)
			for _, g := range slices.Concat(found, more) {
				syscall.Rmdir(g)
			}
		}
	}
	w.otherBoot(t)

	after := w.running(t, 1)
	if got := token(t, w); got != "precious" {
		t.Errorf("the data is %q", got)
	}
	if before.Port("web") != after.Port("web") || before.Launch("db") == after.Launch("db") {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	w.clear(t)
}

// otherBoot gives the records the name of another boot of the machine.
func (w *world) otherBoot(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(w.State, "isle.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec("UPDATE environments SET record = CAST(replace(CAST(record AS TEXT), ?, '00000000-0000-4000-8000-000000000000') AS BLOB)", strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func TestAKilledInitIsFollowedByThePolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up(t, w)
	e := w.running(t, 1)
	syscall.Kill(w.init(t, e.Launch("db")), syscall.SIGKILL) // restart: always
	eventually(t, "it is launched again", func() error {
		if now, err := w.Status(w.name); err != nil || now.Launch("db") == e.Launch("db") {
			return fmt.Errorf("it is %+v, %v", now, err)
		}
		return nil
	})
	e = w.running(t, 1)
	if got := token(t, w); got != "precious" {
		t.Errorf("the data is %q", got)
	}
	syscall.Kill(w.init(t, e.Launch("web")), syscall.SIGKILL) // no restart
	eventually(t, "its end is told", func() error {
		if now, err := w.Status(w.name); err != nil || now.Services[1].Phase != "failed" {
			return fmt.Errorf("it is %+v, %v", now, err)
		}
		return nil
	})
	w.must(t, "up", w.dir)
	w.running(t, 1)
	w.clear(t)
}

func TestAKilledRuntimeFailsOneUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(t, "ls")
	killed := 0
	for range 8 {
		done := make(chan struct{})
		go func() { defer close(done); w.isle("up", w.dir) }() // may fail
		for killed = 0; killed == 0; {
			for _, p := range w.launched() {
				if argv := string(p.file("cmdline")); strings.Contains(argv, "--pid-file") && !strings.HasPrefix(argv, "/bin/sh") {
					if syscall.Kill(p.pid, syscall.SIGKILL) == nil {
						killed++
					}
				}
			}
			select {
			case <-done:
				killed = -1
			default:
			}
		}
		<-done
		w.must(t, "up", w.dir)
		w.running(t, 1)
		w.must(t, "down", "--all", "--volumes")
	}
	w.clear(t)
}

func TestAKilledCommandLineLeavesAnUpThatGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(t, "ls")
	for _, after := range []time.Duration{5, 20, 60} {
		cmd := w.Command("up", w.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if !w.gone(t) { // it was not too early
			w.running(t, 1)
		}
		w.must(t, "up", w.dir)
		w.running(t, 1)
		w.must(t, "down", "--all", "--volumes")
	}
	w.clear(t)
}

// Twenty environments come and go while the server is killed again and again.
func TestKilledAtRandomNothingIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(t, "ls")
	var clients sync.WaitGroup
	var dir = filepath.Join(t.TempDir(), "small")
	os.Mkdir(dir, 0o700)
	small := "name: small\nservices:\n  one:\n    packages: [busybox]\n    volumes: {/data: {size: 8MiB}}\n    command: [\"sh\", \"-c\", \"exec busybox httpd -f -p 80 -h /data\"]\n    healthcheck: {tcp: 80, interval: 100ms}\n    ports: {web: 80}\n"
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "build", dir)
	const seed = 20260721
	for i := range 20 {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		name := fmt.Sprintf("%s-%d", w.name, i)
		clients.Go(func() {
			for range 3 {
				w.isle("up", dir, "--name", name) // fails where the server dies
				if random.IntN(2) == 0 {
					w.isle("down", name)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, 100))
	ended := make(chan struct{})
	go func() { clients.Wait(); close(ended) }()
	for kills := 0; kills < 12; kills++ {
		select {
		case <-ended:
			kills = 12
		case <-time.After(time.Duration(100+random.IntN(700)) * time.Millisecond):
			if pid := w.server(); pid != 0 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	<-ended
	eventually(t, "each is up or gone", func() error {
		out, err := w.isle("ls", "-o", "json")
		if err != nil {
			return err // the last kill may be a moment old
		}
		for _, phase := range []string{"pending", "starting", "stopping"} {
			if strings.Contains(out, `"`+phase+`"`) {
				return fmt.Errorf("one is %s", phase)
			}
		}
		return nil
	})
	for i := range 20 {
		w.must(t, "up", dir, "--name", fmt.Sprintf("%s-%d", w.name, i))
	}
	w.clear(t)
}

// The umask of whoever starts the server is no part of an image or a sandbox.
func TestTheServerMindsNoUmask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(t, "server", "stop")
	file := "name: NAME\nservices:\n  one:\n    packages: [busybox]\n    user: nobody\n    run: [\"mkdir /made && echo whole > /made/file\"]\n    command: [sleep, \"1000\"]\n"
	if err := os.WriteFile(filepath.Join(w.dir, "isle.yaml"), []byte(strings.ReplaceAll(file, "NAME", w.name)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := w.Command("up", w.dir)
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `umask 077; exec "$@"`, "sh"}, cmd.Args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := w.must(t, "exec", w.name, "--", "sh", "-c", "cat /made/file; grep -c localhost /etc/hosts; touch /tmp/x && umask"); got != "whole\n2\n0022" {
		t.Errorf("inside there is %q", got)
	}
	w.clear(t)
}
