package local

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/driver/local/gvisor"
)

// initCaps are what isle-init needs to start commands as other users, to give
// them volumes and to end them. It drops them for its children. They reach no
// further than the environment's own uids.
var initCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}

// sandboxCaps are what isle-init needs in a sandbox besides, over its kernel
// alone: to give the service a hostname of its own.
var sandboxCaps = []string{"CAP_SYS_ADMIN"}

// stepCaps are what root has in a build step.
var stepCaps = append([]string{"CAP_FSETID", "CAP_SETFCAP"}, initCaps...)

const (
	// defaultTmpfs bounds a tmpfs, in bytes, where memory has no limit.
	defaultTmpfs = 64 << 20
	// bytesPerInode bounds the files of a tmpfs, which take memory of the
	// kernel's even when they are empty: in an environment that has used its
	// memory up for them, nothing could remove them again.
	bytesPerInode = 4096
	// maxFiles is RLIMIT_NOFILE, where the server's own is not lower.
	maxFiles = 65536
	// maxTerminals is how many pseudo-terminals a service can have. The machine
	// has some 4,000 for all (pty(7)).
	maxTerminals = 64
)

// config is the container's OCI configuration (runtime-spec 1.0.2). Paths on
// the host are those of the launch's private mounts.
func (d *Driver) config(c *container) (*specs.Spec, error) {
	caps := append(slices.Clone(c.caps), stepCaps...)
	if c.init != "" {
		caps = append(slices.Clone(c.caps), initCaps...)
	}
	if c.class == classGvisor {
		caps = append(caps, sandboxCaps...)
	}
	slices.Sort(caps)
	caps = slices.Compact(caps)
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: c.uidBase, Size: idRange}}
	mounts, err := c.mounts(d.private)
	if err != nil {
		return nil, err
	}
	if c.spare && c.class != classGvisor {
		mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool { return !slices.Contains(spareHas, m.Destination) })
	}
	plain := c.class != classGvisor
	if plain && !d.crun() {
		c.bindTmpfs(mounts, d.private)
	}
	score := 500 // a container dies before the machine's own services
	user := specs.LinuxNamespace{Type: specs.UserNamespace}
	if plain && d.crun() {
		// runc 1.1 can't: it would join the user namespace first, and may then
		// not join the network's, which is the host's.
		user.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.userns.Fd())
	}
	s := &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.hostname,
		Root:     &specs.Root{Path: d.private + "/root", Readonly: c.upper == "" && c.writable == 0},
		Process: &specs.Process{
			Args: c.command, Env: c.env, Cwd: c.folder(), User: c.user(),
			NoNewPrivileges: true,
			Capabilities:    c.capabilities(caps),
			Rlimits:         c.rlimits(),
			OOMScoreAdj:     &score,
		},
		Mounts: mounts,
		Linux: &specs.Linux{
			UIDMappings: mapping,
			GIDMappings: mapping,
			Namespaces: []specs.LinuxNamespace{
				user, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: c.network},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       d.seccomp,
		},
	}
	switch {
	case c.id == sandboxName:
		s.Linux.Seccomp = nil // nothing of the environment's runs there
		gvisor.Sandbox(s, string(c.instance))
		return s, nil
	case !plain:
		s.Linux.Seccomp = gvisor.Filter(s.Linux.Seccomp)
		name := c.service
		if c.called != "" {
			name = c.called
		}
		gvisor.Container(s, string(c.instance), name)
		if c.writable > 0 {
			gvisor.Writable(s, c.writable)
		}
		return s, nil
	}
	if filter := d.sealed.known(); filter != "" && d.crun() {
		s.Annotations = map[string]string{filterKey: filter}
	}
	if !d.crun() {
		s.Linux.CgroupsPath = "/" + path.Join(d.groups.root, string(c.instance), string(c.id), runcGroup)
	}
	return s, nil
}

// mounts lists what is mounted in the container, parents first.
//
// There is no sysfs: a network namespace of the host's user namespace can't
// have one, and one of the host would tell about it. An empty folder stands in
// its place. Nor are the control groups mounted.
func (c *container) mounts(private string) ([]specs.Mount, error) {
	size := int64(defaultTmpfs)
	if c.limits.Memory > 0 {
		size = max(c.limits.Memory/2, 1<<20)
	}
	tmpfs := func(at, mode string, options ...string) specs.Mount {
		return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs",
			Options: append([]string{"nosuid", "nodev", "mode=" + mode, fmt.Sprintf("size=%d", size), fmt.Sprintf("nr_inodes=%d", size/bytesPerInode)}, options...)}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=65536", "nr_inodes=256"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", fmt.Sprintf("max=%d", maxTerminals)}},
		{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=555", "size=4k"}},
	}
	more := []specs.Mount{tmpfs("/dev/shm", "1777", "noexec")}
	if !c.step.Plain {
		more = append(more, tmpfs("/tmp", "1777"), tmpfs("/run", "755"))
	}
	for _, at := range c.tmpfs {
		if !mountable(at) {
			return nil, isle.Errorf(isle.Invalid, "service %s: tmpfs %q: not an absolute path that can be mounted on", c.service, at)
		}
		i := slices.IndexFunc(more, func(m specs.Mount) bool { return m.Destination == at })
		if i < 0 {
			more = append(more, tmpfs(at, "1777"))
		}
	}
	for i, v := range c.volumes {
		if !mountable(v.Path) {
			return nil, isle.Errorf(isle.Invalid, "service %s: volume %q: not an absolute path that can be mounted on", c.service, v.Path)
		}
		more = slices.DeleteFunc(more, func(m specs.Mount) bool { return m.Destination == v.Path })
		more = append(more, specs.Mount{Destination: v.Path, Type: "bind", Source: fmt.Sprintf("%s/v%d/%s", private, i, volumeRoot),
			Options: []string{"bind", "nosuid", "nodev"}})
	}
	if c.init != "" {
		more = append(more, specs.Mount{Destination: initPath, Type: "bind", Source: private + "/init",
			Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	for i, m := range c.step.Mounts {
		if m.Layers == nil && m.Folder == "" && m.Content == nil {
			inMemory := tmpfs(m.Target, "1777")
			if m.Size > 0 && m.Size < size {
				inMemory.Options[3] = fmt.Sprintf("size=%d", m.Size)
			}
			if m.ReadOnly {
				inMemory.Options = append(inMemory.Options, "ro")
			}
			more = append(more, inMemory)
			continue
		}
		bind := specs.Mount{Destination: m.Target, Type: "bind", Source: fmt.Sprintf("%s/%s", private, stepMount(i, m)), Options: []string{"bind", "nosuid", "nodev"}}
		if m.ReadOnly {
			bind.Options = append(bind.Options, "ro")
		}
		more = append(more, bind)
	}
	slices.SortStableFunc(more, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return append(mounts, more...), nil
}

// bindTmpfs makes binds of tmpfs mounts that assemble will make. runc gives a
// tmpfs the mode of the folder in the image that it covers, and crun the one
// asked for.
func (c *container) bindTmpfs(mounts []specs.Mount, private string) {
	for i, m := range mounts {
		if m.Type == "tmpfs" && m.Destination != "/dev" && m.Destination != "/sys" {
			mounts[i].Type = "bind"
			mounts[i].Source = fmt.Sprintf("%s/t%d", private, len(c.made))
			mounts[i].Options = []string{"bind", "nosuid", "nodev"}
			c.made = append(c.made, fmt.Sprintf("%s,uid=%d,gid=%[2]d", strings.Join(m.Options[2:5], ","), c.uidBase))
		}
	}
}

// mountable reports whether a service may have a mount of its own at the path.
func mountable(at string) bool {
	if !path.IsAbs(at) || path.Clean(at) != at || at == "/" || strings.ContainsRune(at, 0) {
		return false
	}
	for _, taken := range []string{"/proc", "/sys", "/isle", "/run/isle", "/dev/pts"} {
		if at == taken || strings.HasPrefix(at, taken+"/") {
			return false
		}
	}
	return at != "/dev"
}

// rlimits only lowers: the server may lack CAP_SYS_RESOURCE.
//
// In a sandbox they are for its own kernel, which counts processes and threads
// by user; on the host a control group does.
func (c *container) rlimits() []specs.POSIXRlimit {
	files := uint64(maxFiles)
	var have unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &have) == nil {
		files = min(files, have.Max)
	}
	limits := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Hard: files, Soft: files},
		{Type: "RLIMIT_CORE"},
	}
	if n := uint64(c.limits.PIDs); n > 0 && c.class == classGvisor {
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: n, Soft: n})
	}
	return limits
}
