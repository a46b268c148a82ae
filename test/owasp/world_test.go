// Package owasp tries what the OWASP Non-Human Identities Top 10 (2025) warns of
// against a real server: over TLS, by its socket, at its token endpoint and from
// inside of what it runs. What is tried must not work, and must be in the log.
package owasp

import (
	"bytes"
	"context"
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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "isle/internal/api/isle/v1" // its definition
	"isle/test/lab"
)

// patience bounds what is waited for.
const patience = 2 * time.Minute

// A world is a server that callers from elsewhere reach.
type world struct {
	*lab.Server
	url, pin string
	process  *exec.Cmd
	log      *os.File
	roots    *x509.CertPool
}

// shared is the world of all tests that change nothing for the others; inside is
// the program that its services run.
var (
	shared *world
	inside string
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "inside", func(dir, program string) (func(), error) {
		var err error
		inside = program
		if shared, err = newWorld(); err != nil {
			return nil, err
		}
		return shared.Close, shared.up(filepath.Join(dir, "shop"), "name: shop\n"+service, "--stage", "testing")
	}))
}

// variable is the value of a secret that the server's environment holds.
const variable = "canary/variable+c4a2918e55?&="

// itself is a name of the machine, as the server knows it.
const itself = "machine.owasp.test"

// service is an environment's: it waits, and can be told to do harm.
const service = `
services:
  web:
    copy: [{from: inside, to: /inside}]
    command: [/inside, wait]
`

// newWorld starts a server with a state of its own. It listens to callers from
// elsewhere and logs all that it has to say.
func newWorld(args ...string) (*world, error) {
	s, err := lab.Bare("../../bin")
	if err != nil {
		return nil, err
	}
	w := &world{Server: s}
	if w.log, err = os.CreateTemp("", "isle-owasp-log-"); err == nil {
		err = w.start(args...)
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *world) start(args ...string) error {
	args = append([]string{"server", "--listen", "127.0.0.1:0", "--log-level", "debug"}, args...)
	if w.Runtime != "" {
		args = append(args, "--runtime", w.Runtime)
	}
	// Of its own machine it believes that a name leads to it, which a file of an
	// environment may ask for.
	hosts := w.State + ".hosts"
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+itself+"\n"), 0o644); err != nil {
		return err
	}
	isle := w.Command(args...)
	w.process = exec.Command("unshare", append([]string{"--mount", "--propagation", "slave", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}, isle.Args...)...)
	w.process.Env = isle.Env
	w.process.Env = append(w.process.Env, "ISLE_SECRET_DB="+variable)
	w.process.Stderr = w.log
	if err := w.process.Start(); err != nil {
		return err
	}
	var told struct{ URL, Pin string }
	for end := time.Now().Add(patience); told.URL == ""; time.Sleep(20 * time.Millisecond) {
		var out string
		_, err := os.Stat(filepath.Join(w.State, "isle.sock")) // else the command line starts another
		if err == nil {
			if out, err = w.Isle("version", "-o", "json"); err == nil {
				err = json.Unmarshal([]byte(out), &told)
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("the server does not listen: %v", err)
		}
	}
	w.url, w.pin = told.URL, told.Pin
	certificate, err := os.ReadFile(filepath.Join(w.State, "tls.crt"))
	if err != nil {
		return err
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(certificate)
	return nil
}

// kill ends the server as a crash does, and starts it again.
func (w *world) kill(t *testing.T) {
	t.Helper()
	w.process.Process.Kill()
	w.process.Wait()
	os.Remove(filepath.Join(w.State, "isle.sock"))
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
}

// Close ends it all and removes what it left.
func (w *world) Close() {
	w.Isle("down", "--all", "--volumes")
	w.Isle("server", "stop")
	if w.process != nil {
		w.process.Wait()
	}
	w.Server.Close()
	os.Remove(w.State + ".hosts")
	if w.log != nil {
		w.log.Close()
		os.Remove(w.log.Name())
	}
}

// up brings up an environment of the file, with the program in its folder.
func (w *world) up(dir, file string, args ...string) error {
	_, err := w.Up(dir, file, inside, args...)
	return err
}

// must runs a command of the operator.
func (w *world) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.Isle(args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// refuses runs a command of the operator that must fail, saying so.
func (w *world) refuses(t *testing.T, says string, args ...string) {
	t.Helper()
	out, err := w.Isle(args...)
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("isle %v: %v, want %q\n%s", args, err, says, out)
	}
}

// machine makes a machine identity and returns its key.
func (w *world) machine(t *testing.T, name string, args ...string) string {
	t.Helper()
	return w.must(t, append([]string{"identity", "create", name, "--purpose", "a test", "--expires", "1d"}, args...)...)
}

// in runs the program in a service, and returns what it said of each thing.
func (w *world) in(t *testing.T, environment string, args ...string) map[string]string {
	t.Helper()
	out := w.must(t, append([]string{"exec", environment, "--", "/inside"}, args...)...)
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if what, how, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			got[what] = how
		}
	}
	return got
}

// A caller comes from somewhere with a credential, or none.
type caller struct {
	*world
	client *http.Client
	base   string // of URLs
	source string // the address it comes from
	bearer string
}

// sources counts the addresses that callers had: refusals are counted by them.
var sources atomic.Uint32

// from is a caller over TLS with an address of its own.
func (w *world) from(t *testing.T, bearer string, certificates ...tls.Certificate) *caller {
	n := sources.Add(1)
	source := net.IPv4(127, 9, byte(n>>8), byte(n)).String()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.roots, Certificates: certificates}, ForceAttemptHTTP2: true,
		DialContext: (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).DialContext,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &caller{w, &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, w.url, source, bearer}
}

// beside is a caller on the server's machine: root, by the unix socket.
func (w *world) beside(t *testing.T) *caller {
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(w.State, "isle.sock"))
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &caller{world: w, client: &http.Client{Transport: transport}, base: "http://isle"}
}

// with is the same caller with another credential.
func (c *caller) with(bearer string) *caller {
	d := *c
	d.bearer = bearer
	return &d
}

// An answer is what came back: "ok", or the code of the error and its text.
type answer struct {
	Status  int `json:"-"`
	Code    string
	Message string
	Body    []byte `json:"-"`
}

func (a answer) String() string { return strconv.Itoa(a.Status) + " " + a.Code + " " + a.Message }

// streams reports whether a procedure is one, as the API's definition says.
func streams(procedure string) bool {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("isle.v1." + strings.Replace(procedure, "/", ".", 1)))
	m, ok := d.(protoreflect.MethodDescriptor)
	return err == nil && ok && (m.IsStreamingClient() || m.IsStreamingServer())
}

// A message is one of the API, as JSON.
type message map[string]any

// call makes a call of the API, as anybody who speaks HTTP can.
func (c *caller) call(t *testing.T, procedure string, m message, headers ...string) answer {
	t.Helper()
	a, err := c.try(t.Context(), procedure, m, headers...)
	if err != nil {
		t.Fatalf("%s: %v", procedure, err)
	}
	return a
}

// try is call, with a context. What it does is over when it returns.
func (c *caller) try(ctx context.Context, procedure string, m message, headers ...string) (a answer, err error) {
	body, err := json.Marshal(m)
	if err != nil {
		return a, err
	}
	stream, kind := streams(procedure), "application/json"
	if stream {
		kind = "application/connect+json"
		body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/isle.v1."+procedure, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Connect-Protocol-Version", "1")
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return c.do(req, stream)
}

// do sends a request and reads its answer to the end.
func (c *caller) do(req *http.Request, stream bool) (a answer, err error) {
	res, err := c.client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	a.Status, a.Code = res.StatusCode, "ok"
	if a.Body, err = io.ReadAll(res.Body); err != nil {
		return a, err
	}
	if a.Status != http.StatusOK {
		if json.Unmarshal(a.Body, &a) != nil || a.Code == "ok" {
			a.Code, a.Message = "http", string(a.Body)
		}
		return a, nil
	}
	for rest := a.Body; stream && len(rest) >= 5; { // the Connect protocol's envelopes
		n := min(5+int(binary.BigEndian.Uint32(rest[1:])), len(rest))
		if rest[0]&2 != 0 {
			var end struct{ Error answer }
			if err := json.Unmarshal(rest[5:n], &end); err != nil {
				return a, err
			}
			if end.Error.Code != "" {
				a.Code, a.Message = end.Error.Code, end.Error.Message
			}
		}
		rest = rest[n:]
	}
	return a, nil
}

// A grant is what the token endpoint answers.
type grant struct {
	Status int    `json:"-"`
	Token  string `json:"access_token"`
	Type   string `json:"token_type"`
	In     int    `json:"expires_in"`
	Error  string
	Says   string `json:"error_description"`
}

// asks asks the token endpoint, as client_secret_basic where there is a name.
func (c *caller) asks(t *testing.T, name, secret string, form ...string) (g grant) {
	t.Helper()
	values := url.Values{"grant_type": {"client_credentials"}}
	for i := 0; i+1 < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+"/oauth/token", strings.NewReader(values.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if name != "" {
		req.SetBasicAuth(name, secret)
	}
	a, err := c.do(req, false)
	if err == nil {
		err = json.Unmarshal(a.Body, &g)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	g.Status = a.Status
	return g
}

// token is an access token for a machine's key.
func (c *caller) token(t *testing.T, name, key string, form ...string) string {
	t.Helper()
	g := c.asks(t, name, key, form...)
	if g.Token == "" {
		t.Fatalf("no token for %s: %+v", name, g)
	}
	return g.Token
}

// gets reads a public document.
func (c *caller) gets(t *testing.T, path string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	a, err := c.do(req, false)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// unproven says that whoever shows a credential is nobody.
func unproven(t *testing.T, what string, a answer) {
	t.Helper()
	if a.Status != http.StatusUnauthorized || a.Code != "unauthenticated" {
		t.Errorf("%s: %v, want nobody to be known", what, a)
	}
}

// denied says that the policy refuses, and by which rule.
func denied(t *testing.T, what string, a answer, rule string) {
	t.Helper()
	if a.Code != "permission_denied" || !strings.Contains(a.Message, rule) {
		t.Errorf("%s: %v, want it refused: %s", what, a, rule)
	}
}

// opens says that it works.
func opens(t *testing.T, what string, a answer) {
	t.Helper()
	if a.Code != "ok" {
		t.Errorf("%s: %v, want it to work", what, a)
	}
}

// An entry is one of the audit log, as far as it is looked at.
type entry struct {
	Kind     string
	Actor    struct{ Kind, Name string }
	Action   string
	Resource struct{ Kind, Name, Stage string }
	Decision string
	Rule     string
	Summary  string
	Sessions []string
	Details  map[string]string
	Count    int
}

// entries are those that a search of the log finds.
func (w *world) entries(t *testing.T, args ...string) (list []entry) {
	t.Helper()
	for line := range strings.Lines(w.must(t, append([]string{"audit", "search", "-o", "json"}, args...)...)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, e)
	}
	return list
}

// logged says that the log has an entry that fits.
func (w *world) logged(t *testing.T, what string, fits func(e entry) bool, args ...string) {
	t.Helper()
	list := w.entries(t, args...)
	for _, e := range list {
		if fits(e) {
			return
		}
	}
	t.Errorf("%s: it is not in the log, among %d entries of %v", what, len(list), args)
}

// loggedRefusal says that an attempt of an actor is in the log as refused.
func (w *world) loggedRefusal(t *testing.T, actor, action, rule string) {
	t.Helper()
	w.logged(t, actor+" "+action, func(e entry) bool { return strings.Contains(e.Rule, rule) }, "--actor", actor, "--action", action, "--decision", "deny")
}

// loggedGrant says that a request for a token in a machine's name is in the log as
// refused: it is nobody's, about that machine.
func (w *world) loggedGrant(t *testing.T, machine string) {
	t.Helper()
	_, name, _ := strings.Cut(machine, ":")
	w.logged(t, "a token for "+machine, func(e entry) bool {
		return e.Resource.Name == name && strings.Contains(e.Rule, "a token is for a machine that proves itself")
	}, "--action", "token:issue", "--decision", "deny")
}

// loggedSource says that a credential from somewhere is in the log as refused.
func (c *caller) loggedSource(t *testing.T, action string) {
	t.Helper()
	c.logged(t, action+" from "+c.source, func(e entry) bool { return e.Details["source"] == c.source }, "--action", action, "--decision", "deny")
}

// eventually waits until f has no error.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// claims are those of a JWT, unverified.
func claims(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("this is no JWT: %.20s", token)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	var out map[string]any
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A machineIdentity is one as the command line shows it.
type machineIdentity struct {
	Name, Stage, State, Owner string
	Roles, Flags              []string
	Expires                   time.Time
	Keys                      []struct {
		ID, State, Hint string
		Expires         time.Time
	}
}

func (w *world) show(t *testing.T, name string) (m machineIdentity) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.must(t, "identity", "show", name, "-o", "json")), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// keysOf are the IDs of a machine's keys.
func keysOf(t *testing.T, w *world, name string) (ids []string) {
	t.Helper()
	for _, k := range w.show(t, name).Keys {
		ids = append(ids, k.ID)
	}
	return ids
}

// inDays is a time ahead, as the API has it.
func inDays(n int) string {
	return time.Now().Add(time.Duration(n) * 24 * time.Hour).UTC().Format(time.RFC3339)
}
