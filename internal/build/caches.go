package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/build/dockerfile"
)

// A CacheMount is the folder of RUN --mount=type=cache: of one project, found by
// its id, kept from build to build.
type CacheMount struct {
	Project string
	ID      string
	Size    int64     // bytes on disk
	Used    time.Time // when a step began with it last

	dir string
}

const (
	// cacheName, in the folder of a cache mount, holds its id.
	cacheName = "id"
	// maxCacheID bounds what is read of it, in bytes.
	maxCacheID = 4096
)

// openCache is the folder of a cache mount: of the project, found by its id. What
// a step leaves in it the next one finds.
func (b *Builder) openCache(ctx context.Context, project string, op dockerfile.Mount) (string, func(), error) {
	id := isle.DigestOf([]byte("cache mount " + op.ID))
	dir := b.projectPath(project, "caches", id.Hex()[:32])
	b.caches.RLock()
	data, leave, err := "data", func() {}, error(nil)
	switch op.Sharing {
	case "locked":
		leave, err = b.flights.enter(ctx, isle.DigestOf([]byte(dir)))
	case "private": // one more for each step that runs at the same time
		for n := 2; ; n++ {
			var free bool
			if leave, free = b.flights.try(isle.DigestOf([]byte(dir + "/" + data))); free {
				break
			}
			data = fmt.Sprintf("data-%d", n)
		}
	}
	if err == nil {
		err = makeCache(dir, data, op)
	} else {
		leave = func() {}
	}
	if err != nil {
		leave()
		b.caches.RUnlock()
		return "", func() {}, err
	}
	return filepath.Join(dir, data), func() { leave(); b.caches.RUnlock() }, nil
}

// makeCache makes the folder of a cache mount, unless it is there: whole or not
// at all, for another step may make it too.
func makeCache(dir, name string, op dockerfile.Mount) error {
	data := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError("make a cache", err)
	}
	// Its time says when it was used last.
	if err := os.WriteFile(filepath.Join(dir, cacheName), []byte(op.ID), 0o600); err != nil {
		return diskError("make a cache", err)
	}
	if _, err := os.Lstat(data); err == nil {
		return nil
	}
	draft, err := os.MkdirTemp(dir, "draft-")
	if err != nil {
		return diskError("make a cache", err)
	}
	err = errors.Join(os.Chown(draft, int(op.UID), int(op.GID)), os.Chmod(draft, op.Mode))
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, draft, unix.AT_FDCWD, data, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		removeAll(draft)
	}
	if _, there := os.Lstat(data); there == nil {
		return nil // another's, then
	}
	return diskError("make a cache", err)
}

// Caches are the cache mounts of a project, or of all where it is "", and how
// many steps' results are known.
func (b *Builder) Caches(project string) (mounts []CacheMount, steps int, err error) {
	err = b.eachCache(project, func(m CacheMount) error {
		mounts = append(mounts, m)
		return nil
	})
	return mounts, len(jsonFiles(filepath.Join(b.Cache, "steps"))), err
}

// PruneCaches removes the cache mounts of a project, or of all where it is "",
// that no step used for so long, and returns them. It is a Conflict while a step
// has one.
func (b *Builder) PruneCaches(project string, unused time.Duration) (gone []CacheMount, err error) {
	if !b.caches.TryLock() {
		return nil, isle.Errorf(isle.Conflict, "a build uses caches").WithHint("run the command again when it is done")
	}
	defer b.caches.Unlock()
	err = b.eachCache(project, func(m CacheMount) error {
		if b.Now().Sub(m.Used) < unused {
			return nil
		}
		if err := removeAll(m.dir); err != nil {
			return diskError("remove a cache", err)
		}
		gone = append(gone, m)
		return nil
	})
	return gone, err
}

// ForgetSteps forgets what steps made, so that each is made again; the layers stay
// until nothing else needs them. It returns how many were forgotten.
func (b *Builder) ForgetSteps() (n int, err error) {
	for _, name := range jsonFiles(filepath.Join(b.Cache, "steps")) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, diskError("forget a step", err)
		}
		n++
	}
	return n, nil
}

// eachCache calls each with every cache mount.
func (b *Builder) eachCache(project string, each func(CacheMount) error) error {
	projects := []string{project}
	if project == "" {
		projects = nil
		list, err := os.ReadDir(filepath.Join(b.Cache, "projects"))
		if err != nil {
			return diskError("list the caches", err)
		}
		for _, d := range list {
			projects = append(projects, d.Name())
		}
	}
	for _, p := range projects {
		dirs, err := filepath.Glob(b.projectPath(p, "caches", "*"))
		if err != nil {
			return diskError("list the caches", err)
		}
		var found []CacheMount
		for _, dir := range dirs {
			m := CacheMount{Project: p, Size: diskSize(dir), dir: dir}
			name := filepath.Join(dir, cacheName)
			id, err := os.ReadFile(name)
			if info, serr := os.Stat(name); err == nil && serr == nil {
				m.ID, m.Used = string(id[:min(len(id), maxCacheID)]), info.ModTime()
			}
			found = append(found, m)
		}
		slices.SortFunc(found, func(a, b CacheMount) int { return cmp.Compare(a.ID, b.ID) })
		for _, m := range found {
			if err := each(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// diskSize is how many bytes the files of a folder occupy. What vanishes meanwhile
// counts nothing.
func diskSize(dir string) (sum int64) {
	filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(name, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}
