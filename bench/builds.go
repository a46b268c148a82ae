package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// builds measures builds of a Dockerfile on a large image beside Debian's buildah,
// in its overlay store and without a container around its steps: with nothing made,
// with nothing to do, and from a changed line to the program's output; and how fast
// the image is read in and written out. Both have the image's own bytes.
type builds struct {
	b       *bench
	dir     string // the Dockerfile's folder
	base    string // the image as one file
	peer    string // buildah's store
	size    int64  // bytes of the image's files
	scratch string
}

const (
	buildsFiles = 512     // of the large image
	buildsSize  = 1 << 20 // bytes of each
)

const buildsDockerfile = `FROM localhost/bench-large/web
COPY lib /src/lib
RUN ["/bin/busybox", "sh", "-c", "cat /src/lib/* > /src/all"]
COPY main /src/main
RUN ["/bin/busybox", "sh", "-c", "cat /src/all /src/main | /bin/busybox md5sum > /src/sum"]
CMD ["/bin/busybox", "sh", "/src/main"]
`

func (b *bench) builds(ctx context.Context, runs int) (err error) {
	if _, err := exec.LookPath("buildah"); err != nil {
		return fmt.Errorf("needs Debian's buildah: %w", err)
	}
	w := &builds{b: b, size: buildsFiles * buildsSize}
	if w.scratch, err = os.MkdirTemp("", "isle-bench-builds-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(w.scratch)) }()
	w.dir, w.base, w.peer = filepath.Join(w.scratch, "app"), filepath.Join(w.scratch, "base.tar"), filepath.Join(w.scratch, "peer")
	if err := w.lay(ctx); err != nil {
		return err
	}
	if err := compare(ctx, "Builds: the base is there, nothing is made yet", "buildah", runs, []contender{
		{"isle build --no-cache", w.isle("build", "--no-cache", w.dir)},
		{"buildah", w.buildah(true)},
	}); err != nil {
		return err
	}
	if err := compare(ctx, "Builds: nothing to do", "buildah", runs, []contender{
		{"isle build", w.isle("build", w.dir)},
		{"buildah", w.buildah(false)},
	}); err != nil {
		return err
	}
	if err := compare(ctx, "Builds: from a changed line to the program's output", "buildah build, from and run", runs, []contender{
		{"isle up", w.changed(w.upToOutput)},
		{"buildah build, from and run", w.changed(w.peerToOutput)},
	}); err != nil {
		return err
	}
	return w.transfers(ctx, max(3, runs/2))
}

// lay makes the image, for both, and the Dockerfile's folder.
func (w *builds) lay(ctx context.Context) error {
	large := filepath.Join(w.scratch, "large")
	random := rand.New(rand.NewPCG(1, 2))
	for i := range buildsFiles {
		// Half of it is chance: what compresses reads and writes less.
		content := make([]byte, buildsSize)
		for j := 0; j < len(content)/2; j++ {
			content[j] = byte(random.Uint32())
		}
		if err := writeFile(filepath.Join(large, "data", strconv.Itoa(i%16), strconv.Itoa(i)), content); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		filepath.Join(large, "isle.yaml"):  "name: bench-large\nservices: {web: {packages: [busybox-static], copy: [{from: data/, to: /data}]}}\n",
		filepath.Join(w.dir, "isle.yaml"):  "name: bench-build\nservices: {web: {build: .}}\n",
		filepath.Join(w.dir, "Dockerfile"): buildsDockerfile,
		filepath.Join(w.dir, "main"):       "echo ready 0; exec sleep 1000\n",
	} {
		if err := writeFile(name, []byte(content)); err != nil {
			return err
		}
	}
	for i := range 200 {
		if err := writeFile(filepath.Join(w.dir, "lib", strconv.Itoa(i)), []byte(strings.Repeat(strconv.Itoa(i)+"\n", 1000))); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"build", large}, {"image", "export", "bench-large/web", w.base}, {"build", w.dir}} {
		if err := w.run(ctx, w.b.isle, append([]string{"--state", w.b.state}, args...)...); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(large); err != nil {
		return err
	}
	return w.run(ctx, "buildah", w.peerArgs(w.peer, "pull", "oci-archive:"+w.base)...)
}

func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

func (w *builds) peerArgs(store string, args ...string) []string {
	return append([]string{"--root", store + "/root", "--runroot", store + "/run", "--storage-driver", "overlay"}, args...)
}

func (w *builds) run(ctx context.Context, name string, args ...string) error {
	_, err := w.took(ctx, name, args...)
	return err
}

// took runs a program and says how long it took.
func (w *builds) took(ctx context.Context, name string, args ...string) (time.Duration, error) {
	began := time.Now()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return took, nil
}

func (w *builds) isle(args ...string) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		return w.took(ctx, w.b.isle, append([]string{"--state", w.b.state}, args...)...)
	}
}

func (w *builds) buildah(fresh bool) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) { return w.peerBuild(ctx, fresh) }
}

func (w *builds) peerBuild(ctx context.Context, fresh bool) (time.Duration, error) {
	args := []string{"build", "--isolation", "chroot", "--layers", "--pull-never", "-t", "made"}
	if fresh {
		args = append(args, "--no-cache")
	}
	return w.took(ctx, "buildah", w.peerArgs(w.peer, append(args, w.dir)...)...)
}

// changed changes a line of the program before a run.
func (w *builds) changed(run func(ctx context.Context, want string) (time.Duration, error)) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		want := "ready " + strconv.FormatInt(time.Now().UnixNano(), 10)
		if err := os.WriteFile(filepath.Join(w.dir, "main"), []byte("echo "+want+"\nexec /bin/busybox sleep ${1:-1000}\n"), 0o644); err != nil {
			return 0, err
		}
		return run(ctx, want)
	}
}

// upToOutput is from the build to the first line in the log.
func (w *builds) upToOutput(ctx context.Context, want string) (time.Duration, error) {
	began := time.Now()
	if err := w.run(ctx, w.b.isle, "--state", w.b.state, "up", w.dir, "--name", "bench-build"); err != nil {
		return 0, err
	}
	for {
		out, err := exec.CommandContext(ctx, w.b.isle, "--state", w.b.state, "logs", "bench-build").Output()
		if err != nil {
			return 0, err
		}
		if strings.Contains(string(out), want) {
			break
		}
		if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("the log has no %q: %s", want, out)
		}
		time.Sleep(2 * time.Millisecond)
	}
	took := time.Since(began)
	return took, w.b.down(ctx, "bench-build")
}

// peerToOutput is the same with a container that ends by itself.
func (w *builds) peerToOutput(ctx context.Context, want string) (time.Duration, error) {
	began := time.Now()
	if _, err := w.peerBuild(ctx, false); err != nil {
		return 0, err
	}
	if err := w.run(ctx, "buildah", w.peerArgs(w.peer, "from", "--pull-never", "--name", "one", "localhost/made")...); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "buildah", w.peerArgs(w.peer, "run", "--isolation", "chroot", "one", "/bin/busybox", "sh", "/src/main", "0")...).CombinedOutput()
	took := time.Since(began)
	if err != nil || !strings.Contains(string(out), want) {
		return 0, fmt.Errorf("buildah run: %w: %s", err, out)
	}
	return took, w.run(ctx, "buildah", w.peerArgs(w.peer, "rm", "one")...)
}

// transfers measures the image into stores that have nothing, and out of them.
func (w *builds) transfers(ctx context.Context, runs int) error {
	out := filepath.Join(w.scratch, "out.tar")
	var server testServer
	fresh := func(context.Context, int) (time.Duration, error) {
		if server.state != "" {
			server.stop()
		}
		var err error
		if server, err = startServer(w.b.bin); err != nil {
			return 0, err
		}
		return w.took(ctx, w.b.isle, "--state", server.state, "image", "import", w.base, "--name", "large")
	}
	defer func() {
		if server.state != "" {
			server.stop()
		}
	}()
	store := filepath.Join(w.scratch, "fresh")
	freshPeer := func(ctx context.Context, _ int) (time.Duration, error) {
		if err := os.RemoveAll(store); err != nil {
			return 0, err
		}
		return w.took(ctx, "buildah", w.peerArgs(store, "pull", "oci-archive:"+w.base)...)
	}
	took := func(name string, args ...string) func(context.Context, int) (time.Duration, error) {
		return func(ctx context.Context, _ int) (time.Duration, error) {
			if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return 0, err
			}
			full := args
			if name != "buildah" {
				full = append([]string{"--state", server.state}, args...)
			}
			return w.took(ctx, name, full...)
		}
	}
	info, err := os.Stat(w.base)
	if err != nil {
		return err
	}
	size := fmt.Sprintf("%d MiB, as a file %d MiB", w.size>>20, info.Size()>>20)
	if err := compare(ctx, "Images in: "+size, "buildah pull", runs, []contender{{"isle image import", fresh}, {"buildah pull", freshPeer}}); err != nil {
		return err
	}
	// Each is packed once: the second time is another matter, and in neither table.
	packed := 0
	again := func(ctx context.Context, i int) (time.Duration, error) {
		if packed++; packed > 1 {
			if _, err := fresh(ctx, i); err != nil {
				return 0, err
			}
		}
		return took(w.b.isle, "image", "export", "large", out)(ctx, i)
	}
	return compare(ctx, "Images out: "+size, "buildah push", runs, []contender{
		{"isle image export", again},
		{"buildah push", took("buildah", w.peerArgs(store, "push", "localhost/bench-large/web", "oci-archive:"+out)...)},
	})
}
