package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"isle"
	"isle/internal/api"
)

const (
	// certificateLife is how long a certificate of the server's own holds; it is
	// made anew when a third of that is left.
	certificateLife = 365 * 24 * time.Hour
	// skew is how far behind a client's clock may be.
	skew = time.Hour
	// lookEvery is how often files of a certificate are looked at.
	lookEvery = time.Second
	// maxNames bounds the addresses in a certificate.
	maxNames = 32
)

// A certificate is what the server shows to callers from elsewhere: either one
// from files, taken anew when they change, or one that it makes itself, of one
// key for good, so that who knows the key knows the server.
type certificate struct {
	certFile, keyFile string
	names             []string // of its own: in it; nil: it is from files
	key               *ecdsa.PrivateKey
	log               *slog.Logger
	now               func() time.Time

	mu     sync.Mutex // guards what follows
	shown  *tls.Certificate
	looked time.Time
	stamp  [2]fileStamp
}

// fileStamp changes whenever a file does.
type fileStamp struct {
	at    time.Time
	size  int64
	inode uint64
}

// openCertificate takes a certificate from files.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, now: time.Now}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// openOwnCertificate makes one for the names, or takes up the one of before. Its
// key is in keyFile, made where it is missing; the certificate is public.
func openOwnCertificate(certFile, keyFile string, names []string, log *slog.Logger) (*certificate, error) {
	key, err := ownKey(keyFile)
	if err != nil {
		return nil, err
	}
	c := &certificate{certFile: certFile, keyFile: keyFile, names: names, key: key, log: log, now: time.Now}
	if shown, err := c.read(); err == nil {
		c.shown = shown
	}
	return c, c.renew()
}

// get is a tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= lookEvery || now.Before(c.looked) {
		c.looked = now
		var err error
		if c.names != nil {
			err = c.renew()
		} else if stamp := c.stamps(); stamp != c.stamp {
			if err = c.load(); err != nil {
				c.stamp = stamp // it is told once
			} else {
				c.log.Info("the certificate for callers from elsewhere was changed", "pin", api.PinOf(c.shown.Leaf), "until", c.shown.Leaf.NotAfter)
			}
		}
		if err != nil {
			c.log.Error("the certificate for callers from elsewhere cannot be renewed; the one of before is shown", "err", err)
		}
	}
	return c.shown, nil
}

// pin is its key, as clients know it.
func (c *certificate) pin() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return api.PinOf(c.shown.Leaf)
}

// expires is when the certificate that is shown does.
func (c *certificate) expires() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.Leaf.NotAfter
}

func (c *certificate) stamps() (out [2]fileStamp) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if st, err := os.Stat(name); err == nil {
			out[i] = fileStamp{at: st.ModTime(), size: st.Size()}
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				out[i].inode = sys.Ino
			}
		}
	}
	return out
}

// load takes the files as they are. mu is held, or nobody else has c yet.
func (c *certificate) load() error {
	stamp := c.stamps() // before they are read: a change meanwhile is seen later
	if st, err := os.Stat(c.keyFile); err == nil && st.Mode().Perm()&0o007 != 0 {
		return isle.Errorf(isle.Refused, "everybody on this machine may read the key %s", c.keyFile).WithHint("chmod o= %s", c.keyFile)
	}
	shown, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err == nil && shown.Leaf == nil {
		shown.Leaf, err = x509.ParseCertificate(shown.Certificate[0])
	}
	if err != nil {
		return isle.Errorf(isle.Invalid, "the certificate %s with the key %s cannot be used: %w", c.certFile, c.keyFile, err).WithHint("--tls-cert and --tls-key want PEM files that belong together")
	}
	c.shown, c.stamp = &shown, stamp
	return nil
}

// read is the certificate of before, of the same key.
func (c *certificate) read() (*tls.Certificate, error) {
	b, err := os.ReadFile(c.certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, isle.Errorf(isle.Invalid, "%s is no certificate", c.certFile)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !c.key.PublicKey.Equal(leaf.PublicKey) || leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) != nil {
		return nil, isle.Errorf(isle.Invalid, "%s is of another key", c.certFile)
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: c.key, Leaf: leaf}, nil
}

// renew makes a certificate of the server's own where there is none that holds
// for long enough and for all of its names. mu is held, or nobody else has c yet.
func (c *certificate) renew() error {
	now := c.now()
	if c.shown != nil {
		leaf := c.shown.Leaf
		has := slices.Clone(leaf.DNSNames)
		for _, ip := range leaf.IPAddresses {
			has = append(has, ip.String())
		}
		lacks := slices.ContainsFunc(c.names, func(n string) bool { return !slices.Contains(has, n) })
		if now.After(leaf.NotBefore) && leaf.NotAfter.Sub(now) > certificateLife/3 && !lacks {
			return nil
		}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "isle"}, NotBefore: now.Add(-skew), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range c.names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	c.shown = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.key, Leaf: leaf}
	if err := writeFile(c.certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot keep the certificate: %w", err)
	}
	return nil
}

// ownKey reads the server's key, or makes one where there is none.
func ownKey(name string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(name)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the server's key: %w", err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm()&0o077 != 0 {
		return nil, isle.Errorf(isle.Refused, "others may read the server's key %s", name).WithHint("if nobody has: chmod 600 %s; else remove it, and have everybody log in again", name)
	}
	var key any
	if block, _ := pem.Decode(b); block != nil {
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if k, ok := key.(*ecdsa.PrivateKey); ok && err == nil && k.Curve == elliptic.P256() {
		return k, nil
	}
	return nil, isle.Errorf(isle.Invalid, "%s is not the server's key: want a P-256 key in PEM", name).WithHint("put it back from a backup, or remove it, and have everybody log in again")
}

func makeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a key: %w", err)
	}
	if err = os.MkdirAll(filepath.Dir(name), 0o700); err == nil {
		err = writeFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot keep the server's key: %w", err).WithHint("choose another folder with --keys")
	}
	return key, nil
}

// writeFile puts a whole file in place, durable when it returns.
func writeFile(name string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = bytes.NewReader(b).WriteTo(f)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// namesOf are what a machine that listens at an address is called: its host
// name, its addresses where it listens at all of them, and what it is called
// from outside.
func namesOf(address net.Addr, outside string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	add := func(n string) {
		if ip := net.ParseIP(n); ip != nil {
			n = ip.String()
		}
		if n != "" && len(names) < maxNames && !slices.Contains(names, n) && (net.ParseIP(n) != nil || isDNSName(n)) {
			names = append(names, n)
		}
	}
	add(outside)
	if host, err := os.Hostname(); err == nil {
		add(host)
	}
	tcp, ok := address.(*net.TCPAddr)
	if ok && !tcp.IP.IsUnspecified() {
		add(tcp.IP.String())
		return names
	}
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			add(n.IP.String())
		}
	}
	return names
}

// isDNSName reports whether s may stand in a certificate as a name of a machine.
func isDNSName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}
