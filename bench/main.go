// Command bench measures the hot paths against their peers in one run.
//
// Every figure is the median of interleaved runs: one of ours, one of each
// peer, and again, so that a slow moment of the machine hits all alike. Exit
// codes are checked, because a peer that fails is fast. Run it with `make
// bench`; it needs root, crun, runc, bubblewrap, PostgreSQL with pgbouncer, and
// nginx with wrk, and prints the tables of docs/performance.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	runs := flag.Int("n", 30, "counted runs of each command")
	fleet := flag.Int("fleet", 100, "environments up and down in parallel")
	only := flag.String("only", "", "one of policy, log, keys, issuer, remote, postgres, http, volumes, launch, prepared, svid, where, run, exec, noop, classes, forks, warm, builds, switch, fleet")
	entries := flag.Int("entries", 1_000_000, "entries of the audit log that is verified")
	bin := flag.String("bin", "bin", "folder of isle and isle-init")
	innerCopy := flag.String("inner-copy", "", "internal: copy connections to this address")
	innerGateway := flag.String("inner-gateway", "", "internal: a gateway to this URL")
	inner := flag.String("inner", "", "internal: the state folder, in the private mount namespace")
	flag.Parse()
	var err error
	switch {
	case *innerCopy != "":
		err = copyBlindly(*innerCopy)
	case *innerGateway != "":
		err = serveGateway(*innerGateway)
	default:
		err = run(*inner, *bin, *only, *runs, *fleet, *entries)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures the part that is asked for, or all.
func run(inner, bin, only string, runs, fleet, entries int) error {
	if inner != "" {
		return measure(inner, bin, only, runs, fleet)
	}
	known := false
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"policy", func() error { return policies(runs) }},
		{"keys", func() error { return credentials(runs) }},
		{"log", func() error { return benchLog(runs, entries) }},
		{"issuer", func() error { return issuing(runs) }},
		{"remote", func() error { return remotely(bin, runs) }},
		{"postgres", func() error { return databases(max(3, runs/6)) }},
		{"http", func() error { return requests(max(3, runs/6)) }},
		{"volumes", func() error { return volumes(max(3, runs/6)) }},
	} {
		if only == "" || only == part.name {
			known = true
			if err := part.run(); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
	}
	if known && only != "" {
		return nil
	}
	return outer(bin)
}

// outer starts a server of its own and runs the measurements in a private mount
// namespace, where the hybrid cgroup mount that crun refuses can be taken away.
func outer(bin string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, as the peers do")
	}
	// What servers and clients remember of audit logs goes with the states.
	seen, err := os.MkdirTemp("", "isle-bench-seen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(seen)
	os.Setenv("ISLE_CHECKPOINTS", seen)
	os.Setenv("XDG_STATE_HOME", seen)
	os.Setenv("ISLE_KEYS", filepath.Join(seen, "keys"))
	s, err := startServer(bin)
	if err != nil {
		return err
	}
	defer s.stop()
	cmd := exec.Command("/proc/self/exe", append([]string{"-inner", s.state}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd.Run()
}

// A testServer is a server with a state folder of its own.
type testServer struct{ isle, state string }

func startServer(bin string, env ...string) (testServer, error) {
	isle, err := filepath.Abs(filepath.Join(bin, "isle"))
	if err != nil {
		return testServer{}, err
	}
	state, err := os.MkdirTemp("", "isle-bench-")
	if err != nil {
		return testServer{}, err
	}
	s := testServer{isle, state}
	cmd := exec.Command(isle, "--state", state, "ls")
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.stop()
		return s, fmt.Errorf("isle ls: %w\n%s", err, out)
	}
	return s, nil
}

// stop ends the server and removes all that it made.
func (s testServer) stop() {
	exec.Command(s.isle, "--state", s.state, "down", "--all", "--volumes").Run()
	exec.Command(s.isle, "--state", s.state, "server", "stop").Run()
	os.RemoveAll(s.state)
}

func measure(state, bin, only string, runs, fleet int) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	syscall.Unmount("/sys/fs/cgroup/unified", syscall.MNT_DETACH)
	ctx := context.Background()
	b, err := newBench(ctx, state, bin)
	if err != nil {
		return err
	}
	defer b.close()
	if err := describe(); err != nil {
		return err
	}
	known := only == ""
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"launch", func(ctx context.Context) error { return b.launch(ctx, runs) }},
		{"prepared", func(ctx context.Context) error { return b.prepared(ctx, runs) }},
		{"svid", func(ctx context.Context) error { return b.firstSVID(ctx, runs) }},
		{"where", func(ctx context.Context) error { return b.where(ctx, runs) }},
		{"run", func(ctx context.Context) error { return b.run(ctx, runs) }},
		{"exec", func(ctx context.Context) error { return b.exec(ctx, runs*3) }},
		{"noop", func(ctx context.Context) error { return b.noop(ctx, runs) }},
		{"classes", func(ctx context.Context) error { return b.isolation(ctx, runs) }},
		{"forks", func(ctx context.Context) error { return b.forks(ctx, max(3, runs/6)) }},
		{"warm", func(ctx context.Context) error { return b.warmStarts(ctx, max(3, runs/6)) }},
		{"builds", func(ctx context.Context) error { return b.builds(ctx, max(3, runs/6)) }},
		{"switch", func(ctx context.Context) error { return b.switches(ctx, max(3, runs/4)) }},
		{"fleet", func(ctx context.Context) error { return b.fleet(ctx, fleet) }},
	} {
		if only != "" && only != part.name {
			continue
		}
		known = true
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	if !known {
		return fmt.Errorf("there is no part %q; -h lists them", only)
	}
	return nil
}

// describe says what the figures were taken on, in general words.
func describe() error {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return err
	}
	var release strings.Builder
	for _, c := range u.Release {
		if c == 0 || c == '-' {
			break
		}
		release.WriteByte(byte(c))
	}
	fmt.Printf("%d cores, Linux %s, %s\n", runtime.NumCPU(), release.String(), loadNow())
	return nil
}

// A contender is one thing that is measured: run does it once and says how long
// it took.
type contender struct {
	name string
	run  func(ctx context.Context, i int) (time.Duration, error)
}

// compare runs the contenders in turn, runs times after one warm-up each, and
// prints medians and the ratio to the yardstick.
func compare(ctx context.Context, title, yardstick string, runs int, contenders []contender) error {
	times := make([][]time.Duration, len(contenders))
	for i := -1; i < runs; i++ {
		for c, k := range contenders {
			d, err := k.run(ctx, i+1)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			if i >= 0 {
				times[c] = append(times[c], d)
			}
		}
	}
	var base time.Duration
	for c, k := range contenders {
		slices.Sort(times[c])
		if k.name == yardstick {
			base = median(times[c])
		}
	}
	fmt.Printf("\n### %s\n\n%d interleaved runs each.\n\n", title, runs)
	fmt.Printf("| what | median | fastest | slowest | to %s |\n|---|---|---|---|---|\n", yardstick)
	for c, k := range contenders {
		t := times[c]
		fmt.Printf("| %s | %s | %s | %s | %.2f× |\n", k.name, ms(median(t)), ms(t[0]), ms(t[len(t)-1]), float64(median(t))/float64(base))
	}
	return nil
}

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// process is a contender that is a whole process; its first output ends the
// measurement's clock only when the process has ended with code 0 as well.
func process(name string, argv ...string) contender {
	return contender{name, func(ctx context.Context, i int) (time.Duration, error) {
		args := slices.Clone(argv)
		for j := range args {
			args[j] = strings.ReplaceAll(args[j], "%ID", fmt.Sprintf("isle-bench-%d-%d", os.Getpid(), i))
		}
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		// Not /dev/null: crun gives its stdio to the container's root.
		cmd.Stdin = strings.NewReader("")
		begin := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(begin)
		if err != nil {
			return 0, fmt.Errorf("%v: %w\n%s", args, err, out)
		}
		return took, nil
	}}
}
