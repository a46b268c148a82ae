package local

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs fn on an operating-system thread that nothing else ever
// runs on: fn may change what belongs to the thread (its mount namespace, its
// working folder), and the thread ends with it. The main thread can't end, and
// /proc/self speaks of it, so it is never used.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// Hold the main thread until another goroutine has one of its own.
		next := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(next)
			done <- fn()
		}()
		<-next
		runtime.UnlockOSThread()
	}()
	return <-done
}

// inPrivateMounts runs fn on a thread with a mount namespace of its own, in
// which nothing that fn mounts is seen by the host. A fresh tmpfs is mounted
// at dir, an existing folder of the host, and is the working folder. The
// namespace and every mount in it vanish when fn has returned and no process
// that fn started is left in it, however those end.
//
// hide lists mount points to unmount first: crun refuses to run while a hybrid
// cgroup hierarchy is in sight.
func inPrivateMounts(dir string, hide []string, fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the mount namespace: %w", err)
		}
		// Slaves: nothing goes out to the host, but what the host unmounts is not
		// kept here, for as long as a build step may take.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		for _, h := range hide {
			if err := unix.Unmount(h, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s in the launch's own namespace: %w", h, err)
			}
		}
		if err := unix.Mount("isle", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size=32m,nr_inodes=4096"); err != nil {
			return fmt.Errorf("mount a private folder at %s: %w", dir, err)
		}
		if err := unix.Chdir(dir); err != nil {
			return &os.PathError{Op: "chdir", Path: dir, Err: err}
		}
		return fn()
	})
}
