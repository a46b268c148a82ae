package server

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"

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
	kept      map[string]int // descriptors for the successor; nil until keep
}

// fileListener is a listener that can give out its descriptor: TCP and unix
// ones can.
type fileListener interface {
	net.Listener
	syscall.Conn
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

// listens reports whether a listener would take a connection to an address of
// this machine.
func (h *Handover) listens(to netip.AddrPort) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.held {
		at, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil || at.Port() != to.Port() { // a unix socket
			continue
		}
		if a := at.Addr().Unmap(); a.IsUnspecified() || a == to.Addr().Unmap() {
			return true
		}
	}
	return false
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

// keep prepares for a successor: from here on the socket of a listener that is
// closed stays open for it, and what connects waits there.
func (h *Handover) keep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = map[string]int{}
}

// pass makes the sockets of every listener outlive the exec that follows, and
// returns the variable to set for the next program. It is called when nothing
// else can start a program any more, which would have them too.
func (h *Handover) pass() (variable string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, l := range h.held {
		if err := h.duplicate(key, l); err != nil {
			return "", err
		}
	}
	for key, fd := range h.kept {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return "", isle.Errorf(isle.Internal, "cannot hand over listener %s: %w", key, err)
		}
	}
	b, err := json.Marshal(h.kept)
	return listenersVariable + "=" + string(b), err
}

// duplicate keeps a listener's socket open for a successor; h.mu is held. The
// listener's File method would set the socket to blocking, and an accept that
// finds nothing would never end.
func (h *Handover) duplicate(key string, l fileListener) error {
	if _, ok := h.kept[key]; ok {
		return nil
	}
	raw, err := l.SyscallConn()
	if err == nil {
		if e := raw.Control(func(fd uintptr) {
			var n int
			if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
				h.kept[key] = n
			}
		}); err == nil {
			err = e
		}
	}
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot hand over listener %s: %w", key, err)
	}
	return nil
}

// A heldListener is a listener that knows it is handed over.
type heldListener struct {
	fileListener
	key      string
	handover *Handover
}

// Close implements net.Listener.
func (l *heldListener) Close() error {
	h := l.handover
	h.mu.Lock()
	if h.held[l.key] == l.fileListener {
		if h.kept != nil {
			h.duplicate(l.key, l.fileListener) // on failure it is opened anew
		}
		delete(h.held, l.key)
	}
	h.mu.Unlock()
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
