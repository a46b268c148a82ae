package local

import (
	"runtime"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that need no look at their arguments: what
// ordinary programs use, after the list that container engines share, without
// what is for debugging, for making namespaces and mounts, and for administering
// the machine, and without asynchronous I/O (io_setup(2)), of which the whole
// machine has 65,536 requests: one environment could take them all. The runtime
// ignores names that the machine doesn't have.
const allowed = `
accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 clock_getres
clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group
faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue
futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getxattr
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl ioprio_get ioprio_set kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir
mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep
newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat
renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid
setresgid setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid
setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname
unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev`

// denied are the system calls that exist and are refused with EPERM, so that a
// program says what it was not allowed to do. All others give ENOSYS, as on a
// kernel that is too old to have them.
const denied = `
acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module finit_module fsconfig fsmount fsopen
fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl listmount lookup_dcookie mbind migrate_pages mount mount_setattr move_mount
move_pages name_to_handle_at open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise
process_vm_readv process_vm_writev ptrace quotactl quotactl_fd reboot request_key set_mempolicy setdomainname
sethostname setns settimeofday statmount stime swapoff swapon syslog umount umount2 unshare userfaultfd vhangup`

// newNamespaces are the CLONE_NEW* flags that clone(2) takes.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// seccompFilter is the filter that every process of an environment has.
//
// clone is allowed without new namespaces; clone3 hides its flags in memory, so
// it gives ENOSYS and libc takes clone instead. Sockets are of the families
// unix, inet and inet6, and of netlink only for routes, which getifaddrs reads;
// those of the internet are of the protocols that the airlock could ever carry,
// because to ask for another has the kernel load its module.
func seccompFilter() *specs.LinuxSeccomp {
	enosys, eperm := uint(unix.ENOSYS), uint(unix.EPERM)
	allow := func(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
	}
	equal := func(index uint, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
	}
	rules := []specs.LinuxSyscall{
		{Names: strings.Fields(allowed), Action: specs.ActAllow},
		{Names: strings.Fields(denied), Action: specs.ActErrno, ErrnoRet: &eperm},
		allow("clone", specs.LinuxSeccompArg{Index: 0, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}),
		allow("socketpair", equal(0, unix.AF_UNIX)),
		allow("socket", equal(0, unix.AF_NETLINK), equal(2, unix.NETLINK_ROUTE)),
	}
	rules = append(rules, allow("socket", equal(0, unix.AF_UNIX)))
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []uint64{0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_MPTCP} {
			rules = append(rules, allow("socket", equal(0, family), equal(2, protocol)))
		}
	}
	// PER_LINUX, PER_LINUX32 and the question which one it is, with or without
	// UNAME26: what container engines allow.
	for _, persona := range []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} {
		rules = append(rules, allow("personality", equal(0, persona)))
	}
	f := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &enosys, Syscalls: rules}
	switch runtime.GOARCH {
	case "amd64":
		f.Architectures = []specs.Arch{specs.ArchX86_64}
	case "arm64":
		f.Architectures = []specs.Arch{specs.ArchAARCH64}
	}
	return f
}
