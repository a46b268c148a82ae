package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/api"
)

// A Server is the one process that runs environments.
type Server struct {
	cfg      Config
	log      *slog.Logger
	exe      string // path that a reload starts again
	lock     *os.File
	handover *Handover
	ready    *readiness
	started  time.Time
	rooms    *rooms
	remote   atomic.Pointer[elsewhere] // nil until it listens, or where it does not
	entrance atomic.Pointer[entrance]  // so is this

	variables variables
	newcomers newcomers

	stop     chan struct{} // closed by Stop
	stopOnce sync.Once
}

// New takes the state folder and constructs every room. It serves nothing yet;
// who waits for a server that was started on demand is told of an error.
func New(cfg Config) (*Server, error) {
	ready, handover := newReadiness(), adopt()
	s, err := newServer(cfg, ready, handover)
	if err != nil {
		ready.say(err)
		return nil, err
	}
	return s, nil
}

func newServer(cfg Config, ready *readiness, handover *Handover) (*Server, error) {
	if os.Geteuid() != 0 {
		return nil, isle.Errorf(isle.Refused, "the server needs root: it makes namespaces, mounts and control groups").WithHint("run it with sudo, or install it with `make install`")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	// Modes in this program are meant as they are written: what others must not
	// see says so, and a sandbox's files must be readable inside whatever umask
	// whoever started this has.
	syscall.Umask(0o022)
	if err := keepMemory(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, variables: takeVariables(), ready: ready, handover: handover, started: time.Now(), stop: make(chan struct{})}
	if s.exe, err = os.Executable(); err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot find my own executable: %w", err)
	}
	s.exe = strings.TrimSuffix(s.exe, " (deleted)") // replaced while we ran
	if err := s.takeState(); err != nil {
		return nil, err
	}
	if s.log, err = newLogger(cfg); err != nil {
		s.lock.Close()
		return nil, err
	}
	if s.rooms, err = compose(s); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// newLogger logs to the file of the configuration, or to standard error.
func newLogger(cfg Config) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.Log == "" {
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	}
	f, err := openLog(cfg.Log)
	if err != nil {
		return nil, err
	}
	return slog.New(slog.NewTextHandler(f, options)), nil
}

// takeState makes the state folder, for root only, and locks it: one server
// for each. The lock ends with the process, however it ends.
func (s *Server) takeState() error {
	if err := os.MkdirAll(s.cfg.State, 0o700); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot make the state folder: %w", err).WithHint("choose another with --state")
	}
	if err := CheckState(s.cfg.State); err != nil {
		return err
	}
	if err := os.Chmod(s.cfg.State, 0o700); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot close the state folder to others: %w", err).WithHint("choose another with --state")
	}
	name := filepath.Join(s.cfg.State, "server.lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot write to the state folder: %w", err).WithHint("choose another with --state")
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return isle.Errorf(isle.Conflict, "another server runs on %s", s.cfg.State).WithHint("end it with `isle server stop --state %s`, or choose another folder with --state", s.cfg.State)
	}
	if err != nil {
		f.Close()
		return isle.Errorf(isle.Unavailable, "cannot lock %s: %w", name, err)
	}
	s.lock = f
	return nil
}

// CheckState refuses a state folder that is another user's, as one that lay
// ready in /tmp may be: its owner could put links and images there, and root
// would write to the ones and run the others.
func CheckState(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot look at the state folder: %w", err).WithHint("choose another with --state")
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 {
		return isle.Errorf(isle.Refused, "the state folder %s belongs to user %d, who could change what root runs", dir, sys.Uid).
			WithHint("choose another with --state, or, if all that is in it is yours: chown -R root: %s", dir)
	}
	return nil
}

// Run reconciles what is with what should be, then serves until ctx ends, Stop
// is called or SIGHUP asks for another program. Environments run on.
func (s *Server) Run(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)

	calls, cutOff := context.WithCancel(context.Background()) // the root of every call's context
	defer cutOff()
	l, err := s.listen()
	if err == nil {
		err = s.listenRemote()
	}
	if err == nil {
		err = s.rooms.reconcile(ctx)
	}
	if err != nil {
		s.ready.say(err)
		if l != nil {
			l.Close()
		}
		s.remote.Load().close()
		s.entrance.Load().close()
		return errors.Join(err, s.rooms.close(false))
	}
	srv := s.httpServer(calls)
	bounded := newLimit(l, maxConnections)
	srv.ConnState = bounded.state
	s.newcomers.watch(srv)
	served := make(chan error, 4)
	followers, err := s.serveLog(served)
	if err != nil {
		s.ready.say(err)
		l.Close()
		s.remote.Load().close()
		s.entrance.Load().close()
		return errors.Join(err, s.rooms.close(false))
	}
	if followers != nil {
		defer followers.Close()
	}
	s.handover.discard()
	servers, doors := []*http.Server{srv}, []net.Listener{bounded}
	if r := s.remote.Load(); r != nil {
		servers, doors = append(servers, s.serveRemote(r, calls, served)), append(doors, r.gate)
		defer r.close()
	}
	if e := s.entrance.Load(); e != nil {
		s.serveOutside(e, served)
		doors = append(doors, e.gate)
		defer e.leaveAll()
		defer e.close()
	}
	go func() { served <- srv.Serve(bounded) }() // ends with Shutdown or Close, which every way out of here calls
	s.ready.say(nil)
	s.log.Info("serving", "version", s.cfg.Version, "pid", os.Getpid(), "state", s.cfg.State, "socket", s.cfg.Socket)

	for {
		select {
		case err := <-served:
			cutOff()
			return errors.Join(isle.Errorf(isle.Internal, "the server cannot accept connections: %w", err), s.rooms.close(false))
		case <-hangups:
			if err := s.checkSuccessor(ctx); err != nil {
				s.log.Error("the installed program does not run; going on with this one", "program", s.exe, "err", err)
				continue
			}
			s.closeDoors(doors, served)
			return s.replace(servers, cutOff)
		case <-ctx.Done():
		case <-s.stop:
		}
		s.log.Info("ending; environments go on")
		s.ready.systemd("STOPPING=1")
		s.end(servers, cutOff)
		os.Remove(s.cfg.Socket)
		return s.rooms.close(false)
	}
}

// Stop begins to end the server. It may be called from a call, and more than
// once.
func (s *Server) Stop() { s.stopOnce.Do(func() { close(s.stop) }) }

// end stops serving: no new calls, then those in progress are cut off and may
// undo what they hold.
func (s *Server) end(servers []*http.Server, cutOff context.CancelFunc) {
	quiet := time.AfterFunc(graceful, func() {
		s.rooms.gateway.Close() // sessions are told why before their calls are cut off
		cutOff()
	})
	defer quiet.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), graceful+teardown)
	defer cancel()
	var ending sync.WaitGroup
	for _, srv := range servers {
		ending.Go(func() {
			if err := srv.Shutdown(ctx); err != nil {
				s.log.Warn("calls did not end in time", "err", err)
				srv.Close()
			}
		})
	}
	ending.Wait()
	s.entrance.Load().leaveAll()
}

// checkSuccessor sees whether the program that would take over runs at all.
func (s *Server) checkSuccessor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.exe, "version", "--server", "/nonexistent").CombinedOutput()
	if err != nil {
		return isle.Errorf(isle.Failed, "%s version: %s: %w", s.exe, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// settling is how long who has connected may take to ask for something, before
// they are left to find out by themselves that the server was replaced.
const settling = time.Second

// closeDoors has who connects from now on wait for the successor, and those who
// connected before ask for what they came for.
func (s *Server) closeDoors(doors []net.Listener, served <-chan error) {
	s.handover.keep()
	for _, l := range doors {
		l.Close()
	}
	late := time.NewTimer(settling)
	defer late.Stop()
	for range doors { // each server says that it accepts nobody any more
		select {
		case <-served:
		case <-late.C:
			return
		}
	}
	s.newcomers.wait(settling)
}

// replace becomes the program that is installed now, with the same process ID
// and the listening sockets. It returns only if that fails.
func (s *Server) replace(servers []*http.Server, cutOff context.CancelFunc) error {
	s.log.Info("handing over", "program", s.exe)
	s.ready.systemd("RELOADING=1")
	s.end(servers, cutOff)
	s.rooms.drain()
	sockets, err := s.rooms.export()
	if err != nil { // they are made again, with a moment in which they refuse
		s.log.Error("airlocks' sockets are not handed over", "err", err)
	}
	if err := s.rooms.close(true); err != nil {
		s.log.Error("a room did not close", "err", err)
	}
	listeners, err := s.handover.pass()
	if err != nil { // they too
		s.log.Error("listeners are not handed over", "err", err)
	}
	environ := append(append(os.Environ(), listeners, passFiles(sockets)), s.variables.pass()...)
	return isle.Errorf(isle.Internal, "cannot start %s: %w", s.exe, unix.Exec(s.exe, lasting(os.Args), environ))
}

// lasting are the arguments that a successor is to have too: what was asked for
// once is done, and done again it would undo what was changed since.
func lasting(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--default-policy" || name == "--accept-rollback" || name == "--new-key"
	})
}

// listen opens the unix socket, for root and, if there is one, the group.
func (s *Server) listen() (net.Listener, error) {
	l, err := s.bind()
	if err != nil {
		return nil, err
	}
	if err := s.admitGroup(); err != nil { // a socket that was handed over too: the group may be new
		l.Close()
		return nil, err
	}
	return l, nil
}

// bind opens the socket, for root only.
func (s *Server) bind() (net.Listener, error) {
	return s.handover.Listen("api", func() (net.Listener, error) {
		dir := filepath.Dir(s.cfg.Socket)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot make the socket's folder: %w", err)
		}
		// The lock on the state folder says that a socket there is a dead one's,
		// unless two folders were given one socket.
		if conn, err := net.DialTimeout("unix", s.cfg.Socket, time.Second); err == nil {
			conn.Close()
			return nil, isle.Errorf(isle.Conflict, "another server answers at %s", s.cfg.Socket).WithHint("choose another socket with --server")
		}
		if st, err := os.Lstat(s.cfg.Socket); err == nil {
			if st.Mode().Type() != os.ModeSocket {
				return nil, isle.Errorf(isle.Conflict, "%s is there and no socket", s.cfg.Socket).WithHint("choose another with --server")
			}
			if err := os.Remove(s.cfg.Socket); err != nil {
				return nil, isle.Errorf(isle.Unavailable, "cannot replace %s: %w", s.cfg.Socket, err)
			}
		}
		// Nobody else may connect, not even between bind and chmod.
		old := syscall.Umask(0o177)
		l, err := net.Listen("unix", s.cfg.Socket)
		syscall.Umask(old)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot listen on %s: %w", s.cfg.Socket, err)
		}
		return l, nil
	})
}

// maxFollowers bounds the connections that follow the audit log over TCP.
const maxFollowers = 64

// serveLog serves the audit log over TCP, where that is wanted. What it fails
// with later is sent on failed.
func (s *Server) serveLog(failed chan<- error) (*http.Server, error) {
	if s.cfg.AuditListen == "" {
		return nil, nil
	}
	l, err := s.handover.Listen("audit", func() (net.Listener, error) {
		l, err := net.Listen("tcp", s.cfg.AuditListen)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot serve the audit log: %w", err).WithHint("choose another address with --audit-listen")
		}
		return l, nil
	})
	if err != nil {
		return nil, err
	}
	bounded := newLimit(l, maxFollowers)
	srv := &http.Server{
		Handler:           api.NewTiles(s.rooms.store, s.rooms.book.signer, s.log),
		ConnState:         bounded.state,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	go func() { // ends with Close, which every way out of Run calls
		if err := srv.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	s.log.Info("serving the audit log to whoever can reach it", "address", l.Addr())
	return srv, nil
}

// admitGroup lets members of the group connect to the socket, if there is the
// group: they are asked who they are, and the policy what they may.
func (s *Server) admitGroup() error {
	g, err := user.LookupGroup(s.cfg.Group)
	if err != nil {
		return nil // root only
	}
	gid, err := strconv.Atoi(g.Gid)
	if err == nil {
		err = os.Chown(s.cfg.Socket, 0, gid)
	}
	if err == nil {
		err = os.Chmod(s.cfg.Socket, 0o660)
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot let the group %s connect to %s: %w", s.cfg.Group, s.cfg.Socket, err)
	}
	return nil
}

// httpServer bounds what a connection may do.
func (s *Server) httpServer(calls context.Context) *http.Server {
	srv := &http.Server{
		Handler:           s.rooms.handler,
		BaseContext:       func(net.Listener) context.Context { return calls },
		ConnContext:       api.ConnContext(s.cfg.Group),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20},
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP1(true) // curl, and whatever speaks JSON
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}
