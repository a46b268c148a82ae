package local

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

// BenchmarkLaunch measures one service from Launch to its isle-init having been
// told what to do, and Kill until nothing is left of it.
func BenchmarkLaunch(b *testing.B) {
	for _, runtime := range []string{"crun", "runc"} {
		b.Run(runtime, func(b *testing.B) {
			bench := newBench(b, runtime)
			instance := isle.NewID()
			l := bench.launchOf(instance)
			l.Limits = spec.Limits{Memory: 1 << 30, PIDs: 1 << 15}
			if err := bench.Prepare(b.Context(), environment.Shared{Instance: instance, Limits: l.Limits}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				l := bench.launchOf(instance)
				l.Limits = spec.Limits{Memory: 1 << 30, PIDs: 1 << 15}
				if err := bench.Launch(b.Context(), l); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := bench.Kill(b.Context(), l.Instance, l.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkKill measures Kill alone.
func BenchmarkKill(b *testing.B) {
	bench := newBench(b, "crun")
	instance := isle.NewID()
	l := bench.launchOf(instance)
	l.Limits = spec.Limits{Memory: 1 << 30, PIDs: 1 << 15}
	if err := bench.Prepare(b.Context(), environment.Shared{Instance: instance, Limits: l.Limits}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		l := bench.launchOf(instance)
		l.Limits = spec.Limits{Memory: 1 << 30, PIDs: 1 << 15}
		if err := bench.Launch(b.Context(), l); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := bench.Kill(b.Context(), l.Instance, l.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCrunRun is the yardstick: crun itself with the same configuration
// but a plain folder as root, create to detached start, without control groups.
func BenchmarkCrunRun(b *testing.B) {
	for _, filter := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "seccomp"}[filter]
		b.Run(name, func(b *testing.B) {
			bench := newBench(b, "crun")
			crun, err := bench.findRuntime()
			if err != nil {
				b.Fatal(err)
			}
			dir, err := os.MkdirTemp("/var/tmp", "isle-bench-")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			root := filepath.Join(dir, "rootfs")
			for _, p := range []string{"proc", "dev", "sys", "tmp", "run", "isle", "bin"} {
				if err := os.MkdirAll(filepath.Join(root, p), 0o755); err != nil {
					b.Fatal(err)
				}
			}
			program, _ := guest()
			for _, p := range []string{filepath.Join(root, "isle/init"), filepath.Join(root, "bin/guest")} {
				if err := os.WriteFile(p, program, 0o755); err != nil {
					b.Fatal(err)
				}
			}
			os.Chmod(dir, 0o755)
			c := &container{instance: isle.NewID(), id: isle.NewID(), uidBase: testUIDs, command: []string{"/bin/guest", "sleep"}}
			config, err := bench.config(c)
			if err != nil {
				b.Fatal(err)
			}
			config.Root.Path = root
			if !filter {
				config.Linux.Seccomp = nil
			}
			encoded, err := json.Marshal(config)
			if err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "config.json"), encoded, 0o600); err != nil {
				b.Fatal(err)
			}
			runtimeRoot := filepath.Join(dir, "state")
			err = inPrivateMounts(bench.private, bench.hide, func() error {
				for b.Loop() {
					id := string(isle.NewID())
					cmd := exec.Command(crun, "--root", runtimeRoot, "--cgroup-manager=disabled", "run", "--bundle", dir, "--detach", id)
					if err := cmd.Run(); err != nil {
						return err
					}
					b.StopTimer()
					if err := exec.Command(crun, "--root", runtimeRoot, "--cgroup-manager=disabled", "delete", "--force", id).Run(); err != nil {
						return err
					}
					b.StartTimer()
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
