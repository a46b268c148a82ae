package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	v1 "isle/internal/api/isle/v1"
)

// classes are the classes of isolation, the yardstick first.
var classes = []string{"container", "gvisor"}

// isolation measures both classes beside each other: launches, with runsc run
// as gVisor's own floor; execs; system calls, files and PostgreSQL inside; and
// memory.
func (b *bench) isolation(ctx context.Context, runs int) error {
	source := map[string]*v1.Source{}
	for _, class := range classes {
		s, err := b.classed(ctx, class, "one", "busybox-static", "[busybox, sh, -c, \"echo ready; exec sleep 1000000\"]")
		if err != nil {
			return err
		}
		source[class] = s
	}
	launch := func(class string) contender {
		return contender{"isle, " + class, func(ctx context.Context, i int) (time.Duration, error) {
			name := fmt.Sprintf("class-%s-%d", class, i)
			begin := time.Now()
			if _, err := b.upSource(ctx, source[class], name, true); err != nil {
				return 0, err
			}
			if err := b.firstOutput(ctx, name); err != nil {
				return 0, err
			}
			took := time.Since(begin)
			return took, b.down(ctx, name)
		}}
	}
	records := filepath.Join(b.peers, "runsc")
	runsc := filepath.Join(b.bin, "isle-runsc")
	if err := compare(ctx, "Launch by class", "runsc run", runs, []contender{
		launch("container"), launch("gvisor"),
		process("runsc run", runsc, "--root", records, "--network=none", "--gofer-network-namespace=new", "--ignore-cgroups", "--overlay2=none", "run", "--bundle", b.bundle, "%ID"),
		process("crun run", "crun", "run", "--bundle", b.bundle, "%ID"),
	}); err != nil {
		return err
	}
	var execs []contender
	for _, class := range classes {
		name := "class-" + class
		if _, err := b.upSource(ctx, source[class], name, false); err != nil {
			return err
		}
		defer b.down(context.WithoutCancel(ctx), name)
		execs = append(execs, contender{class, func(ctx context.Context, i int) (time.Duration, error) {
			begin := time.Now()
			err := b.execOnce(ctx, name, "busybox", "true")
			return time.Since(begin), err
		}})
	}
	if err := compare(ctx, "Exec of `true` by class, through the API", "container", runs*3, execs); err != nil {
		return err
	}
	if err := b.work(ctx, max(3, runs/6)); err != nil {
		return err
	}
	return b.database(ctx, max(3, runs/10))
}

// classed locks and builds a project of one service in a class.
func (b *bench) classed(ctx context.Context, class, service, packages, command string, more ...string) (*v1.Source, error) {
	dir := filepath.Join(b.state, "bench-"+service+"-"+class)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("name: bench-%s\nisolation: %s\nservices:\n  %s:\n    packages: [%s]\n    command: %s\n", service, class, service, packages, command)
	for _, line := range more {
		text += "    " + line + "\n"
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

// inside runs a command in an environment and returns what it wrote.
func (b *bench) inside(ctx context.Context, name string, command ...string) (string, error) {
	out, err := exec.CommandContext(ctx, b.isle, append([]string{"--state", b.state, "exec", name, "--"}, command...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %v: %w\n%s", name, command, err, out)
	}
	return string(out), nil
}

// work measures what programs do most, in the environments that exec made.
func (b *bench) work(ctx context.Context, runs int) error {
	const calls, files, starts = 100_000, 300, 50
	for _, part := range []struct {
		title, script string
		times         int
	}{
		{"A system call (of dd: read of /dev/zero, write to /dev/null)", fmt.Sprintf("busybox dd if=/dev/zero of=/dev/null bs=1 count=%d 2>/dev/null", calls), 2 * calls},
		{"A file of /tmp made, written, read and removed", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo x >/tmp/f; read -r x </tmp/f; done; busybox rm /tmp/f", files), files},
		{"A program started and ended (busybox)", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); busybox true; done", starts), starts},
	} {
		var contenders []contender
		for _, class := range classes {
			contenders = append(contenders, contender{class, func(ctx context.Context, i int) (time.Duration, error) {
				began := time.Now()
				if err := b.execOnce(ctx, "class-"+class, "busybox", "sh", "-c", part.script); err != nil {
					return 0, err
				}
				return time.Since(began), nil
			}})
		}
		if err := compare(ctx, fmt.Sprintf("%s, %d times", part.title, part.times), "container", runs, contenders); err != nil {
			return err
		}
	}
	return nil
}

// database measures PostgreSQL with its own client beside it, and what memory
// the environment takes.
func (b *bench) database(ctx context.Context, rounds int) error {
	const bin = "/usr/lib/postgresql/15/bin"
	fmt.Printf("\n### PostgreSQL inside\n\npgbench, scale 10, 4 clients, 5 s each; best of %d.\n\n", rounds)
	fmt.Print("| class | read only | read and write | memory, idle | memory, after |\n|---|---|---|---|---|\n")
	for _, class := range classes {
		source, err := b.classed(ctx, class, "db", "postgresql-15", "["+bin+"/postgres, -D, /data, -c, unix_socket_directories=/tmp]",
			"user: postgres", "volumes: {/data: {size: 2GiB}}", "env: {PATH: \""+bin+":/usr/bin:/bin\", LANG: C.UTF-8}",
			"setup: ["+bin+"/initdb, -D, /data, --auth=trust, --locale=C.UTF-8]", "healthcheck: {tcp: 5432}")
		if err != nil {
			return err
		}
		name := "db-" + class
		up, err := b.upSource(ctx, source, name, false)
		if err != nil {
			return err
		}
		instance := up.GetEnvironment().GetInstance()
		idle, err := unreclaimable(instance)
		if err != nil {
			return err
		}
		if _, err := b.inside(ctx, name, "pgbench", "-i", "-q", "-s", "10", "-h", "/tmp", "postgres"); err != nil {
			return err
		}
		best := map[string]float64{}
		for range rounds {
			for kind, flags := range map[string][]string{"read": {"-S"}, "write": {"-N"}} {
				out, err := b.inside(ctx, name, append([]string{"pgbench", "-n", "-c", "4", "-j", "2", "-T", "5", "-h", "/tmp", "postgres"}, flags...)...)
				if err != nil {
					return err
				}
				m := tps.FindStringSubmatch(out)
				if m == nil {
					return fmt.Errorf("pgbench said: %s", out)
				}
				n, _ := strconv.ParseFloat(m[1], 64)
				best[kind] = max(best[kind], n)
			}
		}
		after, err := unreclaimable(instance)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %.0f/s | %.0f/s | %d MiB | %d MiB |\n", class, best["read"], best["write"], idle>>20, after>>20)
		if err := b.down(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// tps finds the rate in what pgbench says.
var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// unreclaimable is the memory of an instance that is no page cache: the
// resident and shared memory that its control group counts.
func unreclaimable(instance string) (int64, error) {
	found, _ := filepath.Glob("/sys/fs/cgroup/memory/isle-*/" + instance + "/memory.stat")
	more, _ := filepath.Glob("/sys/fs/cgroup/isle-*/" + instance + "/memory.stat")
	if found = append(found, more...); len(found) == 0 {
		return 0, fmt.Errorf("instance %q has no memory group", instance)
	}
	stat, err := os.ReadFile(found[0])
	if err != nil {
		return 0, err
	}
	has := map[string]int64{}
	for line := range strings.Lines(string(stat)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		has[key], _ = strconv.ParseInt(value, 10, 64)
	}
	if rss, v1 := has["total_rss"]; v1 {
		return rss + has["total_shmem"], nil
	}
	return has["anon"] + has["shmem"], nil
}
