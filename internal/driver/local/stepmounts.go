package local

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/build"
)

// scratchSize bounds what a step writes to a mount whose changes are not kept,
// in bytes of memory.
const scratchSize = 256 << 20

// points are the folders that are mounted over in every container.
func (c *container) points() []string {
	points := []string{"/proc", "/dev", "/sys"}
	if !c.step.Plain {
		points = append(points, "/tmp", "/run")
	}
	return points
}

// folder is what the first process starts in.
func (c *container) folder() string {
	if c.step.Dir != "" {
		return c.step.Dir
	}
	return "/"
}

func (c *container) user() specs.User {
	return specs.User{UID: c.step.UID, GID: c.step.GID, AdditionalGids: c.step.Groups}
}

// capabilities are those of the first process: root's, and of another user what
// a program could have and none does, since no step gains privileges.
func (c *container) capabilities(caps []string) *specs.LinuxCapabilities {
	if c.step.UID != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// stepMount is where the nth mount of a build step is in the launch's private
// mounts.
func stepMount(n int, m build.Mount) string {
	switch {
	case m.Layers != nil:
		return path.Join(fmt.Sprintf("m%d/root", n), m.Source)
	case m.Folder != "":
		return fmt.Sprintf("m%d/folder", n)
	}
	return fmt.Sprintf("m%d/file", n)
}

// stepPoints makes what a step's mounts are mounted over, where its image lacks
// it: below the image, so that nothing of it is a change.
func (c *container) stepPoints(owner int) error {
	for _, m := range c.step.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" {
			return isle.Errorf(isle.Invalid, "a build step's mount at %q", m.Target)
		}
		if strings.HasPrefix(m.Target, "/dev/") {
			continue // the runtime makes it, in memory
		}
		at := "bottom" + m.Target
		if m.Content == nil && !m.File {
			if err := ownedDir(at, owner); err != nil {
				return err
			}
			continue
		}
		if err := ownedDir(path.Dir(at), owner); err != nil {
			return err
		}
		f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Chown(at, owner, owner); err != nil {
			return err
		}
	}
	return nil
}

// assembleStep mounts what a build step has beside its root:
//
//	m0/l0…     layers, idmapped
//	m0/root    all of them as one overlay
//	m0/scratch what a step writes to it, in memory
//	m0/folder  a folder of the machine, idmapped
//	m0/file    a file
func (d *Driver) assembleStep(c *container) error {
	for i, m := range c.step.Mounts {
		base := fmt.Sprintf("m%d", i)
		var err error
		switch {
		case m.Layers != nil:
			err = d.assembleTree(c, base, m)
		case m.Folder != "":
			err = assembleFolder(c, base, m)
		case m.Content != nil:
			err = assembleFile(c, base, m)
		}
		if err != nil {
			return fmt.Errorf("mount %s of a build step: %w", m.Target, err)
		}
	}
	return nil
}

// assembleTree mounts layers as one tree.
func (d *Driver) assembleTree(c *container, base string, m build.Mount) error {
	lower := []string{}
	for _, dir := range []string{base, base + "/none", base + "/root"} {
		if err := ownedDir(dir, int(c.uidBase)); err != nil {
			return err
		}
	}
	for i, layer := range distinct(m.Layers) {
		at := fmt.Sprintf("%s/l%d", base, i)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := d.layers.attach(layer, at, c.userns); err != nil {
			return err
		}
		lower = append([]string{at}, lower...)
	}
	lower = append(lower, base+"/none")
	flags, data := uintptr(unix.MS_NOSUID|unix.MS_NODEV), "lowerdir="+strings.Join(lower, ":")
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	} else {
		if err := os.Mkdir(base+"/scratch", 0o755); err != nil {
			return err
		}
		options := fmt.Sprintf("mode=755,size=%d,nr_inodes=%d,uid=%d,gid=%[3]d", scratchSize, scratchSize/bytesPerInode, c.uidBase)
		if err := unix.Mount("tmpfs", base+"/scratch", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return err
		}
		for _, dir := range []string{"upper", "work"} {
			if err := ownedDir(base+"/scratch/"+dir, int(c.uidBase)); err != nil {
				return err
			}
		}
		data += fmt.Sprintf(",upperdir=%s/scratch/upper,workdir=%[1]s/scratch/work", base)
	}
	return asOwner(int(c.uidBase), func() error { return unix.Mount("tree", base+"/root", "overlay", flags, data) })
}

// assembleFolder attaches a folder of the machine, whose owners on disk are those
// seen inside.
func assembleFolder(c *container, base string, m build.Mount) error {
	if err := os.MkdirAll(base+"/folder", 0o755); err != nil {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attachMapped(fd, base+"/folder", c.userns, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
}

// assembleFile writes a file, in the memory that the private mounts are in.
func assembleFile(c *container, base string, m build.Mount) error {
	if err := os.Mkdir(base, 0o755); err != nil {
		return err
	}
	at := base + "/file"
	if err := os.WriteFile(at, m.Content, 0o600); err != nil {
		return err
	}
	if err := os.Chown(at, int(c.uidBase+m.UID), int(c.uidBase+m.GID)); err != nil {
		return err
	}
	return os.Chmod(at, m.Mode)
}
