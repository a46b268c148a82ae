package local

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/build"
)

func step(t *testing.T, b *bench, command ...string) (build.Step, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	out := &bytes.Buffer{}
	s := build.Step{Layers: b.layers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Command: command,
		Env: map[string]string{"GREETING": "hello"}, Output: out}
	for _, d := range []string{s.Upper, s.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s, out
}

func TestABuildStepLeavesItsChangesWithTheOwnersSeenInside(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		s, out := step(t, b, "/bin/guest", "change")
		if err := b.RunStep(t.Context(), s); err != nil {
			t.Fatal(err, out)
		}
		if out.String() != "changed 5\n" {
			t.Errorf("output %q", out)
		}
		var got []string
		filepath.Walk(s.Upper, func(path string, info os.FileInfo, err error) error {
			if err == nil && path != s.Upper {
				got = append(got, strings.TrimPrefix(path, s.Upper))
			}
			return err
		})
		if strings.Join(got, " ") != "/app /app/file /app/new /etc /etc/passwd" {
			t.Errorf("changes: %q", got)
		}
		for path, want := range map[string]unix.Stat_t{
			"app/new":    {Uid: 42, Gid: 43, Mode: unix.S_IFREG | 0o640},
			"app/file":   {Mode: unix.S_IFCHR}, // a whiteout
			"etc/passwd": {Mode: unix.S_IFREG | 0o600},
			"etc":        {Mode: unix.S_IFDIR | 0o755},
		} {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(s.Upper, path), &st); err != nil {
				t.Error(err)
			}
			if st.Uid != want.Uid || st.Gid != want.Gid || st.Mode != want.Mode && want.Mode != unix.S_IFCHR || st.Rdev != 0 {
				t.Errorf("%s: %d:%d %o", path, st.Uid, st.Gid, st.Mode)
			}
		}
		seesNothing(t, b.Driver)
	})
}

func TestALayerMayBeInAnImageTwice(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		b.layers = append(slices.Clone(b.layers), b.layers[0])
		l := b.launchOf(isle.NewID(), "links")
		exited := b.up(&l)
		b.report(l)
		if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
			t.Fatal(err)
		}
		<-exited
		if err := b.Remove(t.Context(), l.Instance); err != nil {
			t.Fatal(err)
		}
		s, out := step(t, b, "/bin/guest", "change")
		s.Mounts = []build.Mount{{Target: "/tree", Layers: b.layers, Source: "/app", ReadOnly: true}}
		if err := b.RunStep(t.Context(), s); err != nil {
			t.Error(err, out)
		}
	})
}

func TestABuildStepIsSealedAndFailsWithItsReason(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		s, out := step(t, b, "/bin/guest", "probe", "links")
		if err := b.RunStep(t.Context(), s); err != nil || out.String() != "lo true\n" {
			t.Errorf("%q, %v", out, err)
		}
		s, _ = step(t, b, "/bin/guest", "exit")
		err := b.RunStep(t.Context(), s)
		if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "ended with exit code 7") {
			t.Errorf("%v", err)
		}
		s, _ = step(t, b, "compile", "everything")
		err = b.RunStep(t.Context(), s)
		if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "compile is not in the image") {
			t.Errorf("%v", err)
		}
	})
}

func TestABuildStepDiesWithItsContext(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		s, _ := step(t, b, "/bin/guest", "sleep")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		read, write := io.Pipe()
		s.Output = write
		go func() {
			buf := make([]byte, 64)
			read.Read(buf) // it runs
			all, err := b.List(t.Context())
			if err != nil || len(all) != 0 {
				t.Errorf("a running step is not for reconcile: %v, %v", all, err)
			}
			cancel()
			io.Copy(io.Discard, read)
		}()
		if err := b.RunStep(ctx, s); err != context.Canceled {
			t.Errorf("%v", err)
		}
		write.Close()
		seesNothing(t, b.Driver)
	})
}

func TestABuildStepThatFillsTheDiskIsStopped(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchSize(dir, sizeBounds{bytes: 1 << 20, files: 1 << 40})(ctx, stop)
	}()
	// The disk is shared with other tests, which may free some meanwhile: go
	// on writing, within bounds, until it is noticed.
	for i := range 64 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			if code := isle.CodeOf(context.Cause(ctx)); code != isle.Exhausted {
				t.Errorf("stopped with %v: %v", code, context.Cause(ctx))
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatal("256 MiB were written, and nobody minded")
}

func TestCheckFindsThisMachineFit(t *testing.T) {
	b := newBench(t, classGvisor)
	install(t, "crun", "mke2fs")
	for _, c := range Examine(b.given) {
		if c.State != ok {
			t.Errorf("%+v", c)
		}
		t.Logf("%+v", c)
	}
}

func TestAStepIsStoppedThatMakesFilesWithoutEnd(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchSize(dir, sizeBounds{bytes: 1 << 40, files: 1000})(ctx, stop)
	}()
	for i := range 1 << 20 { // others free inodes meanwhile: go on until it is noticed
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i%1000 != 0 {
			continue
		}
		select {
		case <-done:
			if code := isle.CodeOf(context.Cause(ctx)); code != isle.Exhausted {
				t.Errorf("stopped with %v: %v", code, context.Cause(ctx))
			}
			return
		default:
		}
	}
	t.Fatal("a million files were made, and nobody minded")
}

// Neither a file that has no name any more nor one that no path leads to is in the
// sum of what a folder holds.
func TestAStepIsStoppedThatHidesWhatItWrites(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, dir string){
		"without a name": func(t *testing.T, dir string) {
			f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if _, err := f.Write(make([]byte, 6<<20)); err != nil {
				t.Fatal(err)
			}
		},
		"deep below": func(t *testing.T, dir string) {
			at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_PATH, 0)
			for range 3000 {
				if err == nil {
					err = unix.Mkdirat(at, "aaa", 0o755)
				}
				if err != nil {
					t.Fatal(err)
				}
				below, oerr := unix.Openat(at, "aaa", unix.O_DIRECTORY|unix.O_PATH, 0)
				unix.Close(at)
				at, err = below, oerr
			}
			f, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
			unix.Close(at)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(f)
			if err := unix.Fallocate(f, 0, 0, 6<<20); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			b := sizeBounds{bytes: 1 << 40, files: 1 << 40, reserve: 12 << 20}
			if name == "deep below" {
				b = sizeBounds{bytes: 4 << 20, files: 1 << 40}
			}
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			done := make(chan struct{})
			watch := watchSize(dir, b)
			go func() {
				defer close(done)
				watch(ctx, stop)
			}()
			write(t, dir)
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("nobody minded")
			}
			if code := isle.CodeOf(context.Cause(ctx)); code != isle.Exhausted {
				t.Errorf("stopped with %v: %v", code, context.Cause(ctx))
			}
		})
	}
}
