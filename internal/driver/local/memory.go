package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	launches := d.launches()[c.Instance]
	slices.Sort(launches)
	for _, l := range launches { // none of them is ended meanwhile: who is in memory has to be known
		defer d.lock(l)()
	}
	defer d.lock(c.Instance)()
	defer func() {
		if err != nil {
			d.empty(c.Memory)
		}
	}()
	if out.Runtime, err = d.RuntimeOf(c.Instance); err != nil {
		return out, err
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
	if out.Launches, err = d.inMemory(ctx, c.Instance, launches); err != nil {
		return environment.Captured{}, err
	}
	done, err := checkpoint.Capture{Socket: d.runsc().Socket(string(c.Instance)), Dir: c.Memory, Held: p.clone}.Run(ctx)
	if errors.Is(err, checkpoint.ErrKept) { // there is no other way to take them from it
		d.log.Error("a sandbox that was captured keeps the files of its memory, and is ended", "instance", c.Instance)
		err = errors.Join(err, d.groups.kill(context.WithoutCancel(ctx), string(c.Instance), string(sandboxName)))
	}
	if err != nil {
		return environment.Captured{}, err
	}
	if err := d.noteSpare(c.Instance, out.Launches, c.Memory); err != nil {
		return environment.Captured{}, isle.Errorf(isle.Unavailable, "capture: %w", err)
	}
	for _, l := range out.Launches {
		if !d.alive(c.Instance, l) {
			return environment.Captured{}, isle.Errorf(isle.Unavailable, "capture: launch %s ended at that very moment", l).WithHint("try again")
		}
	}
	if out.How, err = p.keep(ctx); err != nil {
		return environment.Captured{}, err
	}
	out.Paused, out.Memory = done.Paused, done.Bytes
	return out, nil
}

// RuntimeOf is the build of isle-runsc that an instance's sandbox is of: that of the
// program that runs, since at its path there may be a newer one by now.
func (d *Driver) RuntimeOf(instance isle.ID) (isle.Digest, error) {
	pid := d.pid(instance, sandboxName)
	if pid == 0 {
		return "", isle.Errorf(isle.Unavailable, "capture: no service of environment %s runs, so there is no memory", instance).
			WithHint("isle status and isle logs tell why")
	}
	build, err := d.builds.Of(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "capture: %w", err)
	}
	return build, nil
}

// inMemory are the launches that a capture of the sandbox has in it. A container
// that has ended and was not taken out of the sandbox yet would be in it too, as
// nothing that could go on: it is taken out.
func (d *Driver) inMemory(ctx context.Context, instance isle.ID, launches []isle.ID) (in []isle.ID, err error) {
	for _, l := range launches {
		if d.alive(instance, l) {
			in = append(in, l)
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, destroyTime)
		err := d.runsc().Destroy(bounded, string(instance), string(l))
		cancel()
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "capture: a service that has ended is in the sandbox still: %w", err)
		}
	}
	if len(in) == 0 {
		return nil, isle.Errorf(isle.Unavailable, "capture: no service of environment %s runs, so there is no memory", instance).
			WithHint("isle status and isle logs tell why")
	}
	return in, nil
}

// empty removes the files of a folder.
func (d *Driver) empty(dir string) {
	left, err := os.ReadDir(dir)
	for _, f := range left {
		err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
	}
	if err != nil {
		d.log.Error("memory that came to nothing could not be removed", "folder", dir, "err", err)
	}
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
	if err := d.CanRestore(r.Runtime); err != nil {
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

// CanRestore says why memory of a build of isle-runsc can't be brought back.
func (d *Driver) CanRestore(build isle.Digest) error {
	if d.given.Runsc == "" {
		return noRunsc()
	}
	own, err := d.builds.Of(d.given.Runsc)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "bring back the memory: %w", err)
	}
	if own != build {
		return isle.Errorf(isle.Conflict, "the memory was captured with another build of isle-runsc (%s) than is installed (%s), and only the same can bring it back", build.Short(), own.Short()).
			WithHint("its volumes can be used: isle fork --cold and isle restore --cold start its services anew on them")
	}
	return nil
}

func (d *Driver) bringBack(ctx context.Context, r environment.Restore) error {
	spare, err := spareIn(r.Memory)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sandbox := make(chan struct{}) // closed when it is there
	var g errgroup.Group
	for _, l := range r.Launches {
		g.Go(func() error {
			defer d.lock(l.ID)()
			c := containerOf(ctx, l)
			c.memory = r.Memory
			if l.Service == spare {
				c.called = spareName
			}
			err := d.start(c, func(cmd *exec.Cmd) {
				select {
				case <-sandbox:
				case <-ctx.Done():
					cmd.Err = context.Cause(ctx)
				}
			})
			if err == nil && c.called != "" {
				err = d.noteService(c) // its memory may be captured again
			}
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
