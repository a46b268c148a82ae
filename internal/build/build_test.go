package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

func TestTheSameLockGivesTheSameImagesAnywhere(t *testing.T) {
	var digests []isle.Digest
	for range 2 {
		b := newBench(t)
		lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
		res := b.build(shop(), lock)
		digests = append(digests, res.Images["web"].Digest(), res.Images["db"].Digest())
	}
	if digests[0] != digests[2] || digests[1] != digests[3] {
		t.Fatalf("digests differ: %v", digests)
	}
}

func TestAnImageHasEverythingInItsPlace(t *testing.T) {
	b := newBench(t)
	f := shop()
	f.Services[1].Copy = append(f.Services[1].Copy, spec.Copy{From: "bin", To: "/bin"}, spec.Copy{From: "conf/", To: "/var/lib/db"})
	tree := b.put(map[string]string{"shop.py": "code", "sub/run": "#!/bin/sh\n", "sub/link": "-> run"})
	lock, _ := b.lock(f, nil, tree, LockOptions{})
	res := b.build(f, lock)
	web, db := b.files(res.Images["web"]), b.files(res.Images["db"])
	for path, want := range map[string]image.Entry{
		"/usr/share/python3":  {Mode: 0o644, Size: 9},
		"/etc/passwd":         {Mode: 0o644, Size: 26},
		"/isle":               {Mode: fs.ModeDir | 0o755},
		"/proc":               {Mode: fs.ModeDir | 0o555},
		"/tmp":                {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"/etc/resolv.conf":    {Mode: 0o644},
		"/app/shop.py":        {Mode: 0o644, Size: 4},
		"/app/sub":            {Mode: fs.ModeDir | 0o755},
		"/app/sub/run":        {Mode: 0o755, Size: 10},
		"/app/sub/link":       {Mode: fs.ModeSymlink | 0o777, Target: "run"},
		"/bin":                {Mode: fs.ModeSymlink | 0o777, Target: "usr/bin"}, // not hidden by the copy
		"/usr/bin/shop.py":    {Mode: 0o644, Size: 4},
		"/var/lib/db":         {Mode: fs.ModeDir | 0o700, UID: 100, GID: 101}, // keeps its owner
		"/var/lib/db/sub/run": {Mode: 0o755, Size: 10},
		"/compiled":           {Mode: 0o644, Size: 4},
	} {
		got := web[path].Entry
		if got.Mode != want.Mode || got.Size != want.Size || got.UID != want.UID || got.GID != want.GID || got.Target != want.Target {
			t.Errorf("web %s: %+v, want %+v", path, got, want)
		}
	}
	for path, want := range map[string]uint32{"/data": 0, "/var/lib/db/main": 0, "/var/lib/db": 100} {
		if got := db[path]; !got.Mode.IsDir() || got.UID != want {
			t.Errorf("db %s: %+v, want a directory of %d", path, got.Entry, want)
		}
	}
	if _, ok := db["/compiled"]; ok {
		t.Error("db has a file of web's")
	}
}

func TestServicesWithEqualPackagesBuildThemOnce(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	if b.archive.resolved != 1 {
		t.Errorf("resolved %d times", b.archive.resolved)
	}
	b.started()
	res, err := b.Build(context.Background(), shop(), lock, Options{NoCache: true}, b.say)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range b.started() {
		if strings.Contains(s, " packages: ") {
			n++
		}
	}
	if n != 1 || len(b.archive.fetched) != 2 {
		t.Errorf("packages were built %d times, fetched %v", n, b.archive.fetched)
	}
	if a, c := res.Images["web"].Layers[0], res.Images["db"].Layers[0]; a.Digest != c.Digest {
		t.Error("the layers differ")
	}
}

func TestACacheMissNamesTheInputThatChanged(t *testing.T) {
	b := newBench(t)
	f := shop()
	tree := map[string]string{"a.py": "a", "shop.py": "code"}
	lock, _ := b.lock(f, nil, b.put(tree), LockOptions{})
	b.events = nil
	b.build(f, lock)
	for _, s := range b.started() {
		if !strings.HasSuffix(s, ": first build") && !strings.Contains(s, " fetch: ") {
			t.Errorf("%q", s)
		}
	}
	if res := b.build(f, lock); len(b.started()) != 0 || len(res.Reasons) != 0 {
		t.Error("nothing changed and something was built")
	}

	for _, c := range []struct {
		name   string
		change func()
		want   []string
		reason string
	}{
		{"a file", func() { tree["shop.py"] = "new code" }, []string{"web copy app/: app/shop.py changed", "web run compile: below it, app/shop.py changed"}, "web: app/shop.py changed"},
		{"a new file", func() { tree["lib/z.py"] = "z" }, []string{"web copy app/: app/lib is new", "web run compile: below it, app/lib is new"}, "web: app/lib is new"},
		{"a file gone", func() { delete(tree, "a.py") }, []string{"web copy app/: app/a.py is gone", "web run compile: below it, app/a.py is gone"}, "web: app/a.py is gone"},
		{"a command", func() {
			f.Services[1].Run = []string{"compile -O"}
			b.sandbox.programs["compile -O"] = b.sandbox.programs["compile"]
		}, []string{"web run compile -O: command changed: run compile -O"}, "web: command changed: run compile -O"},
		{"a package", func() { f.Services[0].Packages = []string{"python3", "redis-server"} }, []string{"db packages: packages: + redis-server 1", "db system: below it, packages: + redis-server 1"}, "db: packages: + redis-server 1"},
		{"a volume", func() { f.Services[0].Volumes = f.Services[0].Volumes[:1] }, []string{"db system: volumes, tmpfs or workdir: - /var/lib/db/main"}, "db: volumes, tmpfs or workdir: - /var/lib/db/main"},
		{"a step more", func() { f.Services[1].Run = []string{"compile -O", "compile"} }, []string{"web run compile: new step"}, "web: run compile is new"},
		{"a step less", func() { f.Services[1].Run = nil }, nil, "web: run compile -O is gone"},
	} {
		c.change()
		before := b.build(f, mustLock(b, f, lock, tree, &lock))
		_ = before
		got := b.started()
		got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, " resolve: ") || strings.Contains(s, " fetch: ") })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: started %q, want %q", c.name, got, c.want)
		}
		for service, reason := range before.Reasons {
			if service+": "+reason != c.reason {
				t.Errorf("%s: reason %s: %s, want %s", c.name, service, reason, c.reason)
			}
		}
		if len(before.Reasons) != 1 {
			t.Errorf("%s: reasons %v", c.name, before.Reasons)
		}
	}
}

func mustLock(b *bench, f spec.File, old *spec.Lock, tree map[string]string, into **spec.Lock) *spec.Lock {
	lock, _ := b.lock(f, old, b.put(tree), LockOptions{})
	*into = lock
	return lock
}

func TestWhyComparesAnyTwoImages(t *testing.T) {
	b := newBench(t)
	f := shop()
	lock, _ := b.lock(f, nil, b.put(map[string]string{"shop.py": "1"}), LockOptions{})
	one := b.build(f, lock).Images["web"].Digest()
	lock, _ = b.lock(f, lock, b.put(map[string]string{"shop.py": "2"}), LockOptions{})
	two := b.build(f, lock).Images["web"].Digest()
	if got := b.Why(one, two); got != "app/shop.py changed" {
		t.Errorf("got %q", got)
	}
	if got := b.Why(one, one); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestALayerThatIsGoneIsMadeAgain(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	want := b.build(shop(), lock).Images["web"]
	if err := os.Remove(b.Images.LayerPath(want.Layers[0].Digest)); err != nil {
		t.Fatal(err)
	}
	b.events = nil
	if got := b.build(shop(), lock).Images["web"]; got.Digest() != want.Digest() {
		t.Fatal("another image")
	}
	if started := strings.Join(b.started(), "\n"); !strings.Contains(started, "packages: no longer in the cache") {
		t.Errorf("started %s", started)
	}
}

func TestATamperedLayerIsToldAndNotBuiltOn(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	want := b.build(shop(), lock).Images["web"]
	for i, l := range want.Layers {
		if err := os.WriteFile(b.Images.LayerPath(l.Digest), []byte("tampered"), 0o400); err != nil {
			t.Fatal(err)
		}
		_, err := b.Build(context.Background(), shop(), lock, Options{}, nil)
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), string(l.Digest)) || !strings.Contains(err.Error(), "--no-cache") {
			t.Fatalf("layer %d: got %v", i, err)
		}
		res, err := b.Build(context.Background(), shop(), lock, Options{NoCache: true}, nil)
		if err != nil || res.Images["web"].Digest() != want.Digest() {
			t.Fatalf("layer %d without the cache: %v", i, err)
		}
	}
	if _, err := b.Images.Verify(context.Background(), want); err != nil {
		t.Fatal(err)
	}
}

func TestANewServerFindsWhatTheOldOneBuilt(t *testing.T) {
	dir := t.TempDir()
	b := benchIn(t, dir)
	tree := b.put(map[string]string{"shop.py": "code"})
	lock, _ := b.lock(shop(), nil, tree, LockOptions{})
	want := b.build(shop(), lock).Images["web"].Digest()
	if err := os.WriteFile(filepath.Join(dir, "build/scratch/run-123"), []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	b = benchIn(t, dir)
	if got := b.build(shop(), lock).Images["web"].Digest(); got != want || len(b.started()) != 0 {
		t.Error("it was built again")
	}
	if left, err := os.ReadDir(filepath.Join(dir, "build/scratch")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAClientGoneInTheMiddleOfABuildLeavesNothingHalfWritten(t *testing.T) {
	dir := t.TempDir()
	b := benchIn(t, dir)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	compile := b.sandbox.programs["compile"]
	b.sandbox.programs["compile"] = func(ctx context.Context, s Step) error {
		if err := compile(ctx, s); err != nil {
			return err
		}
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := b.Build(ctx, shop(), lock, Options{}, b.say); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	for _, d := range []string{"build/scratch", "images/tmp"} {
		if left, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(left) != 0 {
			t.Errorf("%s: %v, %v", d, left, err)
		}
	}
	b.sandbox.programs["compile"] = compile
	b.events = nil
	b.build(shop(), lock)
	if got := b.started(); len(got) != 1 || !strings.HasPrefix(got[0], "web run compile") {
		t.Errorf("what was finished was not kept: %q", got)
	}
}

func TestAStepThatFailsSaysWhichAndIsNotCached(t *testing.T) {
	b := newBench(t)
	f := shop()
	f.Services[1].Run = []string{"no-such-command"}
	lock, _ := b.lock(f, nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	for range 2 {
		_, err := b.Build(context.Background(), f, lock, Options{}, b.say)
		if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "web: run no-such-command") {
			t.Fatalf("got %v", err)
		}
	}
	if len(b.sandbox.ran) != 2 {
		t.Errorf("ran %v", b.sandbox.ran)
	}
}

func TestAPanicInAStepEndsTheBuildAndNotTheServer(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	b.sandbox.programs["compile"] = func(context.Context, Step) error { panic("nil map") }
	_, err := b.Build(t.Context(), shop(), lock, Options{}, b.say)
	if isle.CodeOf(err) != isle.Internal || !strings.Contains(err.Error(), "nil map") {
		t.Errorf("%v", err)
	}
}

func TestWhatAStepLeavesBecomesALayerWithoutTracesOfTheRun(t *testing.T) {
	b := newBench(t)
	b.sandbox.programs["compile"] = func(_ context.Context, s Step) error {
		for name, content := range map[string]string{
			"app/out": "kept", "tmp/x": "", "run/x": "", "var/log/app.log": "when", "var/cache/ldconfig/aux-cache": "x", "etc/machine-id": "id", "root/.wget-hsts": "x", "new/inside": "n", "old/new": "n", "su": "su",
		} {
			if err := os.MkdirAll(filepath.Join(s.Upper, filepath.Dir(name)), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(s.Upper, name), []byte(content), 0o644); err != nil {
				return err
			}
		}
		up := func(name string) string { return filepath.Join(s.Upper, name) }
		return errors.Join(
			os.Chown(up("app/out"), 33, 34),
			os.Chmod(up("su"), fs.ModeSetuid|0o755),
			os.Symlink("/etc/shadow", up("app/link")),
			unix.Mkfifo(up("app/pipe"), 0o600),
			unix.Mknod(up("app/socket"), unix.S_IFSOCK|0o600, 0),
			os.MkdirAll(up("usr/share"), 0o755),
			unix.Mknod(up("usr/share/python3"), unix.S_IFCHR, 0),
			unix.Mknod(up("usr/share/never"), unix.S_IFCHR, 0),                        // hides nothing
			unix.Setxattr(up("old"), "trusted.overlay.opaque", []byte("y"), 0),        // hides /old/file
			unix.Setxattr(up("new"), "trusted.overlay.opaque", []byte("y"), 0),        // hides nothing
			unix.Setxattr(up("app/out"), "trusted.overlay.origin", []byte("here"), 0), // overlayfs's own
			os.WriteFile(s.Upper+"/../outside", nil, 0o600),
		)
	}
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	m := b.build(shop(), lock).Images["web"]
	layer := b.files(image.Image{Layers: m.Layers[len(m.Layers)-1:]})
	for _, name := range []string{"/tmp/x", "/run/x", "/var/log/app.log", "/var/cache/ldconfig/aux-cache", "/etc/machine-id", "/root/.wget-hsts", "/app/pipe", "/app/socket", "/usr/share/never", "/outside"} {
		if f, ok := layer[name]; ok {
			t.Errorf("%s is in the layer: %+v", name, f)
		}
	}
	if f := layer["/app/out"]; f.UID != 33 || f.GID != 34 || f.Digest != isle.DigestOf([]byte("kept")) {
		t.Errorf("/app/out: %+v", f)
	}
	if f := layer["/app/link"]; f.Target != "/etc/shadow" {
		t.Errorf("/app/link: %+v", f)
	}
	if f := layer["/su"]; f.Mode != fs.ModeSetuid|0o755 {
		t.Errorf("/su: %v", f.Mode)
	}
	if f := layer["/usr/share/python3"]; f.Mode != image.Whiteout {
		t.Errorf("whiteout: %v", f.Mode)
	}
	if string(layer["/old"].Xattrs[image.OpaqueXattr]) != "y" || layer["/new"].Xattrs != nil {
		t.Errorf("opaque: %+v %+v", layer["/old"], layer["/new"])
	}

	b.sandbox.programs["compile"] = func(_ context.Context, s Step) error {
		return unix.Mknod(filepath.Join(s.Upper, "mem"), unix.S_IFCHR, int(unix.Mkdev(1, 1)))
	}
	if _, err := b.Build(context.Background(), shop(), lock, Options{NoCache: true}, nil); isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "/mem") {
		t.Errorf("a device: %v", err)
	}
	b.sandbox.programs["compile"] = func(_ context.Context, s Step) error {
		f, err := os.Create(filepath.Join(s.Upper, "sparse"))
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(maxStepSize + 1)
	}
	if _, err := b.Build(context.Background(), shop(), lock, Options{NoCache: true}, nil); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("a huge sparse file: %v", err)
	}
}

func TestVerifyNamesTheFirstPathThatDiffers(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	if _, err := b.Verify(context.Background(), shop(), lock, Options{}, b.say); err != nil {
		t.Fatal(err)
	}
	n := 0
	b.sandbox.programs["random"] = func(_ context.Context, s Step) error {
		n++
		return errors.Join(os.WriteFile(filepath.Join(s.Upper, "same"), nil, 0o644), os.WriteFile(filepath.Join(s.Upper, "stamp"), []byte{byte(n)}, 0o644))
	}
	f := shop()
	f.Services[1].Run = append(f.Services[1].Run, "random")
	lock, _ = b.lock(f, lock, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	_, err := b.Verify(context.Background(), f, lock, Options{}, b.say)
	if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "web: run random") || !strings.Contains(err.Error(), "/stamp: content") {
		t.Fatalf("got %v", err)
	}
}

func TestExportGoesToAnotherMachineAndBack(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	var out, again bytes.Buffer
	if err := b.Export(context.Background(), lock, &out); err != nil {
		t.Fatal(err)
	}
	if err := b.Export(context.Background(), lock, &again); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Fatalf("another export has other bytes, %v", err)
	}
	other := newBench(t)
	other.archive.version = "gone from the mirror"
	packages, size, err := other.Import(context.Background(), bytes.NewReader(out.Bytes()))
	if err != nil || packages != 2 || size == 0 {
		t.Fatalf("%d packages, %d bytes, %v", packages, size, err)
	}
	if missing := other.Needs(lock); len(missing) != 0 {
		t.Fatalf("missing %v", missing)
	}
	if got, want := other.build(shop(), lock).Images["web"].Digest(), b.build(shop(), lock).Images["web"].Digest(); got != want {
		t.Fatal("another image")
	}
	if len(other.archive.fetched) != 0 {
		t.Error("something was fetched")
	}
}

func FuzzImport(f *testing.F) {
	b := benchIn(f, f.TempDir())
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	var good bytes.Buffer
	if err := b.Export(context.Background(), lock, &good); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte("not a tar"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, _, err := b.Import(context.Background(), bytes.NewReader(raw)); err != nil && isle.CodeOf(err) == isle.Internal {
			t.Fatal(err)
		}
	})
}

// A sparse file's header says of what it has no bytes that they are zeros.
func TestAnImportCannotFillTheDiskFromAFewBytes(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"in PAX": {Typeflag: tar.TypeReg, PAXRecords: map[string]string{"GNU.sparse.size": "1"}},
		"in GNU": {Typeflag: tar.TypeGNUSparse},
	} {
		if !sparse(&h) {
			t.Error(name)
		}
	}
	if h := exportHeader("blobs/sha256/x", 64<<30); sparse(h) {
		t.Error("what is exported counts as sparse")
	}
}

func TestNeedsTellsFirstTheTreeThenItsFiles(t *testing.T) {
	here, there := newBench(t), newBench(t)
	tree := here.put(map[string]string{"shop.py": "code"})
	lock, _ := here.lock(shop(), nil, tree, LockOptions{})
	if got := there.Needs(lock); !slices.Equal(got, []isle.Digest{tree}) {
		t.Fatalf("%v", got)
	}
	raw, err := here.Images.ReadBlob(tree, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	there.blob(string(raw))
	if got := there.Needs(lock); !slices.Equal(got, []isle.Digest{isle.DigestOf([]byte("code"))}) {
		t.Fatalf("%v", got)
	}
	if _, err := there.Build(context.Background(), shop(), lock, Options{}, nil); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("build without the files: %v", err)
	}
}

func TestKeepHoldsWhatTheLastBuildNames(t *testing.T) {
	b := newBench(t)
	tree := b.put(map[string]string{"shop.py": "1"})
	lock, _ := b.lock(shop(), nil, tree, LockOptions{})
	old := b.build(shop(), lock).Images["web"]
	lock, _ = b.lock(shop(), lock, b.put(map[string]string{"shop.py": "2"}), LockOptions{})
	now := b.build(shop(), lock).Images["web"]
	layers, blobs := b.Keep(b.Now().Add(-1e9))
	if _, err := b.Images.Collect(layers, blobs, false); err != nil {
		t.Fatal(err)
	}
	b.Prune()
	if _, err := b.Images.Verify(context.Background(), now); err != nil {
		t.Error(err)
	}
	if _, err := b.Images.Verify(context.Background(), old); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("the old image: %v", err)
	}
	b.events = nil
	b.build(shop(), lock)
	if got := b.started(); len(got) != 0 {
		t.Errorf("built again: %q", got)
	}
}

func TestTwoBuildsAtOnceMakeEachStepOnce(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	b.events = nil
	results := make(chan error, 4)
	for range 4 {
		go func() {
			_, err := b.Build(context.Background(), shop(), lock, Options{}, b.say)
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	started := slices.DeleteFunc(b.started(), func(s string) bool { return strings.Contains(s, " fetch: ") })
	if len(started) != 5 || len(b.sandbox.ran) != 1 {
		t.Errorf("started %q, ran %v", started, b.sandbox.ran)
	}
}

func TestAWaitingBuildEndsWithItsOwnContextOnly(t *testing.T) {
	b := newBench(t)
	lock, _ := b.lock(shop(), nil, b.put(map[string]string{"shop.py": "code"}), LockOptions{})
	compile, running, goOn := b.sandbox.programs["compile"], make(chan bool), make(chan bool)
	b.sandbox.programs["compile"] = func(ctx context.Context, s Step) error {
		close(running)
		<-goOn
		return compile(ctx, s)
	}
	first := make(chan error)
	go func() {
		_, err := b.Build(context.Background(), shop(), lock, Options{}, nil)
		first <- err
	}()
	<-running
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Build(ctx, shop(), lock, Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waited: %v", err)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Errorf("the one that built: %v", err)
	}
}
