package build

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"isle"
	"isle/internal/build/debian"
	"isle/internal/image"
	"isle/internal/spec"
)

// A fakeArchive has every package that is asked for, in one version of all.
type fakeArchive struct {
	images *image.Store

	mu       sync.Mutex
	version  string
	resolved int
	fetched  []string
}

func (a *fakeArchive) Architecture() string { return "amd64" }

func (a *fakeArchive) Resolve(_ context.Context, suite string, requests []string, _ debian.ResolveOptions, _ func(string)) ([]spec.LockedPackage, spec.SuiteLock, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resolved++
	var out []spec.LockedPackage
	for _, name := range append([]string{"base"}, requests...) {
		content := name + " " + a.version
		out = append(out, spec.LockedPackage{Name: name, Version: a.version, Architecture: "amd64", Path: "pool/" + name + ".deb", Size: int64(len(content)), Digest: isle.DigestOf([]byte(content))})
	}
	slices.SortFunc(out, func(a, b spec.LockedPackage) int { return strings.Compare(a.Name, b.Name) })
	return out, spec.SuiteLock{Releases: map[string]isle.Digest{"dists/" + suite + "/InRelease": isle.DigestOf([]byte(a.version))}}, nil
}

func (a *fakeArchive) Fetch(ctx context.Context, pkgs []spec.LockedPackage, _ debian.FetchOptions, progress func(done, total int64)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range pkgs {
		content := p.Name + " " + p.Version
		if isle.DigestOf([]byte(content)) != p.Digest {
			return isle.Errorf(isle.Unavailable, "%s: the mirror has other bytes than the lock", p.Name)
		}
		a.fetched = append(a.fetched, p.Name)
		if err := a.images.PutBlob(ctx, p.Digest, strings.NewReader(content)); err != nil {
			return err
		}
	}
	progress(1, 1)
	return nil
}

// A fakeRoot has one file a package, and things that copies can fall over.
type fakeRoot struct {
	pkgs []spec.LockedPackage
	open func(isle.Digest) (*os.File, error)
}

func (r fakeRoot) Packages(add debian.Add) error {
	for _, p := range r.pkgs {
		if err := add(image.Entry{Path: "/usr/share/" + p.Name, Mode: 0o644}, func() (io.ReadCloser, error) { return r.open(p.Digest) }); err != nil {
			return err
		}
	}
	for _, e := range []image.Entry{
		{Path: "/bin", Mode: fs.ModeSymlink | 0o777, Target: "usr/bin"},
		{Path: "/usr/bin", Mode: fs.ModeDir | 0o755},
		{Path: "/var/lib/db", Mode: fs.ModeDir | 0o700, UID: 100, GID: 101},
		{Path: "/old/file", Mode: 0o644},
		{Path: "/proc", Mode: fs.ModeDir | 0o555},
	} {
		if err := add(e, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r fakeRoot) System(add debian.Add) error {
	return add(image.Entry{Path: "/etc/passwd", Mode: 0o644}, text("root:x:0:0::/root:/bin/sh\n"))
}

func (fakeRoot) Close() error { return nil }

func text(s string) contentFunc {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

// A fakeSandbox "runs" a step by calling a Go function by the command's name.
type fakeSandbox struct {
	mu       sync.Mutex
	ran      []string
	programs map[string]func(ctx context.Context, s Step) error
}

func (f *fakeSandbox) RunStep(ctx context.Context, s Step) error {
	cmd := s.Command[len(s.Command)-1]
	if i := strings.LastIndexByte(cmd, '\n'); i >= 0 {
		cmd = cmd[i+1:]
	}
	f.mu.Lock()
	f.ran = append(f.ran, cmd)
	program := f.programs[cmd]
	f.mu.Unlock()
	if program == nil {
		return isle.Errorf(isle.Failed, "exit status 127")
	}
	return program(ctx, s)
}

// A bench is a Builder on fakes, with what a test looks at.
type bench struct {
	*Builder
	t       testing.TB
	archive *fakeArchive
	sandbox *fakeSandbox

	mu     sync.Mutex
	events []Event
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return benchIn(t, t.TempDir())
}

func benchIn(t testing.TB, dir string) *bench {
	t.Helper()
	images, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, archive: &fakeArchive{images: images, version: "1"}, sandbox: &fakeSandbox{programs: map[string]func(context.Context, Step) error{
		"compile": func(_ context.Context, s Step) error {
			return os.WriteFile(filepath.Join(s.Upper, "compiled"), []byte("code"), 0o644)
		},
	}}}
	b.Builder, err = New(Config{Images: images, Archive: b.archive, Sandbox: b.sandbox, Cache: filepath.Join(dir, "build")})
	if err != nil {
		t.Fatal(err)
	}
	b.unpack = func(_ context.Context, pkgs []spec.LockedPackage, open func(isle.Digest) (*os.File, error), _ debian.UnpackOptions) (root, error) {
		return fakeRoot{pkgs, open}, nil
	}
	return b
}

// say gathers events.
func (b *bench) say(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// started returns the steps that were not cached, with the reason, of the
// events since the last call.
func (b *bench) started() (out []string) {
	for _, e := range b.events {
		if e.State == "start" {
			out = append(out, e.Service+" "+e.Step+": "+e.Message)
		}
	}
	b.events = nil
	slices.Sort(out)
	return out
}

// put stores a folder of files and returns its tree's digest.
func (b *bench) put(files map[string]string) isle.Digest {
	b.t.Helper()
	tree := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeDir}}}
	seen := map[string]bool{}
	for name, content := range files {
		for d := parentOf(name); d != "" && !seen[d]; d = parentOf(d) {
			seen[d] = true
			tree.Entries = append(tree.Entries, spec.TreeEntry{Path: d, Type: spec.TypeDir})
		}
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			tree.Entries = append(tree.Entries, spec.TreeEntry{Path: name, Type: spec.TypeLink, Target: to})
			continue
		}
		tree.Entries = append(tree.Entries, spec.TreeEntry{Path: name, Type: spec.TypeFile, Size: int64(len(content)), Digest: b.blob(content), Exec: strings.HasPrefix(content, "#!")})
	}
	slices.SortFunc(tree.Entries, func(a, b spec.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return b.blob(string(tree.Encode()))
}

func (b *bench) blob(content string) isle.Digest {
	b.t.Helper()
	d := isle.DigestOf([]byte(content))
	if err := b.Images.PutBlob(context.Background(), d, strings.NewReader(content)); err != nil {
		b.t.Fatal(err)
	}
	return d
}

// shop is a file of two services with equal packages, one with a copy and a
// run step.
func shop() spec.File {
	return spec.File{Name: "shop", Services: []spec.Service{
		{Name: "db", Suite: "bookworm", Packages: []string{"python3"}, Volumes: []spec.Volume{{Path: "/data"}, {Path: "/var/lib/db/main"}}},
		{Name: "web", Suite: "bookworm", Packages: []string{"python3"}, Copy: []spec.Copy{{From: "app/", To: "/app"}}, Run: []string{"compile"}, Workdir: "/app"},
	}}
}

func (b *bench) lock(f spec.File, old *spec.Lock, tree isle.Digest, o LockOptions) (*spec.Lock, []string) {
	b.t.Helper()
	lock, changes, err := b.Lock(context.Background(), f, old, copied(f, tree), o, b.say)
	if err != nil {
		b.t.Fatal(err)
	}
	return lock, changes
}

func copied(f spec.File, tree isle.Digest) (out []Copied) {
	for _, s := range f.Services {
		for _, c := range s.Copy {
			out = append(out, Copied{s.Name, c.From, c.To, tree})
		}
	}
	return out
}

func (b *bench) build(f spec.File, lock *spec.Lock) Result {
	b.t.Helper()
	res, err := b.Build(context.Background(), f, lock, Options{}, b.say)
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

// files returns what an image shows, by path, for the paths of its layers.
func (b *bench) files(m image.Image) map[string]image.File {
	b.t.Helper()
	out := map[string]image.File{}
	for _, l := range m.Layers {
		files, err := image.ReadLayer(context.Background(), b.Images.LayerPath(l.Digest))
		if err != nil {
			b.t.Fatal(err)
		}
		for _, f := range files {
			out[f.Path] = f
		}
	}
	return out
}
