package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mounts tries to change what is mounted, by the old calls and the new ones.
func mounts([]string) {
	const at = "/tmp/at"
	os.MkdirAll(at, 0o755)
	os.MkdirAll("/tmp/up", 0o755)
	os.MkdirAll("/tmp/work", 0o755)
	mount := func(what, source, target, kind string, flags uintptr, data string) {
		try(what, unix.Mount(source, target, kind, flags, data))
	}
	mount("mount proc", "proc", at, "proc", 0, "")
	mount("mount sysfs", "sysfs", at, "sysfs", 0, "")
	mount("mount tmpfs", "tmpfs", at, "tmpfs", 0, "")
	mount("mount devpts", "devpts", at, "devpts", 0, "")
	mount("mount cgroup", "cgroup", at, "cgroup", 0, "memory")
	mount("mount cgroup2", "cgroup2", at, "cgroup2", 0, "")
	mount("mount overlay", "overlay", at, "overlay", 0, "lowerdir=/etc,upperdir=/tmp/up,workdir=/tmp/work")
	mount("mount ext4 of a disk", "/dev/vda", at, "ext4", 0, "")
	mount("bind the root", "/", at, "", unix.MS_BIND|unix.MS_REC, "")
	mount("bind /proc over itself", "/proc", "/proc", "", unix.MS_BIND, "")
	mount("remount / read-write", "", "/", "", unix.MS_REMOUNT, "")
	mount("remount / read-write, as a bind", "", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "")
	mount("remount /proc/sys read-write", "", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, "")
	mount("remount the volume with devices", "", "/data", "", unix.MS_REMOUNT|unix.MS_BIND, "")
	mount("move /tmp", "/tmp", "/run", "", unix.MS_MOVE, "")
	mount("make / shared", "", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	for _, p := range []string{"/proc/sys", "/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/sys", "/isle/init", "/proc", "/"} {
		try("unmount "+p, unix.Unmount(p, 0))
		try("detach "+p, unix.Unmount(p, unix.MNT_DETACH))
	}
	for _, kind := range []string{"proc", "tmpfs", "overlay", "erofs", "ext4", "cgroup2"} {
		_, err := unix.Fsopen(kind, 0)
		try("fsopen "+kind, err)
	}
	_, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	try("open_tree clone", err)
	_, err = unix.OpenTree(unix.AT_FDCWD, "/", 0)
	try("open_tree", err)
	_, err = unix.Fsmount(0, 0, 0)
	try("fsmount", err)
	_, err = unix.Fspick(unix.AT_FDCWD, "/", 0)
	try("fspick", err)
	try("fsconfig", unix.FsconfigCreate(0))
	try("move_mount", unix.MoveMount(unix.AT_FDCWD, "/tmp", unix.AT_FDCWD, "/run", 0))
	try("mount_setattr / read-write", unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
	try("pivot_root", unix.PivotRoot("/tmp", at))
	try("chroot", unix.Chroot("/tmp"))
	try("swap the root by fchdir and chroot", func() error {
		if err := os.Chdir("/"); err != nil {
			return err
		}
		return unix.Chroot(strings.Repeat("../", 64))
	}())
	for _, p := range []string{"/usr/x", "/etc/passwd", "/x", "/isle/init", "/attacker", "/sys/x", "/etc/resolv.conf"} {
		fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		try("write "+p, err)
	}
	try("rename over /etc/passwd", os.Rename("/etc/hostname", "/etc/passwd"))
	try("remove /isle/init", os.Remove("/isle/init"))
}

var newFlags = []struct {
	name string
	flag uintptr
}{
	{"user", unix.CLONE_NEWUSER}, {"mount", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"network", unix.CLONE_NEWNET},
	{"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"cgroup", unix.CLONE_NEWCGROUP}, {"time", unix.CLONE_NEWTIME},
}

// cloneArgs is struct clone_args, as of its first version (clone(2)).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// namespaces tries to make namespaces and to enter others.
func namespaces([]string) {
	for _, n := range newFlags {
		try("unshare "+n.name, unix.Unshare(int(n.flag)))
		if n.flag != unix.CLONE_NEWTIME { // clone(2) has another meaning for that bit
			try("clone "+n.name, cloneExec(n.flag))
			try("clone user and "+n.name, cloneExec(n.flag|unix.CLONE_NEWUSER))
		}
		try("clone3 "+n.name, clone3(n.flag))
	}
	try("clone3 without new namespaces", clone3(0))
	try("clone3 into a cgroup", func() error {
		dir, err := os.Open("/")
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd := exec.Command("/attacker", "live")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		return cmd.Run()
	}())
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	more, _ := filepath.Glob("/proc/self/task/*/ns/*")
	opened := 0
	worst := ""
	for _, p := range append(paths, more...) {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		opened++
		for _, kind := range []int{0, unix.CLONE_NEWUSER, unix.CLONE_NEWNS, unix.CLONE_NEWNET} {
			if err := unix.Setns(fd, kind); err == nil {
				worst = p
			}
		}
		unix.Close(fd)
	}
	if worst == "" && opened > 0 {
		say("setns to what /proc shows", "EPERM")
	} else {
		say("setns to what /proc shows", "DONE "+worst)
	}
	for _, name := range []string{"mnt", "user", "pid", "net", "ipc", "uts", "cgroup", "time"} {
		_, err := unix.Open("/proc/1/ns/"+name, unix.O_RDONLY, 0)
		try("open /proc/1/ns/"+name, err)
	}
	fd, err := unix.PidfdOpen(1, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWNET)
	}
	try("setns by pidfd of PID 1", err)
	try("ioctl NS_GET_PARENT", namespaceIoctl(0xb702))
	try("ioctl NS_GET_USERNS, twice", func() error {
		up, err := namespaceFD("/proc/self/ns/net", 0xb701)
		if err == nil {
			unix.Close(up)
		}
		return err
	}())
	try("write uid_map", write("/proc/self/uid_map", "0 0 4294967295"))
	try("write gid_map", write("/proc/self/gid_map", "0 0 4294967295"))
	try("write setgroups", write("/proc/self/setgroups", "allow"))
}

func cloneExec(flags uintptr) error {
	cmd := exec.Command("/attacker", "live")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return cmd.Run()
}

// clone3 ends the child at its first instruction.
func clone3(flags uintptr) error {
	args := cloneArgs{flags: uint64(flags), exitSignal: uint64(unix.SIGCHLD)}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return nil
}

// namespaceIoctl asks the own user namespace for a relative (ioctl_ns(2)).
func namespaceIoctl(request uintptr) error {
	fd, err := namespaceFD("/proc/self/ns/user", request)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func namespaceFD(path string, request uintptr) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
