package spec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"isle"
)

// DockerIgnoreFile is the file of a context that says what a Dockerfile's build
// does not see. One that is called as the Dockerfile with this at its end comes
// before it.
const DockerIgnoreFile = ".dockerignore"

// HashContext is HashTree of the folder whose files a Dockerfile's build sees:
// all but what its .dockerignore names, in Docker's own patterns, and .git,
// isle.lock and lock, the path of the file's own lock relative to root: it has
// the digest of all this.
func HashContext(ctx context.Context, root, lock string, b Build, cache *Cache) (Tree, map[isle.Digest]string, error) {
	folder := b.Context
	if folder != "." {
		folder += "/"
	}
	return hashTree(ctx, root, folder, cache, func(h *hasher, r *os.Root) error {
		h.verb, h.lock = "build", path.Clean(lock)
		for _, name := range []string{b.File() + DockerIgnoreFile, path.Join(b.Context, DockerIgnoreFile)} {
			h.ignoreFile = name
			raw, err := readIgnoreFile(r, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			h.docker, err = parseDockerIgnore(name, raw)
			return err
		}
		return nil
	})
}

// readIgnoreFile reads at most one byte more than such a file may have.
func readIgnoreFile(r *os.Root, name string) ([]byte, error) {
	f, err := r.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIgnoreSize+1))
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: %w", name, err)
	}
	return b, nil
}

// parseDockerIgnore reads a .dockerignore; nil is one that leaves nothing out.
func parseDockerIgnore(name string, b []byte) (*patternmatcher.PatternMatcher, error) {
	if len(b) > maxIgnoreSize {
		return nil, isle.Errorf(isle.Invalid, "%s: is longer than %d bytes", name, maxIgnoreSize)
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(b))
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: %w", name, err)
	}
	if len(patterns) > maxIgnore {
		return nil, isle.Errorf(isle.Invalid, "%s: holds more than %d patterns", name, maxIgnore)
	}
	if len(patterns) == 0 {
		return nil, nil
	}
	if err := CheckPatterns(patterns); err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: %w", name, err)
	}
	m, err := patternmatcher.New(patterns)
	if err == nil { // it compiles a pattern when it first needs it
		_, err = m.MatchesOrParentMatches("x")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: a pattern cannot be read: %w", name, err)
	}
	return m, nil
}

// CheckPatterns refuses patterns of Docker's that are larger than any path: to
// read one takes memory and time by the square of its length, gigabytes of the
// kind a/**/b/**/….
func CheckPatterns(patterns []string) error {
	total := 0
	for _, p := range patterns {
		if total += len(p); len(p) > maxPattern {
			return fmt.Errorf("%q… is a pattern of %d bytes; one has at most %d", clip(p), len(p), maxPattern)
		}
	}
	if total > maxIgnoreSize {
		return fmt.Errorf("the patterns have %d bytes; all have at most %d", total, maxIgnoreSize)
	}
	return nil
}

// maxPattern bounds one pattern of Docker's, in bytes.
const maxPattern = 1024

// leaveOut reports whether what is at rel of the context is left out. What lies
// in a folder that is left out may be taken back.
func (h *hasher) leaveOut(rel, name string, above patternmatcher.MatchInfo) (out bool, info patternmatcher.MatchInfo, err error) {
	if name == ".git" || name == "isle.lock" {
		return true, info, nil
	}
	if h.docker == nil {
		return false, info, nil
	}
	return h.docker.MatchesUsingParentResults(rel, above)
}

// takesBack reports whether something below a folder that is left out may be in
// after all.
func (h *hasher) takesBack(name string) bool {
	return h.docker != nil && h.docker.Exclusions() && name != ".git"
}
