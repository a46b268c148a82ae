package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"isle/internal/api"
	v1 "isle/internal/api/isle/v1"
)

// bench holds the server under test and the root that the peers use.
type bench struct {
	state, isle string
	bin         string
	client      *api.Client
	peers       string // a folder of theirs
	root        string // a folder with busybox, for the peers
	bundle      string // an OCI bundle on it
	project     string
	source      *v1.Source
	three       *v1.Source // three services, each waiting for none
}

const file = `name: bench
services:
  one:
    packages: [busybox-static]
    command: [busybox, sh, -c, "echo ready; exec sleep 1000000"]
    tmpfs: [/scratch]
`

func apiClient(state string) *api.Client { return api.NewClient(filepath.Join(state, "isle.sock")) }

func newBench(ctx context.Context, state, bin string) (*bench, error) {
	isle, err := filepath.Abs(filepath.Join(bin, "isle"))
	if err != nil {
		return nil, err
	}
	b := &bench{state: state, isle: isle, bin: bin, client: apiClient(state)}
	b.project = filepath.Join(state, "bench-project")
	if err := os.MkdirAll(b.project, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(b.project, "isle.yaml"), []byte(file), 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, isle, "--state", state, "build", b.project).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("isle build: %w\n%s", err, out)
	}
	lock, err := os.ReadFile(filepath.Join(b.project, "isle.lock"))
	if err != nil {
		return nil, err
	}
	b.source = &v1.Source{Spec: []byte(file), SpecName: "isle.yaml", Lock: lock}
	if b.three, err = b.threeServices(ctx); err != nil {
		return nil, err
	}
	return b, b.layPeers(ctx)
}

// threeServices locks and builds a project like the first with three services.
func (b *bench) threeServices(ctx context.Context) (*v1.Source, error) {
	dir := filepath.Join(b.state, "bench-three")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	text := "name: bench-three\nservices:\n"
	for _, name := range []string{"one", "two", "three"} {
		text += "  " + name + ":\n    packages: [busybox-static]\n" +
			"    command: [busybox, sh, -c, \"echo ready; exec sleep 1000000\"]\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, b.isle, "--state", b.state, "build", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("isle build: %w\n%s", err, out)
	}
	lock, err := os.ReadFile(filepath.Join(dir, "isle.lock"))
	return &v1.Source{Spec: []byte(text), SpecName: "isle.yaml", Lock: lock}, err
}

func (b *bench) close() {
	b.client.Close()
	os.RemoveAll(b.peers)
}

// layPeers takes busybox out of an environment, so that every contender runs
// the same program.
func (b *bench) layPeers(ctx context.Context) error {
	_, err := b.up(ctx, "peer", false)
	if err != nil {
		return err
	}
	if b.peers, err = os.MkdirTemp("", "isle-bench-peers-"); err != nil {
		return err
	}
	// The peers' root of a user namespace must be able to walk there.
	if err := os.Chmod(b.peers, 0o755); err != nil {
		return err
	}
	b.root = filepath.Join(b.peers, "root")
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(b.root, d), 0o755); err != nil {
			return err
		}
	}
	busybox := filepath.Join(b.root, "bin", "busybox")
	out, err := exec.CommandContext(ctx, b.isle, "--state", b.state, "exec", "peer", "--", "busybox", "which", "busybox").Output()
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, b.isle, "--state", b.state, "cp", "peer:"+strings.TrimSpace(string(out)), busybox).CombinedOutput(); err != nil {
		return fmt.Errorf("isle cp: %w\n%s", err, out)
	}
	if err := os.Chmod(busybox, 0o755); err != nil {
		return err
	}
	if err := b.down(ctx, "peer"); err != nil {
		return err
	}
	return b.writeBundle()
}

func (b *bench) up(ctx context.Context, name string, noWait bool) (*v1.UpResult, error) {
	return b.upSource(ctx, b.source, name, noWait)
}

func (b *bench) upSource(ctx context.Context, source *v1.Source, name string, noWait bool) (*v1.UpResult, error) {
	stream, err := b.client.Environments.Up(ctx, connect.NewRequest(&v1.UpRequest{Source: source, Name: name, Locked: true, NoWait: noWait}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var result *v1.UpResult
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if result == nil {
		return nil, fmt.Errorf("up of %s ended without a result", name)
	}
	return result, nil
}

func (b *bench) down(ctx context.Context, name string) error {
	stream, err := b.client.Environments.Down(ctx, connect.NewRequest(&v1.DownRequest{Environments: []string{name}, Volumes: true}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
	}
	return stream.Err()
}

// firstOutput waits for the first line that the command of an environment
// wrote.
func (b *bench) firstOutput(ctx context.Context, name string) error {
	return b.outputOf(ctx, name, 1)
}

// outputOf waits until n services have written their line.
func (b *bench) outputOf(ctx context.Context, name string, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.client.Environments.Logs(ctx, connect.NewRequest(&v1.LogsRequest{Environment: name, Follow: true}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if strings.Contains(string(stream.Msg().Data), "ready") {
			if n--; n == 0 {
				return nil
			}
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// launch measures create to first output, airlock and cgroup included.
func (b *bench) launch(ctx context.Context, runs int) error {
	say := []string{"/bin/busybox", "echo", "ready"}
	return compare(ctx, "Launch: from the request to the first output of the command", "crun run", runs, []contender{
		{"isle, one service", func(ctx context.Context, i int) (time.Duration, error) {
			name := fmt.Sprintf("launch-%d", i)
			begin := time.Now()
			if _, err := b.up(ctx, name, true); err != nil {
				return 0, err
			}
			if err := b.firstOutput(ctx, name); err != nil {
				return 0, err
			}
			took := time.Since(begin)
			return took, b.down(ctx, name)
		}},
		{"isle, three services, all of them", func(ctx context.Context, i int) (time.Duration, error) {
			name := fmt.Sprintf("three-%d", i)
			begin := time.Now()
			if _, err := b.upSource(ctx, b.three, name, true); err != nil {
				return 0, err
			}
			if err := b.outputOf(ctx, name, 3); err != nil {
				return 0, err
			}
			took := time.Since(begin)
			return took, b.down(ctx, name)
		}},
		process("crun run", "crun", "run", "--bundle", b.bundle, "%ID"),
		process("runc run", "runc", "run", "--bundle", b.bundle, "%ID"),
		process("bwrap", append([]string{"bwrap", "--unshare-all", "--ro-bind", b.root, "/", "--proc", "/proc", "--dev", "/dev", "--"}, say...)...),
		process("unshare", append([]string{"unshare", "-mpfuin", "--map-root-user", "chroot", b.root}, say...)...),
	})
}

// run measures the whole life of a one-shot environment, from the shell's view:
// the process starts, the command runs inside, everything is gone.
func (b *bench) run(ctx context.Context, runs int) error {
	return compare(ctx, "One-shot: `true` in a fresh environment, the whole process, until all of it is gone", "crun run", runs, []contender{
		process("isle run", b.isle, "--state", b.state, "run", "--isolation", "container", "--packages", "busybox-static", "--", "busybox", "true"),
		process("crun run", "crun", "run", "--bundle", b.bundle, "%ID"),
		process("bwrap", "bwrap", "--unshare-all", "--ro-bind", b.root, "/", "--proc", "/proc", "--dev", "/dev", "--", "/bin/busybox", "true"),
	})
}

// exec measures a command in a running environment.
func (b *bench) exec(ctx context.Context, runs int) error {
	if _, err := b.up(ctx, "exec", false); err != nil {
		return err
	}
	defer b.down(ctx, "exec")
	id := fmt.Sprintf("isle-bench-exec-%d", os.Getpid())
	hold := exec.CommandContext(ctx, "crun", "run", "--detach", "--bundle", b.bundle+"-sleep", id)
	// The container keeps its stdio: a pipe would keep us waiting, and crun
	// gives what it has to the container's root, /dev/null included.
	stdio, err := os.CreateTemp(b.peers, "stdio-")
	if err != nil {
		return err
	}
	defer stdio.Close()
	hold.Stdin, hold.Stdout, hold.Stderr = stdio, stdio, stdio
	if err := hold.Run(); err != nil {
		said, _ := os.ReadFile(stdio.Name())
		return fmt.Errorf("crun run: %w\n%s", err, said)
	}
	defer exec.Command("crun", "delete", "--force", id).Run()
	return compare(ctx, "Exec of `true` in a running environment", "crun exec", runs, []contender{
		{"isle, through the API", func(ctx context.Context, i int) (time.Duration, error) {
			begin := time.Now()
			err := b.execOnce(ctx, "exec", "busybox", "true")
			return time.Since(begin), err
		}},
		process("isle exec, the whole process", b.isle, "--state", b.state, "exec", "exec", "--", "busybox", "true"),
		process("crun exec", "crun", "exec", id, "/bin/busybox", "true"),
	})
}

func (b *bench) execOnce(ctx context.Context, name string, command ...string) error {
	stream := b.client.Environments.Exec(ctx)
	defer stream.CloseResponse()
	if err := stream.Send(&v1.ExecInput{Input: &v1.ExecInput_Start{Start: &v1.ExecStart{Environment: name, Command: command}}}); err != nil {
		return err
	}
	defer stream.CloseRequest()
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		if exit := m.GetExit(); exit != nil {
			if exit.Code != 0 {
				return fmt.Errorf("exit code %d: %s", exit.Code, exit.Reason)
			}
			return nil
		}
	}
}

// noop measures an `isle up` that finds nothing to do.
func (b *bench) noop(ctx context.Context, runs int) error {
	if out, err := exec.CommandContext(ctx, b.isle, "--state", b.state, "up", b.project).CombinedOutput(); err != nil {
		return fmt.Errorf("isle up: %w\n%s", err, out)
	}
	defer b.down(ctx, "bench")
	return compare(ctx, "`isle up` with nothing to do, the whole process", "isle version", runs, []contender{
		process("isle up", b.isle, "--state", b.state, "up", b.project),
		process("isle version", b.isle, "version"),
	})
}

// fleet brings environments up and down in parallel.
func (b *bench) fleet(ctx context.Context, n int) error {
	before, err := b.leftovers()
	if err != nil {
		return err
	}
	idle, err := b.memory(ctx)
	if err != nil {
		return err
	}
	all := func(do func(name string) error) (time.Duration, error) {
		begin := time.Now()
		var wg sync.WaitGroup
		errs := make(chan error, n)
		for i := range n {
			wg.Go(func() {
				if err := do(fmt.Sprintf("fleet-%d", i)); err != nil {
					errs <- err
				}
			})
		}
		wg.Wait()
		close(errs)
		return time.Since(begin), <-errs
	}
	up, err := all(func(name string) error { _, err := b.up(ctx, name, false); return err })
	if err != nil {
		return err
	}
	full, err := b.memory(ctx)
	if err != nil {
		return err
	}
	down, err := all(func(name string) error { return b.down(ctx, name) })
	if err != nil {
		return err
	}
	after, err := b.leftovers()
	if err != nil {
		return err
	}
	fmt.Printf("\n### %d environments in parallel\n\n| what | figure |\n|---|---|\n", n)
	fmt.Printf("| up, waiting for each | %.1f per second |\n", float64(n)/up.Seconds())
	fmt.Printf("| down | %.1f per second |\n", float64(n)/down.Seconds())
	fmt.Printf("| memory of one idle environment (proportional set size, the server's growth included) | %.1f MiB |\n", float64(full-idle)/float64(n)/1024)
	fmt.Printf("| left behind (mounts, network namespaces, control groups, loop devices) | %d |\n", after-before)
	if after != before {
		return fmt.Errorf("%d things were left behind", after-before)
	}
	return nil
}

// memory sums the proportional set sizes, in KiB, of the server and everything
// descended from its sandboxes: every process that runs isle-init or whose
// root is one of ours is found through the control groups.
func (b *bench) memory(ctx context.Context) (int, error) {
	info, err := b.client.Server.Info(ctx, connect.NewRequest(&v1.InfoRequest{}))
	if err != nil {
		return 0, err
	}
	pids := []string{strconv.Itoa(int(info.Msg.Pid))}
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		if c, err := os.ReadFile(p); err == nil && strings.Contains(string(c), b.group()+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(p)))
		}
	}
	sum := 0
	for _, pid := range pids {
		f, err := os.Open("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if rest, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
				sum += n
			}
		}
		f.Close()
	}
	return sum, nil
}

// leftovers counts what launches of this state folder have made and not taken
// back: mounts, control groups, loop devices, sandboxes and pinned namespaces.
func (b *bench) leftovers() (int, error) {
	mounts, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		return 0, err
	}
	n := strings.Count(string(mounts), b.state+"/")
	group := b.group()
	for _, pattern := range []string{
		"/sys/fs/cgroup/" + group + "/*/cgroup.procs", "/sys/fs/cgroup/*/" + group + "/*/cgroup.procs",
		b.state + "/sandboxes/[^.]*", b.state + "/airlocks/*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return 0, err
		}
		n += len(found)
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return 0, err
	}
	for _, l := range loops {
		if f, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(f), b.state) {
			n++
		}
	}
	return n, nil
}

// group is the name of the control group of this state folder's environments.
func (b *bench) group() string {
	sum := sha256.Sum256([]byte(b.state))
	return "isle-" + hex.EncodeToString(sum[:4])
}
