package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// initProcess tries to look into PID 1, which knows the launch's secret.
func initProcess([]string) {
	look(1, "PID 1")
	for _, name := range []string{"environ", "mem", "maps", "smaps", "auxv", "syscall", "stack", "io", "pagemap", "personality", "timers", "clear_refs"} {
		try("read /proc/1/"+name, open("/proc/1/"+name, unix.O_RDONLY))
	}
	try("write /proc/1/mem", open("/proc/1/mem", unix.O_RDWR))
	for _, name := range []string{"fd", "fdinfo", "map_files", "task/1/fd"} {
		try("list /proc/1/"+name, func() error {
			entries, err := os.ReadDir("/proc/1/" + name)
			if err == nil && len(entries) == 0 {
				return io.EOF
			}
			return err
		}())
	}
	for _, name := range []string{"root", "cwd", "exe"} {
		_, err := os.Readlink("/proc/1/" + name)
		try("read the link /proc/1/"+name, err)
		try("open /proc/1/"+name, open("/proc/1/"+name, unix.O_PATH))
	}
	for fd := range 16 {
		if err := open(fmt.Sprintf("/proc/1/fd/%d", fd), unix.O_PATH); err == nil {
			say("open /proc/1/fd", "DONE")
		}
	}
	try("read /proc/1/root/etc/shadow", open("/proc/1/root/etc/shadow", unix.O_RDONLY))
	try("write /proc/1/oom_score_adj", write("/proc/1/oom_score_adj", "1000"))
	try("write /proc/1/comm", write("/proc/1/comm", "x"))
	try("write /proc/1/attr/current", write("/proc/1/attr/current", "x"))
	try("write /proc/1/timerslack_ns", write("/proc/1/timerslack_ns", "1"))
}

// look tries every way into another process's memory and files.
func look(pid int, who string) {
	try("ptrace attach to "+who, unix.PtraceAttach(pid))
	try("ptrace seize "+who, unix.PtraceSeize(pid))
	buffer := make([]byte, 8)
	local := []unix.Iovec{{Base: &buffer[0], Len: 8}}
	remote := []unix.RemoteIovec{{Base: 0x400000, Len: 8}}
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	try("process_vm_readv of "+who, err)
	_, err = unix.ProcessVMWritev(pid, local, remote, 0)
	try("process_vm_writev to "+who, err)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		try("pidfd_open of "+who, err)
		return
	}
	defer unix.Close(pidfd)
	got := errors.New("nothing tried")
	for fd := range 16 {
		if _, got = unix.PidfdGetfd(pidfd, fd, 0); got == nil {
			break
		}
	}
	try("pidfd_getfd of "+who, got)
	try("kcmp with "+who, call(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), 0, 0, 0))
	try("process_madvise of "+who, call(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&local[0])), 1, unix.MADV_COLD, 0))
	try("move_pages of "+who, call(unix.SYS_MOVE_PAGES, uintptr(pid), 0, 0, 0, 0, 0))
	try("migrate_pages of "+who, call(unix.SYS_MIGRATE_PAGES, uintptr(pid), 0, 0, 0))
}

// processes tries to look into a sibling, and to be more important than others.
func processes([]string) {
	sibling := exec.Command("/attacker", "hold", "nothing")
	in, err := sibling.StdinPipe()
	if err == nil {
		err = sibling.Start()
	}
	if err != nil {
		try("start a sibling", err)
		return
	}
	look(sibling.Process.Pid, "a sibling")
	in.Close()
	sibling.Wait()
	try("ptrace traceme", call(unix.SYS_PTRACE, unix.PTRACE_TRACEME))
	seen, _ := os.ReadDir("/proc")
	strangers := 0
	for _, e := range seen {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if name, _, _ := strings.Cut(string(line), "\x00"); name != "/attacker" && name != "/isle/init" && name != "" {
				strangers++
			}
		}
	}
	say("processes of others in sight", strconv.Itoa(strangers))
	try("oom_score_adj -1000", write("/proc/self/oom_score_adj", "-1000"))
	try("oom_score_adj 0", write("/proc/self/oom_score_adj", "0"))
	try("nice -20", unix.Setpriority(unix.PRIO_PROCESS, 0, -20))
	try("real-time scheduling", call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, uintptr(unsafe.Pointer(&[]int32{99}[0]))))
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_DEADLINE, Runtime: 1e6, Deadline: 1e7, Period: 1e7}
	try("deadline scheduling", unix.SchedSetAttr(0, &attr, 0))
	try("real-time disk priority", call(unix.SYS_IOPRIO_SET, 1, 0, 1<<13))
	try("raise the limit of files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}))
	try("core dumps", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}))
}

// end does to PID 1 what it can.
func end([]string) {
	for n := 1; n <= 64; n++ {
		if err := unix.Kill(1, unix.Signal(n)); err != nil {
			try(fmt.Sprintf("signal %d to PID 1", n), err)
		}
	}
	pidfd, err := unix.PidfdOpen(1, 0)
	if err == nil {
		err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
	try("SIGKILL by pidfd to PID 1", err)
	for _, limit := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_AS, unix.RLIMIT_CPU, unix.RLIMIT_NPROC, unix.RLIMIT_FSIZE} {
		try(fmt.Sprintf("limit %d of PID 1", limit), unix.Prlimit(1, limit, &unix.Rlimit{}, nil))
	}
	try("freeze PID 1 by its scheduler", call(unix.SYS_SCHED_SETSCHEDULER, 1, 5, uintptr(unsafe.Pointer(&[]int32{0}[0]))))
}

// inherited lists what this process was given open, and where it stands.
func inherited([]string) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		try("list descriptors", err)
		return
	}
	names, _ := dir.Readdirnames(-1)
	for _, n := range names {
		fd, _ := strconv.Atoi(n)
		to, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil || fd == int(dir.Fd()) || strings.Contains(to, "eventpoll") || strings.Contains(to, "eventfd") {
			continue // the Go runtime's own
		}
		kind, _, _ := strings.Cut(to, ":")
		say("descriptor "+n, kind)
	}
	at, err := os.Getwd()
	if err != nil {
		at = outcome(err)
	}
	say("working folder", at)
	_, err = os.Stat("../../../../../../../../isle/init")
	try("isle-init above the working folder", err)
	for _, p := range []string{"../../../../../../../../work", "../../../../../../../../var/lib/isle", "../../../../../../../../root/.cache"} {
		_, err = os.Stat(p)
		try("host's "+strings.TrimLeft(p, "./"), err)
	}
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil {
		say("root is", fmt.Sprintf("%#x", st.Type))
	}
}

// identity says who this process is.
func identity([]string) {
	say("uid", fmt.Sprintf("%d %d", os.Getuid(), os.Geteuid()))
	say("gid", fmt.Sprintf("%d %d", os.Getgid(), os.Getegid()))
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		if strings.HasPrefix(k, "Cap") || k == "NoNewPrivs" || k == "Seccomp" || k == "Seccomp_filters" || k == "Groups" {
			say(k, strings.TrimSpace(v))
		}
	}
	try("setuid 0", unix.Setresuid(0, 0, 0))
	try("setuid 1234", unix.Setresuid(1234, 1234, 1234))
}
