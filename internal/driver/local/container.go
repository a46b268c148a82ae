package local

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/build"
	"isle/internal/environment"
	"isle/internal/spec"
)

// defaultPath is PATH inside until a command has its own.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runcGroup is the group within the launch's that runc makes for the container;
// runc itself starts in another beside it, because it wants its own to be empty.
// crun runs without a cgroup manager in the launch's group.
const (
	runcGroup  = "container"
	startGroup = "start"
)

// A container is a launch or a build step as the runtime gets it.
type container struct {
	ctx      context.Context // ends what waits for a volume
	instance isle.ID
	id       isle.ID
	class    string // of isolation; "" in a build step
	memory   string // folder of the memory that it goes on from; "": it begins
	spare    bool   // it is made before it is known what for
	root     *os.File
	service  string
	called   string // in a sandbox, if not as the service
	hostname string
	hosts    []string
	machine  string // "" in a build step
	forked   int64
	layers   []string
	upper    string // of a build step
	work     string
	uidBase  uint32
	userns   *os.File // of uidBase; open while the container starts
	network  string
	volumes  []environment.Mount
	tmpfs    []string
	writable int64 // bytes of what can be written to the root; 0: none
	caps     []string
	limits   spec.Limits
	init     string // "" in a build step
	command  []string
	env      []string
	step     build.Step // of a build step: what it has beside its root
	made     []string   // options of tmpfs mounts that are made before the runtime starts
}

// start makes the container and returns when its first process runs; for a
// build step (no init) when it has ended.
//
// The runtime is started in the launch's group, or, where there are several, by
// a shell that puts itself into them first. So it, and all that comes of it, is
// never outside them, and no thread of the server is ever in the group of an
// environment, where it could be throttled, frozen or killed.
func (d *Driver) start(c *container, prepare func(*exec.Cmd)) error {
	runtime, err := d.runtimeOf(c)
	if err != nil {
		return err
	}
	dir := d.dir(c.instance, c.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return isle.Errorf(isle.Exhausted, "launch %s: %w", c.id, err)
	}
	if err := os.MkdirAll(d.private, 0o711); err != nil {
		return isle.Errorf(isle.Unavailable, "launch %s: %w", c.id, err)
	}
	if c.userns, err = d.ids.get(c.uidBase); err != nil {
		return err
	}
	defer c.userns.Close()
	config, err := d.config(c)
	if err != nil {
		return err
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	bundle, _ := d.runtimeFolders(c)
	if c.upper == "" {
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600); err != nil {
			return isle.Errorf(isle.Exhausted, "launch %s: %w", c.id, err)
		}
	}
	group := string(c.id)
	if !d.crun() && c.class != classGvisor {
		group = filepath.Join(group, startGroup)
	}
	d.given.Fault("launch.folder")
	in, err := d.groups.add(string(c.instance), group)
	if err != nil {
		return err
	}
	defer in.close()
	d.given.Fault("launch.group")
	hide := d.hide
	if c.class == classGvisor {
		hide = nil
	}
	return inPrivateMounts(d.private, hide, func() error {
		if err := d.assemble(c); err != nil {
			return err
		}
		if c.upper != "" {
			if err := writeBundle(bundle, b); err != nil {
				return isle.Errorf(isle.Exhausted, "launch %s: %w", c.id, err)
			}
		}
		d.given.Fault("launch.mounts")
		cmd := d.command(runtime, c, in)
		prepare(cmd)
		if err := d.run(c, cmd); err != nil {
			return err
		}
		d.given.Fault("launch.running")
		if c.class == classGvisor && c.id != sandboxName {
			return d.noteGofer(c)
		}
		if c.init != "" && d.crun() {
			d.sealed.learn(filepath.Join(d.runtimeRoot(), string(c.id)))
		}
		return nil
	})
}

// runtimeFolders are the container's bundle and where the runtime keeps its state.
// Those of a build step are in its private mounts, in memory: its variables may be
// secrets, and the runtime writes them down twice.
func (d *Driver) runtimeFolders(c *container) (bundle, state string) {
	if c.upper != "" {
		return filepath.Join(d.private, "bundle"), filepath.Join(d.private, "runtime")
	}
	return d.dir(c.instance, c.id), d.runtimeRoot()
}

func writeBundle(dir string, config []byte) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
}

// runtimeOf is the program that starts the container.
func (d *Driver) runtimeOf(c *container) (string, error) {
	if c.class == classGvisor {
		if err := os.MkdirAll(d.runsc().Root, 0o700); err != nil {
			return "", isle.Errorf(isle.Unavailable, "launch %s: %w", c.id, err)
		}
		return d.given.Runsc, nil
	}
	runtime, err := d.findRuntime()
	if err != nil {
		return "", err
	}
	return d.sealed.path(runtime), nil
}

// enter joins the groups named before "--" and becomes the command after it. A
// process that moves its one thread by itself ("0") spares the kernel a lock
// that takes up to 15 ms to get for any other move.
const enter = `while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"`

// command is how the runtime is called.
func (d *Driver) command(runtime string, c *container, in *entrance) *exec.Cmd {
	dir := d.dir(c.instance, c.id)
	bundle, state := d.runtimeFolders(c)
	args := []string{runtime, "--root", state, "--log", filepath.Join(dir, "log")}
	switch {
	case c.memory != "" && c.id == sandboxName:
		args = d.runsc().Restore(string(c.instance), dir, filepath.Join(dir, "log"), c.memory, "--pid-file", filepath.Join(dir, "pid"))
	case c.memory != "":
		args = d.runsc().Restore(string(c.id), dir, filepath.Join(dir, "log"), c.memory)
	case c.class == classGvisor && c.id == sandboxName:
		args = d.runsc().Run(string(c.instance), dir, filepath.Join(dir, "log"), "--pid-file", filepath.Join(dir, "pid"))
	case c.class == classGvisor:
		args = d.runsc().Run(string(c.id), dir, filepath.Join(dir, "log"))
	default:
		if d.crun() {
			args = append(args, "--cgroup-manager=disabled")
		}
		args = append(args, "run", "--bundle", bundle, "--pid-file", filepath.Join(dir, "pid"))
		if c.init != "" {
			args = append(args, "--detach", "--preserve-fds", "1")
		}
		args = append(args, string(c.id))
	}
	if len(in.files) > 0 {
		args = slices.Concat([]string{"/bin/sh", "-c", enter, "sh"}, in.files, []string{"--"}, args)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=" + defaultPath}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.silence, d.silence, d.silence
	if in.group != nil {
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(in.group.Fd())
	}
	return cmd
}

// newSilence returns a file that is empty for ever: what a container has for
// stdin, stdout and stderr. It can't be /dev/null, because crun gives what it
// has there to the container's root, and that is the host's own /dev/null: it
// could be taken from everyone (chmod 0).
func newSilence() (*os.File, error) {
	fd, err := unix.MemfdCreate("isle-silence", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make an empty file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "silence")
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal an empty file: %w", err)
	}
	return f, nil
}

// run runs the runtime to its end. Where the caller's context ends first, every
// process of the launch is killed.
func (d *Driver) run(c *container, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the runtime: %w", err)
	}
	d.given.Fault("launch.runtime")
	ended := make(chan struct{})
	killed := make(chan struct{})
	go func() { // ends with the runtime
		defer close(killed)
		select {
		case <-c.ctx.Done():
			d.groups.kill(context.WithoutCancel(c.ctx), string(c.instance), string(c.id))
		case <-ended:
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-killed
	if err == nil {
		return nil
	}
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return &runtimeError{said: lastWords(filepath.Join(d.dir(c.instance, c.id), "log")), err: err}
}

// A runtimeError is a runtime that ended with another code than 0.
type runtimeError struct {
	said string
	err  error
}

func (e *runtimeError) Error() string {
	if e.said != "" {
		return "the OCI runtime: " + e.said
	}
	return "the OCI runtime: " + e.err.Error()
}

func (e *runtimeError) Unwrap() error { return e.err }

// lastWords is what the runtime logged, in one line of at most 1,000 bytes.
func lastWords(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	s := strings.Join(strings.Fields(string(b)), " ")
	if len(s) > 1000 {
		s = "… " + s[len(s)-1000:]
	}
	return s
}

// pid is the launch's isle-init, 0 if none runs that was given its orders.
func (d *Driver) pid(instance, launch isle.ID) int {
	if _, err := os.Lstat(filepath.Join(d.dir(instance, launch), spareMark)); err == nil {
		return 0
	}
	return d.process(instance, launch)
}

// process is the launch's isle-init, with orders or without, 0 if none runs. A
// number from the launch's pid file counts only while that process is in the
// launch's group: it may have been given to another since.
func (d *Driver) process(instance, launch isle.ID) int {
	b, err := os.ReadFile(filepath.Join(d.dir(instance, launch), "pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 || !d.groups.has(string(instance), string(launch), pid) {
		return 0
	}
	return pid
}

func (d *Driver) alive(instance, launch isle.ID) bool { return d.pid(instance, launch) != 0 }
