// Package build turns a spec.File and its Lock into images.
//
// Lock resolves Debian packages with their dependencies from an archive whose
// release signature is checked against the machine's keyring. Build fetches by
// hash, unpacks without maintainer scripts, adds what those would have made
// (users, CA bundle, linker cache), copies files and runs steps in a Sandbox
// without network; each result is a layer in the image store. A step's key
// covers everything that can change its output; a step whose key is known is
// not run again, and a miss names the input that changed. Verify builds again
// without the cache and names the first path that differs.
//
// The room declares the Sandbox it runs steps in; a driver implements it.
package build

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/build/debian"
	"isle/internal/image"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// A Sandbox runs one build step: the same isolation as a service, no network but
// the step's own, and a root that can be written.
type Sandbox interface {
	// RunStep runs the step to its end. It returns an *isle.Error with code
	// Failed if the command exits with another code than 0.
	RunStep(ctx context.Context, s Step) error
}

// A Step is one command at build time.
type Step struct {
	Layers  []string // paths of the layers' files, lowest first
	Upper   string   // an empty folder that receives the changes as an overlay upper: owners as seen inside, whiteouts as 0:0 devices
	Work    string   // an empty folder beside it on the same file system
	Command []string
	Env     map[string]string
	Output  io.Writer // stdout and stderr
	Network Network   // all that it reaches; nil: nothing

	// Of a Dockerfile, where a step's root is all its own.
	Plain    bool   // /tmp and /run are folders of the root, and not in memory
	Dir      string // that the command starts in; "" is /
	UID, GID uint32
	Groups   []uint32 // others that the user is in
	Mounts   []Mount
}

// A Network is what a step reaches: it answers at every address, and every name
// has one.
type Network interface {
	// Ports are those at which it answers.
	Ports() []int
	// Serve takes a connection that the step opened to conn.LocalAddr(), owns it,
	// and returns at once.
	Serve(conn net.Conn)
}

// A Mount is something that a step sees and that is no part of its root. Exactly
// one of Layers, Folder and Content is set, or none: then it is in memory.
type Mount struct {
	Target   string // absolute; no part of it is a link
	ReadOnly bool
	Layers   []string    // a tree, lowest first; what is written to it is gone after the step
	Source   string      // the path of it that is mounted; no part of it is a link
	File     bool        // that is a file
	Folder   string      // a folder of the machine with owners as seen inside; what is written stays
	Content  []byte      // a file
	Size     int64       // in memory, bytes; 0: what the step may use
	Mode     os.FileMode // of Content
	UID, GID uint32      // of Content
}

// Progress is called, one call at a time, as the work goes on.
type Progress func(Event)

// An Event is one line of progress.
type Event struct {
	Service string // "" for the whole
	Step    string // "resolve", "fetch", "packages", "system", "copy app/", "run python3 -m …"
	State   string // "start", "progress", "log", "cached", "done"
	Message string // for people; of "start" after a cache miss: the input that changed
	Done    int64  // bytes, of "progress"
	Total   int64
}

// An Archive is where packages come from. (*debian.Archive) is one.
type Archive interface {
	// Architecture is Debian's name of the architecture packages are for.
	Architecture() string
	// Resolve chooses packages and all that they need.
	Resolve(ctx context.Context, suite string, requests []string, o debian.ResolveOptions, say func(message string)) ([]spec.LockedPackage, spec.SuiteLock, error)
	// Fetch brings packages into the image store, by hash.
	Fetch(ctx context.Context, pkgs []spec.LockedPackage, o debian.FetchOptions, progress func(done, total int64)) error
}

// Config is what a Builder needs. All of it but Now, Registry, Dial and Roots is required.
type Config struct {
	Images  *image.Store // keeps packages, copied files, layers and images
	Archive Archive      // resolves and fetches packages
	Sandbox Sandbox      // runs steps
	// Registry pulls and pushes images; nil: there are none but those sent.
	Registry *registry.Client
	// Dial connects steps with the recorded network to a host, if that may be
	// reached; nil: there is no such network.
	Dial func(ctx context.Context, host string, port int) (net.Conn, error)
	// Roots verify what it connects to; nil: the system's.
	Roots *x509.CertPool
	// Cache is a folder on the disk that also holds run steps' changes: step
	// records (what was made from what), what was last built of each project,
	// and, while a build runs, its scratch folders. It can be deleted while no
	// Builder uses it: everything is built again then.
	Cache string
	Now   func() time.Time // nil is time.Now
}

// A Builder locks and builds. Its methods may be called from several
// goroutines; a step that two builds need at once is made once.
type Builder struct {
	Config
	unpack  unpackFunc
	flights flights
	caches  sync.RWMutex // held shared by steps that have a cache mounted
	imports atomic.Int64 // that go on
	// patience is how long a build waits for another that makes the same, and is
	// itself kept waiting by whoever reads what it tells.
	patience time.Duration
}

// New makes a Builder and its cache folder, and removes what a process that
// died in the middle of a build left there.
func New(c Config) (*Builder, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	b := &Builder{Config: c, unpack: unpackDebian, patience: 10 * time.Second}
	if err := removeAll(b.scratchDir()); err != nil {
		return nil, isle.Errorf(isle.Internal, "clear the build's scratch folder: %w", err)
	}
	for _, d := range []string{b.scratchDir(), filepath.Join(c.Cache, "steps"), filepath.Join(c.Cache, "images"), filepath.Join(c.Cache, "bases"), filepath.Join(c.Cache, "pins"), filepath.Join(c.Cache, "projects")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, isle.Errorf(isle.Internal, "make the build's cache: %w", err)
		}
	}
	return b, nil
}

func (b *Builder) scratchDir() string { return filepath.Join(b.Cache, "scratch") }

// scratch makes an empty folder for one step; done removes it with all that is
// in it, whatever a step put there.
func (b *Builder) scratch(kind string) (dir string, done func(), err error) {
	dir, err = os.MkdirTemp(b.scratchDir(), kind+"-")
	if err != nil {
		return "", nil, diskError("make a scratch folder", err)
	}
	return dir, func() { removeAll(dir) }, nil
}

// serial makes a Progress that may be called from several goroutines, and that
// may be nil.
func serial(p Progress) Progress {
	var mu sync.Mutex
	return func(e Event) {
		switch {
		case p == nil:
			return
		case e.State != "progress":
			mu.Lock()
		case !mu.TryLock(): // the next one says more, and who pulls keeps others waiting that want the same
			return
		}
		defer mu.Unlock()
		p(e)
	}
}
