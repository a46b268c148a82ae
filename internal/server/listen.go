package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"isle"
	"isle/internal/api"
)

// RemoteKeyPath is where the key is by which a state folder's server is known
// elsewhere, below the folder of keys ("" for the default one).
func RemoteKeyPath(keys, state string) string { return KeysPath(keys, state) + ".tls" }

// checkRemote says what is wrong with how the server is to be reached from
// elsewhere.
func (c Config) checkRemote() error {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return isle.Errorf(isle.Invalid, "--tls-cert and --tls-key belong together")
	}
	if c.URL != "" {
		if _, err := api.ServerURL(c.URL); err != nil {
			return isle.Errorf(isle.Invalid, "--url %s: %w", c.URL, err)
		}
	}
	for _, l := range [][2]string{{"--listen", c.Listen}, {"--gateway", c.Gateway}} {
		if _, _, err := net.SplitHostPort(l[1]); l[1] != "" && err != nil {
			return isle.Errorf(isle.Invalid, "%s %s: want ADDRESS:PORT or :PORT, such as :7443", l[0], l[1])
		}
	}
	switch {
	case c.Listen == "" && c.URL != "":
		return isle.Errorf(isle.Invalid, "--url says how the server is reached from elsewhere, and it is not").WithHint("add --listen ADDRESS")
	case c.Listen == "" && c.Gateway == "" && c.TLSCert != "":
		return isle.Errorf(isle.Invalid, "--tls-cert and --tls-key say how the server is reached from elsewhere, and it is not").WithHint("add --listen ADDRESS, or --gateway ADDRESS")
	}
	return nil
}

// elsewhere is where the server listens for callers from elsewhere. All methods
// work on nil, which is nowhere.
type elsewhere struct {
	gate *gate
	cert *certificate
	url  string
}

func (e *elsewhere) info() api.RemoteInfo {
	if e == nil {
		return api.RemoteInfo{}
	}
	return api.RemoteInfo{Address: e.gate.Addr().String(), URL: e.url, Pin: e.cert.pin()}
}

// check says how the server is reached from elsewhere, and until when.
func (e *elsewhere) check() api.Check {
	c := api.Check{Name: "remote access", State: api.CheckOK, Message: "off: the server is reached by its unix socket only"}
	if e == nil {
		return c
	}
	i := e.info()
	return e.cert.check(c.Name, i.URL+", listening at "+i.Address+", key "+i.Pin)
}

func (e *elsewhere) close() {
	if e != nil {
		e.gate.Close()
	}
}

// URL is what the server is called from elsewhere; "" where it listens to nobody.
func (s *Server) URL() string { return s.remote.Load().info().URL }

// listenRemote opens the listeners for callers from elsewhere and for the
// gateway's visitors, where there are to be some. Nobody is served yet.
func (s *Server) listenRemote() (err error) {
	if s.rooms.credentials == nil {
		return isle.Errorf(isle.Internal, "the server can prove nobody from elsewhere")
	}
	var remote, gateway net.Listener
	defer func() {
		for _, l := range []net.Listener{remote, gateway} {
			if err != nil && l != nil {
				l.Close()
			}
		}
	}()
	if remote, err = s.listenTCP("remote", "--listen", s.cfg.Listen); err != nil {
		return err
	}
	if gateway, err = s.listenTCP("gateway", "--gateway", s.cfg.Gateway); err != nil {
		return err
	}
	var url, called string
	var addresses []net.Addr
	if remote != nil {
		if url, called, err = s.nameRemote(remote.Addr()); err != nil {
			return err
		}
		addresses = append(addresses, remote.Addr())
	}
	if gateway != nil {
		addresses = append(addresses, gateway.Addr())
	}
	if addresses == nil {
		return nil
	}
	cert, err := s.certify(called, addresses)
	if err != nil {
		return err
	}
	if remote != nil {
		s.remote.Store(&elsewhere{gate: newGate(remote, callers), cert: cert, url: url})
	}
	if gateway != nil {
		s.entrance.Store(&entrance{gate: newGate(gateway, outsiders), cert: cert})
	}
	return nil
}

// listenTCP listens at an address, or takes up the listener of the program
// before; nil where there is no address.
func (s *Server) listenTCP(key, flag, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	return s.handover.Listen(key, func() (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot listen for callers from elsewhere: %w", err).WithHint("choose another address with %s", flag)
		}
		return l, nil
	})
}

// nameRemote settles what the server is called that listens at an address: its
// URL, and the name in it where that was said.
func (s *Server) nameRemote(address net.Addr) (url, called string, err error) {
	if url = s.cfg.URL; url != "" {
		called, _ = api.ServerURL(url) // checked
		called, _, _ = net.SplitHostPort(called[len("https://"):])
		return url, called, nil
	}
	host, port, _ := net.SplitHostPort(address.String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil || !isDNSName(host) {
			host = "localhost"
		}
	}
	return "https://" + net.JoinHostPort(host, port), "", nil
}

// certify opens the certificate that is shown at addresses, of a server that is
// called so.
func (s *Server) certify(called string, addresses []net.Addr) (*certificate, error) {
	if s.cfg.TLSCert != "" {
		return openCertificate(s.cfg.TLSCert, s.cfg.TLSKey, s.log)
	}
	var names []string
	for _, a := range addresses {
		for _, n := range namesOf(a, called) {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return openOwnCertificate(filepath.Join(s.cfg.State, "tls.crt"), RemoteKeyPath(s.cfg.Keys, s.cfg.State), names, s.log)
}

// serveRemote serves callers from elsewhere. What it fails with later is sent on
// failed.
func (s *Server) serveRemote(e *elsewhere, calls context.Context, failed chan<- error) *http.Server {
	srv := &http.Server{
		Handler: api.NewRemote(api.RemoteConfig{
			API: s.rooms.handler, Credentials: s.rooms.credentials, Endpoints: s.rooms.endpoints, Callback: s.rooms.callback, Group: s.cfg.Group,
			Refused: s.rooms.refusals.source, Tries: s.rooms.tries, Proven: func(r *http.Request) bool { return proveConn(r.Context()) }, Log: s.log,
		}),
		BaseContext: func(net.Listener) context.Context { return calls },
		ConnContext: withConn,
		// The handshake has this long too, in the connection's own goroutine.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: 30 * time.Second,
		},
		TLSConfig: tlsConfig(e.cert),
		ErrorLog:  slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP1(true) // curl, and whatever speaks JSON
	srv.Protocols.SetHTTP2(true)
	s.newcomers.watch(srv)
	go func() { // ends with Shutdown or Close, which every way out of Run calls
		if err := srv.ServeTLS(e.gate, "", ""); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	i := e.info()
	s.log.Info("serving callers from elsewhere, who prove themselves by a token", "address", i.Address, "url", i.URL, "pin", i.Pin)
	return srv
}

// tlsConfig is TLS 1.3, or 1.2 with forward secrecy and authenticated
// encryption (RFC 9325, section 4.2).
func tlsConfig(c *certificate) *tls.Config {
	return &tls.Config{
		GetCertificate: c.get,
		MinVersion:     tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		// Nobody is proven by a certificate; but who shows a workload's here is
		// told that it counts for nothing, and written down.
		ClientAuth: tls.RequestClientCert,
	}
}
