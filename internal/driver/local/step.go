package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/airlock"
	"isle/internal/build"
	"isle/internal/spec"
)

// stepLimits bound one build step. A compiler wants more than a service, and
// the machine must survive one that forks or allocates without end.
var stepLimits = spec.Limits{Memory: 4 << 30, PIDs: 4096}

// RunStep runs a build step to its end: the same isolation as a service, an
// empty network namespace with loopback alone, or one in which nothing but
// s.Network is, and the layers with s.Upper on
// top as a root that can be written. Owners in Upper are those seen inside.
// When ctx ends every process of the step is killed.
func (d *Driver) RunStep(ctx context.Context, s build.Step) error {
	if len(s.Command) == 0 {
		return isle.Errorf(isle.Invalid, "a build step without a command")
	}
	instance, id := isle.NewID(), isle.NewID()
	d.mu.Lock()
	d.steps[instance] = true
	d.mu.Unlock()
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := d.Remove(clean, instance); err != nil {
			d.log.Error("a build step left something behind", "instance", instance, "err", err)
		}
		d.mu.Lock()
		delete(d.steps, instance)
		d.mu.Unlock()
	}()
	if _, err := d.findRuntime(); err != nil {
		return err
	}
	if err := d.groups.prepare(string(instance), stepLimits, d.crun()); err != nil {
		return isle.Errorf(isle.Unavailable, "limits of a build step: %w", err)
	}
	bounded, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go watchSize(bounded, s.Upper, maxStepSize, maxInodes, stop)
	for _, m := range s.Mounts {
		if m.Folder != "" && !m.ReadOnly {
			go watchSize(bounded, m.Folder, maxStepSize, maxInodes, stop)
		}
	}
	c := &container{
		ctx: bounded, instance: instance, id: id, service: "build", hostname: "build", layers: s.Layers,
		upper: s.Upper, work: s.Work, uidBase: d.given.BuildUIDs, limits: stepLimits, command: s.Command, step: s,
	}
	if _, ok := s.Env["PATH"]; !ok {
		c.env = append(c.env, "PATH="+defaultPath)
	}
	for k, v := range s.Env {
		c.env = append(c.env, k+"="+v)
	}
	slices.Sort(c.env)
	if s.Network != nil {
		chamber, err := airlock.OpenChamber(s.Network.Ports(), s.Network.Serve)
		if err != nil {
			return err
		}
		defer chamber.Close()
		c.network = chamber.Path()
	}
	err := d.start(c, func(cmd *exec.Cmd) {
		if s.Output != nil {
			out := struct{ io.Writer }{s.Output} // always a pipe: a file of the host would be given to the step's root
			cmd.Stdout, cmd.Stderr = out, out
		}
		cmd.WaitDelay = 5 * time.Second
	})
	if full := context.Cause(bounded); err != nil && full != nil && ctx.Err() == nil {
		return full
	}
	if free, ferr := freeSpace(s.Upper); err != nil && ferr == nil && free < full {
		return noSpace(free)
	}
	return stepError(s.Command, err)
}

func noSpace(free int64) error {
	return isle.Errorf(isle.Exhausted, "no space left: only %d MiB are free for the state folder", free>>20).
		WithHint("make room, for example with `isle gc`, and run the command again")
}

// Bounds of what a step may write. A step shares the state's disk with the
// server, whose log and store must still be written when a step runs wild.
const (
	maxStepSize = 16 << 30  // bytes
	maxInodes   = 1 << 20   // files and folders
	reserve     = 256 << 20 // bytes that a step leaves free
	full        = 4 << 20   // with fewer bytes free, a step's failure is put down to that
)

// watchSize stops a step that fills the disk; it ends with ctx. The cheap
// question, how much is free, is asked often; the folder is counted only when
// the answer could mean it.
func watchSize(ctx context.Context, upper string, limit, files int64, stop context.CancelCauseFunc) {
	first, err := freeSpace(upper)
	if err != nil {
		return // the step fails by itself where its folder is gone
	}
	firstInodes := freeInodes(upper)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		free, err := freeSpace(upper)
		switch {
		case err != nil:
			return
		case first-free > limit && written(upper) > limit:
			stop(isle.Errorf(isle.Exhausted, "it wrote more than %d MiB", limit>>20).WithHint("write less, or remove what is not needed in the same step"))
			return
		case firstInodes-freeInodes(upper) > files && inodes(upper) > files:
			stop(isle.Errorf(isle.Exhausted, "it made more than %d files", files).WithHint("make fewer, or remove what is not needed in the same step"))
			return
		case free < reserve && written(upper) > reserve/4:
			stop(noSpace(free))
			return
		}
	}
}

func freeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return int64(st.Bavail) * st.Bsize, err
}

// freeInodes is how many files can still be made; 0 where the file system has
// no bound of its own.
func freeInodes(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return int64(st.Ffree)
}

// inodes counts the files and folders below a folder.
func inodes(dir string) (n int64) {
	filepath.WalkDir(dir, func(string, fs.DirEntry, error) error {
		n++
		return nil
	})
	return n
}

// written is how many bytes the files of a folder occupy.
func written(dir string) (sum int64) {
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil // what vanished meanwhile counts nothing
	})
	return sum
}

// stepError says how the step's command failed.
func stepError(command []string, err error) error {
	var exit *exec.ExitError
	var said *runtimeError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit) || !errors.As(err, &said):
		return err
	case strings.Contains(said.said, "executable file") || strings.Contains(said.said, "no such file or directory"):
		return isle.Errorf(isle.Failed, "%s is not in the image", command[0]).WithHint("add the package that has it")
	case said.said != "":
		return isle.Errorf(isle.Failed, "it could not be started: %w", err)
	case exit.ExitCode() > 128:
		return isle.Errorf(isle.Failed, "it was ended by signal %d", exit.ExitCode()-128)
	}
	return isle.Errorf(isle.Failed, "it ended with exit code %d", exit.ExitCode()).WithHint("what it said is above; mend the step, or add the package that it lacks")
}
