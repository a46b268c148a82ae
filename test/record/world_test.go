// Package record_test builds with the recorded network: real packages, real
// steps, and servers of the test's own or those that clients know by themselves.
package record_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/build"
	"isle/internal/build/debian"
	"isle/internal/driver/local"
	"isle/internal/image"
	"isle/internal/spec"
)

// A world is a folder of images with a Builder on it, and what is reached.
type world struct {
	t      *testing.T
	dir    string
	images *image.Store
	*build.Builder

	mu     sync.Mutex
	away   bool // there is no network
	dialed []string
	to     map[string]string // addresses by HOST:PORT, of the test's own servers
	events []build.Event
	roots  *httptest.Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), to: map[string]string{}}
	var err error
	if w.images, err = image.Open(filepath.Join(w.dir, "images")); err != nil {
		t.Fatal(err)
	}
	w.another()
	return w
}

// another gives the world a Builder that has built nothing yet. What was fetched
// is still there.
func (w *world) another() {
	w.t.Helper()
	archive, err := debian.New(debian.Config{Dir: filepath.Join(w.dir, "packages"), Blobs: w.images})
	if err != nil {
		w.t.Fatal(err)
	}
	driver, err := local.New(local.Config{State: filepath.Join(w.dir, "driver"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	c := build.Config{Images: w.images, Archive: archive, Sandbox: driver, Cache: w.t.TempDir(), Dial: w.dial}
	if w.roots != nil {
		c.Roots = w.roots.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	}
	if w.Builder, err = build.New(c); err != nil {
		w.t.Fatal(err)
	}
}

// serve has a server of the test's own answer for a host, with TLS.
func (w *world) serve(host string, h http.Handler) {
	w.t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.StartTLS()
	w.t.Cleanup(s.Close)
	w.to[host+":443"] = s.Listener.Addr().String()
	w.roots = s
	w.another()
}

func (w *world) dial(ctx context.Context, host string, port int) (net.Conn, error) {
	at := net.JoinHostPort(host, strconv.Itoa(port))
	w.mu.Lock()
	away, to := w.away, w.to[at]
	w.dialed = append(w.dialed, at)
	w.mu.Unlock()
	if away {
		return nil, errors.New("there is no network")
	}
	if to != "" {
		at = to
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", at)
}

// leave takes the network away, and forgets what was reached.
func (w *world) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away, w.dialed = true, nil
}

func (w *world) say(e build.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// said is what steps wrote, and what was said of them, since the last call.
func (w *world) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out strings.Builder
	for _, e := range w.events {
		if e.State == "log" {
			out.WriteString(e.Message + "\n")
		}
	}
	w.events = nil
	return out.String()
}

func (w *world) put(content []byte) isle.Digest {
	w.t.Helper()
	d := isle.DigestOf(content)
	if err := w.images.PutBlob(w.t.Context(), d, bytes.NewReader(content)); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// A project is an isle.yaml with the files beside it.
type project struct {
	file   spec.File
	copies []build.Copied
	lock   *spec.Lock
}

// project reads an isle.yaml. files are beside it, by path.
func (w *world) project(yaml string, files map[string]string) *project {
	w.t.Helper()
	f, err := spec.Parse("isle.yaml", []byte(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	p := &project{file: f}
	for _, s := range f.Services {
		for _, c := range s.Copy {
			p.copies = append(p.copies, build.Copied{Service: s.Name, From: c.From, To: c.To, Tree: w.tree(files, c.From)})
		}
		if s.Build != nil {
			content := []byte(files[s.Build.Dockerfile])
			t := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeFile, Size: int64(len(content)), Digest: w.put(content)}}}
			p.copies = append(p.copies, build.Copied{Service: s.Name, From: s.Build.File(), Tree: w.put(t.Encode())},
				build.Copied{Service: s.Name, From: s.Build.Context, Tree: w.tree(files, ".")})
		}
	}
	return p
}

// tree stores the files below a folder.
func (w *world) tree(files map[string]string, folder string) isle.Digest {
	w.t.Helper()
	folder = strings.TrimSuffix(folder, "/")
	t := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeDir}}}
	seen := map[string]bool{".": true}
	for name, content := range files {
		rel := name
		if folder != "." {
			var below bool
			if rel, below = strings.CutPrefix(name, folder+"/"); !below {
				continue
			}
		}
		for d := path.Dir(rel); !seen[d]; d = path.Dir(d) {
			seen[d] = true
			t.Entries = append(t.Entries, spec.TreeEntry{Path: d, Type: spec.TypeDir})
		}
		t.Entries = append(t.Entries, spec.TreeEntry{Path: rel, Type: spec.TypeFile, Size: int64(len(content)), Digest: w.put([]byte(content))})
	}
	slices.SortFunc(t.Entries, func(a, b spec.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return w.put(t.Encode())
}

// build locks and builds, as `isle build` does, and keeps the lock.
func (w *world) build(p *project, o build.Options) (build.Result, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 15*time.Minute)
	defer cancel()
	lock, _, err := w.Lock(ctx, p.file, p.lock, p.copies, build.LockOptions{Locked: o.Frozen}, w.say)
	if err != nil {
		return build.Result{}, err
	}
	res, err := w.Build(ctx, p.file, lock, o, w.say)
	if err != nil {
		return res, err
	}
	// A lock is a file between builds.
	if p.lock, err = spec.ParseLock("isle.lock", res.Lock.Encode()); err != nil {
		w.t.Fatal(err)
	}
	return res, nil
}

func (w *world) mustBuild(p *project, o build.Options) build.Result {
	w.t.Helper()
	res, err := w.build(p, o)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.said())
	}
	return res
}

// listing is what an image shows: mode and owner by path.
func (w *world) listing(m image.Image) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, l := range m.Layers {
		files, err := image.ReadLayer(w.t.Context(), w.images.LayerPath(l.Digest))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, f := range files {
			out[f.Path] = fmt.Sprintf("%v %d:%d", f.Mode, f.UID, f.GID)
		}
	}
	return out
}
