package debian

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// now is the tests' clock.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// A testPackage is a package of a test's archive.
type testPackage struct {
	name, version string
	fields        string // further control fields, each line ended
	postinst      string
	files         []tar.Header // with content in Linkname of regular files
}

// deb builds the package's file.
func (p testPackage) deb(t testing.TB) []byte {
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: Test <test@example.org>\n%sDescription: test\n more\n .\n end\n", p.name, p.version, p.fields)
	headers := []tar.Header{{Name: "./control", Typeflag: tar.TypeReg, Linkname: control}, {Name: "./md5sums", Typeflag: tar.TypeReg, Linkname: "d41d8cd98f00b204e9800998ecf8427e  usr/bin/x\n"}}
	if p.postinst != "" {
		headers = append(headers, tar.Header{Name: "./postinst", Typeflag: tar.TypeReg, Mode: 0o755, Linkname: p.postinst})
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", targz(t, headers)}, {"data.tar.gz", targz(t, p.files)}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.name, 0, 0, 0, 0o100644, len(m.data))
		out.Write(m.data)
		if len(m.data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func targz(t testing.TB, headers []tar.Header) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

// An archive is a mirror made for a test.
type archive struct {
	t      testing.TB
	key    *openpgp.Entity
	server *httptest.Server

	mu       sync.Mutex
	files    map[string][]byte
	requests []string
	serve    func(w http.ResponseWriter, r *http.Request, data []byte) bool // true: it answered
}

func newKey(t testing.TB) *openpgp.Entity {
	e, err := openpgp.NewEntity("Test archive", "", "test@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return now.AddDate(-1, 0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newArchive(t testing.TB) *archive {
	a := &archive{t: t, key: newKey(t), files: map[string][]byte{}}
	a.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.requests = append(a.requests, r.URL.Path)
		data, ok := a.files[r.URL.Path]
		serve := a.serve
		a.mu.Unlock()
		switch {
		case serve != nil && serve(w, r, data):
		case !ok:
			http.NotFound(w, r)
		default:
			http.ServeContent(w, r, "", now, bytes.NewReader(data))
		}
	}))
	t.Cleanup(a.server.Close)
	return a
}

func (a *archive) put(path string, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files[path] = data
}

// publish writes a suite with its packages, signed by key.
func (a *archive) publish(base, suite, release string, key *openpgp.Entity, pkgs ...testPackage) {
	var index bytes.Buffer
	for _, p := range pkgs {
		deb := p.deb(a.t)
		path := fmt.Sprintf("pool/main/%s/%s_%s_amd64.deb", p.name[:1], p.name, strings.ReplaceAll(p.version, ":", "%3a"))
		a.put(base+"/"+strings.ReplaceAll(path, "%3a", "%3a"), deb)
		fmt.Fprintf(&index, "Package: %s\nVersion: %s\nArchitecture: amd64\n%sFilename: %s\nSize: %d\nSHA256: %s\n\n", p.name, p.version, p.fields, path, len(deb), isle.DigestOf(deb).Hex())
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(index.Bytes())
	w.Close()
	file := base + "/dists/" + suite + "/main/binary-amd64/Packages.gz"
	a.put(file, z.Bytes())
	text := fmt.Sprintf("Origin: Test\nSuite: %s\nCodename: %s\nArchitectures: amd64\nComponents: main\n%sSHA256:\n %s %d main/binary-amd64/Packages.gz\n", suite, suite, release, isle.DigestOf(z.Bytes()).Hex(), z.Len())
	a.put(base+"/dists/"+suite+"/InRelease", sign(a.t, text, key))
}

func sign(t testing.TB, text string, key *openpgp.Entity) []byte {
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, key.PrivateKey, &packet.Config{DefaultHash: crypto.SHA256, Time: func() time.Time { return now.Add(-time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

// machine makes a root folder whose apt knows the archive and its key.
func (a *archive) machine(sources string) string {
	root := a.t.TempDir()
	var key bytes.Buffer
	if err := a.key.Serialize(&key); err != nil {
		a.t.Fatal(err)
	}
	writeFile(a.t, root, "usr/share/keyrings/debian-archive-keyring.gpg", key.String())
	writeFile(a.t, root, "etc/apt/sources.list.d/test.sources", strings.ReplaceAll(sources, "BASE", a.server.URL))
	return root
}

func writeFile(t testing.TB, root, name, text string) {
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const testSources = `Types: deb
URIs: BASE/debian
Suites: trial trial-updates
Components: main

Types: deb
URIs: BASE/debian-security
Suites: trial-security
Components: main
`

// open makes an Archive for amd64 with a store of its own.
func (a *archive) open(root string) (*Archive, *image.Store) {
	store, err := image.Open(filepath.Join(a.t.TempDir(), "store"))
	if err != nil {
		a.t.Fatal(err)
	}
	d, err := New(Config{Dir: a.t.TempDir(), Blobs: store, Root: root, Architecture: "amd64", Now: func() time.Time { return now }})
	if err != nil {
		a.t.Fatal(err)
	}
	d.pause = time.Millisecond
	return d, store
}

// basePackages are empty packages with the names of Base.
func basePackages() (out []testPackage) {
	for _, n := range Base() {
		out = append(out, testPackage{name: n, version: "1.0"})
	}
	return out
}

// versions maps the chosen packages, without the base, to their versions.
func versions(pkgs []spec.LockedPackage) map[string]string {
	out := map[string]string{}
	for _, p := range pkgs {
		out[p.Name] = p.Version
	}
	for _, n := range Base() {
		delete(out, n)
	}
	return out
}

func wantError(t *testing.T, err error, code isle.Code, words ...string) {
	t.Helper()
	if isle.CodeOf(err) != code || err == nil {
		t.Fatalf("error %v, want code %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func (a *archive) publishAll(extra ...testPackage) {
	a.publish("/debian", "trial", "", a.key, append(basePackages(), extra...)...)
	a.publish("/debian", "trial-updates", "", a.key)
	a.publish("/debian-security", "trial-security", "", a.key)
}

func TestResolveTakesTheHighestVersionOfAllRepositories(t *testing.T) {
	a := newArchive(t)
	a.publish("/debian", "trial", "", a.key, append(basePackages(), testPackage{name: "web", version: "1.0", fields: "Depends: liba\n"}, testPackage{name: "liba", version: "2.0"})...)
	a.publish("/debian", "trial-updates", "", a.key, testPackage{name: "liba", version: "2.0+u1"})
	a.publish("/debian-security", "trial-security", "", a.key, testPackage{name: "web", version: "1.0+s1", fields: "Depends: liba\n"})
	d, _ := a.open(a.machine(testSources))
	pkgs, lock, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v := versions(pkgs); v["web"] != "1.0+s1" || v["liba"] != "2.0+u1" || len(v) != 2 {
		t.Errorf("chosen: %v", v)
	}
	for _, p := range pkgs {
		if want := map[bool]string{true: "security", false: ""}[p.Name == "web"]; p.Repository != want {
			t.Errorf("%s is of repository %q", p.Name, p.Repository)
		}
		if strings.Contains(p.Path, "://") || !strings.HasPrefix(p.Path, "pool/") {
			t.Errorf("path %q is not relative to the mirror", p.Path)
		}
	}
	if len(lock.Releases) != 3 || !lock.Releases["dists/trial-security/InRelease"].Valid() {
		t.Errorf("releases: %v", lock.Releases)
	}
	// A second resolve asks the mirror nothing.
	asked := len(a.requests)
	again, _, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{}, nil)
	if err != nil || len(again) != len(pkgs) {
		t.Fatal(again, err)
	}
	if len(a.requests) != asked {
		t.Errorf("a warm resolve asked for %v", a.requests[asked:])
	}
}

func TestReleaseThatCannotBeTrustedIsRefused(t *testing.T) {
	other := newKey(t)
	for name, c := range map[string]struct {
		break_ func(a *archive)
		code   isle.Code
		words  string
	}{
		"signed by another key": {func(a *archive) { a.publish("/debian", "trial", "", other, basePackages()...) }, isle.Untrusted, "signed by a key"},
		"changed after signing": {func(a *archive) {
			f := "/debian/dists/trial/InRelease"
			a.put(f, bytes.Replace(a.files[f], []byte("Origin: Test"), []byte("Origin: Evil"), 1))
		}, isle.Untrusted, "wrong signature"},
		"unsigned": {func(a *archive) { a.put("/debian/dists/trial/InRelease", []byte("Suite: trial\n")) }, isle.Invalid, "no signed release"},
		"text behind the signature": {func(a *archive) {
			f := "/debian/dists/trial/InRelease"
			a.put(f, append(a.files[f], "Suite: trial\n"...))
		}, isle.Invalid, "no signed release"},
		"expired": {func(a *archive) {
			a.publish("/debian", "trial", "Valid-Until: Sun, 31 May 2026 00:00:00 UTC\n", a.key, basePackages()...)
		}, isle.Untrusted, "expired on 2026-05-31"},
		"another suite": {func(a *archive) {
			a.publish("/debian", "other", "", a.key, basePackages()...)
			a.put("/debian/dists/trial/InRelease", a.files["/debian/dists/other/InRelease"])
		}, isle.Untrusted, "not of trial"},
		"missing":                            {func(a *archive) { delete(a.files, "/debian/dists/trial/InRelease") }, isle.Invalid, `no suite "trial"`},
		"security missing though configured": {func(a *archive) { delete(a.files, "/debian-security/dists/trial-security/InRelease") }, isle.Invalid, "trial-security"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive(t)
			a.publishAll()
			c.break_(a)
			d, _ := a.open(a.machine(testSources))
			_, _, err := d.Resolve(context.Background(), "trial", nil, ResolveOptions{}, nil)
			wantError(t, err, c.code, c.words)
		})
	}
}

func TestExpiryCanBeSwitchedOffAsForApt(t *testing.T) {
	a := newArchive(t)
	a.publishAll()
	a.publish("/debian", "trial", "Valid-Until: Sun, 31 May 2026 00:00:00 UTC\n", a.key, basePackages()...)
	root := a.machine(testSources)
	writeFile(t, root, "etc/apt/apt.conf.d/99x", "Acquire { Check-Valid-Until \"false\"; };\n")
	d, _ := a.open(root)
	if _, _, err := d.Resolve(context.Background(), "trial", nil, ResolveOptions{}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestIndexThatTheReleaseDoesNotNameIsNotUsed(t *testing.T) {
	a := newArchive(t)
	a.publishAll()
	f := "/debian/dists/trial/main/binary-amd64/Packages.gz"
	a.put(f, append(a.files[f], 0))
	d, _ := a.open(a.machine(testSources))
	_, _, err := d.Resolve(context.Background(), "trial", nil, ResolveOptions{}, nil)
	wantError(t, err, isle.Unavailable, "not the file that the signed release names")
}

func TestMirrorOverridesAptsAndFindsSecurityBesideIt(t *testing.T) {
	a := newArchive(t)
	a.publish("/snap/debian/1", "trial", "", a.key, append(basePackages(), testPackage{name: "web", version: "1"})...)
	a.publish("/snap/debian-security/1", "trial-security", "", a.key, testPackage{name: "web", version: "2"})
	d, store := a.open(a.machine("")) // apt knows nothing
	mirror := a.server.URL + "/snap/debian/1"
	pkgs, _, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{Mirror: mirror}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v := versions(pkgs)["web"]; v != "2" {
		t.Errorf("web %s was chosen, not security's 2", v)
	}
	if err := d.Fetch(context.Background(), pkgs, FetchOptions{Mirror: mirror}, nil); err != nil {
		t.Fatal(err)
	}
	if m := store.Missing([]isle.Digest{pkgs[0].Digest}); len(m) != 0 {
		t.Error("not in the store")
	}
	_, _, err = d.Resolve(context.Background(), "trial", nil, ResolveOptions{}, nil)
	wantError(t, err, isle.Unavailable, "--mirror")
	_, _, err = d.Resolve(context.Background(), "trial", nil, ResolveOptions{Mirror: "ftp://127.0.0.1/debian"}, nil)
	wantError(t, err, isle.Invalid, "http")
}

func TestMirrorWithoutSecurityArchiveSaysSo(t *testing.T) {
	a := newArchive(t)
	a.publish("/m", "trial", "", a.key, basePackages()...)
	a.serve = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if strings.HasPrefix(r.URL.Path, "/m-security/") {
			http.Error(w, "no", http.StatusForbidden)
			return true
		}
		return false
	}
	d, _ := a.open(a.machine(""))
	var mu sync.Mutex
	said := ""
	_, lock, err := d.Resolve(context.Background(), "trial", nil, ResolveOptions{Mirror: a.server.URL + "/m"}, func(s string) { mu.Lock(); said += s; mu.Unlock() })
	if err != nil || len(lock.Releases) != 1 || !strings.Contains(said, "no security archive") {
		t.Errorf("%v, %v, said %q", err, lock.Releases, said)
	}
	// One that is named must be there.
	_, _, err = d.Resolve(context.Background(), "trial", nil, ResolveOptions{Mirror: a.server.URL + "/m," + a.server.URL + "/m-security"}, nil)
	wantError(t, err, isle.Invalid, "m-security")
	// One with a wrong signature is never passed over.
	a.serve = nil
	a.publish("/m-security", "trial-security", "", newKey(t))
	_, _, err = d.Resolve(context.Background(), "trial", nil, ResolveOptions{Mirror: a.server.URL + "/m"}, nil)
	wantError(t, err, isle.Untrusted, "signed by a key")
}

func TestBadRequestsSayWhatToDo(t *testing.T) {
	a := newArchive(t)
	a.publishAll(testPackage{name: "postgresql", version: "15"}, testPackage{name: "python3", version: "3.11"},
		testPackage{name: "exim", version: "1", fields: "Provides: mta\n"})
	d, _ := a.open(a.machine(testSources))
	for request, words := range map[string][]string{
		"postgres":    {"postgres", "did you mean postgresql?"},
		"pyhton3":     {"did you mean python3?"},
		"mta":         {"virtual", "exim"},
		"python3=3.9": {"no version 3.9", "3.11"},
		"Python3":     {"want NAME or NAME=VERSION"},
		"zzzzzzzzzzz": {"no package"},
	} {
		_, _, err := d.Resolve(context.Background(), "trial", []string{request}, ResolveOptions{}, nil)
		wantError(t, err, isle.Invalid, words...)
	}
}
