package owasp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"isle/internal/secret"
	"isle/internal/server"
	"isle/internal/store/sqlite"
	"isle/test/lab"
)

// A rummage is a run that uses everything while somebody looks.
type rummage struct {
	*world
	*lab.Search
	t      *testing.T
	config string // of who is logged in
}

// says runs a command line, and looks into what it says.
func (r *rummage) says(stdin string, fails bool, args ...string) string {
	r.t.Helper()
	out := r.prints(stdin, fails, args...)
	r.In("the answer to "+strings.Join(args, " "), []byte(out))
	return out
}

// prints is says of what is meant to print a credential: it is not looked into.
func (r *rummage) prints(stdin string, fails bool, args ...string) string {
	r.t.Helper()
	cmd := r.Command(args...)
	cmd.Env = append(cmd.Env, "XDG_CONFIG_HOME="+r.config)
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); (err != nil) != fails {
		r.t.Errorf("isle %v: %v\n%s", args, err, said.String())
	}
	r.In("what is said beside "+strings.Join(args, " "), said.Bytes())
	return strings.TrimSuffix(out.String(), "\n")
}

// answered looks into an answer of the API.
func (r *rummage) answered(what string, a answer) {
	r.In(what, a.Body)
	r.In(what, []byte(a.Message))
}

// Every kind of secret is there, and everything is done that could leave one
// somewhere: none is found afterwards, in whatever form, but where it belongs.
func TestNoSecretIsFoundAnywhereAfterwards(t *testing.T) {
	work := t.TempDir()
	const stored, replaced, inFile = "canary/stored+3b1f8a90c2?&=", "canary/replaced+77d0e4419b?&=", "canary/in-file+0fe96b7d31?&="
	w, err := newWorld("--secret-files", work)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	r := &rummage{w, &lab.Search{Report: t.Errorf, Values: []string{stored, replaced, inFile}}, t, filepath.Join(work, "config")}
	plant := func(values ...string) {
		t.Helper()
		for _, v := range values {
			if len(v) < 16 {
				t.Fatalf("%q is no secret", v)
			}
		}
		r.Values = append(r.Values, values...)
	}

	// Secrets of each backend.
	file := filepath.Join(work, "value")
	if err := os.WriteFile(file, []byte(inFile), 0o600); err != nil {
		t.Fatal(err)
	}
	r.says(replaced, false, "secret", "set", "db")
	r.says(stored, false, "secret", "set", "db", "-o", "json")
	r.says("", false, "secret", "set", "in-file", "--file", file)
	r.says("", false, "secret", "set", "in-variable", "--env", "ISLE_SECRET_DB")

	// Machines, people, and their tokens.
	key := r.prints("", false, "identity", "create", "ci", "--purpose", "a test", "--expires", "1d", "--role", "admin")
	second := r.prints("", false, "identity", "rotate", "ci")
	mine := r.prints("", false, "token", "create", "--purpose", "a test", "--expires", "1d")
	wrong := "isle_" + strings.Repeat("Wrong0wrong", 4) + "ab"
	plant(key[5:], second[5:], mine[6:], wrong[5:])
	c := w.from(t, key)
	token, other := c.token(t, "ci", key), c.token(t, "ci", second, "resource", "https://vendor.example")
	pair, public := newKey(t)
	r.says("", false, "identity", "create", "signer", "--purpose", "a test", "--expires", "1d", "--public-key", public)
	assertion := forge(t, es256, assertionOf("signer", w.url), by(pair))
	signed := c.asserts(t, assertion)
	if signed.Token == "" {
		t.Fatalf("%+v", signed)
	}
	signature := func(jwt string) string { return jwt[strings.LastIndex(jwt, ".")+1:] }
	d, err := pair.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	plant(signature(token), signature(other), signature(signed.Token), signature(assertion), string(d))

	// An environment, and all that is done to one.
	dir := filepath.Join(work, "project")
	if err := w.up(dir, "name: bystander\n"+service); err != nil {
		t.Fatal(err)
	}
	got := w.in(t, "bystander", "steal", w.url)
	svid := certificateOf(t, got)
	scalar, err := svid.PrivateKey.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	plant(signature(got["jwt"]), string(scalar))
	if out := r.prints(key+"\n", false, "login", w.url, "--token", "--pin", w.pin); strings.Contains(out, key) {
		t.Error("the login repeats it")
	}
	for _, at := range [][]string{nil, {"--server", w.url}} {
		do := func(fails bool, args ...string) {
			t.Helper()
			r.says("", fails, append(slices.Clone(at), args...)...)
		}
		do(false, "up", dir)
		do(false, "exec", "bystander", "--", "/inside", "reach")
		do(false, "logs", "bystander")
		do(false, "cp", "bystander:/inside", filepath.Join(work, "copied"))
		do(false, "diff", "bystander")
		do(false, "doors", "bystander")
		do(false, "ls", "-o", "json")
		do(false, "status", "bystander", "-o", "json")
		do(false, "whoami", "-o", "json")
		do(false, "doctor")
		do(false, "policy", "show")
		do(false, "identity", "ls", "-o", "json")
		do(false, "identity", "show", "ci", "-o", "json")
		do(false, "secret", "ls", "-o", "json")
		do(false, "secret", "check", "db")
		do(false, "secret", "check", "in-file")
		do(false, "secret", "check", "in-variable")
		do(true, "secret", "check", "no-such")
		do(true, "exec", "no-such", "--", "/inside")
		do(true, "exec", "bystander", "--", "/no-such")
		do(true, "up", filepath.Join(work, "no-such"))
	}
	r.says(wrong, true, "login", w.url, "--token", "--pin", w.pin)

	// What is wrong, and what is refused.
	bare := w.machine(t, "bare")
	plant(bare[5:])
	mistyped := key[:44] + "zzzzzzz"
	for _, credential := range []string{wrong, mistyped[:51], other, token[:len(token)-4] + "AAAA", assertion, got["jwt"], stored} {
		there := w.from(t, credential)
		r.answered("a refusal over TLS", there.call(t, "EnvironmentService/List", message{}))
		r.answered("a refusal by the token endpoint", oauth(t, there, "ci", credential))
		r.answered("a refusal by the token endpoint", oauth(t, there, credential, "x"))
		if g := there.asserts(t, credential); g.Token != "" {
			t.Errorf("%.10s gives a token", credential)
		}
	}
	r.answered("with an SVID", w.from(t, "", svid).call(t, "EnvironmentService/List", message{}))
	for _, p := range procedures(t) {
		if p == "ApprovalService/WatchApprovals" {
			continue // is ListApprovals, and goes on
		}
		r.answered(p, w.from(t, bare).call(t, p, message{}))
		if !strings.HasSuffix(p, "/Stop") && !strings.HasSuffix(p, "Create") {
			r.answered(p, c.call(t, p, message{}))
		}
	}
	r.answered("a secret of no name", c.call(t, "SecretService/SetSecret", message{"name": "No Name", "value": []byte(stored)}))
	r.answered("a secret in the wrong place", c.call(t, "SecretService/SetSecret", message{"name": "db", "reference": "x", "backend": "none", "value": []byte(stored)}))

	const opens, masked = "canary/opens+51c7a2e08d?&=", "canary.masked.9f3e77@shop.example"
	r.says(opens, false, "secret", "set", "orders-db")
	plant(opens, masked)
	r.throughADoor("orders-db", opens, masked)

	// What runs, while it does. The server's own environment has its variable.
	r.Process(w.process.Process.Pid)
	e, err := w.Status("bystander")
	if err != nil {
		t.Fatal(err)
	}
	children := &lab.Search{Report: t.Errorf, Values: append(slices.Clone(r.Values), variable)}
	for _, pid := range append(e.Inside(), lab.Descendants(w.process.Process.Pid)...) {
		children.Process(pid)
	}
	if children.Looked == 0 {
		t.Error("no process was looked at: the search is broken")
	}
	r.says("", false, "audit", "export", "--file", filepath.Join(work, "export"))
	r.says("", false, "audit", "search", "-o", "json")
	r.says("", false, "audit", "verify")
	r.says("", false, "policy", "explain", "machine:ci", "environment:exec", "environment:bystander")
	plant(variable)
	r.Below(w.State) // as it runs, with the write-ahead log
	if n := launchSecrets(t, t.Errorf, w.State, e.Inside()); n == 0 {
		t.Error("no hash of a launch's secret is known: the search is broken")
	}

	// Ended, and opened as only root with the key can.
	r.says("", false, "identity", "revoke", "ci", "--reason", "over")
	r.says("", false, "down", "bystander")
	r.says("", false, "secret", "rm", "db", "--force")
	r.says("", false, "server", "stop")
	w.process.Wait()
	plant(issuerKeys(t, w)...)
	r.Below(w.State)
	r.Below(w.State + ".seen")
	r.Below(w.State + ".keys")
	r.Below(filepath.Join(work, "export"))
	log, err := os.ReadFile(w.log.Name())
	r.In("the server's log", log)
	if err != nil || len(log) == 0 || r.Looked < 1<<20 {
		t.Errorf("looked at %d bytes only, %d of the log, %v: the search is broken", r.Looked, len(log), err)
	}

	// A login is kept where it belongs, and nowhere else.
	var where []string
	logins := &lab.Search{Values: []string{key}, Report: func(_ string, args ...any) { where = append(where, args[0].(string)) }}
	logins.Below(r.config)
	if kept := filepath.Join(r.config, "isle", "servers.json"); len(where) == 0 || slices.ContainsFunc(where, func(s string) bool { return s != kept }) {
		t.Errorf("the login is in %v", where)
	} else {
		modes(t, kept, 0o600)
	}
}

// oauth asks for a token with a secret, and gives the answer as it is.
func oauth(t *testing.T, c *caller, name, secret string) answer {
	t.Helper()
	b, err := json.Marshal(c.asks(t, name, secret))
	if err != nil {
		t.Fatal(err)
	}
	return answer{Body: b}
}

// issuerKeys are the private keys of the issuer in each form that a key has,
// opened with the key of secrets.
func issuerKeys(t *testing.T, w *world) (out []string) {
	t.Helper()
	paths, err := filepath.Glob(w.State + ".keys/*")
	if err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(server.LogPath(w.State), sqlite.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	records, _, err := store.Ledger(t.Context(), "issuer")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		ring, err := secret.OpenKeyring(path, false)
		if err != nil {
			continue // that of TLS
		}
		for _, record := range records {
			var k struct{ Sealed []byte }
			if json.Unmarshal(record.Body, &k) != nil || k.Sealed == nil {
				continue
			}
			der, err := ring.Open("issuer/"+record.Key, k.Sealed)
			if err != nil {
				t.Errorf("%s: %v", record.Key, err)
				continue
			}
			key, err := x509.ParsePKCS8PrivateKey(der)
			if err != nil {
				t.Fatal(err)
			}
			scalar, err := key.(*ecdsa.PrivateKey).Bytes()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(scalar), string(der), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})[40:100]))
		}
	}
	if len(out) < 9 {
		t.Fatalf("found %d private keys: the search is broken", len(out)/3)
	}
	return out
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// launchSecrets looks for the secrets of launches, of which only the SHA-256 is
// known: at each byte of what the server writes and of what processes show, as 32
// bytes, hex or base64. It returns how many launches it looked for.
func launchSecrets(t *testing.T, report func(format string, args ...any), state string, pids []int) int {
	t.Helper()
	var all [][]byte
	files, err := filepath.Glob(filepath.Join(state, "isle.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		for _, f := range []string{"cmdline", "environ"} {
			files = append(files, filepath.Join("/proc", strconv.Itoa(pid), f))
		}
	}
	hashes := map[[sha256.Size]byte]bool{}
	said := regexp.MustCompile(`"secret_hash":\s*"sha256:([0-9a-f]{64})"`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		all = append(all, b)
		for _, m := range said.FindAllSubmatch(b, -1) {
			var h [sha256.Size]byte
			hex.Decode(h[:], m[1]) // as the pattern says
			hashes[h] = true
		}
	}
	texts := []struct {
		alphabet string
		n        int
		decode   func(dst, src []byte) (int, error)
	}{
		{"0123456789abcdefABCDEF", 64, hex.Decode},
		{letters + "+/", 43, base64.RawStdEncoding.Decode},
		{letters + "-_", 43, base64.RawURLEncoding.Decode},
	}
	for _, b := range all {
		runs := make([]int, len(texts)) // how long the text before is of the alphabet
		for end := 1; end <= len(b); end++ {
			if end >= 32 && hashes[sha256.Sum256(b[end-32:end])] {
				report("a launch's secret is in the state, or in a process")
			}
			for k, text := range texts {
				if runs[k]++; strings.IndexByte(text.alphabet, b[end-1]) < 0 {
					runs[k] = 0
				}
				if runs[k] < text.n {
					continue
				}
				var v [64]byte
				if n, err := text.decode(v[:], b[end-text.n:end]); err == nil && n == 32 && hashes[sha256.Sum256(v[:32])] {
					report("a launch's secret is written down as text")
				}
			}
		}
	}
	return len(hashes)
}

// Whoever looks has to be able to find.
func TestTheSearchFindsSecretsOfLaunchesInEachForm(t *testing.T) {
	secret := sha256.Sum256([]byte("a launch's"))
	hash := sha256.Sum256(secret[:])
	for form, v := range map[string]string{"raw": string(secret[:]), "hex": hex.EncodeToString(secret[:]), "base64": base64.StdEncoding.EncodeToString(secret[:]), "none": ""} {
		dir, found := t.TempDir(), 0
		for name, b := range map[string]string{"isle.db": `{"secret_hash":"sha256:` + hex.EncodeToString(hash[:]) + `"}`, "isle.db-wal": "before" + v + "after"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if n := launchSecrets(t, func(string, ...any) { found++ }, dir, nil); n != 1 || (found > 0) != (v != "") {
			t.Errorf("%s: %d launches, found %d times", form, n, found)
		}
	}
}
