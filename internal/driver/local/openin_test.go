package local

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Launches mount at any time, and the kernel then answers EAGAIN to whoever goes
// up a "..": a launch does not fail by another one.
func TestALinkIsFollowedWhileOthersMountAndRename(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"root/root", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../../../../../../../root", filepath.Join(dir, "root/srv")); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	stop := make(chan struct{})
	var renaming sync.WaitGroup
	renaming.Go(func() {
		a, b := filepath.Join(dir, "other"), filepath.Join(dir, "another")
		for {
			select {
			case <-stop:
				return
			default:
				os.Rename(a, b)
				a, b = b, a
			}
		}
	})
	for range 5000 {
		fd, err := openFolderIn(root, "srv")
		if err != nil {
			t.Errorf("a folder that is there: %v", err)
			break
		}
		unix.Close(fd)
	}
	close(stop)
	renaming.Wait()
}
