package gvisor

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Filter is the seccomp filter of a container, which the sentry applies, as it
// has to be said to runsc: it gives EPERM to everything that is refused with an
// error, whatever the filter says. To have ENOSYS it must be told to ask a
// tracer: where there is none, as always here, that is the answer
// (seccomp(2), SECCOMP_RET_TRACE).
//
// The filter is not what keeps services off the machine's kernel. It keeps them
// off what the sentry has beyond what they need: namespaces, mounts, tracing. It
// costs little, because the sentry remembers the answer for each system call
// that is decided without its arguments.
//
// isle-init gives a service its hostname in a sandbox; that alone is let
// through besides, and needs CAP_SYS_ADMIN, which the service does not have.
//
// Limits of other processes can't be set: until they start their first process
// all containers of a sandbox share one set of limits, and isle-init, which goes
// on with it, could be taken the files of from another service.
func Filter(s *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	out := *s
	out.DefaultAction, out.DefaultErrnoRet = action(s.DefaultAction, s.DefaultErrnoRet), nil
	out.Syscalls = []specs.LinuxSyscall{
		{Names: []string{"sethostname"}, Action: specs.ActAllow},
		{Names: []string{"unshare"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.CLONE_NEWUTS, Op: specs.OpEqualTo}}},
	}
	own := []specs.LinuxSeccompArg{{Index: 0, Value: 0, Op: specs.OpEqualTo}}
	for _, rule := range s.Syscalls {
		rule.Action, rule.ErrnoRet = action(rule.Action, rule.ErrnoRet), nil
		rule.Names = slices.Clone(rule.Names)
		if i := slices.Index(rule.Names, "prlimit64"); i >= 0 && rule.Action == specs.ActAllow && len(rule.Args) == 0 {
			rule.Names = slices.Delete(rule.Names, i, i+1)
			out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{"prlimit64"}, Action: specs.ActAllow, Args: own},
				specs.LinuxSyscall{Names: []string{"prlimit64"}, Action: specs.ActErrno})
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out
}

func action(a specs.LinuxSeccompAction, errno *uint) specs.LinuxSeccompAction {
	if a == specs.ActErrno && errno != nil && *errno == uint(unix.ENOSYS) {
		return specs.ActTrace
	}
	return a
}
