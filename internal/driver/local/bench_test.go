package local

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

// BenchmarkLaunch measures one service from Launch to its isle-init having been
// told what to do, and Kill until nothing is left of it. Between each two it
// measures crun itself, with the same configuration but a plain folder as root
// and no control groups, from its start to a detached container: "x-crun" is
// the ratio of the medians. (With control groups of its own crun takes half as
// long again.)
func BenchmarkLaunch(b *testing.B) {
	for _, runtime := range []string{"crun", "runc"} {
		b.Run(runtime, func(b *testing.B) {
			bench := newBench(b, runtime)
			plain := newPlainCrun(b)
			instance := isle.NewID()
			// A machine's PID 1 may take its time to wait for what has ended.
			limits := spec.Limits{Memory: 1 << 30, PIDs: 1 << 15}
			if err := bench.Prepare(b.Context(), environment.Shared{Instance: instance, Limits: limits}); err != nil {
				b.Fatal(err)
			}
			var launches, kills, plains []time.Duration
			for b.Loop() {
				plains = append(plains, plain(b))
				l := bench.launchOf(instance)
				l.Limits = limits
				start := time.Now()
				if err := bench.Launch(b.Context(), l); err != nil {
					b.Fatal(err)
				}
				launches = append(launches, time.Since(start))
				start = time.Now()
				if err := bench.Kill(b.Context(), l.Instance, l.ID); err != nil {
					b.Fatal(err)
				}
				kills = append(kills, time.Since(start))
			}
			b.ReportMetric(median(launches), "launch-ms")
			b.ReportMetric(median(kills), "kill-ms")
			b.ReportMetric(median(plains), "crun-ms")
			b.ReportMetric(median(launches)/median(plains), "x-crun")
			b.ReportMetric(0, "ns/op") // the whole loop: says nothing
		})
	}
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

// newPlainCrun returns a function that runs one plain container and says how
// long its start took.
func newPlainCrun(b *testing.B) func(*testing.B) time.Duration {
	bench := newBench(b, "crun")
	crun, err := bench.findRuntime()
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "isle-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "rootfs")
	for _, p := range []string{"proc", "dev", "sys", "tmp", "run", "bin"} {
		if err := os.MkdirAll(filepath.Join(root, p), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	program, err := guest()
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/guest"), program, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	userns, err := bench.ids.get(testUIDs)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { userns.Close() })
	config, err := bench.config(&container{
		instance: isle.NewID(), id: isle.NewID(), uidBase: testUIDs, userns: userns, command: []string{"/bin/guest", "sleep"},
	})
	if err != nil {
		b.Fatal(err)
	}
	config.Root.Path = root
	encoded, err := json.Marshal(config)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), encoded, 0o600); err != nil {
		b.Fatal(err)
	}
	return func(b *testing.B) (took time.Duration) {
		err := inPrivateMounts(bench.private, bench.hide, func() error {
			id, options := string(isle.NewID()), []string{"--root", filepath.Join(dir, "state"), "--cgroup-manager=disabled"}
			cmd := exec.Command(crun, append(options, "run", "--bundle", dir, "--detach", id)...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = bench.silence, bench.silence, bench.silence
			start := time.Now()
			if err := cmd.Run(); err != nil {
				return err
			}
			took = time.Since(start)
			return exec.Command(crun, append(options, "delete", "--force", id)...).Run()
		})
		if err != nil {
			b.Fatal(err)
		}
		return took
	}
}

// BenchmarkPrepare measures an instance's groups, made and removed.
func BenchmarkPrepare(b *testing.B) {
	bench := newBench(b, "crun")
	for b.Loop() {
		id := isle.NewID()
		if err := bench.Prepare(b.Context(), environment.Shared{Instance: id, Limits: spec.Limits{CPUs: 1, Memory: 1 << 30, PIDs: 100}}); err != nil {
			b.Fatal(err)
		}
		if err := bench.Remove(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVolume measures the making of a volume of 1 GiB, durable.
func BenchmarkVolume(b *testing.B) {
	bench := newBench(b, "crun")
	id := isle.NewID()
	for b.Loop() {
		if err := bench.volumes.Create(b.Context(), id, 1<<30); err != nil {
			b.Fatal(err)
		}
	}
	used, err := bench.volumes.Used(id)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(used), "bytes")
}
