package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/initproto"
)

// maxBoot bounds what is read from file descriptor 3, in bytes.
const maxBoot = 1 << 20

// run is the life of isle-init. It returns the code to exit with.
func run(boot *os.File) (int, error) {
	tune()
	if err := harden(); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals) // all: none may end PID 1
	b, secret, err := readBoot(boot)
	if err != nil {
		return 0, err
	}
	s, err := newService(b, secret)
	if err != nil {
		return 0, err
	}
	return s.run(signals), nil
}

// tune keeps the process small: there is one for every service.
func tune() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25) // of what little there is, collected at 1 MiB
	debug.SetMemoryLimit(48 << 20)
	// What starting up has used is not used again.
	time.AfterFunc(time.Second, debug.FreeOSMemory)
	syscall.Umask(0o022)
	// Threads made now need not be made when the service has used up the
	// environment's processes: the runtime could not go on without.
	const spare = 10
	var ready, release sync.WaitGroup
	ready.Add(spare)
	release.Add(1)
	for range spare {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			release.Wait()
		}()
	}
	ready.Wait()
	release.Done()
}

// harden closes this process to root inside the service: it is not dumpable,
// so /proc/1/{mem,environ,fd,maps} and ptrace need CAP_SYS_PTRACE over the user
// namespace (ptrace(2), "Ptrace access mode checking").
func harden() error {
	// What whoever started us left open is not for children either. Where the
	// call is unknown, the driver's care has to do.
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become undumpable: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// readBoot reads the orders, closes their file, and moves the secret to a page
// of its own that is locked into memory where the limits allow, and in no core
// dump. What can be wiped is.
func readBoot(f *os.File) (*initproto.Boot, []byte, error) {
	raw := make([]byte, 0, 16<<10)
	for {
		if len(raw) == cap(raw) {
			grown := make([]byte, len(raw), 2*cap(raw))
			copy(grown, raw)
			clear(raw)
			raw = grown
		}
		n, err := f.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot read orders from file descriptor 3: %w", err)
		}
		if len(raw) > maxBoot {
			return nil, nil, errors.New("the orders on file descriptor 3 are too long")
		}
	}
	defer clear(raw[:cap(raw)])
	// Not writable again if it is a regular file, and not open in any case.
	if err := f.Close(); err != nil {
		return nil, nil, err
	}
	var b initproto.Boot
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, nil, fmt.Errorf("the orders on file descriptor 3 make no sense: %w", err)
	}
	defer clear(b.Secret)
	if len(b.Secret) != initproto.SecretSize || !b.Launch.Valid() || b.Home == "" {
		return nil, nil, errors.New("the orders on file descriptor 3 lack a launch, a secret or a home")
	}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("no memory for the secret: %w", err)
	}
	// Neither is needed for the secret to be unreadable inside; both help
	// against what a swap file or a dump would show outside.
	_ = unix.Mlock(page)
	_ = unix.Madvise(page, unix.MADV_DONTDUMP)
	secret := page[:initproto.SecretSize:initproto.SecretSize]
	copy(secret, b.Secret)
	return &b, secret, nil
}

// capability returns the number of a capability's name (capabilities(7)).
func capability(name string) (uintptr, error) {
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
		SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD
		LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
		PERFMON BPF CHECKPOINT_RESTORE`)
	for i, n := range names {
		if n == strings.TrimPrefix(strings.ToUpper(name), "CAP_") {
			return uintptr(i), nil
		}
	}
	return 0, fmt.Errorf("capability %s is unknown", strconv.Quote(name))
}
