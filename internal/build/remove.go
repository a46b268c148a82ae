package build

import (
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeAll removes a folder with all that is in it, whatever a step put there.
// os.RemoveAll has a file open for each level of folders: a step that nests them
// deep would take all that the server may open. Here folders move up to the top
// first, and two files are open.
func removeAll(dir string) error {
	top, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return os.Remove(dir)
	} else if err != nil {
		return err
	}
	moved := 0
	err = eachName(top, func(name string) error {
		if gone, err := removeOne(int(top.Fd()), name); gone || err != nil {
			return err
		}
		fd, err := unix.Openat(int(top.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		below := os.NewFile(uintptr(fd), name)
		defer below.Close()
		err = eachName(below, func(inner string) error {
			if gone, err := removeOne(fd, inner); gone || err != nil {
				return err
			}
			for ; ; moved++ {
				err := unix.Renameat2(fd, inner, int(top.Fd()), "moved-"+strconv.Itoa(moved), unix.RENAME_NOREPLACE)
				if !errors.Is(err, unix.EEXIST) {
					return err
				}
			}
		})
		if err != nil {
			return err
		}
		return unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR)
	})
	if cerr := top.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Remove(dir)
	}
	return err
}

// removeOne removes a file or an empty folder; not gone is a folder that has
// something in it.
func removeOne(dir int, name string) (gone bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST):
		return false, nil
	}
	return false, &os.PathError{Op: "remove", Path: name, Err: err}
}

// eachName calls each with what is in a folder until nothing is: each takes it
// out.
func eachName(dir *os.File, each func(name string) error) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for _, name := range names {
			if err := each(name); err != nil {
				return err
			}
		}
	}
}
