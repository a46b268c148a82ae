package debian

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"isle"
	"isle/internal/spec"
)

// onePackage publishes web beside the base and resolves it alone.
func onePackage(t *testing.T) (*archive, *Archive, spec.LockedPackage) {
	a := newArchive(t)
	a.publishAll(testPackage{name: "web", version: "1:1.0+a~1", postinst: strings.Repeat("# filler\n", 100)})
	d, _ := a.open(a.machine(testSources))
	pkgs, _, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pkgs {
		if p.Name == "web" {
			return a, d, p
		}
	}
	t.Fatal("web is not chosen")
	return nil, nil, spec.LockedPackage{}
}

func TestInterruptedDownloadGoesOn(t *testing.T) {
	a, d, p := onePackage(t)
	var mu sync.Mutex
	var ranges []string
	a.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if !strings.HasSuffix(r.URL.Path, ".deb") {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) == 1 { // the connection breaks after 100 bytes
			w.Header().Set("Content-Length", "9999")
			w.Write(data[:100])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return false
	}
	var last, total int64
	err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, func(n, of int64) { last, total = n, of })
	if err != nil {
		t.Fatal(err)
	}
	if len(ranges) != 2 || ranges[1] != "bytes=100-" {
		t.Errorf("ranges asked for: %q", ranges)
	}
	if last != p.Size || total != p.Size {
		t.Errorf("progress ended at %d of %d, not %d", last, total, p.Size)
	}
	if left, _ := os.ReadDir(filepath.Join(d.cfg.Dir, "partial")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVanishedPackageNamesItselfAndTheWayOut(t *testing.T) {
	a, d, p := onePackage(t)
	a.serve = func(w http.ResponseWriter, r *http.Request, _ []byte) bool { http.NotFound(w, r); return true }
	err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, nil)
	wantError(t, err, isle.NotFound, "web 1:1.0+a~1", "--mirror", "isle lock --update")
}

func TestWrongBytesNeverReachTheStore(t *testing.T) {
	a, d, p := onePackage(t)
	a.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		bad := append([]byte(nil), data...)
		bad[len(bad)-1] ^= 1
		w.Write(bad)
		return true
	}
	err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, nil)
	wantError(t, err, isle.Unavailable, "not the file that is locked")
	if len(d.cfg.Blobs.Missing([]isle.Digest{p.Digest})) != 1 {
		t.Error("the store has it")
	}
}

func TestPassingFailureIsTriedAgain(t *testing.T) {
	a, d, p := onePackage(t)
	n := 0
	var mu sync.Mutex
	a.serve = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	if err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestTwoFetchesOfOnePackageDownloadItOnce(t *testing.T) {
	a, d, p := onePackage(t)
	before := len(a.requests)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(a.requests) - before; n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestDamagedLockIsRefusedBeforeAnythingIsAsked(t *testing.T) {
	_, d, p := onePackage(t)
	for _, path := range []string{"../../etc/passwd", "/etc/passwd", "", "a//b", "a\nb"} {
		p.Path = path
		wantError(t, d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{}, nil), isle.Invalid, "isle lock --update")
	}
}

// smallDisk mounts a file system of that many kilobytes.
func smallDisk(t *testing.T, kilobytes string) string {
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+kilobytes+"k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestFullDiskIsSaidAndLeavesNothingBehind(t *testing.T) {
	a, d, p := onePackage(t)
	big := make([]byte, 300<<10)
	p.Path, p.Size, p.Digest = "pool/big.deb", int64(len(big)), isle.DigestOf(big)
	a.put("/debian/pool/big.deb", big)
	disk := smallDisk(t, "64")
	if err := os.Mkdir(filepath.Join(disk, "partial"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.cfg.Dir = disk
	err := d.Fetch(context.Background(), []spec.LockedPackage{p}, FetchOptions{Suite: "trial"}, nil)
	wantError(t, err, isle.Exhausted, "no space left", "isle gc")
	var s syscall.Statfs_t
	if err := syscall.Statfs(disk, &s); err != nil || s.Bavail*uint64(s.Bsize) < 48<<10 {
		t.Errorf("the disk is still full: %d blocks free, %v", s.Bavail, err)
	}
}
