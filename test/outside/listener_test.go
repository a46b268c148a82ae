package outside

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAMachineReadsWithItsKeyAsPsqlsPassword(t *testing.T) {
	key := shared.machine(t, "ci")
	out, err := shared.query("orders-db", key, "select count(*) from orders")
	if err != nil || out != "100" {
		t.Fatalf("%q %v", out, err)
	}
	// The database's name says which connection; who is machine:ci the key says.
	opened := shared.entries(t, "--actor", "machine:ci", "--action", "session:open")
	if len(opened) == 0 || opened[0]["decision"] != "allow" {
		t.Errorf("%v", opened)
	}
	for connection, want := range map[string]string{
		"ledger-db": "a session is in one stage", // a machine of testing, in production
		"nothing":   "there is no connection nothing",
		"echo":      "there is no connection echo of kind postgres",
	} {
		if _, err := shared.query(connection, key, "select 1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", connection, err, want)
		}
	}
	if n := len(shared.entries(t, "--actor", "machine:ci", "--action", "connection:open", "--decision", "deny")); n < 3 {
		t.Errorf("%d refusals are in the log", n)
	}
}

func TestWhatAMachineMayDoItsRolesSay(t *testing.T) {
	key := shared.machine(t, "looks")
	if out, err := shared.query("orders-db", key, "select count(*) from orders"); err != nil || out != "100" {
		t.Fatalf("%q %v", out, err)
	}
	if _, err := shared.query("orders-db", key, "delete from orders where id = 1"); err == nil || !strings.Contains(err.Error(), "postgres:write") {
		t.Errorf("%v", err)
	}
	if out := shared.pg.Must(t, "postgres", "select count(*) from orders"); out != "100" {
		t.Errorf("%s are left", out)
	}
}

func TestAPersonsTokenAndAnAccessTokenArePasswordsToo(t *testing.T) {
	token := shared.must(t, "token", "create", "--purpose", "a test", "--expires", "1h")
	if out, err := shared.query("ledger-db", token, "select 'mine'"); err != nil || out != "mine" {
		t.Errorf("%q %v", out, err)
	}
	confined := shared.must(t, "token", "create", "--purpose", "a test", "--expires", "1h", "--stage", "testing")
	if _, err := shared.query("ledger-db", confined, "select 1"); err == nil || !strings.Contains(err.Error(), "a session is in one stage") {
		t.Errorf("%v", err)
	}
	key := shared.machine(t, "grants", "--role", "reader")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots(t)}}}
	defer client.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", shared.url+"/oauth/token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("grants", key)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var given struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&given); err != nil || given.Token == "" {
		t.Fatal(err, res.Status)
	}
	if out, err := shared.query("orders-db", given.Token, "select 'by a token'"); err != nil || out != "by a token" {
		t.Errorf("%q %v", out, err)
	}
}

func TestAWrongPasswordIsPostgreSQLsOwnErrorAndIsRecorded(t *testing.T) {
	wrong := "isle_" + strings.Repeat("a", 46)
	for _, connection := range []string{"orders-db", "nothing"} { // no answer tells which are there
		_, err := shared.query(connection, wrong, "select 1")
		if err == nil || !strings.Contains(err.Error(), `password authentication failed for user "ci"`) || strings.Contains(err.Error(), wrong) {
			t.Errorf("%v", err)
		}
	}
	refused := shared.entries(t, "--action", "identity:authenticate", "--decision", "deny")
	if len(refused) < 2 {
		t.Fatalf("%v", refused)
	}
	// What proves a workload inside its airlock proves nobody here.
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"spiffe://isle.internal/shop/testing/shop/web"}`))
	if _, err := shared.query("orders-db", "eyJhbGciOiJFUzI1NiJ9."+claims+".c2ln", "select 1"); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("%v", err)
	}
	found := false
	for _, e := range shared.entries(t, "--action", "identity:authenticate", "--decision", "deny") {
		details, _ := e["details"].(map[string]any)
		found = found || details["claimed"] == "spiffe://isle.internal/shop/testing/shop/web" && e["rule"] == "built in: a workload's credential counts only inside its own airlock"
	}
	if !found {
		t.Error("the claim is not in the log")
	}
	if log, err := os.ReadFile(shared.log.Name()); err != nil || bytes.Contains(log, []byte(wrong)) {
		t.Errorf("what was shown is in the server's log: %v", err)
	}
}

// An interactive is a psql that waits for what it is told.
type interactive struct {
	*client
	in io.WriteCloser
}

func (w *world) interactive(t *testing.T, c *client) *interactive {
	t.Helper()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); c.Process.Kill(); c.Wait() })
	return &interactive{c, in}
}

// active waits until the actor has a session, and returns its ID.
func active(t *testing.T, actor string) {
	t.Helper()
	eventually(t, actor+" has a session", func() error {
		var list []struct{ Actor, State string }
		if err := json.Unmarshal([]byte(shared.must(t, "sessions", "-o", "json")), &list); err != nil {
			return err
		}
		for _, s := range list {
			if strings.Contains(s.Actor, actor) && s.State != "ended" {
				return nil
			}
		}
		return fmt.Errorf("%v", list)
	})
}

func TestAKeyThatIsRevokedEndsWhatItOpened(t *testing.T) {
	key := shared.machine(t, "ending")
	idle := shared.interactive(t, shared.psql("orders-db", key))
	io.WriteString(idle.in, "select 'idle';\n")
	busy := shared.interactive(t, shared.psql("orders-db", key, "-c", "select pg_sleep(600)"))
	eventually(t, "it sleeps", func() error {
		if out := shared.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active' and usename = 'app'"); out != "1" {
			return fmt.Errorf("%s do", out)
		}
		return nil
	})
	active(t, "ending")
	shared.must(t, "identity", "revoke", "ending", "--reason", "it is over")
	if err := busy.Wait(); err == nil || !strings.Contains(busy.said.String(), "counts no longer") {
		t.Errorf("%v %s", err, busy.said.String())
	}
	eventually(t, "nothing goes on at the server", func() error {
		if out := shared.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active' and usename = 'app'"); out != "0" {
			return fmt.Errorf("%s sleep", out)
		}
		return nil
	})
	io.WriteString(idle.in, "select 'still here';\n")
	idle.in.Close()
	if err := idle.Wait(); err == nil || strings.Contains(idle.out.String(), "still here") || !strings.Contains(idle.said.String(), "counts no longer") {
		t.Errorf("%v %s%s", err, idle.out.String(), idle.said.String())
	}
	if _, err := shared.query("orders-db", key, "select 1"); err == nil {
		t.Error("it opens more")
	}
}

func TestASessionThatAReloadEndsIsToldSo(t *testing.T) {
	key := shared.machine(t, "reloaded")
	open := shared.interactive(t, shared.psql("orders-db", key))
	io.WriteString(open.in, "select 'before';\n")
	inside := shared.interactive(t, shared.connect("orders-db", "--", "-X"))
	io.WriteString(inside.in, "select 'before';\n")
	active(t, "reloaded")
	active(t, "root")
	before := shared.gateway
	shared.must(t, "server", "reload")
	for _, c := range []*interactive{open, inside} {
		io.WriteString(c.in, "select 'after';\n")
		c.in.Close()
		if err := c.Wait(); err == nil || !strings.Contains(c.said.String(), "the server is stopping") {
			t.Errorf("%v %s%s", err, c.out.String(), c.said.String())
		}
	}
	var told struct{ Gateway string }
	if err := json.Unmarshal([]byte(shared.must(t, "version", "-o", "json")), &told); err != nil || told.Gateway != before {
		t.Errorf("%q was %q: %v", told.Gateway, before, err)
	}
	if out, err := shared.query("orders-db", key, "select 'after'"); err != nil || out != "after" {
		t.Errorf("%q %v", out, err)
	}
}

// from connects to the listener from an address of loopback.
func from(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: patience}).Dial("tcp", shared.gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAThousandWhoSayNothingAreInNobodysWay(t *testing.T) {
	key := shared.machine(t, "patient", "--role", "reader")
	for i := range 1000 {
		c := from(t, fmt.Sprintf("127.0.%d.%d", 2+i/200, 1+i%200))
		switch i % 4 {
		case 1: // half of a start-up packet
			c.Write([]byte{0, 0, 0})
		case 2: // SSLRequest, and no handshake
			c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47})
		case 3: // half of a handshake
			c.Write([]byte{0x16, 3, 1, 2, 0, 1})
		}
	}
	for range 3 {
		if out, err := shared.query("orders-db", key, "select 'through'"); err != nil || out != "through" {
			t.Fatalf("%q %v", out, err)
		}
	}
}

func TestWhatIsNoTLSIsNotServed(t *testing.T) {
	key := shared.machine(t, "plain", "--role", "reader")
	c := shared.psql("orders-db", key, "-c", "select 1")
	for i, a := range c.Args {
		c.Args[i] = strings.Replace(a, "sslmode=verify-full", "sslmode=disable", 1)
	}
	if err := c.Run(); err == nil || !strings.Contains(c.said.String(), "TLS only") {
		t.Errorf("%v %s", err, c.said.String())
	}
	plain := from(t, "127.0.0.1")
	io.WriteString(plain, "GET /orders-db/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+key+"\r\n\r\n")
	if b, _ := io.ReadAll(plain); !strings.Contains(string(b), "this port speaks HTTPS") {
		t.Errorf("%q", b)
	}
	strange := from(t, "127.0.0.1")
	strange.Write([]byte{0xff, 0xfe})
	if b, err := io.ReadAll(strange); len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
	if _, err := tls.Dial("tcp", shared.gateway, &tls.Config{RootCAs: roots(t), MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("it speaks TLS 1.1")
	}
}

func roots(t *testing.T) *x509.CertPool {
	t.Helper()
	b, err := os.ReadFile(shared.ca)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	return pool
}

// What PostgreSQL 17's clients do with sslnegotiation=direct: TLS first, and the
// name of the protocol in it.
func TestTLSFromTheFirstByteIsPostgreSQLsByItsName(t *testing.T) {
	key := shared.machine(t, "direct", "--role", "reader")
	c, err := tls.Dial("tcp", shared.gateway, &tls.Config{RootCAs: roots(t), NextProtos: []string{"postgresql"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	body := append([]byte{0, 3, 0, 0}, "user\x00ci\x00database\x00orders-db\x00\x00"...)
	c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...))
	read := func() (byte, []byte) {
		t.Helper()
		var head [5]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		return head[0], b
	}
	if kind, b := read(); kind != 'R' || binary.BigEndian.Uint32(b) != 3 {
		t.Fatalf("%c %q", kind, b)
	}
	send := func(kind byte, text string) {
		c.Write(append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(text)+5)), text+"\x00"...))
	}
	send('p', key)
	for kind, b := read(); kind != 'Z'; kind, b = read() {
		if kind == 'E' {
			t.Fatalf("%q", b)
		}
	}
	send('Q', "select 'direct'")
	seen := false
	for kind, b := read(); kind != 'Z'; kind, b = read() {
		seen = seen || kind == 'D' && strings.HasSuffix(string(b), "direct")
	}
	if !seen {
		t.Error("there was no answer")
	}
}

func TestWhereTheGatewayIsIsSaid(t *testing.T) {
	if out := shared.must(t, "version"); !strings.Contains(out, "connections from outside: "+shared.gateway) {
		t.Error(out)
	}
	if out := shared.must(t, "doctor"); !strings.Contains(out, "listening at "+shared.gateway+" for PostgreSQL and HTTPS") {
		t.Error(out)
	}
}
