package environment

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"isle"
	"isle/internal/spec"
)

// Published ports are chosen from this range of 127.0.0.1.
const (
	firstPort = 20000
	portCount = 10000
	// maxPortTries bounds how many are tried for one published port.
	maxPortTries = 200
)

type portKey struct{ service, name string }

// Visits decides about connections to published ports, which every program of
// the machine can make.
type Visits interface {
	// Visit begins to ask about a connection, by its two addresses. who names the user
	// whose it is, "" where nobody knows. may refuses it, and can be called again:
	// about another request on it.
	Visit(client, server net.Addr) (who func() string, may func(ctx context.Context, ref isle.Ref, project string) error)
}

// maxAsked bounds the connections to one published port about which is asked: who
// comes meanwhile waits, and takes no place of those who may.
const maxAsked = 64

// A publisher is one published port: a listener whose connections go to a port
// inside. It outlives the instance that it leads to: another one that takes its
// place is given it. Its goroutines end when it is closed.
type publisher struct {
	m    *Manager
	key  portKey
	ln   net.Listener
	host int
	done chan struct{} // closed when it accepts no more
	asks chan struct{} // has one of each connection about which is asked

	mu     sync.Mutex
	to     *live // that connections go to
	number int
	conns  map[*passage]*visiting // nil once closed
}

// leads says where connections go now.
func (p *publisher) leads() (l *live, number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.to, p.number
}

// lead has connections go to a port of an instance from now on.
func (p *publisher) lead(l *live, number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to, p.number = l, number
}

// A portPlan is the listeners of an environment to be: those that are there
// already and those opened for it.
type portPlan struct {
	m      *Manager
	ports  map[string][]PublishedPort
	opened map[portKey]net.Listener
}

func (p *portPlan) of(service string) []PublishedPort { return p.ports[service] }

// release closes what was opened for nothing.
func (p *portPlan) release() {
	for _, ln := range p.opened {
		ln.Close()
	}
}

// assignPorts gives each published port its host port and listens on it: the
// one it had before, else a free one. It fails with Conflict if the one it had
// is taken: a port that people have written down does not move silently.
func (m *Manager) assignPorts(ctx context.Context, ref isle.Ref, f spec.File, l *live) (*portPlan, error) {
	plan := &portPlan{m: m, ports: map[string][]PublishedPort{}, opened: map[portKey]net.Listener{}}
	for _, svc := range f.Services {
		for _, p := range svc.Ports {
			key := portKey{svc.Name, p.Name}
			host := 0
			if l != nil {
				host = l.publishedAt(key)
			}
			if host == 0 {
				ln, err := m.listen(ctx, ref, key)
				if err != nil {
					plan.release()
					return nil, err
				}
				plan.opened[key] = ln
				host = ln.Addr().(*net.TCPAddr).Port
			}
			plan.ports[svc.Name] = append(plan.ports[svc.Name], PublishedPort{Name: p.Name, Number: p.Number, Host: host, URL: m.portURL(ref, svc, p)})
		}
	}
	return plan, nil
}

func (l *live) publishedAt(key portKey) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.published[key]; p != nil {
		return p.host
	}
	return 0
}

// listen opens the listener of one published port and remembers its number.
func (m *Manager) listen(ctx context.Context, ref isle.Ref, key portKey) (net.Listener, error) {
	port, err := m.cfg.Ports.Port(ctx, ref, key.service, key.name)
	if err != nil {
		return nil, err
	}
	if port != 0 {
		ln, err := m.listenLoopback(port)
		if err == nil {
			return ln, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, isle.Errorf(isle.Unavailable, "port %s of service %s: %w", key.name, key.service, err)
		}
		return nil, m.portTaken(ref, key, port)
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s@%s/%s/%s", ref.Name, ref.Stage, key.service, key.name)
	for i := range maxPortTries {
		port := firstPort + int((h.Sum32()+uint32(i))%portCount)
		ln, err := m.listenLoopback(port)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "port %s of service %s: %w", key.name, key.service, err)
		}
		err = m.cfg.Ports.SetPort(ctx, ref, key.service, key.name, port)
		if err == nil {
			return ln, nil
		}
		ln.Close()
		if isle.CodeOf(err) != isle.Conflict { // kept for another environment: try the next
			return nil, err
		}
	}
	return nil, isle.Errorf(isle.Exhausted, "no port of 127.0.0.1 is free for port %s of service %s: %d from %d on were tried", key.name, key.service, maxPortTries, firstPort+int(h.Sum32()%portCount)).
		WithHint("isle down --volumes of environments that are not needed gives their ports free")
}

// portTaken says who has a port, where that can be known.
func (m *Manager) portTaken(ref isle.Ref, key portKey, port int) error {
	who := "another program on this machine"
	for _, l := range m.all() {
		for _, s := range l.snapshot().Services {
			for _, p := range s.Ports {
				if p.Host == port {
					who = fmt.Sprintf("service %s of environment %s", s.Name, l.ref)
				}
			}
		}
	}
	return isle.Errorf(isle.Conflict, "port in use: 127.0.0.1:%d, which is kept for port %s of service %s of %s, is taken by %s", port, key.name, key.service, ref, who).
		WithHint("end what listens there (ss -ltnp 'sport = :%d' shows it), or choose another name with --name", port)
}

func (m *Manager) listenLoopback(port int) (net.Listener, error) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return m.cfg.Listen("port/"+address, "tcp4", address)
}

// portURL is the name of a port that speaks HTTP: one whose health is checked
// over HTTP, or that is called so. Others have none.
func (m *Manager) portURL(ref isle.Ref, svc spec.Service, p spec.Port) string {
	if m.cfg.HTTP == "" {
		return ""
	}
	http := p.Name == "http" || p.Name == "web"
	if svc.Healthcheck != nil && svc.Healthcheck.HTTP != "" {
		if u, err := url.Parse(svc.Healthcheck.HTTP); err == nil {
			http = http || u.Port() == strconv.Itoa(p.Number) || u.Port() == "" && p.Number == 80
		}
	}
	if !http {
		return ""
	}
	host := p.Name + "." + ref.Name
	if ref.Stage != isle.DefaultStage {
		host += "." + ref.Stage
	}
	host += ".localhost"
	if _, port, err := net.SplitHostPort(m.cfg.HTTP); err == nil && port != "80" {
		host += ":" + port
	}
	return "http://" + host + "/"
}

// publish takes the plan's listeners into service and closes those that the
// record names no more.
func (l *live) publish(plan *portPlan) {
	l.mu.Lock()
	keep := map[portKey]int{}
	for service, ports := range plan.ports {
		for _, p := range ports {
			keep[portKey{service, p.Name}] = p.Number
		}
	}
	var closing []*publisher
	for key, p := range l.published {
		if number, ok := keep[key]; ok {
			p.lead(l, number)
			continue
		}
		closing = append(closing, p)
		delete(l.published, key)
	}
	var started []*publisher
	for key, ln := range plan.opened {
		p := &publisher{m: l.m, to: l, key: key, ln: ln, host: ln.Addr().(*net.TCPAddr).Port, number: keep[key], conns: map[*passage]*visiting{}, done: make(chan struct{}), asks: make(chan struct{}, maxAsked)}
		l.published[key] = p
		started = append(started, p)
	}
	l.mu.Unlock()
	for _, p := range closing {
		p.close()
	}
	for _, p := range started {
		if !l.m.spawn(p.accept) {
			close(p.done)
			p.close()
		}
	}
}

// unpublishAll closes every published port and its connections.
func (l *live) unpublishAll() {
	l.mu.Lock()
	all := l.published
	l.published = map[portKey]*publisher{}
	l.mu.Unlock()
	for _, p := range all {
		p.close()
	}
}

// revisit asks again about whoever is connected.
func (l *live) revisit() {
	if l.m.cfg.Visits == nil {
		return
	}
	l.mu.Lock()
	all, asking := slices.Collect(maps.Values(l.published)), slices.Collect(maps.Keys(l.asking))
	l.mu.Unlock()
	for _, p := range all {
		p.revisit()
	}
	for _, a := range asking {
		if !a.may() {
			a.end()
		}
	}
}

func (p *publisher) close() {
	p.ln.Close()
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for c := range conns {
		c.cut()
	}
}

// track notes a connection so that close ends it; false if it is too late, or
// there are as many as may be and nobody has more of them.
func (p *publisher) track(c *passage) bool {
	p.mu.Lock()
	var goes *passage
	ok := p.conns != nil
	if ok && len(p.conns) >= maxConnections { // one environment does not take what belongs to all
		if goes, ok = displaced(p.conns, c.who, false); ok {
			delete(p.conns, goes)
		}
	}
	if ok {
		p.conns[c] = &c.visiting
	}
	p.mu.Unlock()
	if goes != nil {
		goes.cut()
	}
	return ok
}

// revisit ends the connections of who may not have them any more.
func (p *publisher) revisit() {
	p.mu.Lock()
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	for _, c := range conns {
		if !c.admitted() {
			c.reset()
			c.cut()
		}
	}
}

func (p *publisher) untrack(c *passage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *publisher) accept() {
	defer close(p.done)
	for {
		client, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: let others end first
			if !sleep(p.m.ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		c := newPassage(p, client)
		p.asks <- struct{}{} // each is asked about in time
		if !p.m.spawn(func() {
			ok := p.m.cfg.Visits == nil || c.admitted()
			<-p.asks
			if !ok {
				c.reset()
			}
			if !ok || !p.track(c) {
				c.cut()
				return
			}
			defer p.untrack(c)
			c.serve()
		}) {
			<-p.asks
			c.cut()
		}
	}
}

// dial opens a connection to a port inside a service, which may be starting.
func (l *live) dial(ctx context.Context, service string, port int) (io.ReadWriteCloser, error) {
	if err := l.open(); err != nil {
		return nil, err
	}
	if err := l.comeIn(ctx, "a connection to port "+strconv.Itoa(port)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	line, err := l.line(ctx, service)
	if err != nil {
		return nil, err
	}
	return line.Forward(ctx, port)
}
