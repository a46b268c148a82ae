package spec

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"isle"
)

// A Cache remembers the digests of files by what stat says about them, so that
// to hash a tree that did not change reads no file. It is a file of the
// caller's; one that is damaged or missing is an empty one. A nil *Cache
// remembers nothing. It is for one goroutine.
type Cache struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	path    string
	entries map[string]cached // by absolute path
	walked  []string          // folders whose entries not seen in this run are dropped
	changed bool
	hashed  int
}

// A cached is what stat said about a file when it was hashed.
type cached struct {
	size, mtime, ctime int64 // bytes; nanoseconds since 1970
	inode, device      uint64
	digest             isle.Digest
	seen               bool // in this run
}

const (
	cacheHeader  = "isle file cache 1\n"
	maxCacheSize = 256 << 20 // bytes
	maxCached    = 200_000   // entries: beyond it only those of this run are kept
)

// OpenCache reads the cache at path.
func OpenCache(path string) *Cache {
	c := &Cache{path: path, entries: map[string]cached{}}
	f, err := os.Open(path)
	if err != nil {
		return c
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCacheSize))
	if err != nil || !bytes.HasPrefix(b, []byte(cacheHeader)) {
		return c
	}
	for line := range strings.SplitSeq(string(b[len(cacheHeader):]), "\n") {
		if name, e, ok := parseCached(line); ok {
			c.entries[name] = e
		}
	}
	return c
}

// parseCached reads "hex size mtime ctime inode device path".
func parseCached(line string) (string, cached, bool) {
	var e cached
	rest := line
	next := func() string {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
		return word
	}
	e.digest = isle.Digest("sha256:" + next())
	ok := e.digest.Valid()
	for _, to := range []*int64{&e.size, &e.mtime, &e.ctime} {
		n, err := strconv.ParseInt(next(), 10, 64)
		*to, ok = n, ok && err == nil
	}
	for _, to := range []*uint64{&e.inode, &e.device} {
		n, err := strconv.ParseUint(next(), 10, 64)
		*to, ok = n, ok && err == nil
	}
	return rest, e, ok && filepath.IsAbs(rest)
}

// Hashed is how many files were read and hashed since OpenCache.
func (c *Cache) Hashed() int {
	if c == nil {
		return 0
	}
	return c.hashed
}

// Save writes the cache, whole or not at all, if it changed. The folder that it
// lies in must be there.
func (c *Cache) Save() error {
	if c == nil {
		return nil
	}
	full := len(c.entries) > maxCached
	for name, e := range c.entries {
		if !e.seen && (full || c.below(name)) {
			delete(c.entries, name)
			c.changed = true
		}
	}
	if !c.changed {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(c.path), filepath.Base(c.path)+".*")
	if err != nil {
		return fmt.Errorf("file cache: %w", err)
	}
	defer os.Remove(f.Name())
	w := bufio.NewWriter(f)
	w.WriteString(cacheHeader)
	for name, e := range c.entries {
		fmt.Fprintf(w, "%s %d %d %d %d %d %s\n", e.digest.Hex(), e.size, e.mtime, e.ctime, e.inode, e.device, name)
	}
	err = w.Flush()
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		return fmt.Errorf("file cache: %w", err)
	}
	c.changed = false
	return nil
}

func (c *Cache) below(name string) bool {
	for _, w := range c.walked {
		if within(name, w) {
			return true
		}
	}
	return false
}

// walk notes that everything below dir is about to be looked at.
func (c *Cache) walk(dir string) {
	if c != nil {
		c.walked = append(c.walked, dir)
	}
}

// get returns the digest of a file that stat describes as it was hashed.
func (c *Cache) get(name string, info fs.FileInfo) (isle.Digest, bool) {
	if c == nil {
		return "", false
	}
	e, known := c.entries[name]
	now, ok := statOf(info)
	if !known || !ok {
		return "", false
	}
	e.seen = true
	c.entries[name] = e
	now.digest, now.seen = e.digest, true
	return e.digest, now == e
}

// put remembers the digest of a file that was read after start. A file that
// changed so lately that a later change could leave its times as they are is
// not remembered: it will be hashed again.
func (c *Cache) put(name string, info fs.FileInfo, d isle.Digest, start time.Time) {
	if c == nil {
		return
	}
	c.hashed++
	e, ok := statOf(info)
	// Times are as coarse as the kernel's tick, or whole seconds on some file
	// systems, which then show no fraction.
	grain := 50 * time.Millisecond
	if e.ctime%int64(time.Second) == 0 {
		grain = 2 * time.Second
	}
	if !ok || strings.Contains(name, "\n") || start.Sub(time.Unix(0, e.ctime)) < grain {
		if _, known := c.entries[name]; known {
			delete(c.entries, name)
			c.changed = true
		}
		return
	}
	e.digest, e.seen = d, true
	c.entries[name] = e
	c.changed = true
}

func (c *Cache) now() time.Time {
	if c == nil || c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func statOf(info fs.FileInfo) (cached, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return cached{}, false
	}
	return cached{size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), inode: st.Ino, device: uint64(st.Dev)}, true
}
