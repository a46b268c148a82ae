package environment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
)

// maxNameConnections bounds the connections to the listener for names, idle
// ones and those that have not said yet what they want: every user of the
// machine can make them, and each takes one of the server's file descriptors.
const maxNameConnections = 1024

// A webServer reaches published ports by name: one listener for all of them,
// http://PORT.NAME[.STAGE].localhost.
type webServer struct {
	server   *http.Server
	listener net.Listener
	ended    chan struct{} // closed when no connection is taken any more, and all that were are noted

	mu   sync.Mutex
	busy map[net.Conn]time.Time // new connections, since when, and those with a request: the zero time
}

// serveHTTP opens the listener. That it can't is no reason not to serve: each
// port has a number of its own too.
func (m *Manager) serveHTTP() {
	if m.cfg.HTTP == "" {
		return
	}
	ln, err := m.cfg.Listen("names", "tcp", m.cfg.HTTP)
	if err != nil {
		m.cfg.Log.Warn("published ports cannot be reached by name; by number they can", "address", m.cfg.HTTP, "error", err)
		return
	}
	w := &webServer{busy: map[net.Conn]time.Time{}, listener: &nameListener{Listener: ln, visits: m.cfg.Visits, conns: map[*nameConn]*visiting{}}, ended: make(chan struct{})}
	w.server = &http.Server{
		Handler:           http.HandlerFunc(m.route),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ConnState:         w.note,
		ConnContext:       visitor,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	m.mu.Lock()
	m.web = w
	m.mu.Unlock()
	if !m.spawn(func() {
		defer close(w.ended)
		if err := w.server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			m.cfg.Log.Error("the listener for names ended", "error", err)
		}
	}) {
		ln.Close()
		close(w.ended)
	}
}

func (w *webServer) close() { w.server.Close() }

// note is the server's ConnState.
func (w *webServer) note(c net.Conn, state http.ConnState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch state {
	case http.StateNew:
		w.busy[c] = time.Now()
	case http.StateActive:
		w.busy[c] = time.Time{}
	default:
		delete(w.busy, c)
	}
}

// silence is how long a connection on which nothing was asked yet is waited for.
const silence = time.Second

// drain takes no more connections and returns when all that was asked is
// answered, or ctx ends. Shutdown alone would not do: it drops a request that is
// read after it began.
func (w *webServer) drain(ctx context.Context) {
	w.server.SetKeepAlivesEnabled(false)
	w.listener.Close()
	<-w.ended // one that was just taken may not be noted yet
	waiting := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, since := range w.busy {
			if since.IsZero() || time.Since(since) < silence {
				return true
			}
		}
		return false
	}
	for waiting() && sleep(ctx, 2*time.Millisecond) {
	}
	w.server.Shutdown(ctx)
}

// route sends a request to the port that its Host names.
func (m *Manager) route(w http.ResponseWriter, r *http.Request) {
	port, ref, ok := parseHost(r.Host)
	if !ok {
		http.Error(w, "isle: want http://PORT.NAME.localhost or http://PORT.NAME.STAGE.localhost\n", http.StatusNotFound)
		return
	}
	if err := m.mayVisit(r.Context(), ref); err != nil {
		http.Error(w, "isle: "+err.Error()+"\n", http.StatusForbidden)
		return
	}
	l, done, err := m.enterByName(r.Context(), ref)
	switch {
	case err != nil && isle.CodeOf(err) == isle.NotFound:
		http.Error(w, fmt.Sprintf("isle: there is no environment %s; isle ls shows what there is\n", ref), http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, "isle: "+err.Error()+"\n", http.StatusServiceUnavailable)
		return
	}
	defer done()
	rec := l.snapshot()
	for _, s := range rec.Services {
		for _, p := range s.Ports {
			if p.Name == port {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				defer l.whileServing(cancel)()
				defer l.whileAdmitted(func() bool { return m.mayVisit(r.Context(), ref) == nil }, cancel)()
				l.proxy(s.Name, p.Number).ServeHTTP(w, r.WithContext(ctx))
				return
			}
		}
	}
	http.Error(w, fmt.Sprintf("isle: environment %s publishes no port %s\n", ref, port), http.StatusNotFound)
}

type visitorKey struct{}

// visitor has a connection's requests know whose they are.
func visitor(ctx context.Context, c net.Conn) context.Context {
	if n, ok := c.(*nameConn); ok && n.may != nil {
		return context.WithValue(ctx, visitorKey{}, n.may)
	}
	return ctx
}

// mayVisit refuses a request by name of whom may not connect to the environment's
// ports. Who may not learns nothing of whether there is one.
func (m *Manager) mayVisit(ctx context.Context, ref isle.Ref) error {
	may, ok := ctx.Value(visitorKey{}).(func(context.Context, isle.Ref, string) error)
	if !ok {
		return nil
	}
	project := ""
	if l := m.find(ref); l != nil {
		l.mu.Lock()
		project = l.rec.Project
		l.mu.Unlock()
	}
	return may(ctx, ref, project)
}

// whileAdmitted calls end where whoever asked, by name, may not visit any more; what it
// returns says that it need not.
func (l *live) whileAdmitted(may func() bool, end func()) (stop func()) {
	v := &asking{may, end}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking == nil {
		l.asking = map[*asking]struct{}{}
	}
	l.asking[v] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.asking, v)
	}
}

// An asking is a request by name that is under way.
type asking struct {
	may func() bool
	end func()
}

// enterByName counts a request in, at whoever serves once requests are not held
// any more. done counts it out.
func (m *Manager) enterByName(ctx context.Context, ref isle.Ref) (l *live, done func(), err error) {
	for {
		if l, err = m.get(ref); err != nil {
			return nil, nil, err
		}
		if held := l.holds(); held != nil {
			select {
			case <-held:
				continue
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		}
		select {
		case l.connections <- struct{}{}:
		default:
			return nil, nil, isle.Errorf(isle.Exhausted, "environment %s has %d connections open, which is the most it may", ref, maxConnections)
		}
		if m.find(ref) == l && l.holds() == nil {
			return l, func() { <-l.connections }, nil
		}
		<-l.connections
	}
}

// parseHost reads PORT.NAME[.STAGE].localhost[:NUMBER]. No other name is
// served, so no page from elsewhere can point its own name here.
func parseHost(host string) (port string, ref isle.Ref, ok bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	name, found := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".localhost")
	if !found {
		return "", isle.Ref{}, false
	}
	labels := strings.Split(name, ".")
	switch len(labels) {
	case 2:
		labels = append(labels, isle.DefaultStage)
	case 3:
	default:
		return "", isle.Ref{}, false
	}
	return labels[0], isle.Ref{Name: labels[1], Stage: labels[2]}, true
}

// proxy passes requests on to a port inside.
func (l *live) proxy(service string, number int) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     counted{l.transport, &l.answers},
		FlushInterval: -1, // what the service sends is passed on at once
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = net.JoinHostPort(service, strconv.Itoa(number))
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("isle: port %d of service %s of %s does not answer: %v\n", number, service, l.ref, err), http.StatusBadGateway)
		},
	}
}

// newTransport dials SERVICE:PORT inside the environment.
func (l *live) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			service, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			number, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			c, err := l.dial(ctx, service, number)
			if err != nil {
				return nil, err
			}
			return &insideConn{c}, nil
		},
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
}

// An insideConn makes a forwarded connection look like one of the network's.
// It has no deadlines of its own: closing it is what ends a wait.
type insideConn struct{ io.ReadWriteCloser }

func (c *insideConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *insideConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *insideConn) SetDeadline(time.Time) error      { return nil }
func (c *insideConn) SetReadDeadline(time.Time) error  { return nil }
func (c *insideConn) SetWriteDeadline(time.Time) error { return nil }
