package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/identity"
	"isle/test/lab"
)

// doctor is what the server says about one thing.
func (f *far) doctor(t *testing.T, about string) *islev1.Check {
	t.Helper()
	res, err := f.root.Server.Doctor(t.Context(), connect.NewRequest(&islev1.DoctorRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range res.Msg.GetChecks() {
		if c.GetName() == about {
			return c
		}
	}
	t.Fatalf("the doctor says nothing about %s", about)
	return nil
}

// changes are one of each kind of change; each says what it was told.
func (f *far) changes(ctx context.Context, d *told, n int, ci string, s signer) map[string]error {
	out := map[string]error{}
	name := fmt.Sprintf("n-%d", n)
	m, err := f.machine(ctx, name, nil)
	if out["create"] = err; err == nil {
		d.say("create %s %s", name, m.GetIdentity().GetKeys()[0].GetId())
	}
	res, err := f.root.Secrets.SetSecret(ctx, connect.NewRequest(&islev1.SetSecretRequest{Name: "db", Value: []byte(strings.Repeat("x", 30000))}))
	if out["secret"] = err; err == nil {
		d.say("secret db %d", res.Msg.GetSecret().GetVersion())
	}
	p, err := f.apply(ctx, "load", fmt.Sprintf("bindings: [{role: auditor, subjects: [human:load-%d]}]\n", n))
	if out["policy"] = err; err == nil {
		d.say("policy %d", p.GetVersion())
	}
	web := f.asks()
	defer web.CloseIdleConnections()
	_, jti, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {ci}})
	if out["token"] = err; err == nil {
		d.say("token %s", jti)
	}
	_, jti, err = f.token(web, byAssertion(s.assertion(f.url+identity.TokenPath)))
	if out["assertion"] = err; err == nil {
		d.say("token %s", jti)
	}
	return out
}

// A disk that is full stops what has effects, and says so; what was begun is
// whole or not there, killed or not; with room made all goes on.
func TestAFullDiskStopsEffectsAndLosesNothing(t *testing.T) {
	t.Parallel()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.MkdirTemp("", "isle-lab-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=24m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	f := startFar(t, &lab.Server{Bin: bin, State: state})
	t.Cleanup(func() { // before the folder is removed
		f.Isle("server", "stop")
		eventually(t, "the disk is let go", func() error { return unix.Unmount(state, 0) })
	})
	s := newSigner(t, "signer")
	f.mustMachine(t, s.name, s.jwk)
	ci := f.mustMachine(t, "ci", nil).GetSecret()
	d := &told{lines: map[string]int{}, secrets: map[string]string{}}
	n := 0
	next := func() map[string]error { n++; return f.changes(t.Context(), d, n, ci, s) }
	for what, err := range next() {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ballast := filepath.Join(state, "ballast")
	for range 2 {
		fill(t, ballast)
		refused := map[string]bool{}
		eventually(t, "nothing is done any more", func() error {
			for what, err := range next() {
				code := isle.CodeOf(err)
				// What the token endpoint says is HTTP's: 503 or so.
				if err == nil || code == isle.Internal {
					refused = map[string]bool{}
					return fmt.Errorf("%s: %v", what, err)
				}
				refused[what] = true
			}
			// The server's own small writes may fit still, and then the log is written.
			if c := f.doctor(t, "audit log"); c.GetState() == "ok" || !strings.Contains(c.GetMessage(), "space") || c.GetRemedy() == "" {
				return fmt.Errorf("the doctor says %v", c)
			}
			return nil
		})
		if len(refused) != 5 {
			t.Errorf("only %v were refused", refused)
		}
		if n == 0 {
			t.Error("nothing was tried")
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		for what, err := range next() {
			if err != nil {
				t.Errorf("with room made: %s: %v", what, err)
			}
		}
		if c := f.doctor(t, "audit log"); c.GetState() != "ok" {
			t.Errorf("with room made the doctor says %v", c)
		}
		d.agree(t, f)
		f.verified(t)
	}
	// Killed while nothing fits, and started so: it says what is wrong, or serves
	// what it can, and with room made all is there.
	fill(t, ballast)
	next()
	f.kill(t)
	if err := f.try(); err != nil {
		t.Fatal(err)
	}
	served := false
	eventually(t, "it serves or has ended", func() error {
		_, err := f.root.Server.Info(t.Context(), connect.NewRequest(&islev1.InfoRequest{}))
		if served = err == nil; served || f.server() == 0 {
			return nil
		}
		return err
	})
	if !served {
		if log, _ := os.ReadFile(filepath.Join(f.State, "server.log")); len(log) == 0 {
			t.Error("it says nothing")
		}
	}
	t.Logf("on a full disk it starts: %v", served)
	f.kill(t)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.start(t)
	for what, err := range next() {
		if err != nil {
			t.Errorf("after a crash with room made: %s: %v", what, err)
		}
	}
	d.agree(t, f)
	f.verified(t)
}

// fill takes what is free on a disk.
func fill(t *testing.T, ballast string) {
	t.Helper()
	file, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := file.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}

// copyState puts the records of one state folder into another.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{"isle.db", "isle.db-wal", "isle.db-shm", "audit.key", "tls.crt"} {
		if err := os.RemoveAll(filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(from, name))
		if os.IsNotExist(err) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// bundle are the names of the keys that others trust the server by.
func (f *far) bundle(t *testing.T) map[string]bool {
	t.Helper()
	web := f.asks()
	defer web.CloseIdleConnections()
	out := map[string]bool{}
	for _, path := range []string{"/.well-known/spiffe-bundle", "/.well-known/jwks.json"} {
		res, err := web.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		var set struct{ Keys []map[string]any }
		if err := json.Unmarshal(body, &set); err != nil || len(set.Keys) == 0 {
			t.Fatalf("%s: %v %s", path, err, body)
		}
		for _, k := range set.Keys {
			out[fmt.Sprint(k["x"])] = true
		}
	}
	return out
}

// A state folder that was put back is refused. Where the operator accepts it,
// whatever proved somebody before proves nobody any more, at whichever moment
// the server is killed while it sees to that.
func TestAStateThatWasPutBackRevivesNothingHoweverItIsKilled(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	s := newSigner(t, "signer")
	f.mustMachine(t, s.name, s.jwk)
	m := f.mustMachine(t, "ci", nil, "developer")
	personal, err := f.root.Identities.CreateToken(t.Context(), connect.NewRequest(&islev1.CreateTokenRequest{Purpose: "laptop", Expires: timestamppb.New(time.Now().Add(time.Hour))}))
	if err != nil {
		t.Fatal(err)
	}
	web := f.asks()
	access, _, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {m.GetSecret()}})
	if err != nil {
		t.Fatal(err)
	}
	credentials := map[string]string{"API key": m.GetSecret(), "personal token": personal.Msg.GetSecret(), "access token": access}
	for what, c := range credentials {
		if err := f.counts(t, c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	keys := f.bundle(t)
	f.kill(t)
	backup := t.TempDir()
	copyState(t, f.State, backup)
	f.start(t)
	if _, err := f.root.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "ci"})); err != nil {
		t.Fatal(err)
	}
	f.kill(t)
	web.CloseIdleConnections()
	kept, err := filepath.Glob(f.State + ".seen/*")
	if err != nil || len(kept) == 0 {
		t.Fatalf("no checkpoint is kept: %v", err)
	}
	checkpoints := filepath.Join(t.TempDir(), "seen")
	if err := os.CopyFS(checkpoints, os.DirFS(f.State+".seen")); err != nil {
		t.Fatal(err)
	}
	between := 0
	// At each step of what follows the acceptance, and at some moments around it.
	deaths := []string{"rollback.ending.0", "rollback.ending.1", "rollback.unmarked"}
	for ms := 2; ms < 40; ms += 4 {
		deaths = append(deaths, fmt.Sprint(ms, " ms"))
	}
	for _, death := range deaths {
		copyState(t, backup, f.State)
		if err := os.RemoveAll(f.State + ".seen"); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(f.State+".seen", os.DirFS(checkpoints)); err != nil {
			t.Fatal(err)
		}
		if said := f.refuses(t); !strings.Contains(said, "is not what it was") || !strings.Contains(said, "--accept-rollback") {
			t.Fatalf("it is refused with %s", said)
		}
		if strings.HasPrefix(death, "rollback") {
			f.arm(t, death)
		}
		if err := f.try("--accept-rollback"); err != nil {
			t.Fatal(err)
		}
		if after, err := time.ParseDuration(strings.ReplaceAll(death, " ", "")); err == nil {
			time.Sleep(after)
			if pid := f.server(); pid != 0 {
				syscall.Kill(pid, syscall.SIGKILL)
				f.dead(t, pid)
			}
		} else {
			eventually(t, "it dies at "+death, func() error {
				if _, err := os.Lstat(f.faultFile()); err == nil || f.server() != 0 {
					return fmt.Errorf("it does not")
				}
				return nil
			})
		}
		// Whether it was accepted by then or not is all the same.
		if err := f.try(); err != nil {
			t.Fatal(err)
		}
		answers := func() bool {
			_, err := f.root.Server.Info(t.Context(), connect.NewRequest(&islev1.InfoRequest{}))
			return err == nil
		}
		eventually(t, "it serves or has ended", func() error {
			if answers() || f.server() == 0 {
				return nil
			}
			return fmt.Errorf("neither")
		})
		if answers() {
			between++
		} else {
			f.start(t, "--accept-rollback")
		}
		for what, c := range credentials {
			if err := f.counts(t, c); isle.CodeOf(err) != isle.Refused {
				t.Errorf("killed at %s: the %s of before counts: %v", death, what, err)
			}
		}
		web := f.asks()
		if _, _, err := f.token(web, byAssertion(s.assertion(f.url+identity.TokenPath))); isle.CodeOf(err) != isle.Refused {
			t.Errorf("killed at %s: a key pair of before gives a token: %v", death, err)
		}
		web.CloseIdleConnections()
		for k := range f.bundle(t) {
			if keys[k] {
				t.Errorf("killed at %s: the key %s of before signs", death, k)
			}
		}
		list, err := f.root.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: "ci"}))
		if err != nil || len(list.Msg.GetIdentities()) != 1 || list.Msg.GetIdentities()[0].GetState() != "active" {
			t.Errorf("killed at %s: the machine did not stay: %v, %v", death, list, err)
		}
		fresh, err := f.root.Identities.RotateKey(t.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: "ci"}))
		if err != nil {
			t.Errorf("killed at %s: it gets no new key: %v", death, err)
		} else if err := f.counts(t, fresh.Msg.GetSecret()); err != nil {
			t.Errorf("killed at %s: its new key: %v", death, err)
		}
		f.verified(t)
		f.kill(t)
	}
	t.Logf("%d of %d were accepted by a server that was killed", between, len(deaths))
	if between < 3 {
		t.Error("where it is killed after the acceptance it is to go on with it")
	}
}

// The key of secrets may be gone, another's, or an older one: the server says so,
// opens nothing, overwrites nothing, and has all again with the right key.
func TestWithoutTheRightKeyNothingIsOpenedAndNothingIsLost(t *testing.T) {
	t.Parallel()
	f, other := newFar(t), newFar(t)
	ctx := t.Context()
	set := func() error {
		_, err := f.root.Secrets.SetSecret(ctx, connect.NewRequest(&islev1.SetSecretRequest{Name: "db", Value: []byte("precious")}))
		return err
	}
	opens := func() error {
		_, err := f.root.Secrets.CheckSecret(ctx, connect.NewRequest(&islev1.CheckSecretRequest{Name: "db"}))
		return err
	}
	if err := set(); err != nil {
		t.Fatal(err)
	}
	ci := f.mustMachine(t, "ci", nil, "developer").GetSecret()
	trust := f.bundle(t)
	keyOf := func(f *far) (path string, key []byte) {
		t.Helper()
		found, err := filepath.Glob(f.State + ".keys/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if !strings.HasSuffix(path, ".tls") {
				if key, err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
				return path, key
			}
		}
		t.Fatalf("there is no key: %v", found)
		return "", nil
	}
	path, right := keyOf(f)
	_, wrong := keyOf(other)
	with := func(key []byte, flags ...string) {
		t.Helper()
		f.kill(t)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if key != nil {
			if err := os.WriteFile(path, key, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.start(t, flags...)
	}
	closed := func(what string) {
		t.Helper()
		if err := set(); err == nil {
			t.Errorf("%s: a secret is sealed", what)
		}
		if err := opens(); err == nil {
			t.Errorf("%s: a secret is opened", what)
		}
		for _, about := range []string{"secrets", "identities"} {
			if c := f.doctor(t, about); c.GetState() == "ok" || c.GetRemedy() == "" {
				t.Errorf("%s: the doctor says of %s: %v", what, about, c)
			}
		}
		if err := f.counts(t, ci); err != nil { // it needs no key
			t.Errorf("%s: an API key: %v", what, err)
		}
		if web := f.asks(); true {
			if _, _, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {ci}}); err == nil {
				t.Errorf("%s: an access token is signed", what)
			}
			web.CloseIdleConnections()
		}
		f.verified(t)
	}
	open := func(what string) {
		t.Helper()
		if err := opens(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, about := range []string{"secrets", "identities"} {
			if c := f.doctor(t, about); c.GetState() != "ok" {
				t.Errorf("%s: the doctor says of %s: %v", what, about, c)
			}
		}
		f.verified(t)
	}
	same := func() bool {
		for k := range f.bundle(t) {
			if !trust[k] {
				return false
			}
		}
		return true
	}
	with(wrong)
	closed("with another's key")
	with(nil)
	closed("without a key")
	with([]byte("not a key\n"))
	closed("with what is no key")
	with(right)
	open("with the right key again")
	if !same() {
		t.Error("others are to trust other keys, though none was given up")
	}
	with(nil, "--new-key")
	if err := set(); err != nil {
		t.Fatal(err)
	}
	open("with a new key")
	if same() {
		t.Error("the keys that could not be opened still sign")
	}
	_, fresh := keyOf(f)
	with(right)
	closed("with the older key")
	with(fresh)
	open("with the newer one again")
}
