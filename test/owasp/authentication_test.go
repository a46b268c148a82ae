package owasp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Nobody is taken for somebody by a credential that is weak, forged, for
// something else, or only claimed.
func TestNHI4InsecureAuthentication(t *testing.T) {
	w := shared
	key := w.machine(t, "robot", "--role", "developer")
	token := w.from(t, "").token(t, "robot", key)
	who := message{}
	opens(t, "the token itself", w.from(t, token).call(t, "IdentityService/WhoAmI", who))

	t.Run("forged access tokens", func(t *testing.T) {
		header, said := headerOf(t, token), claims(t, token)
		thief, _ := newKey(t)
		var keys struct{ Keys []map[string]any }
		if err := json.Unmarshal(w.from(t, "").gets(t, "/.well-known/jwks.json").Body, &keys); err != nil || len(keys.Keys) == 0 {
			t.Fatalf("%v: %v", keys, err)
		}
		published, _ := json.Marshal(keys.Keys[0])
		x, _ := keys.Keys[0]["x"].(string)
		public, _ := base64.RawURLEncoding.DecodeString(x)
		parts := strings.Split(token, ".")
		jwk := map[string]any{"kty": "EC", "crv": "P-256", "x": coordinate(thief, false), "y": coordinate(thief, true)}
		c := w.from(t, "")
		for what, forged := range map[string]string{
			"alg none":                       forge(t, but(header, "alg", "none"), said, unsigned),
			"alg None, signature kept":       forge(t, but(header, "alg", "None"), said, unsigned) + parts[2],
			"alg HS256 by the published key": forge(t, but(header, "alg", "HS256"), said, byHMAC(published)),
			"alg HS256 by its coordinate":    forge(t, but(header, "alg", "HS256"), said, byHMAC(public)),
			"another key, the same kid":      forge(t, header, said, by(thief)),
			"a key of its own in jwk":        forge(t, but(header, "jwk", jwk), said, by(thief)),
			"a key elsewhere by jku":         forge(t, but(header, "jku", "https://thief.example/keys"), said, by(thief)),
			"a certificate in x5c":           forge(t, but(header, "x5c", []string{"MIIB"}), said, by(thief)),
			"a kid that is a path":           forge(t, but(header, "kid", "../../../dev/null"), said, byHMAC(nil)),
			"no kid":                         forge(t, but(header, "kid", nil), said, by(thief)),
			"crit":                           forge(t, but(but(header, "crit", []string{"exp"}), "exp", 1), said, by(thief)),
			"claims of another":              parts[0] + "." + strings.Split(forge(t, header, but(said, "sub", "machine:admin"), unsigned), ".")[1] + "." + parts[2],
			"no signature":                   parts[0] + "." + parts[1] + ".",
			"a signature of zeros":           parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		} {
			unproven(t, what, c.with(forged).call(t, "IdentityService/WhoAmI", who))
		}
		c.loggedSource(t, "identity:authenticate")
	})
	t.Run("documents for something else", func(t *testing.T) {
		got := w.in(t, "shop", "steal", w.url)
		for what, credential := range map[string]string{"a JWT-SVID for this server": got["jwt"], "a client's id": "robot", "a key's ID": keysOf(t, w, "robot")[0], "a key's hint": w.show(t, "robot").Keys[0].Hint} {
			c := w.from(t, credential)
			unproven(t, what, c.call(t, "IdentityService/WhoAmI", who))
			c.loggedSource(t, "identity:authenticate")
		}
		certificate := certificateOf(t, got)
		c := w.from(t, "", certificate)
		unproven(t, "an X.509-SVID as the client's certificate", c.call(t, "IdentityService/WhoAmI", who))
		c.loggedSource(t, "identity:authenticate")
		unproven(t, "an X.509-SVID beside a good token", w.from(t, token, certificate).call(t, "IdentityService/WhoAmI", who))
		if g := w.from(t, "").asks(t, "", "", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe", "client_assertion", got["jwt"]); g.Token != "" {
			t.Errorf("a token for a JWT-SVID: %+v", g)
		}
		if g := w.from(t, "").asserts(t, got["jwt"], "client_id", "robot"); g.Token != "" {
			t.Errorf("a token for a JWT-SVID as an assertion: %+v", g)
		}
	})
	t.Run("who is only claimed", func(t *testing.T) {
		c := w.from(t, "")
		for _, h := range []string{"X-Forwarded-User", "X-Remote-User", "X-Isle-Actor", "X-Forwarded-Client-Cert", "X-Real-Ip", "Forwarded", "Cookie"} {
			unproven(t, h, c.call(t, "IdentityService/WhoAmI", who, h, "human:root"))
		}
		for what, value := range map[string]string{
			"Basic": "Basic " + base64.StdEncoding.EncodeToString([]byte("robot:"+key)), "Digest": `Digest username="robot"`, "no scheme": key, "two tokens": "Bearer " + key + " " + token,
			"two tokens, by comma": "Bearer " + key + "," + token, "empty": "Bearer ", "its prefix": "Bearer " + key[:45], "padded": "Bearer " + key + "=",
		} {
			unproven(t, what, c.call(t, "IdentityService/WhoAmI", who, "Authorization", value))
		}
		// The socket believes the kernel, and nothing in a request.
		a := w.beside(t).call(t, "IdentityService/WhoAmI", who, "Authorization", "Bearer "+key)
		if !strings.Contains(string(a.Body), "human:root") {
			t.Errorf("by the socket with a machine's key: %s", a.Body)
		}
	})
	t.Run("weak ways to a token", func(t *testing.T) {
		c := w.from(t, "")
		for what, g := range map[string]grant{
			"no secret":                       c.asks(t, "robot", ""),
			"no client":                       c.asks(t, "", ""),
			"the password grant":              c.asks(t, "robot", key, "grant_type", "password", "username", "root", "password", "x"),
			"a refresh token":                 c.asks(t, "robot", key, "grant_type", "refresh_token", "refresh_token", token),
			"an exchange":                     c.asks(t, "robot", key, "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", token),
			"a token as the secret":           c.asks(t, "robot", token),
			"the key's own ID":                c.asks(t, "robot", keysOf(t, w, "robot")[0]),
			"two ways at once":                c.asks(t, "robot", key, "client_secret", key),
			"another's name":                  c.asks(t, "signer", key),
			"a personal token":                c.asks(t, "root", w.must(t, "token", "create", "--purpose", "a test", "--expires", "1d")),
			"an assertion by alg none":        c.asserts(t, forge(t, map[string]any{"alg": "none"}, assertionOf("robot", w.url), unsigned)),
			"an assertion by HMAC of the key": c.asserts(t, forge(t, map[string]any{"alg": "HS256"}, assertionOf("robot", w.url), byHMAC([]byte(key)))),
		} {
			if g.Token != "" || g.Error == "" {
				t.Errorf("%s: %+v", what, g)
			}
		}
		c.loggedSource(t, "token:issue")
	})
	t.Run("without TLS, or with an old one", func(t *testing.T) {
		address := strings.TrimPrefix(w.url, "https://")
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "POST /isle.v1.IdentityService/WhoAmI HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", address, key)
		said, _ := io.ReadAll(conn) // it is hung up on, one way or another
		if strings.Contains(string(said), "robot") || strings.Contains(string(said), " 200 ") {
			t.Errorf("it answers without TLS: %s", said)
		}
		for _, cfg := range []*tls.Config{{MaxVersion: tls.VersionTLS11}, {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}} {
			cfg.MinVersion, cfg.RootCAs = tls.VersionTLS10, w.roots
			if c, err := tls.Dial("tcp", address, cfg); err == nil {
				c.Close()
				t.Errorf("it speaks %d with %d", cfg.MaxVersion, c.ConnectionState().CipherSuite)
			}
		}
	})
	t.Run("guessed", func(t *testing.T) {
		c, slowed := w.from(t, ""), false
		for range 40 {
			a := c.with("isle_"+rand.Text()[:26]+rand.Text()[:20]).call(t, "IdentityService/WhoAmI", who)
			slowed = slowed || a.Status == http.StatusTooManyRequests
			if a.Status == http.StatusOK {
				t.Fatal("guessed")
			}
		}
		if !slowed {
			t.Error("who guesses is never asked to wait")
		}
		opens(t, "another from the same address", c.with(key).call(t, "IdentityService/WhoAmI", who))
		c.loggedSource(t, "identity:authenticate")
	})
}

// coordinate is one of a public key, as a JWK has it.
func coordinate(key *ecdsa.PrivateKey, y bool) string {
	b, _ := key.PublicKey.Bytes() // 4, x, y
	n := elliptic.P256().Params().BitSize / 8
	if y {
		return base64.RawURLEncoding.EncodeToString(b[1+n:])
	}
	return base64.RawURLEncoding.EncodeToString(b[1 : 1+n])
}

// certificateOf is the X.509-SVID that a service gave away.
func certificateOf(t *testing.T, got map[string]string) tls.Certificate {
	t.Helper()
	chain, err := strconv.Unquote(got["x509"])
	if err != nil {
		t.Fatalf("%v: %v", got, err)
	}
	key, err := strconv.Unquote(got["x509 key"])
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
