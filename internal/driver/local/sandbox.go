package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"isle"
	"isle/internal/airlock"
	"isle/internal/driver/local/gvisor"
	"isle/internal/environment"
	"isle/internal/spec"
)

// The classes of isolation.
const (
	classContainer = spec.Container
	classGvisor    = spec.Gvisor
)

// sandboxName stands in place of a launch's ID for the sandbox of an instance
// of the class gvisor: its folder says that the instance is of that class.
const sandboxName isle.ID = "sandbox"

// destroyTime is how long a sandbox may take to end a container before it is
// ended itself, with all that is in it.
const destroyTime = 10 * time.Second

// sandboxLimits are the limits of an instance on the host. Its own kernel holds
// the number of its processes and threads, and each process is one of the host
// too, with a thread for each CPU that it runs on at once. What is added keeps
// the sentry from running short of threads before a service does, which it
// would not survive.
func sandboxLimits(l spec.Limits) spec.Limits {
	if l.PIDs > 0 {
		l.PIDs = 256 + 4*l.PIDs
	}
	return l
}

// runsc is gVisor's runtime.
func (d *Driver) runsc() gvisor.Runtime {
	return gvisor.Runtime{Program: d.given.Runsc, Root: d.private + ".gvisor"}
}

// sandboxed reports whether the instance is of the class gvisor.
func (d *Driver) sandboxed(instance isle.ID) bool {
	_, err := os.Lstat(d.dir(instance, sandboxName))
	return err == nil
}

// launchInSandbox is launch for the class gvisor. isle-init is given Boot as its
// standard input: runsc passes no other file to a container that is not the
// sandbox's first.
func (d *Driver) launchInSandbox(ctx context.Context, c *container, l environment.Launch) error {
	if d.given.Runsc == "" {
		return noRunsc()
	}
	if s := d.takeSpare(l.ID); s != nil {
		if done, err := d.launchSpare(s, c, l.Boot); done || err != nil {
			return err
		}
	}
	for again := false; ; again = true {
		if err := d.startSandbox(ctx, c); err != nil {
			return fmt.Errorf("start the sandbox: %w", err)
		}
		read, boot, err := os.Pipe()
		if err != nil {
			return err
		}
		err = d.start(c, func(cmd *exec.Cmd) { cmd.Stdin = read })
		read.Close()
		if err == nil {
			err = d.tell(boot, l.Boot)
		}
		boot.Close()
		if err == nil {
			return nil
		}
		// The sandbox may have ended just now, as it does when whoever is inside
		// has broken its kernel. What it was asked for can be asked of the next.
		if again || ctx.Err() != nil || d.alive(l.Instance, sandboxName) {
			return err
		}
		if err := d.tidy(ctx, l.Instance, l.ID); err != nil {
			return err
		}
	}
}

func noRunsc() error {
	return isle.Errorf(isle.Unavailable, "isolation gvisor: isle-runsc is not installed").
		WithHint("make build, or make install; isle doctor says where it is looked for")
}

// startSandbox starts the instance's sandbox where none runs.
func (d *Driver) startSandbox(ctx context.Context, of *container) error {
	defer d.lock(of.instance)()
	if d.alive(of.instance, sandboxName) {
		return nil
	}
	if err := d.endSandbox(ctx, of.instance); err != nil {
		return err
	}
	if of.network != "" {
		// A sandbox takes the addresses of its network off the host, for itself.
		if err := airlock.Readdress(of.network); err != nil {
			return err
		}
	}
	c := &container{
		ctx: ctx, instance: of.instance, id: sandboxName, class: classGvisor, hostname: "sandbox",
		uidBase: of.uidBase, network: of.network, limits: of.limits, command: []string{"/pause"}, memory: of.memory,
	}
	return d.start(c, func(*exec.Cmd) {})
}

// unsandbox takes away the sandbox of an instance that is of the other class from
// now on, and gives its network back the addresses that the sandbox took.
func (d *Driver) unsandbox(ctx context.Context, of *container) error {
	defer d.lock(of.instance)()
	if !d.sandboxed(of.instance) {
		return nil
	}
	if err := d.endSandbox(ctx, of.instance); err != nil {
		return err
	}
	if of.network != "" {
		if err := airlock.Readdress(of.network); err != nil {
			return err
		}
	}
	return os.RemoveAll(d.dir(of.instance, sandboxName))
}

// endSandbox ends what is left of a sandbox, its group and its records, and not
// its folder. The group goes because Linux, at least from 6.14 to 6.18, kills
// whatever is started (clone3) in one that was ever ended by cgroup.kill.
func (d *Driver) endSandbox(ctx context.Context, instance isle.ID) error {
	if err := d.groups.kill(ctx, string(instance), string(sandboxName)); err != nil {
		return isle.Errorf(isle.Unavailable, "end the sandbox of %s: %w", instance, err)
	}
	if err := d.groups.remove(ctx, string(instance), string(sandboxName)); err != nil {
		return isle.Errorf(isle.Unavailable, "end the sandbox of %s: %w", instance, err)
	}
	if err := d.runsc().Forget(string(instance), string(instance)); err != nil {
		return isle.Errorf(isle.Unavailable, "end the sandbox of %s: %w", instance, err)
	}
	return nil
}

// leaveSandbox has the sandbox end the container of a launch whose processes on
// the host are gone. A sandbox that does not is ended: whatever became of its
// kernel, what was killed does not go on.
func (d *Driver) leaveSandbox(ctx context.Context, instance, launch isle.ID) error {
	if d.alive(instance, sandboxName) {
		bounded, cancel := context.WithTimeout(ctx, destroyTime)
		err := d.runsc().Destroy(bounded, string(instance), string(launch))
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			d.log.Warn("a sandbox did not end a launch and is ended itself", "instance", instance, "launch", launch, "err", err)
			if err := d.groups.kill(ctx, string(instance), string(sandboxName)); err != nil {
				return err
			}
		}
	}
	return d.runsc().Forget(string(instance), string(launch))
}

// tasks counts the processes and threads in a sandbox.
func (d *Driver) tasks(ctx context.Context, instance isle.ID) (sum int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, launch := range d.launches()[instance] {
		if d.alive(instance, launch) {
			n, err := d.runsc().Tasks(ctx, string(instance), string(launch))
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

// assembleSandbox makes the root of a sandbox's first container, in which
// nothing is but the program that waits.
func assembleSandbox() error {
	if err := os.Mkdir("root", 0o755); err != nil {
		return err
	}
	return os.WriteFile("root/pause", gvisor.Pause(), 0o755)
}

// noteGofer writes down the launch's gofer, which is all that is left of its
// start and lives as long as the container.
func (d *Driver) noteGofer(c *container) error {
	pids := d.groups.procs(string(c.instance), string(c.id))
	if len(pids) != 1 {
		return fmt.Errorf("the container has %d processes on the host, not one", len(pids))
	}
	path := filepath.Join(d.dir(c.instance, c.id), "pid")
	if err := os.WriteFile(path+".new", strconv.AppendInt(nil, int64(pids[0]), 10), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
