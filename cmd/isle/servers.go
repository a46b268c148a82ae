package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/api"
)

// A login is what is kept of a server elsewhere.
type login struct {
	URL   string    `json:"url"`
	Token string    `json:"token"`
	Pin   string    `json:"pin,omitempty"` // of its key; empty: CA or the system's roots vouch for it
	CA    string    `json:"ca,omitempty"`  // PEM
	Actor string    `json:"actor"`         // whom the token proved
	Since time.Time `json:"since"`
}

// remote is how the server is reached with it.
func (l login) remote() (api.Remote, error) {
	r := api.Remote{URL: l.URL, Pin: l.Pin, Token: func() (string, error) { return l.Token, nil }}
	if l.CA != "" {
		r.Roots = x509.NewCertPool()
		if !r.Roots.AppendCertsFromPEM([]byte(l.CA)) {
			return r, isle.Errorf(isle.Invalid, "no certificate in PEM vouches for %s", l.URL).WithHint("log in again with `isle login %s --token --ca FILE`", l.URL)
		}
	}
	return r, nil
}

// logins is the file of servers that one is logged in to: isle/servers.json
// below XDG_CONFIG_HOME, which is ~/.config by default. It holds tokens, so it is
// for its owner only.
type logins struct{ path string }

func openLogins() logins {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(home(), ".config")
	}
	return logins{filepath.Join(dir, "isle", "servers.json")}
}

// maxLogins bounds the file in bytes.
const maxLogins = 4 << 20

// all reads the file. It refuses one that others may read or have written.
func (s logins) all() ([]login, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the servers that you are logged in to: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the servers that you are logged in to: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); st.Mode().Perm()&0o077 != 0 || ok && int(sys.Uid) != os.Geteuid() {
		return nil, isle.Errorf(isle.Refused, "%s holds tokens, and others may read it or have written it", s.path).
			WithHint("if nobody has: chmod 600 %s; else remove it, have its tokens revoked, and log in again", s.path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLogins+1))
	var file struct {
		Servers []login `json:"servers"`
	}
	if err == nil && len(b) > maxLogins {
		err = errors.New("it is too large")
	}
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s cannot be read", s.path).WithHint("remove it, and log in again") // what is wrong may quote a token
	}
	return file.Servers, nil
}

// find is the login to a server, nil if there is none.
func (s logins) find(url string) (*login, error) {
	all, err := s.all()
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if l.URL == url {
			return &l, nil
		}
	}
	return nil, nil
}

// put replaces the login to a server.
func (s logins) put(l login) error {
	_, err := s.change(l.URL, &l)
	return err
}

// remove drops the login to a server, and reports whether there was one.
func (s logins) remove(url string) (bool, error) { return s.change(url, nil) }

func (s logins) change(url string, l *login) (had bool, err error) {
	cannot := func(err error) error {
		return isle.Errorf(isle.Unavailable, "cannot write the servers that you are logged in to: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return false, cannot(err)
	}
	lock, err := os.OpenFile(s.path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, cannot(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return false, cannot(err)
	}
	all, err := s.all()
	if err != nil {
		return false, err
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(o login) bool { return o.URL == url })
	had = len(rest) < len(all)
	if l != nil {
		rest = append(rest, *l)
	} else if !had {
		return false, nil
	}
	b, err := json.MarshalIndent(map[string]any{"servers": rest}, "", "  ")
	if err != nil {
		return had, cannot(err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.path), ".servers-") // 0600
	if err != nil {
		return had, cannot(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), s.path)
	}
	if err != nil {
		return had, cannot(err)
	}
	return had, nil
}

// The variables of a program that is not logged in, such as a CI job.
const (
	tokenFileVariable = "ISLE_TOKEN_FILE"
	caFileVariable    = "ISLE_CA_FILE"
	pinVariable       = "ISLE_PIN"
)

// remoteClient makes a client of a server elsewhere: by the login to it, or by
// the variables, which come first.
func remoteClient(address string) (*api.Client, error) {
	url, err := api.ServerURL(address)
	if err != nil {
		return nil, asUsage(err)
	}
	known, err := openLogins().find(url)
	if err != nil {
		return nil, err
	}
	file := os.Getenv(tokenFileVariable)
	if known == nil && file == "" {
		return nil, isle.Errorf(isle.Refused, "you are not logged in to %s", url).
			WithHint("log in with `isle login %s --token`, or name a file that holds a token in %s", url, tokenFileVariable)
	}
	if known == nil {
		known = &login{URL: url}
	}
	if pin := os.Getenv(pinVariable); pin != "" {
		known.Pin = pin
	}
	if ca := os.Getenv(caFileVariable); ca != "" {
		if known.CA, err = readCA(ca); err != nil {
			return nil, err
		}
	}
	r, err := known.remote()
	if err != nil {
		return nil, err
	}
	if file != "" {
		// Read for each request: a token of minutes is replaced in its file.
		r.Token = func() (string, error) { return readTokenFile(file) }
	}
	return api.NewRemoteClient(r)
}

// readTokenFile reads the file of a token.
func readTokenFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot read the token of %s: %w", tokenFileVariable, err)
	}
	defer f.Close()
	return readToken(f)
}

// readToken reads a token to the end of a file.
func readToken(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, api.MaxCredential+2))
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(token) > api.MaxCredential {
		return "", isle.Errorf(isle.Invalid, "there is no token: it has %d bytes, at most %d", len(token), api.MaxCredential)
	}
	return token, nil
}

// readCA reads certificates that vouch for a server.
func readCA(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot read the certificates that vouch for the server: %w", err)
	}
	if len(b) > 1<<20 || !x509.NewCertPool().AppendCertsFromPEM(b) {
		return "", isle.Errorf(isle.Invalid, "%s holds no certificate in PEM", name)
	}
	return string(b), nil
}
