package server

import (
	"encoding/json"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"isle"
)

// listenersVariable tells a program that took over which of its descriptors
// are which listeners: a JSON object, key to descriptor.
const listenersVariable = "ISLE_LISTENERS"

// A Handover keeps listening sockets open while one program of the server
// becomes the next, so that who connects in between waits instead of being
// refused. Each listener has a key that both programs know it by.
type Handover struct {
	mu        sync.Mutex
	inherited map[string]*os.File // not taken up yet
	held      map[string]fileListener
}

// fileListener is a listener that can give out its descriptor: TCP and unix
// ones can.
type fileListener interface {
	net.Listener
	File() (*os.File, error)
}

// adopt takes over what the program before left in the environment.
func adopt() *Handover {
	h := &Handover{inherited: map[string]*os.File{}, held: map[string]fileListener{}}
	value := os.Getenv(listenersVariable)
	os.Unsetenv(listenersVariable)
	fds := map[string]int{}
	if json.Unmarshal([]byte(value), &fds) != nil {
		return h
	}
	for key, fd := range fds {
		if fd > 2 {
			unix.CloseOnExec(fd)
			h.inherited[key] = os.NewFile(uintptr(fd), key)
		}
	}
	return h
}

// Listen returns the listener that the program before had under the key, or
// what open returns. Closing it ends its handing over.
func (h *Handover) Listen(key string, open func() (net.Listener, error)) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := h.take(key)
	if l == nil || err != nil {
		if l, err = open(); err != nil {
			return nil, err
		}
	}
	fl, ok := l.(fileListener)
	if !ok {
		return l, nil
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
	h.held[key] = fl
	return &heldListener{fileListener: fl, key: key, handover: h}, nil
}

// address is that of the listener that the program before had under the key;
// ok is false if it had none.
func (h *Handover) address(key string) (address string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, ok := h.inherited[key]
	if !ok {
		return "", false
	}
	l, err := net.FileListener(f)
	if err != nil {
		return "", false
	}
	defer l.Close()
	return l.Addr().String(), true
}

// take returns the inherited listener of a key, nil if there is none.
func (h *Handover) take(key string) (net.Listener, error) {
	f, ok := h.inherited[key]
	if !ok {
		return nil, nil
	}
	delete(h.inherited, key)
	defer f.Close()
	return net.FileListener(f)
}

// discard closes what was inherited and nobody asked for.
func (h *Handover) discard() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, f := range h.inherited {
		f.Close()
		delete(h.inherited, key)
	}
}

// pass duplicates every held listener so that it outlives its Close and the
// exec that follows, and returns the variable to set for the next program.
// After an error nothing is passed.
func (h *Handover) pass() (variable string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fds := map[string]int{}
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	for key, l := range h.held {
		f, err := l.File()
		if err != nil {
			return "", isle.Errorf(isle.Internal, "cannot hand over listener %s: %w", key, err)
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 3)
		f.Close()
		if err != nil {
			return "", isle.Errorf(isle.Internal, "cannot hand over listener %s: %w", key, err)
		}
		// The descriptor is set to blocking by File; Go's listeners are not.
		if err := unix.SetNonblock(fd, true); err != nil {
			return "", isle.Errorf(isle.Internal, "cannot hand over listener %s: %w", key, err)
		}
		fds[key] = fd
	}
	b, err := json.Marshal(fds)
	return listenersVariable + "=" + string(b), err
}

// A heldListener is a listener that knows it is handed over.
type heldListener struct {
	fileListener
	key      string
	handover *Handover
}

// Close implements net.Listener.
func (l *heldListener) Close() error {
	l.handover.mu.Lock()
	if l.handover.held[l.key] == l.fileListener {
		delete(l.handover.held, l.key)
	}
	l.handover.mu.Unlock()
	return l.fileListener.Close()
}

// inheritedFD reads a descriptor's number from the environment, once; 0 if
// there is none.
func inheritedFD(variable string) int {
	n, err := strconv.Atoi(os.Getenv(variable))
	os.Unsetenv(variable)
	if err != nil || n < 3 {
		return 0
	}
	unix.CloseOnExec(n)
	return n
}

// socketsVariable tells which descriptors are which of the airlocks' sockets,
// as listenersVariable does.
const socketsVariable = "ISLE_SOCKETS"

// passFiles makes files outlive the exec that follows, and returns the variable
// to set for the next program.
func passFiles(files map[string]*os.File) (variable string) {
	fds := map[string]int{}
	for key, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			continue
		}
		raw.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_DUPFD, 3); err == nil {
				fds[key] = n
			}
		})
		f.Close()
	}
	b, err := json.Marshal(fds)
	if err != nil {
		return socketsVariable + "={}"
	}
	return socketsVariable + "=" + string(b)
}

// adoptFiles takes what passFiles passed.
func adoptFiles() map[string]*os.File {
	value := os.Getenv(socketsVariable)
	os.Unsetenv(socketsVariable)
	fds := map[string]int{}
	out := map[string]*os.File{}
	if json.Unmarshal([]byte(value), &fds) != nil {
		return out
	}
	for key, fd := range fds {
		if fd > 2 {
			unix.CloseOnExec(fd)
			out[key] = os.NewFile(uintptr(fd), key)
		}
	}
	return out
}
