package checkpoint_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/driver/local/checkpoint"
)

const testUIDs = 0x0200_0000

func TestAForkGoesOnFromTheInstantOfTheCapture(t *testing.T) {
	w := newWorld(t)
	source := w.sandbox("source", testUIDs, 30)
	source.start()
	before := source.goesOn()
	if before.Outside != "open" {
		t.Fatalf("the source sees %+v", before)
	}
	var number string
	image := source.image()
	done, err := source.capture(image, func(context.Context) error {
		number = source.number()
		return nil
	}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if done.Paused <= 0 || done.Bytes < 30<<20 {
		t.Errorf("captured %+v", done)
	}
	at, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	random := map[string]bool{}
	for i, name := range []string{"one", "two"} {
		fork := w.sandbox(name, testUIDs+uint32(i+1)<<16, 30)
		if err := fork.bringBack(image, number); err != nil {
			t.Fatal(err)
		}
		// The guest's own test is that no number is missing and none comes twice.
		got := fork.sees(func(s seen) bool { return s.Number > at+40 && s.Outside != "open" })
		if got.Hostname != name || got.Marked != "of "+name || got.Sum != before.Sum {
			t.Errorf("%s sees %+v", name, got)
		}
		random[got.Random] = true
	}
	after := source.goesOn()
	if after.Outside != "open" || after.Hostname != "source" || after.Sum != before.Sum {
		t.Errorf("after the capture the source sees %+v", after)
	}
	random[after.Random] = true
	if len(random) != 3 {
		t.Errorf("random numbers are the same in two of three: %v", random)
	}
}

func TestTheSourceGoesOnWhereACaptureFails(t *testing.T) {
	w := newWorld(t)
	source := w.sandbox("source", testUIDs, 30)
	source.start()
	source.goesOn()
	empty := func(image string) {
		t.Helper()
		if left, err := os.ReadDir(image); err != nil || len(left) > 0 {
			t.Errorf("it left %v, %v", left, err)
		}
		source.goesOn()
	}
	t.Run("the volumes", func(t *testing.T) {
		image, no := source.image(), isle.Errorf(isle.Exhausted, "no space")
		if _, err := source.capture(image, func(context.Context) error { return no }).Run(t.Context()); !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
		empty(image)
	})
	t.Run("the caller is gone", func(t *testing.T) {
		image := source.image()
		ctx, cancel := context.WithCancel(t.Context())
		_, err := source.capture(image, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}).Run(ctx)
		if isle.CodeOf(err) != isle.Unavailable {
			t.Errorf("got %v", err)
		}
		empty(image)
	})
	t.Run("no space in the middle", func(t *testing.T) {
		image := source.image()
		if err := unix.Mount("tmpfs", image, "tmpfs", 0, "size=8m"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(image, unix.MNT_DETACH)
		if _, err := source.capture(image, nil).Run(t.Context()); isle.CodeOf(err) != isle.Exhausted {
			t.Errorf("got %v", err)
		}
		empty(image)
	})
	t.Run("no sandbox", func(t *testing.T) {
		c := source.capture(source.image(), nil)
		c.Socket = filepath.Join(w.dir, "none")
		if _, err := c.Run(t.Context()); isle.CodeOf(err) != isle.Unavailable {
			t.Errorf("got %v", err)
		}
	})
	t.Run("and then it can be captured", func(t *testing.T) {
		if _, err := source.capture(source.image(), nil).Run(t.Context()); err != nil {
			t.Error(err)
		}
		source.goesOn()
	})
}

// TestMain is also a program that captures and is killed while the sandbox
// stands still.
func TestMain(m *testing.M) {
	socket, dir, ok := strings.Cut(os.Getenv("CHECKPOINT_TEST_CAPTURE"), ",")
	if !ok {
		os.Exit(m.Run())
	}
	_, err := checkpoint.Capture{Socket: socket, Dir: dir, Held: func(ctx context.Context) error {
		fmt.Println("held")
		<-ctx.Done()
		return ctx.Err()
	}}.Run(context.Background())
	fmt.Println(err)
	os.Exit(1)
}

func TestTheSourceGoesOnWhereWhoCapturesIsKilled(t *testing.T) {
	w := newWorld(t)
	source := w.sandbox("source", testUIDs, 30)
	source.start()
	source.goesOn()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c := source.capture(source.image(), nil)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "CHECKPOINT_TEST_CAPTURE="+c.Socket+","+c.Dir)
		heard, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if said, err := bufio.NewReader(heard).ReadString('\n'); said != "held\n" {
			t.Errorf("it said %q, %v", said, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		source.goesOn()
	}
}

// waiting has numbers of OpenSSL's generators, then waits for the file go and
// writes the next that it gets.
const waiting = `
import os, ssl, time
ssl.RAND_bytes(32)
open("/mnt/ready", "w").close()
while not os.path.exists("/mnt/go"): time.sleep(0.01)
with open("/mnt/new", "w") as f: f.write(ssl.RAND_bytes(16).hex())
os.rename("/mnt/new", "/mnt/random")
time.sleep(1000)`

func TestRandomNumbersOfOpenSSLDifferInForks(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(w.dir, "machine") // as a mount of its own: what is bound into it is not to be the machine's
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	sleep := []string{"/bin/sleep", "1000"}
	run := func(name string, n uint32) *sandbox {
		return w.running(name, testUIDs+n<<16, root, map[string][]string{"top": sleep, "db": sleep, "app": {"/usr/bin/python3", "-c", waiting}})
	}
	file := func(s *sandbox, name string) string {
		t.Helper()
		for range 3000 {
			if b, err := os.ReadFile(filepath.Join(s.out("app"), name)); err == nil {
				return string(b)
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s has no file %s", s.name, name)
		return ""
	}
	source := run("source", 0)
	source.start()
	file(source, "ready")
	image := source.image()
	if _, err := source.capture(image, nil).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := []*sandbox{source, run("one", 1), run("two", 2)}
	for _, s := range all[1:] {
		if err := s.bringBack(image, ""); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	for _, s := range all {
		if err := os.WriteFile(filepath.Join(s.out("app"), "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		random := file(s, "random")
		if other, ok := seen[random]; ok {
			t.Errorf("%s and %s have %s", s.name, other, random)
		}
		seen[random] = s.name
	}
}

func TestABuildIsKnownByItsBytes(t *testing.T) {
	var b checkpoint.Builds
	at := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(at, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "other"} {
		if err := os.WriteFile(at, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := b.Of(at); err != nil || got != isle.DigestOf([]byte(content)) {
				t.Errorf("got %s, %v", got, err)
			}
		}
	}
}
