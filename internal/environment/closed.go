package environment

import (
	"net"
	"net/netip"
	"strconv"

	"isle"
)

// Closed says why an instance may not reach an address, whatever grants it; ""
// if nothing keeps it from that. What listens on loopback for environments of
// another stage is of that stage, and the listener for names leads to every
// one: on the way through the machine no workload leaves its own.
func (m *Manager) Closed(instance isle.ID, to netip.AddrPort) (why string) {
	a := to.Addr().Unmap()
	if !a.IsLoopback() && !a.IsUnspecified() {
		return "" // published ports and names are on loopback
	}
	if _, port, err := net.SplitHostPort(m.cfg.HTTP); err == nil && port == strconv.Itoa(int(to.Port())) {
		return "where the environments of every stage are reached by name"
	}
	stage := ""
	all := m.all()
	for _, l := range all {
		if l.instance == instance {
			stage = l.ref.Stage
		}
	}
	for _, l := range all {
		if l.ref.Stage != stage && l.publishes(int(to.Port())) {
			return "a published port of stage " + l.ref.Stage + ", and a workload stays in its stage"
		}
	}
	return ""
}

// publishes says whether a host port is one of the environment's.
func (l *live) publishes(host int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.published {
		if p.host == host {
			return true
		}
	}
	return false
}
