package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PostgresName is the name in the certificate of a PG, beside 127.0.0.1.
const PostgresName = "db.example"

// A PG is a real PostgreSQL of its own: a folder, a port of 127.0.0.1, and TLS
// with a certificate of an authority of its own. Its superuser postgres comes in
// by the socket of the folder Dir alone; over TCP everybody needs a password
// (SCRAM-SHA-256).
type PG struct {
	Dir       string // of its files and of its socket
	Port      int
	CA        string // PEM
	Authority *CA    // the one that CA is of; root.crt for ssl_ca_file
	process   *exec.Cmd
}

// Postgres starts a PG that ends with the test.
func Postgres(t testing.TB, settings ...string) *PG {
	t.Helper()
	pg, err := StartPostgres(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.Close)
	return pg
}

// StartPostgres starts a PG with more settings, as "max_connections=200". It is
// ready when it returns; the caller closes it.
func StartPostgres(settings ...string) (pg *PG, err error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "isle-pg-")
	if err != nil {
		return nil, err
	}
	pg = &PG{Dir: dir}
	defer func() {
		if err != nil {
			pg.Close()
			pg = nil
		}
	}()
	who, uid, gid, err := postgresUser()
	if err != nil {
		return pg, err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return pg, err
	}
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as("initdb", "-D", data, "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync").CombinedOutput(); err != nil {
		return pg, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if pg.Authority, err = certificates(data, uid, gid); err != nil {
		return pg, err
	}
	pg.CA = pg.Authority.PEM
	if pg.Port, err = freePort(); err != nil {
		return pg, err
	}
	args := []string{"-D", data, "-k", dir, "-h", "127.0.0.1", "-p", strconv.Itoa(pg.Port)}
	for _, s := range slices.Concat([]string{"ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key", "fsync=off", "max_connections=300", "unix_socket_permissions=0777", "log_min_messages=panic"}, settings) {
		args = append(args, "-c", s)
	}
	pg.process = as("postgres", args...)
	said, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return pg, err
	}
	defer said.Close()
	pg.process.Stdout, pg.process.Stderr = said, said
	if err := pg.process.Start(); err != nil {
		return pg, err
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if as("pg_isready", "-q", "-h", dir, "-p", strconv.Itoa(pg.Port)).Run() == nil {
			return pg, nil
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(said.Name())
			return pg, fmt.Errorf("postgres does not start: %s", b)
		}
	}
}

// Addr is where it listens.
func (p *PG) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)) }

// Exec runs SQL as the superuser and returns what psql prints, unaligned and
// without headers.
func (p *PG) Exec(database, sql string) (string, error) {
	cmd := exec.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", p.Dir, "-p", strconv.Itoa(p.Port), "-U", "postgres", "-d", database, "-f", "-")
	cmd.Stdin = strings.NewReader(sql)
	out, err := cmd.Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("psql: %w: %s", err, e.Stderr)
	}
	return strings.TrimRight(string(out), "\n"), err
}

// Must is Exec for tests.
func (p *PG) Must(t testing.TB, database, sql string) string {
	t.Helper()
	out, err := p.Exec(database, sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Admit puts lines ahead of those of pg_hba.conf, in force for who comes from
// now on.
func (p *PG) Admit(t testing.TB, lines ...string) {
	t.Helper()
	path := filepath.Join(p.Dir, "data", "pg_hba.conf")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte(strings.Join(lines, "\n")+"\n"), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded := p.Must(t, "postgres", "select pg_conf_load_time() from pg_reload_conf()")
	for end := time.Now().Add(2 * time.Minute); p.Must(t, "postgres", "select pg_conf_load_time()") == loaded; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("postgres does not read pg_hba.conf again")
		}
	}
}

// Kill ends it at once, as a crash does.
func (p *PG) Kill() {
	if p.process != nil && p.process.Process != nil {
		p.process.Process.Signal(syscall.SIGQUIT) // immediate shutdown
		p.process.Wait()
		p.process = nil
	}
}

// Close ends it and removes its folder.
func (p *PG) Close() {
	p.Kill()
	os.RemoveAll(p.Dir)
}

// postgresBin is the folder of the server's programs, which Debian keeps off the
// PATH.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.New("PostgreSQL is not installed: make test installs it (Debian's package postgresql)")
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// postgresUser is who runs it: it does not run as root.
func postgresUser() (who *syscall.Credential, uid, gid int, err error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, 0, 0, err
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return nil, 0, 0, err
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return nil, 0, 0, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, uid, gid, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// certificates writes server.crt and server.key, and root.crt for those who
// come with certificates of the same authority, which it returns.
func certificates(dir string, uid, gid int) (*CA, error) {
	root, err := NewCA("isle test authority")
	if err != nil {
		return nil, err
	}
	cert, key, err := root.Issue(PostgresName, "127.0.0.1")
	if err != nil {
		return nil, err
	}
	for name, b := range map[string][]byte{"server.crt": cert, "server.key": key, "root.crt": []byte(root.PEM)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return nil, err
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// A CA is a certificate authority for one test.
type CA struct {
	PEM  string
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewCA makes an authority that holds for a day.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Cert: cert, Key: key}, nil
}

// Issue makes a certificate for names and addresses, for servers and clients;
// the first is its common name. Both are PEM.
func (c *CA) Issue(names ...string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.Cert, &k.PublicKey, c.Key)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}
