package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"isle"
	"isle/internal/image"
	"isle/internal/image/oci"
)

// A shelf is a registry with something in front of it.
type shelf struct {
	t      *testing.T
	server *httptest.Server
	front  func(w http.ResponseWriter, r *http.Request, next http.Handler)
	asked  atomic.Int64
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t}
	next := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.front != nil {
			s.front(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.server.Close)
	return s
}

func (s *shelf) host() string { return strings.TrimPrefix(s.server.URL, "http://") }

func (s *shelf) ref(name string) Reference {
	s.t.Helper()
	r, err := Parse(s.host() + "/" + name)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// put stores something without what is in front.
func (s *shelf) put(path, kind string, b []byte) {
	s.t.Helper()
	front := s.front
	s.front = nil
	defer func() { s.front = front }()
	method, target := http.MethodPut, s.server.URL+"/v2/"+path
	if strings.Contains(path, "/blobs/") {
		method = http.MethodPost
		repo, digest, _ := strings.Cut(path, "/blobs/")
		target = s.server.URL + "/v2/" + repo + "/blobs/uploads/?digest=" + digest
	}
	req, err := http.NewRequest(method, target, bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	said, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		s.t.Fatalf("%s %s: %s %s", method, target, res.Status, said)
	}
}

func descriptor(kind string, b []byte) map[string]any {
	return map[string]any{"mediaType": kind, "digest": isle.DigestOf(b), "size": len(b)}
}

// stock stores an image of one layer of content under a name, and returns the
// layer's bytes and the digest of the manifest.
func (s *shelf) stock(name, tag, content, arch string) (layer []byte, d isle.Digest) {
	s.t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "content", Mode: 0o644, Size: int64(len(content))})
	io.WriteString(tw, content)
	tw.Close()
	layer = b.Bytes()
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": arch, "rootfs": map[string]any{"type": "layers", "diff_ids": []isle.Digest{isle.DigestOf(layer)}}})
	kinds := oci.Accepted()
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kinds[1], "config": descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", layer)}})
	for _, blob := range [][]byte{layer, config} {
		s.put(name+"/blobs/"+string(isle.DigestOf(blob)), "application/octet-stream", blob)
	}
	s.put(name+"/manifests/"+tag, kinds[1], manifest)
	return layer, isle.DigestOf(manifest)
}

func newClient(t *testing.T) *Client {
	t.Helper()
	images, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return &Client{Images: images, pause: time.Millisecond}
}

// pull resolves a reference and unpacks it.
func pull(t *testing.T, c *Client, r Reference, cred Credential) (image.Image, error) {
	t.Helper()
	p, err := c.Resolve(context.Background(), r, Options{Credential: cred, Platform: oci.Here()})
	if err != nil {
		return image.Image{}, err
	}
	im := &oci.Importer{Images: c.Images, Cache: t.TempDir()}
	got, err := im.Import(context.Background(), p, nil)
	return got.Image, err
}

func wantContent(t *testing.T, c *Client, m image.Image, want string) {
	t.Helper()
	paths, err := c.Images.Verify(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	stack, err := image.OpenStack(paths)
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	b, err := stack.ReadFile("/content", 64<<20)
	if err != nil || string(b) != want {
		t.Errorf("the image holds %.40q (%v)", b, err)
	}
}

func wantCode(t *testing.T, err error, code isle.Code) {
	t.Helper()
	if err == nil || isle.CodeOf(err) != code {
		t.Errorf("it ended with %v, which is %s and not %s", err, isle.CodeOf(err), code)
	}
}

func TestAnImageIsPulledByTagAndByDigest(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	_, d := s.stock("team/shop", "1", "hello", oci.Here().Architecture)
	r := s.ref("team/shop:1")
	p, err := c.Resolve(context.Background(), r, Options{Platform: oci.Here()})
	if err != nil || p.Digest != d {
		t.Fatalf("%s is %s (%v), not %s", r, p.Digest, err, d)
	}
	m, err := pull(t, c, r.Pinned(d), Credential{})
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, c, m, "hello")
	// What is pinned and there is not asked for again.
	before := s.asked.Load()
	if _, err := pull(t, c, r.Pinned(d), Credential{}); err != nil || s.asked.Load() != before {
		t.Errorf("the registry was asked again %d times (%v)", s.asked.Load()-before, err)
	}
	_, err = pull(t, c, s.ref("team/shop:2"), Credential{})
	wantCode(t, err, isle.NotFound)
}

func TestThePlatformIsChosenFromAnIndex(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	_, other := s.stock("shop", "other", "other", "z80")
	_, this := s.stock("shop", "this", "this", oci.Here().Architecture)
	size := func(d isle.Digest) int {
		res, err := http.Get(s.server.URL + "/v2/shop/manifests/" + string(d))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return len(b)
	}
	kinds := oci.Accepted()
	entry := func(d isle.Digest, arch string) any {
		return map[string]any{"mediaType": kinds[1], "digest": d, "size": size(d), "platform": map[string]any{"os": "linux", "architecture": arch}}
	}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kinds[0], "manifests": []any{entry(other, "z80"), entry(this, oci.Here().Architecture)}})
	s.put("shop/manifests/1", kinds[0], index)
	m, err := pull(t, c, s.ref("shop:1"), Credential{})
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, c, m, "this")
	_, err = pull(t, c, s.ref("shop:other"), Credential{})
	wantCode(t, err, isle.Invalid)
}

func TestAPullThatBreaksOffGoesOnWhereItWas(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	content := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	layer, _ := s.stock("shop", "1", content, oci.Here().Architecture)
	var served atomic.Int64
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
			next.ServeHTTP(w, r)
			return
		}
		var from int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(layer)-1, len(layer)))
			w.WriteHeader(http.StatusPartialContent)
		}
		n, _ := w.Write(layer[from:min(from+100_000, len(layer))])
		served.Add(int64(n))
	}
	m, err := pull(t, c, s.ref("shop:1"), Credential{})
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, c, m, content)
	if n := served.Load(); n > int64(len(layer))+1<<19 {
		t.Errorf("%d bytes were sent for a layer of %d", n, len(layer))
	}
}

// The part that came stays for another process.
func TestAPullGoesOnInTheNextProcess(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	content := strings.Repeat("0123456789abcdef", 1<<14)
	layer, _ := s.stock("shop", "1", content, oci.Here().Architecture)
	broken := true
	var last string
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
			next.ServeHTTP(w, r)
			return
		}
		last = r.Header.Get("Range")
		if broken && last != "" {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		if last == "" {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			w.Write(layer[:len(layer)/2])
			return
		}
		var from int
		fmt.Sscanf(last, "bytes=%d-", &from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(layer)-1, len(layer)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(layer[from:])
	}
	_, err := pull(t, c, s.ref("shop:1"), Credential{})
	wantCode(t, err, isle.Unavailable)
	broken = false
	images, err := image.Open(filepath.Dir(filepath.Dir(filepath.Dir(c.Images.BlobPath("")))))
	if err != nil {
		t.Fatal(err)
	}
	again := &Client{Images: images, pause: time.Millisecond}
	m, err := pull(t, again, s.ref("shop:1"), Credential{})
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, again, m, content)
	if last == "" {
		t.Error("it began anew")
	}
}

func TestARegistryThatStallsIsGivenUp(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	c.stall = 20 * time.Millisecond
	layer, _ := s.stock("shop", "1", "x", oci.Here().Architecture)
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}
	_, err := pull(t, c, s.ref("shop:1"), Credential{})
	wantCode(t, err, isle.Unavailable)
}

func TestWhatIsNotWhatWasAskedForIsRefusedAndNotKept(t *testing.T) {
	cases := map[string]struct {
		answer func(good []byte) []byte
		code   isle.Code
	}{
		"other bytes":  {func(b []byte) []byte { b = bytes.Clone(b); b[0] ^= 1; return b }, isle.Untrusted},
		"more bytes":   {func(b []byte) []byte { return append(bytes.Clone(b), "more"...) }, ""}, // no more than was said is read
		"fewer bytes":  {func(b []byte) []byte { return b[:len(b)-1] }, isle.Unavailable},
		"other layers": {func([]byte) []byte { return []byte("nothing") }, isle.Unavailable},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, c := newShelf(t), newClient(t)
			layer, _ := s.stock("shop", "1", "good", oci.Here().Architecture)
			s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
					w.Write(tc.answer(layer))
					return
				}
				next.ServeHTTP(w, r)
			}
			_, err := pull(t, c, s.ref("shop:1"), Credential{})
			if tc.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantCode(t, err, tc.code)
			if len(c.Images.Missing([]isle.Digest{isle.DigestOf(layer)})) == 0 {
				t.Error("it was kept")
			}
		})
	}
}

func TestAManifestThatIsNotTheOneThatWasPinnedIsUntrusted(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	_, d := s.stock("shop", "1", "good", oci.Here().Architecture)
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", oci.Accepted()[1])
			io.WriteString(w, `{"schemaVersion":2}`)
			return
		}
		next.ServeHTTP(w, r)
	}
	_, err := pull(t, c, s.ref("shop:1").Pinned(d), Credential{})
	wantCode(t, err, isle.Untrusted)
	s.front = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Write(make([]byte, maxManifest+1))
	}
	_, err = pull(t, c, s.ref("shop:1"), Credential{})
	wantCode(t, err, isle.Invalid)
}

// A registry with tokens, as the large ones are (distribution's token
// specification).
func TestACallerIsKnownByATokenForThisRepository(t *testing.T) {
	for name, cred := range map[string]Credential{"password": {Username: "anna", Password: "s3cret"}, "identity token": {IdentityToken: "s3cret"}} {
		t.Run(name, func(t *testing.T) {
			s, c := newShelf(t), newClient(t)
			s.stock("team/shop", "1", "hello", oci.Here().Architecture)
			s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == "/token" {
					user, pass, _ := r.BasicAuth()
					ok := user == "anna" && pass == "s3cret" && r.FormValue("scope") == "repository:team/shop:pull"
					if r.Method == http.MethodPost {
						ok = r.PostFormValue("refresh_token") == "s3cret" && r.PostFormValue("service") == "shelf"
					}
					if !ok {
						http.Error(w, "no", http.StatusUnauthorized)
						return
					}
					io.WriteString(w, `{"access_token":"t0ken"}`)
					return
				}
				if r.Header.Get("Authorization") != "Bearer t0ken" {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.server.URL+`/token",service="shelf",scope="repository:other:pull"`)
					http.Error(w, "who?", http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			}
			m, err := pull(t, c, s.ref("team/shop:1"), cred)
			if err != nil {
				t.Fatal(err)
			}
			wantContent(t, c, m, "hello")
			for _, wrong := range []Credential{{}, {Username: "anna", Password: "wrong"}, {IdentityToken: "wrong"}} {
				_, err := pull(t, newClient(t), s.ref("team/shop:1"), wrong)
				wantCode(t, err, isle.Refused)
				var login *LoginNeeded
				if !errors.As(err, &login) || login.Registry != s.host() {
					t.Errorf("it does not say that a login is wanted: %v", err)
				}
				if err != nil && strings.Contains(err.Error(), "wrong") {
					t.Errorf("the credential is in the error: %v", err)
				}
			}
		})
	}
}

func TestACredentialGoesToItsRegistryAlone(t *testing.T) {
	var leaked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "")
		http.NotFound(w, r)
	}))
	t.Cleanup(elsewhere.Close)
	s, c := newShelf(t), newClient(t)
	layer, _ := s.stock("shop", "1", "hello", oci.Here().Architecture)
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if _, pass, _ := r.BasicAuth(); pass != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
			http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, r)
	}
	_, err := pull(t, c, s.ref("shop:1"), Credential{Username: "anna", Password: "s3cret"})
	wantCode(t, err, isle.NotFound)
	if leaked.Load() {
		t.Error("another server got the credential")
	}
	if text := fmt.Sprintf("%v %+v %#v %s", Credential{Password: "s3cret"}, Credential{Password: "s3cret"}, Credential{Password: "s3cret"}, Credential{IdentityToken: "s3cret"}); strings.Contains(text, "s3cret") {
		t.Errorf("a credential is written as %s", text)
	}
}

// A registry elsewhere leads nobody to this machine, whatever it answers.
func TestARegistryElsewhereDoesNotLeadBackToThisMachine(t *testing.T) {
	for _, address := range []string{"127.0.0.1:80", "[::1]:80", "169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80"} {
		if notHere("tcp", address, nil) == nil {
			t.Errorf("%s is dialed", address)
		}
	}
	if err := notHere("tcp", "192.0.2.7:443", nil); err != nil {
		t.Error(err)
	}
	s := newSession(newClient(t), Reference{Registry: "registry.example", Repository: "shop"}, Credential{}, "pull")
	for _, realm := range []string{"http://registry.example/token", "http://127.0.0.1/token", "", "file:///etc/passwd"} {
		_, err := s.fetchToken(context.Background(), map[string]string{"realm": realm})
		wantCode(t, err, isle.Refused)
	}
	req := httptest.NewRequest(http.MethodGet, "http://registry.example/x", nil)
	if s.http.CheckRedirect(req, []*http.Request{httptest.NewRequest(http.MethodGet, "https://registry.example/x", nil)}) == nil {
		t.Error("it follows to an address without TLS")
	}
}

func TestARegistryThatIsBusyIsAskedAgain(t *testing.T) {
	s, c := newShelf(t), newClient(t)
	s.stock("shop", "1", "hello", oci.Here().Architecture)
	n := 0
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if n++; n%2 == 0 {
			http.Error(w, "later", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r)
	}
	m, err := pull(t, c, s.ref("shop:1"), Credential{})
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, c, m, "hello")
}

func TestDockersConfigurationIsRead(t *testing.T) {
	dir := t.TempDir()
	bin := t.TempDir()
	helper := "#!/bin/sh\nread name\n[ \"$1\" = get ] && [ \"$name\" = helped.example ] && echo '{\"Username\":\"<token>\",\"Secret\":\"from-helper\"}' && exit\necho credentials not found; exit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	config := `{"auths":{"plain.example":{"auth":"YW5uYTpzM2NyZXQ="},"https://old.example/v1/":{"username":"u","password":"p"}},"credHelpers":{"helped.example":"test","none.example":"test","away.example":"nonsuch","bad.example":"../x"}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]Credential{
		"plain.example": {Username: "anna", Password: "s3cret"}, "old.example": {Username: "u", Password: "p"}, "helped.example": {IdentityToken: "from-helper"},
	} {
		got, err := FromDocker(t.Context(), dir, host)
		if err != nil || got.Username != want.Username || got.Password != want.Password || got.IdentityToken != want.IdentityToken {
			t.Errorf("%s: %v", host, err)
		}
	}
	for host, code := range map[string]isle.Code{"none.example": isle.NotFound, "other.example": isle.NotFound, "away.example": isle.Unavailable, "bad.example": isle.Invalid} {
		_, err := FromDocker(t.Context(), dir, host)
		wantCode(t, err, code)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths": s3cret`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FromDocker(t.Context(), dir, "plain.example"); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a damaged file: %v", err)
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s",scope="repository:a:pull"`)
	f.Add(`Basic realm=x`)
	f.Fuzz(func(t *testing.T, s string) {
		if _, fields := challenge(s); len(fields) > 16 {
			t.Errorf("%d fields", len(fields))
		}
	})
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"mediaType":"x","manifests":[]}`), "application/json", "bytes 0-1/2")
	f.Fuzz(func(t *testing.T, b []byte, kind, ranged string) {
		sum := sha256.Sum256(b)
		if d := describe(b, kind); d.Digest.Hex() != hex.EncodeToString(sum[:]) {
			t.Error("another digest")
		}
		rangeStart(ranged)
	})
}
