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
	go watchSize(s.Upper, stepBounds)(bounded, stop)
	for _, m := range s.Mounts {
		if m.Folder != "" && !m.ReadOnly {
			go watchSize(m.Folder, stepBounds)(bounded, stop)
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

// sizeBounds bound what a step may write. A step shares the state's disk with the
// server, whose log and store must still be written when a step runs wild.
type sizeBounds struct {
	bytes   int64
	files   int64 // and folders
	reserve int64 // bytes that a step leaves free
}

var stepBounds = sizeBounds{bytes: 16 << 30, files: 1 << 20, reserve: 256 << 20}

// full says that with fewer bytes free, a step's failure is put down to that.
const full = 4 << 20

// watchSize looks how much is free, and returns what stops a step that fills the
// disk from then on; that ends with ctx. The cheap question, how much is free, is
// asked often; the folder is counted only when the answer could mean it. What a
// step wrote to a file that has no name any more is in no folder: where little is
// left, that it was more before is enough.
func watchSize(upper string, b sizeBounds) func(ctx context.Context, stop context.CancelCauseFunc) {
	first, err := freeSpace(upper)
	firstInodes := freeInodes(upper)
	return func(ctx context.Context, stop context.CancelCauseFunc) {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for err == nil { // the step fails by itself where its folder is gone
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var stopped error
			if stopped, err = b.exceeded(upper, first, firstInodes); stopped != nil {
				stop(stopped)
				return
			}
		}
	}
}

// exceeded says which bound a folder is over, on a disk where so much was free.
func (b sizeBounds) exceeded(upper string, first, firstInodes int64) (stopped, err error) {
	free, err := freeSpace(upper)
	switch {
	case err != nil:
		return nil, err
	case free < b.reserve && first-free > b.reserve/4:
		return noSpace(free), nil
	case first-free <= b.bytes && firstInodes-freeInodes(upper) <= b.files:
		return nil, nil
	}
	switch size, files, hidden := written(upper); {
	case size > b.bytes:
		return isle.Errorf(isle.Exhausted, "it wrote more than %d MiB", b.bytes>>20).WithHint("write less, or remove what is not needed in the same step"), nil
	case files > b.files:
		return isle.Errorf(isle.Exhausted, "it made more than %d files", b.files).WithHint("make fewer, or remove what is not needed in the same step"), nil
	case hidden:
		return isle.Errorf(isle.Exhausted, "it wrote much, some of it in folders that nest deeper than any layer can have"), nil
	}
	return nil, nil
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

// written is how many bytes the files of a folder occupy, how many files and
// folders there are, and whether there are some that no path is short enough for.
func written(dir string) (size, files int64, hidden bool) {
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		files++
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil {
			size += st.Blocks * 512
		}
		hidden = hidden || errors.Is(err, unix.ENAMETOOLONG)
		return nil // what vanished meanwhile counts nothing
	})
	return size, files, hidden
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
