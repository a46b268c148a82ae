package gateway

import (
	"fmt"
	"strings"
	"testing"

	"isle/test/lab"
)

// A login is a way to come in at the server behind.
type login struct {
	name   string // of the connection, and of the secret
	user   string
	kind   string // of the credential
	secret string
	off    bool   // no TLS
	told   string // what the client is told instead of being let in
}

// The gateway logs in as the server behind asks, with what is nowhere inside, and
// says why where it can't.
func TestTheGatewayLogsInAsTheServerBehindAsks(t *testing.T) {
	pg := lab.Postgres(t, "ssl_ca_file=root.crt")
	pg.Must(t, "postgres", `set password_encryption = 'md5'; create role olden login password 'olden-5a1c';
		set password_encryption = 'scram-sha-256'; create role plain login password 'plain-77e0'; create role carol login`)
	if got := pg.Must(t, "postgres", "select rolpassword ~ '^md5' from pg_authid where rolname = 'olden'"); got != "t" {
		t.Fatal("the server keeps no password for MD5")
	}
	pg.Admit(t, "host all olden 127.0.0.1/32 md5", "host all plain 127.0.0.1/32 password", "hostssl all carol 127.0.0.1/32 cert")
	stranger, err := lab.NewCA("a stranger")
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(a *lab.CA, name string) string {
		cert, key, err := a.Issue(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(cert) + string(key)
	}
	for _, l := range []login{
		{name: "md5", user: "olden", kind: "password", secret: "olden-5a1c"},
		{name: "md5-without-tls", user: "olden", kind: "password", secret: "olden-5a1c", off: true},
		{name: "md5-wrong", user: "olden", kind: "password", secret: "wrong-1f3b", told: "password authentication failed"},
		{name: "clear", user: "plain", kind: "password", secret: "plain-77e0"},
		{name: "clear-without-tls", user: "plain", kind: "password", secret: "plain-77e0", off: true, told: "in the clear over a connection without TLS: it is not sent"},
		{name: "certificate", user: "carol", kind: "certificate", secret: certificate(pg.Authority, "carol")},
		{name: "certificate-of-another", user: "carol", kind: "certificate", secret: certificate(pg.Authority, "mallory"), told: "certificate authentication failed"},
		{name: "certificate-of-a-stranger", user: "carol", kind: "certificate", secret: certificate(stranger, "carol"), told: "requires a valid client certificate"}, // TLS shows none that the server names no authority of
		{name: "certificate-that-is-none", user: "carol", kind: "certificate", secret: "not-a-pem-40ce", told: "the secret certificate-that-is-none is no certificate with its key"},
		{name: "no-certificate", user: "carol", kind: "password", secret: "carol-0a2d", told: "refused the gateway's login"},
		{name: "no-password", user: "olden", kind: "certificate", secret: certificate(pg.Authority, "olden"), told: "asks for a password"},
	} {
		t.Run(l.name, func(t *testing.T) { l.try(t, pg) })
	}
}

// try asks who the gateway is there, and how it came.
func (l login) try(t *testing.T, pg *lab.PG) {
	text := fmt.Sprintf("connections:\n  %s: {kind: postgres, address: %q, database: postgres, stage: testing, credential: {kind: %s, secret: %[1]s, user: %[4]s}, tls: ", l.name, pg.Addr(), l.kind, l.user)
	if l.off {
		text += "off}\n"
	} else {
		text += fmt.Sprintf("{ca: %q}}\n", pg.CA)
	}
	secret(t, l.name, l.secret)
	apply(t, l.name, text+fmt.Sprintf(`roles:
  %s: {actions: [connection:open, postgres:select], resources: ["connection:%[1]s"]}
bindings:
  - {role: %[1]s, subjects: [human:root]}
`, l.name))
	command := world.Command("connect", l.name, "--listen", "127.0.0.1:0", "--", "psql", "-X", "-A", "-t", "-v", "VERBOSITY=verbose", "-c",
		"select current_user, ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()")
	out, err := command.CombinedOutput()
	said := strings.TrimSpace(string(out))
	for line := range strings.Lines(l.secret) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "-----") && strings.Contains(said, line) {
			t.Errorf("the client is told the secret: %s", said)
		}
	}
	if l.told != "" {
		if err == nil || !strings.Contains(said, l.told) {
			t.Errorf("the client is told %q, want %q (%v)", said, l.told, err)
		}
		return
	}
	want := map[string]string{"password": l.user + "|t|", "certificate": l.user + "|t|/CN=" + l.user}[l.kind]
	if l.off {
		want = l.user + "|f|"
	}
	if err != nil || said != want {
		t.Errorf("at the server it is %q, want %q (%v)", said, want, err)
	}
}
