package checkpoint_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/driver/local/checkpoint"
)

// sentry plays a sandbox that is asked to save itself, once: save is given the
// files, which it may keep.
func sentry(t *testing.T, save func(pipe, meta, pages *os.File)) (socket string, answered chan struct{}) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	answered = make(chan struct{})
	t.Cleanup(func() { l.Close(); <-answered })
	go func() {
		defer close(answered)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		b, oob := make([]byte, 4096), make([]byte, 512)
		_, n, _, _, err := c.ReadMsgUnix(b, oob)
		if err != nil {
			t.Error(err)
			return
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			t.Error(messages, err)
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 3 {
			t.Error(fds, err)
			return
		}
		save(os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "meta"), os.NewFile(uintptr(fds[2]), "pages"))
		fmt.Fprint(c, `{"success":true}`)
	}()
	return socket, answered
}

// state is what a sandbox writes of its kernel.
func state(pipe *os.File) {
	pipe.Write(binary.BigEndian.AppendUint64([]byte("gVisorSF"), 2))
	pipe.WriteString("{}state")
	pipe.Close()
}

func TestASandboxThatKeepsItsFilesHasNotBeenCaptured(t *testing.T) {
	for name, keeps := range map[string]bool{"pages": true, "nothing": false} {
		t.Run(name, func(t *testing.T) {
			kept := make(chan *os.File, 1)
			socket, _ := sentry(t, func(pipe, meta, pages *os.File) {
				state(pipe)
				meta.Close()
				pages.WriteString("pages")
				if !keeps {
					pages.Close()
				}
				kept <- pages
			})
			dir, patience := t.TempDir(), time.Duration(0)
			if keeps {
				patience = 50 * time.Millisecond
			}
			_, err := checkpoint.Capture{Socket: socket, Dir: dir, Patience: patience}.Run(t.Context())
			f := <-kept
			if !keeps {
				if err != nil {
					t.Error(err)
				}
				return
			}
			defer f.Close()
			if !errors.Is(err, checkpoint.ErrKept) {
				t.Errorf("it can write to what was captured: %v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("it left %v", left)
			}
			if st, err := f.Stat(); err != nil || st.Size() > 0 {
				t.Errorf("what it wrote takes space still: %v %v", st, err)
			}
		})
	}
}

func TestASandboxThatWritesWithoutEndLeavesRoomOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var wrote int
	var full error
	socket, answered := sentry(t, func(pipe, meta, pages *os.File) {
		pipe.Write(binary.BigEndian.AppendUint64([]byte("gVisorSF"), 2))
		pipe.WriteString("{}")
		for piece := make([]byte, 1<<20); full == nil; wrote++ { // slowly: what it tries to reach is the end
			_, full = pages.Write(piece)
			time.Sleep(20 * time.Millisecond)
			if _, err := pipe.Write([]byte("x")); err != nil {
				break
			}
		}
		pipe.Close()
		meta.Close()
		pages.Close()
	})
	if _, err := (checkpoint.Capture{Socket: socket, Dir: dir}).Run(t.Context()); err == nil {
		t.Error("it was captured")
	}
	<-answered
	if full != nil {
		t.Errorf("it could fill the disk: %v after %d MiB", full, wrote)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize < 380<<20 {
		t.Errorf("%d bytes are free: %v", int64(st.Bavail)*st.Bsize, err)
	}
}
