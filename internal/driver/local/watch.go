package local

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"isle"
)

// watchers are the launches whose end is awaited: a pidfd each, and a goroutine
// that sleeps in the runtime's poller and ends with the launch or with close.
type watchers struct {
	mu     sync.Mutex
	closed bool
	open   map[*os.File]struct{}
	wait   sync.WaitGroup
}

// Watch calls exited once when the launch's isle-init is gone.
func (d *Driver) Watch(instance, launch isle.ID, exited func()) error {
	if !instance.Valid() || !launch.Valid() {
		return isle.Errorf(isle.Internal, "watch %q of %q: no ID", launch, instance)
	}
	return d.watch(instance, launch, exited)
}

func (d *Driver) watch(instance, launch isle.ID, exited func()) error {
	if exited == nil {
		return nil
	}
	pid := d.pid(instance, launch)
	if pid == 0 {
		go exited()
		return nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		go exited()
		return nil
	}
	if err != nil {
		return isle.Errorf(isle.Internal, "watch launch %s: %w", launch, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if d.pid(instance, launch) != pid { // ended, and the number was given away
		f.Close()
		go exited()
		return nil
	}
	return d.watchers.add(f, exited)
}

func (w *watchers) add(f *os.File, exited func()) error {
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return err
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		f.Close()
		return os.ErrClosed
	}
	if w.open == nil {
		w.open = make(map[*os.File]struct{})
	}
	w.open[f] = struct{}{}
	w.wait.Add(1)
	w.mu.Unlock()
	go func() {
		err := conn.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return err == nil && n > 0 // a pidfd is readable once its process has ended
		})
		w.mu.Lock()
		delete(w.open, f)
		w.mu.Unlock()
		f.Close()
		w.wait.Done()
		if err == nil {
			exited()
		}
	}()
	return nil
}

// close ends all watching without calling anyone.
func (w *watchers) close() {
	w.mu.Lock()
	w.closed = true
	for f := range w.open {
		f.Close()
	}
	w.mu.Unlock()
	w.wait.Wait()
}
