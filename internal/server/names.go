package server

import (
	"net"
	"os"
	"path/filepath"
	"strings"

	"isle"
)

// chooseNames settles the address at which HTTP ports are reached by name: the
// one that was asked for or, where its port is 0 or taken, the free one that
// was used before, so that URLs stay as they are. It is "" for none.
func (s *Server) chooseNames() (string, error) {
	if s.cfg.Names == "off" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(s.cfg.Names)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return "", isle.Errorf(isle.Invalid, "--names %s: want a loopback address and a port, such as 127.0.0.1:7480, or off", s.cfg.Names)
	}
	if address, ok := s.handover.address("names"); ok {
		return address, nil
	}
	if port != "0" {
		if _, err := freePort(s.cfg.Names); err == nil {
			return s.cfg.Names, nil
		}
		s.log.Warn("the address for names is taken; using a free one", "address", s.cfg.Names)
	}
	remembered := filepath.Join(s.cfg.State, "names.address")
	if b, err := os.ReadFile(remembered); err == nil {
		if address, err := freePort(strings.TrimSpace(string(b))); err == nil {
			return address, nil
		}
	}
	address, err := freePort(net.JoinHostPort(host, "0"))
	if err != nil {
		s.log.Warn("published ports cannot be reached by name; by number they can", "err", err)
		return "", nil
	}
	if err := os.WriteFile(remembered, []byte(address+"\n"), 0o600); err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot write to the state folder: %w", err)
	}
	return address, nil
}

// freePort returns the address with a port at which one can listen now.
func freePort(address string) (string, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
