package initproto

import (
	"strings"
	"syscall"

	"isle"
)

// signals are those that can be sent by name.
func signals() map[string]syscall.Signal {
	return map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "ABRT": syscall.SIGABRT,
		"KILL": syscall.SIGKILL, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "PIPE": syscall.SIGPIPE,
		"ALRM": syscall.SIGALRM, "TERM": syscall.SIGTERM, "CONT": syscall.SIGCONT, "STOP": syscall.SIGSTOP,
		"TSTP": syscall.SIGTSTP, "TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "WINCH": syscall.SIGWINCH,
	}
}

// ParseSignal returns the signal of a name, with or without SIG in front.
func ParseSignal(name string) (syscall.Signal, error) {
	if s, ok := signals()[strings.TrimPrefix(strings.ToUpper(name), "SIG")]; ok {
		return s, nil
	}
	return 0, isle.Errorf(isle.Invalid, "signal %q is unknown", bound(name, 32)).WithHint("use one such as TERM, HUP, INT, USR1 or KILL")
}
