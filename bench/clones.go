package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"isle"
	"isle/internal/driver/local"
	"isle/internal/environment"
)

// volumes measures how long a volume's clone takes, beside cp of as much, and
// what it costs a volume to be in the store that clones need where the disk has
// no reflinks.
func volumes(runs int) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	state, err := os.MkdirTemp("/var/tmp", "isle-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	d, err := local.New(local.Config{State: state})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := describe(); err != nil {
		return err
	}
	for _, mib := range []int64{100, 1000, 4000} {
		if err := clones(d.Volumes(), state, mib, runs); err != nil {
			return err
		}
	}
	return nested(d.Volumes(), state, runs)
}

// clones compares the clone of a volume that holds that much with cp.
func clones(v environment.Volumes, state string, mib int64, runs int) error {
	ctx := context.Background()
	id, plain := isle.NewID(), filepath.Join(state, "plain")
	if err := v.Create(ctx, id, (mib+100)<<20); err != nil {
		return err
	}
	defer v.Delete(ctx, id)
	defer os.Remove(plain)
	for _, path := range []string{v.Path(id), plain} {
		if err := lay(path, mib); err != nil {
			return err
		}
	}
	clone := func(context.Context, int) (time.Duration, error) {
		to := isle.NewID()
		begin := time.Now()
		how, err := v.Clone(ctx, id, to)
		took := time.Since(begin)
		if err == nil && how != environment.ByReflink {
			err = fmt.Errorf("a %s is nothing to measure: isle doctor says why", how)
		}
		return took, errors.Join(err, v.Delete(ctx, to))
	}
	cp := func(context.Context, int) (time.Duration, error) {
		begin := time.Now()
		out, err := exec.Command("sh", "-c", `cp --sparse=always --reflink=auto "$1" "$1.copy" && sync "$1.copy"`, "sh", plain).CombinedOutput()
		took := time.Since(begin)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return took, errors.Join(err, os.Remove(plain+".copy"))
	}
	return compare(ctx, fmt.Sprintf("A clone of %d MB", mib), "cp", runs, []contender{{"isle", clone}, {"cp", cp}})
}

// lay writes random data to the end of a file, or to a new one.
func lay(path string, mib int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(io.NewOffsetWriter(f, 100<<20), io.LimitReader(rand.Reader, mib<<20)); err != nil {
		return err
	}
	return f.Sync()
}

// nested compares a volume in the store with one on the disk itself, both
// attached as launches have them.
func nested(v environment.Volumes, state string, runs int) error {
	ctx := context.Background()
	id, plain := isle.NewID(), filepath.Join(state, "plain.ext4")
	if err := v.Create(ctx, id, 2<<30); err != nil {
		return err
	}
	defer v.Delete(ctx, id)
	inStore := fmt.Sprintf("/proc/%d/%s", os.Getpid(), strings.TrimPrefix(v.Path(id), "/proc/self/"))
	script := `truncate -s 2G "$1" && mke2fs -q -F -t ext4 -m 0 -I 256 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$1"`
	if out, err := exec.Command("sh", "-c", script, "sh", plain).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	defer os.Remove(plain)
	at := map[string]string{inStore: filepath.Join(state, "in-store"), plain: filepath.Join(state, "on-disk")}
	for image, dir := range at {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		script := `d=$(losetup -f --show --direct-io=on "$1") && mount "$d" "$2" && losetup -d "$d"`
		if out, err := exec.Command("sh", "-c", script, "sh", image, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		defer syscall.Unmount(dir, 0)
	}
	for _, work := range []struct {
		title string
		run   func(dir string) (time.Duration, error)
	}{
		{"200 appends of 8 KiB, each written out", appends},
		{"200 overwrites of 8 KiB, each written out", overwrites},
		{"128 MiB in one go, written out", inOneGo},
		{"200 transactions: three random pages of 8 KiB, and one of a log that is written out", transactions},
	} {
		one := func(dir string) func(context.Context, int) (time.Duration, error) {
			return func(context.Context, int) (time.Duration, error) { return work.run(dir) }
		}
		err := compare(ctx, work.title, "on the disk", runs, []contender{
			{"in the store", one(at[inStore])}, {"on the disk", one(at[plain])},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// timed runs fn on a file and says how long it took.
func timed(path string, fn func(f *os.File) error) (time.Duration, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	begin := time.Now()
	err = fn(f)
	return time.Since(begin), err
}

// pages writes 200 pages from the start on, each written out.
func pages(f *os.File) error {
	page := make([]byte, 8<<10)
	rand.Read(page)
	for i := range int64(200) {
		if _, err := f.WriteAt(page, i*int64(len(page))); err != nil {
			return err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

func appends(dir string) (time.Duration, error) {
	path := filepath.Join(dir, string(isle.NewID()))
	defer os.Remove(path)
	return timed(path, pages)
}

func overwrites(dir string) (time.Duration, error) {
	path := filepath.Join(dir, "overwritten")
	if _, err := os.Stat(path); err != nil {
		if _, err := timed(path, pages); err != nil {
			return 0, err
		}
	}
	return timed(path, pages)
}

func inOneGo(dir string) (time.Duration, error) {
	path, chunk := filepath.Join(dir, "bulk"), make([]byte, 1<<20)
	rand.Read(chunk)
	defer os.Remove(path)
	return timed(path, func(f *os.File) error {
		for range 128 {
			if _, err := f.Write(chunk); err != nil {
				return err
			}
		}
		return f.Sync()
	})
}

func transactions(dir string) (time.Duration, error) {
	heap := filepath.Join(dir, "heap")
	if _, err := os.Stat(heap); err != nil {
		if err := os.WriteFile(heap, make([]byte, 64<<20), 0o600); err != nil {
			return 0, err
		}
	}
	table, err := os.OpenFile(heap, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer table.Close()
	page := make([]byte, 8<<10)
	rand.Read(page)
	return timed(filepath.Join(dir, "log"), func(log *os.File) error {
		for i := range int64(200) {
			for range 3 {
				if _, err := table.WriteAt(page, mathrand.Int64N(64<<20/8192)*8192); err != nil {
					return err
				}
			}
			if _, err := log.WriteAt(page, i*8192); err != nil {
				return err
			}
			if err := syscall.Fdatasync(int(log.Fd())); err != nil {
				return err
			}
		}
		return nil
	})
}
