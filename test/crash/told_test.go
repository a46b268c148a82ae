package crash

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/identity"
)

// What is told is what clients got as answers: each is a line that the log's
// entries give too, and what the server holds.
type told struct {
	mu         sync.Mutex // guards what follows
	lines      map[string]int
	secrets    map[string]string // of machines that live, by name
	ended      []string          // credentials that were revoked, and the answer came
	assertions []string          // that gave a token, and the answer came
	tried      int               // calls, answered or not
}

func (d *told) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines[fmt.Sprintf(format, args...)]++
}

// toldBy is what an entry says, as a client would have been told; "" for what no
// client of these tests does.
func toldBy(e audit.Entry) string {
	d := e.Details
	switch {
	case e.Decision != isle.Allow:
	case e.Action == isle.ActionIdentityCreate:
		return "create " + e.Resource.Name + " " + d["key"]
	case e.Action == isle.ActionIdentityRotate:
		return "rotate " + e.Resource.Name + " " + d["key"]
	case e.Action == isle.ActionIdentityRevoke && d["key"] == "":
		return "revoke " + e.Resource.Name
	case e.Action == isle.ActionTokenIssue:
		return "token " + d["token"]
	case e.Action == isle.ActionSecretSet:
		return "secret " + e.Resource.Name + " " + d["version"]
	case e.Action == isle.ActionPolicyApply && d["document"] == "load":
		return "policy " + d["version"]
	}
	return ""
}

// log reads all entries.
func (f *far) log(t *testing.T) (all []audit.Entry) {
	t.Helper()
	s, err := f.root.Server.Audit(t.Context(), connect.NewRequest(&islev1.AuditRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
		e, err := audit.Decode([]byte(s.Msg().GetJson()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	return all
}

// holds is what the server holds, in the words of its entries, as far as it
// still can: of a key it does not say which change made it.
func (f *far) holds(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	ids, err := f.root.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ids.Msg.GetIdentities() {
		for _, k := range m.GetKeys() {
			out["key "+m.GetName()+" "+k.GetId()] = true
		}
		if m.GetState() == identity.Revoked {
			out["revoke "+m.GetName()] = true
		}
	}
	secrets, err := f.root.Secrets.ListSecrets(t.Context(), connect.NewRequest(&islev1.ListSecretsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets.Msg.GetSecrets() {
		out[fmt.Sprintf("secret %s %d", s.GetName(), s.GetVersion())] = true
	}
	show, err := f.root.Policy.Show(t.Context(), connect.NewRequest(&islev1.ShowRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range show.Msg.GetDocuments() {
		if d.GetName() == "load" {
			out["policy "+strconv.Itoa(int(d.GetVersion()))] = true
		}
	}
	return out
}

// agree compares what clients were told, what the log says, and what the server
// holds.
func (d *told) agree(t *testing.T, f *far) {
	t.Helper()
	logged, last := map[string]int{}, map[string]string{}
	for _, e := range f.log(t) {
		line := toldBy(e)
		if line == "" {
			continue
		}
		logged[line]++
		what, _, _ := strings.Cut(line, " ")
		switch what {
		case "create", "rotate":
			last["key"+strings.TrimPrefix(line, what)] = "key" + strings.TrimPrefix(line, what)
		case "revoke":
			last[line] = line
		case "secret", "policy": // the last version alone is held
			last[line[:strings.LastIndexByte(line, ' ')]] = line
		}
	}
	for line, n := range logged {
		if n != 1 {
			t.Errorf("the log says %d times: %s", n, line)
		}
	}
	d.mu.Lock()
	for line, n := range d.lines {
		if n != 1 || logged[line] != 1 {
			t.Errorf("a client was told %d times, and the log says %d times: %s", n, logged[line], line)
		}
	}
	d.mu.Unlock()
	held, want := f.holds(t), map[string]bool{}
	for _, line := range last {
		want[line] = true
		if !held[line] {
			t.Errorf("the log says what is not so: %s", line)
		}
	}
	for line := range held {
		if !want[line] {
			t.Errorf("it is so, and the log does not say it: %s", line)
		}
	}
}

// A signer is a machine that proves itself by assertions.
type signer struct {
	name string
	key  *ecdsa.PrivateKey
	jwk  []byte
}

func newSigner(t *testing.T, name string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return signer{name, key, fmt.Appendf(nil, `{"kty":"EC","crv":"P-256","x":"%s","y":"%s"}`, b64(point[1:33]), b64(point[33:]))}
}

// assertion is RFC 7523's, of ES256 (RFC 7518, 3.4).
func (s signer) assertion(audience string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"jti":%q,"exp":%d}`, s.name, s.name, audience, isle.NewID(), time.Now().Add(4*time.Minute).Unix())
	text := b64([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + b64([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		panic(err) // of a key that was made here
	}
	return text + "." + b64(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...))
}

// asks is an HTTP client for the token endpoint that knows the server by its key.
func (f *far) asks() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			if api.PinOf(s.PeerCertificates[0]) != f.pin {
				return errors.New("another server")
			}
			return nil
		},
	}}}
}

// token asks for an access token, and returns it and its jti.
func (f *far) token(client *http.Client, form url.Values) (token, jti string, err error) {
	form.Set("grant_type", "client_credentials")
	res, err := client.PostForm(f.url+identity.TokenPath, form)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", "", isle.Errorf(isle.Refused, "%s: %s", res.Status, body)
	}
	var answer identity.TokenResponse
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", "", err
	}
	var claims struct{ JTI string }
	part := strings.Split(answer.AccessToken, ".")
	b, err := base64.RawURLEncoding.DecodeString(part[1])
	if err == nil {
		err = json.Unmarshal(b, &claims)
	}
	return answer.AccessToken, claims.JTI, err
}

func byAssertion(assertion string) url.Values {
	return url.Values{"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}}
}

// load does everything that changes identities, secrets and the policy, until
// ctx ends, and keeps what it is told. What is not answered is not told.
func (d *told) load(ctx context.Context, f *far, round int, ci string, s signer) *sync.WaitGroup {
	var all sync.WaitGroup
	workers := uint64(0)
	again := func(do func(random *mathrand.Rand, i int) error) {
		workers++
		random := mathrand.New(mathrand.NewPCG(workers, uint64(round)))
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				d.mu.Lock()
				d.tried++
				d.mu.Unlock()
				if err := do(random, i); err != nil { // the server is dead, or was just then
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	pick := func() (name, secret string) { // any that lives, and takes it
		d.mu.Lock()
		defer d.mu.Unlock()
		for name, secret = range d.secrets {
			delete(d.secrets, name)
			return name, secret
		}
		return "", ""
	}
	for n := range 2 {
		again(func(_ *mathrand.Rand, i int) error {
			name := fmt.Sprintf("m-%d-%d-%d", round, n, i)
			m, err := f.machine(ctx, name, nil)
			if err != nil {
				return err
			}
			d.say("create %s %s", name, m.GetIdentity().GetKeys()[0].GetId())
			d.mu.Lock()
			d.secrets[name] = m.GetSecret()
			d.mu.Unlock()
			return nil
		})
	}
	again(func(random *mathrand.Rand, _ int) error {
		name, secret := pick()
		if name == "" {
			return errors.New("there is none")
		}
		if random.IntN(2) == 0 {
			res, err := f.root.Identities.RotateKey(ctx, connect.NewRequest(&islev1.RotateKeyRequest{Name: name, Overlap: durationpb.New(0)}))
			if err != nil {
				return err
			}
			d.say("rotate %s %s", name, res.Msg.GetKey().GetId())
			d.mu.Lock()
			d.secrets[name], d.ended = res.Msg.GetSecret(), append(d.ended, secret)
			d.mu.Unlock()
			return nil
		}
		_, err := f.root.Identities.RevokeIdentity(ctx, connect.NewRequest(&islev1.RevokeIdentityRequest{Name: name, Reason: "a test"}))
		if err != nil {
			return err
		}
		d.say("revoke %s", name)
		d.mu.Lock()
		d.ended = append(d.ended, secret)
		d.mu.Unlock()
		return nil
	})
	web := f.asks()
	again(func(*mathrand.Rand, int) error {
		_, jti, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {ci}})
		if err == nil {
			d.say("token %s", jti)
		}
		return err
	})
	again(func(*mathrand.Rand, int) error {
		a := s.assertion(f.url + identity.TokenPath)
		_, jti, err := f.token(web, byAssertion(a))
		if err == nil {
			d.say("token %s", jti)
			d.mu.Lock()
			d.assertions = append(d.assertions, a)
			d.mu.Unlock()
		}
		time.Sleep(20 * time.Millisecond) // a machine has a thousand at once
		return err
	})
	again(func(random *mathrand.Rand, i int) error {
		name := fmt.Sprintf("s-%d", random.IntN(4))
		res, err := f.root.Secrets.SetSecret(ctx, connect.NewRequest(&islev1.SetSecretRequest{Name: name, Value: fmt.Appendf(nil, "value %d", i)}))
		if err == nil {
			d.say("secret %s %d", name, res.Msg.GetSecret().GetVersion())
		}
		return err
	})
	again(func(_ *mathrand.Rand, i int) error {
		r, err := f.apply(ctx, "load", fmt.Sprintf("bindings: [{role: auditor, subjects: [human:load-%d-%d]}]\n", round, i))
		if err == nil {
			d.say("policy %d", r.GetVersion())
		}
		return err
	})
	return &all
}
