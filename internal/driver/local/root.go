package local

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
)

// initPath is where isle-init is, inside.
const initPath = "/isle/init"

// assemble mounts the container's root and all that is bound into it. It runs
// in the launch's private mounts, and every path is relative to them:
//
//	top     generated files: /etc/hosts, /etc/hostname, /etc/machine-id,
//	        /etc/resolv.conf, /etc/isle/generation
//	l0…     the image's layers, idmapped
//	bottom  mount points that the image may lack
//	root    all of it as one overlay, read-only
//	init    isle-init
//	t0…     tmpfs that the runtime can't make itself
//	v0…     volumes
//
// Owners are shifted by the mounts of the layers (MOUNT_ATTR_IDMAP), which
// overlayfs understands since Linux 5.19 for lower and upper layers alike. An
// environment's uids therefore cost no copy.
func (d *Driver) assemble(c *container) error {
	if c.id == sandboxName {
		return assembleSandbox()
	}
	if c.spare {
		return d.assembleSpare(c)
	}
	if err := c.skeleton(); err != nil {
		return err
	}
	lower := []string{"bottom"}
	for i, layer := range distinct(c.layers) {
		at := fmt.Sprintf("l%d", i)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := d.layers.attach(layer, at, c.userns); err != nil {
			return err
		}
		lower = append([]string{at}, lower...)
	}
	flags, data := uintptr(unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV), ""
	if c.upper == "" {
		lower = append([]string{"top"}, lower...)
		if c.writable > 0 && c.class != classGvisor {
			var err error
			if data, err = c.scratch(); err != nil {
				return err
			}
			flags &^= unix.MS_RDONLY
		}
	} else {
		var err error
		if data, err = c.attachUpper(); err != nil {
			return err
		}
		flags = unix.MS_NODEV
	}
	data += "lowerdir=" + strings.Join(lower, ":")
	err := asOwner(int(c.uidBase), func() error { return unix.Mount("root", "root", "overlay", flags, data) })
	if err != nil {
		return fmt.Errorf("stack %d layers: %w", len(c.layers), err)
	}
	if err := c.checkPoints(); err != nil {
		return err
	}
	if c.init != "" {
		if err := bindReadOnly(c.init, "init"); err != nil {
			return err
		}
	}
	for i, options := range c.made {
		at := fmt.Sprintf("t%d", i)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount a tmpfs (%s): %w", options, err)
		}
	}
	if err := d.assembleStep(c); err != nil {
		return err
	}
	for i, v := range c.volumes {
		at := fmt.Sprintf("v%d", i)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := d.volumes.attach(c.ctx, v.Volume, at, c.userns); err != nil {
			return err
		}
	}
	return nil
}

// distinct are layers without those that are there again further up, and hide
// all that they have: overlayfs takes no folder twice. An image that is built on
// one that Isle built may have such.
func distinct(layers []string) []string {
	var out []string
	for i, l := range layers {
		if !slices.Contains(layers[i+1:], l) {
			out = append(out, l)
		}
	}
	return out
}

// openFolderIn opens a folder below root as a process whose root that is would
// find it, links and ".." included. The kernel says EAGAIN where something on
// the machine was mounted or renamed while it went up a "..": nothing is wrong
// with this folder then, and it is asked again (openat2(2)).
func openFolderIn(root int, folder string) (fd int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 1000 {
		if fd, err = unix.Openat2(root, folder, &how); err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
		runtime.Gosched() // others mount, for a moment
	}
	return fd, err
}

// checkPoints refuses an image in which a link leads a mount to where no service
// may have one of its own. A volume at /data, where /data is a link to /proc,
// would be the service's own idea of processes to the runtime and isle-init.
func (c *container) checkPoints() error {
	root, err := unix.Open("root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "root", Err: err}
	}
	defer unix.Close(root)
	top, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", root))
	if err != nil {
		return err
	}
	check := func(point string, fits func(string) bool) error {
		fd, err := openFolderIn(root, point)
		if err != nil {
			return isle.Errorf(isle.Invalid, "service %s: its image has something in place of the folder %s: %w", c.service, point, err).
				WithHint("choose another path, or remove what the image has there")
		}
		defer unix.Close(fd)
		at, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
		if err != nil {
			return err
		}
		if at = "/" + strings.TrimPrefix(strings.TrimPrefix(at, top), "/"); !fits(at) {
			return isle.Errorf(isle.Refused, "service %s: a link in its image leads %s to %s, where nothing can be mounted", c.service, point, at).
				WithHint("choose another path, or remove the link")
		}
		return nil
	}
	for _, point := range c.points() {
		if err := check(point, func(at string) bool { return at == point }); err != nil {
			return err
		}
	}
	points := c.tmpfs
	for _, v := range c.volumes {
		points = append(points[:len(points):len(points)], v.Path)
	}
	for _, point := range points {
		if err := check(point, mountable); err != nil {
			return err
		}
	}
	return nil
}

// skeleton makes the folders top, bottom and root, and the file init.
func (c *container) skeleton() error {
	owner := int(c.uidBase)
	for _, dir := range []string{"top", "bottom", "root"} {
		if err := ownedDir(dir, owner); err != nil {
			return err
		}
	}
	if err := os.WriteFile("init", nil, 0o755); err != nil {
		return err
	}
	points := append(c.points(), "/etc")
	points = append(points, c.tmpfs...)
	for _, v := range c.volumes {
		points = append(points, v.Path)
	}
	for _, p := range points {
		if err := ownedDir("bottom"+p, owner); err != nil {
			return err
		}
	}
	if err := c.stepPoints(owner); err != nil {
		return err
	}
	generated := "top"
	if c.upper != "" {
		generated = "bottom" // a step's changes are to its image, not to these
	}
	files := map[string]string{"/etc/hostname": c.hostname + "\n", "/etc/hosts": c.hostsFile(), "/etc/resolv.conf": resolvConf}
	if c.init != "" {
		files[initPath] = ""
		files["/etc/isle/generation"] = strconv.FormatInt(c.forked, 10) + "\n"
	}
	if c.machine != "" {
		files["/etc/machine-id"] = c.machine + "\n"
	}
	for name, content := range files {
		if err := ownedDir(generated+path.Dir(name), owner); err != nil {
			return err
		}
		if err := os.WriteFile(generated+name, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Chown(generated+name, owner, owner); err != nil {
			return err
		}
	}
	return nil
}

// ownedDir makes a folder and those above it, relative to the working folder.
func ownedDir(dir string, owner int) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if parent := filepath.Dir(dir); parent != "." {
		if err := ownedDir(parent, owner); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, owner, owner)
}

// resolvConf asks the airlock, whose answer comes at once or never. The address
// is that of initproto.HomeAddress.
const resolvConf = "nameserver 198.18.0.1\noptions ndots:0 timeout:2 attempts:2\n"

// hostsFile gives every service of the environment its name on the network
// that they share.
func (c *container) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	seen := map[string]bool{"localhost": true}
	for _, name := range append([]string{c.hostname}, c.hosts...) {
		if name != "" && !seen[name] && !strings.ContainsAny(name, " \t\r\n#") {
			fmt.Fprintf(&b, "127.0.0.1 %s\n", name)
			seen[name] = true
		}
	}
	return b.String()
}

// attachUpper attaches the folder of a step's Upper and Work, idmapped, so that
// owners on disk are those seen inside, and returns the overlay's options.
func (c *container) attachUpper() (string, error) {
	parent := filepath.Dir(c.upper)
	if filepath.Dir(c.work) != parent {
		return "", errors.New("a step's upper and work folder must be beside each other")
	}
	if err := os.Mkdir("u", 0o755); err != nil {
		return "", err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, parent, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", parent, err)
	}
	defer unix.Close(fd)
	if err := attachMapped(fd, "u", c.userns, unix.MOUNT_ATTR_NODEV); err != nil {
		return "", err
	}
	return fmt.Sprintf("upperdir=u/%s,workdir=u/%s,", filepath.Base(c.upper), filepath.Base(c.work)), nil
}

// scratch mounts the memory that takes what a service writes to its root, and
// returns the overlay's options. In a sandbox its kernel has it.
func (c *container) scratch() (string, error) {
	if err := os.Mkdir("scratch", 0o755); err != nil {
		return "", err
	}
	options := fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", c.writable, max(c.writable/bytesPerInode, 256))
	if err := unix.Mount("tmpfs", "scratch", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", fmt.Errorf("mount memory for a writable root: %w", err)
	}
	for _, dir := range []string{"scratch/upper", "scratch/work"} {
		if err := ownedDir(dir, int(c.uidBase)); err != nil {
			return "", err
		}
	}
	return "upperdir=scratch/upper,workdir=scratch/work,", nil
}

// asOwner runs fn with the environment's root as the owner of new files, and
// with every capability still. What overlayfs writes to the upper layer it
// writes as who mounted it, and the host's root has no number in an idmapped
// layer: without this the overlay can't be written. The calling thread must be
// its own.
func asOwner(uid int, fn func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	unix.Setfsgid(uid)
	unix.Setfsuid(uid) // takes capabilities of files away (capabilities(7))
	defer unix.Setfsgid(0)
	defer unix.Setfsuid(0)
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return fn()
}

// bindReadOnly binds a file of the host at target.
func bindReadOnly(source, target string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(fd)
	return attachMapped(fd, target, nil, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}
