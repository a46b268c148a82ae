// Package identity looks at identities from inside: real services ask a real
// server for the documents of their identity, with an unchanged SPIFFE client,
// and try to get those of others.
package identity

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle/test/lab"
)

// server is shared by all tests, and so is the environment "shop", in which each
// service does something else with its Workload API.
var server *lab.Server

// inside is the path of the program that speaks to the Workload API.
var inside string

// patience bounds what is waited for.
const patience = 60 * time.Second

const shop = `
name: shop
services:
  web:
    copy: [{from: inside, to: /inside}]
    command: [/inside, watch]
    user: "1000"
  db:
    copy: [{from: inside, to: /inside}]
    command: [/inside, serve, "5432", web]
    healthcheck: {tcp: 5432}
  rogue:
    copy: [{from: inside, to: /inside}]
limits: {cpus: 2, memory: 512MiB, pids: 256}
`

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "inside", func(dir, program string) (func(), error) {
		var err error
		inside = program
		if server, err = lab.New("../../bin"); err != nil {
			return nil, err
		}
		return server.Close, up(filepath.Join(dir, "shop"), shop)
	}))
}

// up brings up an environment of the file.
func up(dir, file string, args ...string) error {
	_, err := server.Up(dir, file, inside, args...)
	return err
}

// in runs the program in a service, and returns what it said of each thing.
func in(t *testing.T, environment, service string, args ...string) map[string]string {
	t.Helper()
	out, err := server.Isle(append([]string{"exec", environment, "-s", service, "--", "/inside"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if what, how, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			got[what] = how
		}
	}
	if len(got) == 0 {
		t.Fatalf("it said nothing: %s", out)
	}
	return got
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

// idOf is the SPIFFE ID of a service of the environment, as it says itself.
func idOf(t *testing.T, environment, service string) string {
	t.Helper()
	return in(t, environment, service, "documents")["x509"]
}

func check(t *testing.T, got, want map[string]string) {
	t.Helper()
	for what, how := range want {
		if got[what] != how {
			t.Errorf("%s: %q, want %q", what, got[what], how)
		}
	}
}

func TestGoSpiffeGetsEveryDocumentOfEachService(t *testing.T) {
	for _, service := range []string{"web", "db", "rogue"} {
		got := in(t, "shop", service, "documents")
		id := got["x509"]
		if !strings.HasPrefix(id, "spiffe://isle-") || !strings.HasSuffix(id, ".internal/shop/testing/shop/"+service) {
			t.Errorf("%s is %q", service, id)
		}
		check(t, got, map[string]string{
			"socket":     "unix:///run/isle/workload.sock",
			"x509 lives": "true", "x509 leads to the bundle": "<nil>", "x509 source": id + " <nil>",
			"jwt": id, "jwt source": id + " <nil>", "jwt is good here": "<nil>", "jwt is good there": "<nil>", "jwt for another": "InvalidArgument",
			"bundle source": "<nil>",
		})
	}
}

func TestTwoServicesSpeakMTLSByTheirIdentities(t *testing.T) {
	if got := in(t, "shop", "web", "dial", "5432", "db"); got["dial"] != "hello <nil>" {
		t.Errorf("web: %q", got["dial"])
	}
	// Another service has as good an SVID, and is not web.
	if got := in(t, "shop", "rogue", "dial", "5432", "db"); strings.Contains(got["dial"], "hello") {
		t.Errorf("rogue got in: %q", got["dial"])
	}
	// And whoever wants to reach web is not content with db.
	if got := in(t, "shop", "rogue", "dial", "5432", "web"); strings.Contains(got["dial"], "hello") {
		t.Errorf("db was taken for web: %q", got["dial"])
	}
}

// entries are those of the audit log that a search finds.
func entries(t *testing.T, args ...string) (list []map[string]any) {
	t.Helper()
	out, err := server.Isle(append([]string{"audit", "search", "-o", "json"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, e)
	}
	return list
}

func TestNoServiceGetsTheIdentityOfAnother(t *testing.T) {
	web := idOf(t, "shop", "web")
	rogue := strings.Replace(web, "/web", "/rogue", 1)
	others := []string{web, strings.Replace(web, "/testing/", "/production/", 1), strings.Replace(web, "/shop/testing/", "/bank/testing/", 1), "spiffe://example.org/shop/testing/shop/rogue"}
	got := in(t, "shop", "rogue", append([]string{"foreign"}, others...)...)
	for _, id := range others {
		if got[id] != "PermissionDenied" {
			t.Errorf("%s: %s", id, got[id])
		}
	}
	check(t, got, map[string]string{
		"without the header": "InvalidArgument", "with authorization": rogue, "with x-isle-launch": rogue, "with host": rogue, "with x-forwarded-client-cert": rogue,
	})
	refused := entries(t, "--action", "svid:issue", "--decision", "deny")
	if len(refused) != len(others) {
		t.Fatalf("%d refusals are in the log: %v", len(refused), refused)
	}
	e := refused[0]
	actor, _ := e["actor"].(map[string]any)
	details, _ := e["details"].(map[string]any)
	if actor["kind"] != "workload" || actor["name"] != rogue || details["asked"] != web || e["environment"] != "shop@testing" || e["rule"] != "workload-identity" || e["sessions"] == nil {
		t.Errorf("%v", e)
	}
}

func TestEachServicesDocumentsAreInTheLog(t *testing.T) {
	in(t, "shop", "rogue", "documents")
	seen := map[string]bool{}
	for _, e := range entries(t, "--action", "svid:issue", "--decision", "allow", "--environment", "shop") {
		actor, _ := e["actor"].(map[string]any)
		resource, _ := e["resource"].(map[string]any)
		details, _ := e["details"].(map[string]any)
		if e["instance"] == nil || resource["stage"] != "testing" {
			t.Errorf("%v", e)
		}
		seen[fmt.Sprint(resource["name"], " ", strings.HasSuffix(fmt.Sprint(actor["name"]), "/"+fmt.Sprint(resource["name"])), " ", e["summary"], " ", details["audience"])] = true
	}
	for _, want := range []string{"shop/web true x509-svid <nil>", "shop/db true x509-svid <nil>", "shop/rogue true jwt-svid billing", "shop/rogue true jwt-svid a b"} {
		if !seen[want] {
			t.Errorf("%q is not in the log, but %v", want, seen)
		}
	}
}

func TestGarbageCrowdsAndSlowReadersHurtOnlyTheirOwnService(t *testing.T) {
	got := in(t, "shop", "rogue", "garbage")
	if len(got) < 7 {
		t.Errorf("only %v was tried", got)
	}
	for what, how := range got {
		if how != "HUNG UP" {
			t.Errorf("%s: %s", what, how)
		}
	}
	check(t, in(t, "shop", "rogue", "crowd"), map[string]string{"connections": "1000", "afterwards": "<nil>"})
	slow := in(t, "shop", "rogue", "slow")
	if slow["streams"] != "600" || !strings.HasPrefix(strings.Trim(slow["another"], `"`), "rpc error: code = ResourceExhausted") {
		t.Errorf("600 streams that nobody reads leave room for another of the same service: %v", slow)
	}
	if id := idOf(t, "shop", "db"); !strings.HasSuffix(id, "/db") {
		t.Errorf("db is %q", id)
	}
}

func TestAReplacedSocketMisleadsItsOwnServiceAlone(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { server.Isle("down", "misled", "--volumes") })
	if err := up(dir, strings.Replace(shop, "name: shop", "name: misled", 1)); err != nil {
		t.Fatal(err)
	}
	got := in(t, "misled", "rogue", "replace")
	if got["through it"] == "OK" || got["mount over it"] != "operation not permitted" {
		t.Errorf("%v", got)
	}
	if got := in(t, "misled", "web", "dial", "5432", "db"); got["dial"] != "hello <nil>" {
		t.Errorf("web: %q", got["dial"])
	}
	// An ordinary user of a service cannot do even that.
	if got := in(t, "misled", "web", "replace"); got["remove"] == "" {
		t.Errorf("web removed the socket: %v", got)
	}
}

// updates counts what web's stream brought, and how often it broke.
func updates() (updates, broken int, err error) {
	out, err := server.Isle("logs", "shop", "-s", "web")
	return strings.Count(out, "update\t"), strings.Count(out, "broken\t"), err
}

// pid is the server's process.
func pid(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		b, _ := os.ReadFile(name) // it may be gone
		e, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "environ"))
		if argv := strings.Split(string(b), "\x00"); len(argv) > 1 && argv[1] == "server" && strings.Contains(string(e), "ISLE_STATE="+server.State+"\x00") {
			n, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no server runs")
	return 0
}

func TestAnIdentityOutlivesTheServer(t *testing.T) {
	eventually(t, "web has its identity", func() error {
		n, _, err := updates()
		if err == nil && n == 0 {
			err = fmt.Errorf("no update")
		}
		return err
	})
	id := idOf(t, "shop", "web")
	for name, end := range map[string]func(){
		"kill -9": func() { syscall.Kill(pid(t), syscall.SIGKILL) },
		"reload":  func() { server.Isle("server", "reload") },
		"stop":    func() { server.Isle("server", "stop") },
	} {
		before, _, err := updates()
		if err != nil {
			t.Fatal(err)
		}
		end()
		eventually(t, "after "+name+" web has its identity again", func() error {
			n, broken, err := updates()
			if err == nil && n <= before {
				err = fmt.Errorf("%d updates, as before; broken %d times", n, broken)
			}
			return err
		})
		if now := idOf(t, "shop", "web"); now != id {
			t.Errorf("after %s it is %s and not %s", name, now, id)
		}
	}
}

// The key of secrets opens the issuer's keys. Where it is gone nobody is taken
// for anybody, what runs goes on, and with the key all is as it was.
func TestWithoutTheKeyOfSecretsNobodyHasAnIdentity(t *testing.T) {
	id := idOf(t, "shop", "web")
	keys, err := filepath.Glob(server.State + ".keys/*")
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	aside := filepath.Join(t.TempDir(), "key")
	move := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err == nil {
			err = os.Remove(from)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.Isle("server", "stop"); err != nil {
			t.Fatal(err)
		}
	}
	move(keys[0], aside)
	if got := in(t, "shop", "web", "documents"); !strings.Contains(got["x509"], "Unavailable") {
		t.Errorf("without the key: %v", got)
	}
	if now, err := server.Status("shop"); err != nil || now.Phase != "running" {
		t.Errorf("without the key it is %+v, %v", now, err)
	}
	move(aside, keys[0])
	if now := idOf(t, "shop", "web"); now != id {
		t.Errorf("with the key again it is %s and not %s", now, id)
	}
}

const ending = `
name: ending
services:
  app:
    copy: [{from: inside, to: /inside}]
    command: [/inside, last, /data/seen]
    volumes: {/data: {size: 16MiB}}
`

func TestAnIdentityEndsWithItsEnvironment(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { server.Isle("down", "ending", "--volumes") })
	if err := up(dir, ending); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has an identity", func() error {
		out, err := server.Isle("logs", "ending")
		if err == nil && !strings.Contains(out, "it has an identity") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	// It ends, asked to, only once its stream has ended and it gets nothing more.
	if _, err := server.Isle("down", "ending"); err != nil {
		t.Fatal(err)
	}
	if err := up(dir, strings.Replace(ending, "command: [/inside, last, /data/seen]", "", 1)); err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(dir, "seen")
	if _, err := server.Isle("cp", "ending:/data/seen", local); err != nil {
		t.Fatalf("it was killed, because it still had its identity: %v", err)
	}
	if b, err := os.ReadFile(local); err != nil || string(b) != "stream: Unavailable\nthen: PermissionDenied\n" {
		t.Errorf("%q, %v", b, err)
	}
}
