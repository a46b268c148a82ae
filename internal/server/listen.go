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
	if c.Listen == "" {
		if c.TLSCert != "" || c.URL != "" {
			return isle.Errorf(isle.Invalid, "--tls-cert, --tls-key and --url say how the server is reached from elsewhere, and it is not").WithHint("add --listen ADDRESS")
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return isle.Errorf(isle.Invalid, "--listen %s: want ADDRESS:PORT or :PORT, such as :7443", c.Listen)
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
	i, until := e.info(), e.cert.expires()
	c.Message = i.URL + ", listening at " + i.Address + ", key " + i.Pin + ", certificate until " + until.UTC().Format(time.DateOnly)
	switch left := time.Until(until); {
	case left <= 0:
		c.State, c.Remedy = api.CheckMissing, "renew the certificate "+e.cert.certFile+"; clients refuse it"
	case left < 14*24*time.Hour:
		c.State, c.Remedy = api.CheckWarning, "renew the certificate "+e.cert.certFile
	}
	return c
}

func (e *elsewhere) close() {
	if e != nil {
		e.gate.Close()
	}
}

// URL is what the server is called from elsewhere; "" where it listens to nobody.
func (s *Server) URL() string { return s.remote.Load().info().URL }

// listenRemote opens the listener for callers from elsewhere, where there is to
// be one. Nobody is served yet.
func (s *Server) listenRemote() error {
	if s.cfg.Listen == "" {
		return nil
	}
	if s.rooms.credentials == nil {
		return isle.Errorf(isle.Internal, "the server can prove nobody from elsewhere")
	}
	l, err := s.handover.Listen("remote", func() (net.Listener, error) {
		l, err := net.Listen("tcp", s.cfg.Listen)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot listen for callers from elsewhere: %w", err).WithHint("choose another address with --listen")
		}
		return l, nil
	})
	if err != nil {
		return err
	}
	e := &elsewhere{gate: newGate(l)}
	e.url, e.cert, err = s.nameRemote(l.Addr())
	if err != nil {
		l.Close()
		return err
	}
	s.remote.Store(e)
	return nil
}

// nameRemote settles what the server is called that listens at an address, and
// opens its certificate.
func (s *Server) nameRemote(address net.Addr) (url string, cert *certificate, err error) {
	url, called := s.cfg.URL, ""
	if url != "" {
		called, _ = api.ServerURL(url) // checked
		called, _, _ = net.SplitHostPort(called[len("https://"):])
	} else {
		host, port, _ := net.SplitHostPort(address.String())
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
			if host, err = os.Hostname(); err != nil || !isDNSName(host) {
				host = "localhost"
			}
		}
		url = "https://" + net.JoinHostPort(host, port)
	}
	if s.cfg.TLSCert != "" {
		cert, err = openCertificate(s.cfg.TLSCert, s.cfg.TLSKey, s.log)
		return url, cert, err
	}
	cert, err = openOwnCertificate(filepath.Join(s.cfg.State, "tls.crt"), RemoteKeyPath(s.cfg.Keys, s.cfg.State), namesOf(address, called), s.log)
	return url, cert, err
}

// serveRemote serves callers from elsewhere. What it fails with later is sent on
// failed.
func (s *Server) serveRemote(e *elsewhere, calls context.Context, failed chan<- error) *http.Server {
	srv := &http.Server{
		Handler: api.NewRemote(api.RemoteConfig{
			API: s.rooms.handler, Credentials: s.rooms.credentials, Endpoints: s.rooms.endpoints, Callback: s.rooms.callback, Group: s.cfg.Group,
			Refused: s.rooms.refusals.source, Proven: func(r *http.Request) bool { return proveConn(r.Context()) }, Log: s.log,
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
