// Package inspect shows that the clients of many languages go on unchanged where
// an environment's file has its egress inspected, and what the gateway sees of
// them then.
package inspect

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

const host = "api.inspect.example"

var (
	world  *lab.Server
	origin *httptest.Server
	folder string // of the environment
	port   string
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "inside", func(dir, program string) (end func(), err error) {
		ca, err := lab.NewCA("the authority of a site outside")
		if err != nil {
			return nil, err
		}
		if err := serve(ca); err != nil {
			return nil, err
		}
		world, err = lab.New("../../bin")
		if err != nil {
			return nil, err
		}
		server, err := start(dir, ca)
		end = func() {
			world.Close()
			if server != nil {
				server.Wait()
			}
			origin.Close()
		}
		if err != nil {
			return end, err
		}
		if out, err := exec.Command("javac", "-d", dir, "Client.java").CombinedOutput(); err != nil {
			return end, fmt.Errorf("javac: %w\n%s", err, out)
		}
		folder = filepath.Join(dir, "box")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return end, err
		}
		if err := lab.CopyFile(filepath.Join(dir, "Client.class"), filepath.Join(folder, "Client.class")); err != nil {
			return end, err
		}
		_, err = world.Up(folder, fmt.Sprintf(`
name: inspected
services:
  box:
    packages: [ca-certificates, curl, python3, nodejs, openjdk-17-jre-headless]
    copy: [{from: inside, to: /inside}, {from: Client.class, to: /Client.class}]
    command: [sleep, infinity]
egress: [{host: %s, port: %s, addresses: [127.0.0.1/32], inspect: true}]
limits: {memory: 1GiB}
`, host, port), program)
		return end, err
	}))
}

// serve starts a site that says what it was asked, with a certificate of ca.
func serve(ca *lab.CA) error {
	cert, key, err := ca.Issue(host)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	origin = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s at %s\n", r.Method, r.URL.Path, r.Host)
	}))
	origin.EnableHTTP2 = true
	origin.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	origin.StartTLS()
	port = strconv.Itoa(origin.Listener.Addr().(*net.TCPAddr).Port)
	return nil
}

// start starts the server in a mount namespace where the site's name leads to
// this machine, with the site's authority among those that it trusts.
func start(dir string, ca *lab.CA) (*exec.Cmd, error) {
	hosts, trust := filepath.Join(dir, "hosts"), filepath.Join(dir, "trust.pem")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+host+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(trust, []byte(ca.PEM), 0o644); err != nil {
		return nil, err
	}
	cmd := world.Command("server")
	cmd.Args = append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, cmd.Path}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath("unshare"); err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+trust)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(world.State, "isle.sock")); err == nil {
			return cmd, nil
		} else if time.Now().After(end) {
			return cmd, fmt.Errorf("the server does not listen: %w", err)
		}
	}
}

func inside(command ...string) (string, error) {
	return world.Isle(append([]string{"exec", "inspected", "--"}, command...)...)
}

func TestUnchangedClientsGoOnWhereTheirTLSIsOpened(t *testing.T) {
	url := "https://" + host + ":" + port
	for name, command := range map[string][]string{
		"curl":   {"curl", "-sS", url + "/curl"},
		"Python": {"python3", "-c", "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())", url + "/Python"},
		"Node":   {"node", "-e", "require('https').get(process.argv[1], r => r.pipe(process.stdout)).on('error', e => { console.error(e); process.exit(1) })", url + "/Node"},
		"Java":   {"java", "-cp", "/", "Client", url + "/Java"},
		"Go":     {"/inside", url + "/Go"},
	} {
		got, err := inside(command...)
		if want := fmt.Sprintf("GET /%s at %s:%s\n", name, host, port); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
	issuer, err := inside("curl", "-sSv", "-o", "/dev/null", "--stderr", "-", url+"/")
	if err != nil || strings.Contains(issuer, "the authority of a site outside") {
		t.Errorf("the client speaks TLS with the site itself: %v\n%s", err, issuer)
	}
}

func TestWhatIsAskedOfAnInspectedSiteIsRecordedAndMayHaveToBeApproved(t *testing.T) {
	url := "https://" + host + ":" + port
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, `
approvals:
  - {actions: [http:write], resources: ["egress:%s:%s"], when: {paths: ["/orders/*"]}, approvers: [human:root], hold: error}
`, host, port), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := world.Isle("apply", "--document", "inspected", "-f", policy); err != nil {
		t.Fatal(err)
	}
	got, err := inside("curl", "-sS", "-w", "%{http_code}", "-X", "POST", url+"/notes")
	if err != nil || !strings.HasSuffix(got, "200") {
		t.Errorf("a POST that nothing holds: %q, %v", got, err)
	}
	got, err = inside("curl", "-sS", "-w", "\n%{http_code}", "-X", "DELETE", url+"/orders/7")
	if err != nil || !strings.HasSuffix(got, "\n403") || !strings.Contains(got, "approv") {
		t.Errorf("a DELETE that is held: %q, %v", got, err)
	}
	waiting, err := world.Isle("approvals", "ls", "-o", "json")
	if err != nil || !strings.Contains(waiting, `DELETE`) {
		t.Fatalf("nothing waits: %v\n%s", err, waiting)
	}
	_, id, _ := strings.Cut(waiting, `"id": "`)
	id, _, _ = strings.Cut(id, `"`)
	if _, err := world.Isle("approvals", "approve", id, "--yes"); err != nil {
		t.Fatal(err)
	}
	got, err = inside("curl", "-sS", "-X", "DELETE", url+"/orders/7")
	if want := "DELETE /orders/7 at " + host + ":" + port + "\n"; err != nil || got != want {
		t.Errorf("the same once it is approved: %q, %v", got, err)
	}
	found, err := world.Isle("sessions", "search", "/orders/7")
	if err != nil || !strings.Contains(found, "DELETE") {
		t.Errorf("no recording has it: %v\n%s", err, found)
	}
	log, err := world.Isle("audit", "search", "--action", "http:write")
	if err != nil || !strings.Contains(log, "egress:"+host+":"+port) {
		t.Errorf("it is not in the log: %v\n%s", err, log)
	}
}
