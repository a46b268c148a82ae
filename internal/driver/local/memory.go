package local

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/driver/local/checkpoint"
	"isle/internal/environment"
)

var _ environment.Restorer = (*Driver)(nil)

// captureMemory captures the sandbox of an instance with its volumes. It is the
// sandbox that stops its processes: what writes its memory may not be stopped.
func (d *Driver) captureMemory(ctx context.Context, c environment.Capture) (out environment.Captured, err error) {
	if c.Isolation != classGvisor {
		return out, isle.Errorf(isle.Invalid, "the memory of an environment of class %q can't be captured", c.Isolation).
			WithHint("isolation: gvisor in isle.yaml")
	}
	defer d.lock(c.Instance)()
	pid := d.pid(c.Instance, sandboxName)
	if pid == 0 {
		return out, isle.Errorf(isle.Unavailable, "capture: no service of environment %s runs, so there is no memory", c.Instance).
			WithHint("isle status and isle logs tell why")
	}
	// Of the program that runs: at its path there may be a newer one by now.
	if out.Runtime, err = d.builds.Of(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		return out, isle.Errorf(isle.Unavailable, "capture: %w", err)
	}
	h, err := d.hold(ctx, c.Instance, c.Volumes)
	if err != nil {
		return out, err
	}
	defer h.close()
	h.still = true
	p, err := h.prepare(ctx, c.Volumes)
	if err != nil {
		return environment.Captured{}, err
	}
	defer p.drop()
	done, err := checkpoint.Capture{Socket: d.runsc().Socket(string(c.Instance)), Dir: c.Memory, Held: p.clone}.Run(ctx)
	if err != nil {
		return environment.Captured{}, err
	}
	if out.How, err = p.keep(ctx); err != nil {
		return environment.Captured{}, err
	}
	out.Paused, out.Memory = done.Paused, done.Bytes
	return out, nil
}

// Restore makes a sandbox of memory that was captured, with all its services,
// which go on from the instant of the capture. Each has its files, and its
// process on the host, where Launch would have made them; they are made at the
// same time.
func (d *Driver) Restore(ctx context.Context, r environment.Restore) error {
	instance := r.Shared.Instance
	for _, l := range r.Launches {
		if l.Instance != instance || !l.ID.Valid() || l.UIDBase == 0 || l.Init == "" || l.Isolation != classGvisor {
			return isle.Errorf(isle.Internal, "restore %q of instance %q: incomplete", l.ID, l.Instance)
		}
	}
	if len(r.Launches) == 0 || !instance.Valid() || r.Memory == "" {
		return isle.Errorf(isle.Internal, "restore instance %q: incomplete", instance)
	}
	if err := d.canRestore(r.Runtime); err != nil {
		return err
	}
	if d.alive(instance, sandboxName) {
		return isle.Errorf(isle.Conflict, "instance %s runs already", instance)
	}
	if err := d.Prepare(ctx, r.Shared); err != nil {
		return err
	}
	err := d.bringBack(ctx, r)
	for _, l := range r.Launches {
		if err == nil {
			err = d.watch(l.Instance, l.ID, l.Exited)
		}
	}
	if err == nil {
		return nil
	}
	// Nothing may be left, whatever became of the caller.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if cleanErr := d.Remove(clean, instance); cleanErr != nil {
		d.log.Error("memory that could not be brought back left something behind", "instance", instance, "err", cleanErr)
	}
	var known *isle.Error
	if errors.As(err, &known) {
		return err
	}
	return isle.Errorf(isle.Failed, "bring back the memory: %w", err)
}

// canRestore says why memory of a build of isle-runsc can't be brought back.
func (d *Driver) canRestore(build isle.Digest) error {
	if d.given.Runsc == "" {
		return noRunsc()
	}
	own, err := d.builds.Of(d.given.Runsc)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "bring back the memory: %w", err)
	}
	if own != build {
		return isle.Errorf(isle.Conflict, "the memory was captured with another build of isle-runsc (%s) than is installed (%s), and only the same can bring it back", build.Short(), own.Short()).
			WithHint("its volumes can be used: isle fork without memory, or isle restore --cold")
	}
	return nil
}

func (d *Driver) bringBack(ctx context.Context, r environment.Restore) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sandbox := make(chan struct{}) // closed when it is there
	var g errgroup.Group
	for _, l := range r.Launches {
		g.Go(func() error {
			defer d.lock(l.ID)()
			c := containerOf(ctx, l)
			c.memory = r.Memory
			err := d.start(c, func(cmd *exec.Cmd) {
				select {
				case <-sandbox:
				case <-ctx.Done():
					cmd.Err = context.Cause(ctx)
				}
			})
			if err != nil {
				err = fmt.Errorf("service %s: %w", l.Service, err)
				cancel(err)
			}
			return err
		})
	}
	first := containerOf(ctx, r.Launches[0])
	first.memory = r.Memory
	if err := d.startSandbox(ctx, first); err != nil {
		cancel(err)
		_ = g.Wait()
		return err
	}
	close(sandbox)
	return g.Wait()
}
