// Package debian turns names of Debian packages into the files of a root.
//
// An Archive reads a Debian archive: a mirror (a base URL) holds suites; a
// suite's InRelease file is signed and names the hashes of its Packages
// indexes; an index names packages, their relations and the hashes of their
// files. Resolve chooses packages and their dependencies and pins each by hash;
// Fetch brings the files into the image store; Unpack reads them, in parallel
// and without running a maintainer script, into a Tree. A Tree gives two
// layers: Packages, what the packages hold, and System, what their maintainer
// scripts would have made (users, certificate bundle, linker cache).
//
// Where the archive is comes from the machine's apt configuration or from the
// caller, never from here. What a mirror sends is believed only where the
// archive's key or a locked hash vouches for it, and bounded before that.
package debian

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/image"
)

// An Entry is one file of a root, as the image store takes it.
type Entry = image.Entry

// An Add receives one entry and, of a regular file that is not empty, its
// content. The content can be opened until the Tree it came from is closed.
// (*image.Writer).Add is one.
type Add = func(e Entry, content func() (io.ReadCloser, error)) error

// Blobs is where fetched packages go. (*image.Store) is one.
type Blobs interface {
	// Missing returns those of the digests that the store lacks.
	Missing(digests []isle.Digest) []isle.Digest
	// PutBlob stores what r gives, or Invalid if it has another digest.
	PutBlob(ctx context.Context, d isle.Digest, r io.Reader) error
}

// Config is what an Archive needs.
type Config struct {
	// Dir is the folder of the Archive's cache: indexes ("lists") and
	// unfinished downloads ("partial"). It can be deleted at any time while
	// no Archive uses it.
	Dir string
	// Blobs receives the packages' files.
	Blobs Blobs
	// Root is the folder under which /etc/apt and /usr/share/keyrings are
	// looked up. "" is "/", the machine's own.
	Root string
	// Architecture is Debian's name of the architecture to choose packages
	// for. "" is the machine's.
	Architecture string
	// Now is the clock that signatures and Valid-Until are checked against.
	// nil is time.Now.
	Now func() time.Time
	// Log receives retries and what was ignored. nil discards.
	Log *slog.Logger
}

// An Archive resolves and fetches Debian packages. Its methods may be called
// from several goroutines.
type Archive struct {
	cfg    Config
	apt    aptConfig
	client *http.Client
	pause  time.Duration // before the second try; doubled before each further one

	mu      sync.Mutex
	fetches map[isle.Digest]chan struct{} // downloads under way; closed at their end
}

// ResolveOptions change how Resolve finds the archive.
type ResolveOptions struct {
	// Mirror is a base URL to use instead of those of the apt configuration,
	// or two with a comma between: the main archive and the security archive.
	// With one, the security archive is looked for beside it: the URL with the
	// last path element "debian" made "debian-security", or else with
	// "-security" at its end.
	Mirror string
	// Refresh asks the mirror anew even if it was asked within ten minutes.
	Refresh bool
}

// FetchOptions change where Fetch looks.
type FetchOptions struct {
	Mirror string // as in ResolveOptions
	Suite  string // whose mirror to take from the apt configuration; "" any Debian one
}

// New makes the Archive and its folder. It fails with Invalid if the machine's
// architecture is none of Debian's.
func New(cfg Config) (*Archive, error) {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Architecture == "" {
		cfg.Architecture = hostArchitecture()
		if cfg.Architecture == "" {
			return nil, isle.Errorf(isle.Invalid, "Debian has no architecture for %s", runtime.GOARCH)
		}
	}
	for _, d := range []string{"lists", "partial"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, diskError("make the package cache", err)
		}
	}
	forgetPartial(filepath.Join(cfg.Dir, "partial"), cfg.Now())
	a := &Archive{cfg: cfg, apt: readAptConfig(cfg.Root), pause: 500 * time.Millisecond, fetches: map[isle.Digest]chan struct{}{}}
	a.client = a.apt.client()
	return a, nil
}

// forgetPartial removes downloads that nobody went on with for a week.
func forgetPartial(dir string, now time.Time) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if info, err := f.Info(); err == nil && now.Sub(info.ModTime()) > 7*24*time.Hour {
			os.Remove(filepath.Join(dir, f.Name()))
		}
	}
}

// Architecture is Debian's name of the architecture packages are chosen for.
func (a *Archive) Architecture() string { return a.cfg.Architecture }

// hostArchitecture is Debian's name of what this program was built for.
func hostArchitecture() string {
	return map[string]string{
		"amd64": "amd64", "arm64": "arm64", "386": "i386", "arm": "armhf",
		"ppc64le": "ppc64el", "s390x": "s390x", "riscv64": "riscv64", "loong64": "loong64",
	}[runtime.GOARCH]
}

// validPackageName follows Debian Policy 5.6.1.
func validPackageName(s string) bool {
	if len(s) < 2 || len(s) > 128 || s[0] == '+' || s[0] == '-' || s[0] == '.' {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '-' || c == '.')
	}) < 0
}
