package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// firstSVID measures how soon after its launch a service has its first
// X.509-SVID, by an unchanged SPIFFE client: the same program is launched, and
// says that it runs, or that it has one.
func (b *bench) firstSVID(ctx context.Context, runs int) error {
	program := filepath.Join(b.state, "bench-inside")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./test/identity/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	contenders := []contender{}
	for _, c := range []struct{ name, command string }{
		{"until it says that it runs", "idle"}, {"until it has its first X.509-SVID", "first"},
	} {
		dir := filepath.Join(b.state, "bench-"+c.command)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := "name: bench-" + c.command + "\nservices:\n  one:\n    copy: [{from: inside, to: /inside}]\n    command: [/inside, " + c.command + "]\n"
		if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "inside"), content, 0o755); err != nil {
			return err
		}
		contenders = append(contenders, contender{c.name, func(ctx context.Context, i int) (time.Duration, error) {
			name := fmt.Sprintf("%s-%d", c.command, i)
			begin := time.Now()
			if out, err := exec.CommandContext(ctx, b.isle, "--state", b.state, "up", dir, "--name", name, "--no-wait").CombinedOutput(); err != nil {
				return 0, fmt.Errorf("isle up: %w\n%s", err, out)
			}
			if err := b.firstOutput(ctx, name); err != nil {
				return 0, err
			}
			took := time.Since(begin)
			return took, b.down(ctx, name)
		}})
	}
	return compare(ctx, "Identity: from `isle up`, the whole process, to the first document in the service", contenders[0].name, runs, contenders)
}
