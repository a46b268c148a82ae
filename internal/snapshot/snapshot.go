// Package snapshot keeps states of environments that were captured.
//
// A Snapshot is what an environment was at one instant: its file, its images,
// the content of its volumes and, of a gVisor environment, its memory. Its
// Manifest names all of that by digest, and the snapshot's own Digest is that of
// the manifest's canonical JSON, which a key of this server signs: change a byte
// anywhere and it is another snapshot, or none. A Draft is a snapshot in the
// making: a driver captures into the volumes and the folder that it gives, and
// Seal makes the snapshot, whole or not at all. A snapshot's volumes are files
// among the driver's, under IDs of their own, so that forks clone them; nobody
// writes to them any more.
//
// Which snapshots there are, the tags that people gave them and the keys of
// other servers that are trusted are records of the ledger "snapshot": the audit
// log vouches for them.
//
// A Warm snapshot is one that the server took by itself, of an environment that
// had just become ready: others that ask for the very same begin with it. There is
// one for each key at most, and so many of each owner. Those that nobody begins
// with go.
package snapshot

import (
	"context"
	"log/slog"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/seal"
	"isle/internal/spec"
)

// Version is the version of the manifest's format.
const Version = 1

// BlockSize is the unit, in bytes, that a volume's content is hashed by.
const BlockSize = 1 << 20

// A Manifest says what a snapshot holds. The order of the fields is the order of
// its canonical encoding.
type Manifest struct {
	Version    int         `json:"version"` // Version
	Ref        isle.Ref    `json:"ref"`     // of the environment, when it was captured
	Project    string      `json:"project"`
	Instance   isle.ID     `json:"instance"`
	Isolation  string      `json:"isolation"` // "container", "gvisor"
	Author     isle.Actor  `json:"author"`
	Created    time.Time   `json:"created"` // UTC, microseconds
	Message    string      `json:"message,omitempty"`
	Parent     isle.Digest `json:"parent,omitempty"`     // the snapshot that the environment was forked from or restored to, or that was taken of it before
	Release    string      `json:"release,omitempty"`    // what the environment ran
	Generation int64       `json:"generation,omitempty"` // of the environment
	Spec       spec.File   `json:"spec"`
	Services   []Service   `json:"services"` // in start order
	Volumes    []Volume    `json:"volumes"`  // sorted by service and path
	Memory     *Memory     `json:"memory,omitempty"`
}

// A Service is one service of the environment.
type Service struct {
	Name   string      `json:"name"`
	Image  image.Image `json:"image"`
	Launch isle.ID     `json:"launch"`
	// SecretHash is that of the launch whose isle-init is in Memory; "" for a
	// service that is not in it.
	SecretHash isle.Digest `json:"secret_hash,omitempty"`
	// Phase is what the service was when memory was captured: "running",
	// "unhealthy" or "starting" of one that is in it, "exited", "failed" or
	// "pending" of another. ExitCode is that of one that had ended.
	Phase    string `json:"phase,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
}

// A Volume is the content of one volume.
type Volume struct {
	Service string      `json:"service"`
	Path    string      `json:"path"`   // inside
	Size    int64       `json:"size"`   // bytes, of the file with its holes
	Digest  isle.Digest `json:"digest"` // of the content; see ContentDigest
	Bytes   int64       `json:"bytes"`  // that are not zero, in blocks of BlockSize
}

// Name is SERVICE:PATH, by which the volumes of a snapshot are told apart.
func (v Volume) Name() string { return v.Service + ":" + v.Path }

// Memory is the memory of all services.
type Memory struct {
	Runtime isle.Digest `json:"runtime"` // SHA-256 of the isle-runsc binary that can restore it
	Files   []File      `json:"files"`   // sorted by name
}

// A File is one file of the memory.
type File struct {
	Name   string      `json:"name"` // of letters, digits, dots, dashes and underscores
	Size   int64       `json:"size"`
	Digest isle.Digest `json:"digest"` // SHA-256 of the bytes
}

// A Snapshot is a sealed Manifest and what this server knows of it.
type Snapshot struct {
	Digest   isle.Digest
	Manifest Manifest
	Tags     []string // sorted
	Trusted  bool     // it is signed by a key that this server trusts
	Signer   string   // the name of the key
	Used     int64    // bytes on disk
	// Local is the volume, of the snapshot's own, that holds each of the
	// manifest's, by Volume.Name.
	Local map[string]isle.ID
	// Imported says that the snapshot came in a file: its volumes were written
	// anew from the files in them. NoMemory says that its memory was left out.
	Imported, NoMemory bool
	// Memory is the folder of the memory, where Use gave the snapshot and the
	// memory may be restored: its signature is trusted.
	Memory string
	// Broken is why a listed snapshot cannot be used; nil where nothing is known
	// to be wrong.
	Broken error
	// Warm is set of a ready state that the server kept by itself.
	Warm *Warm
}

// Volumes are the files behind volumes; the driver's implement it.
type Volumes interface {
	// Path is where the file is.
	Path(id isle.ID) string
	// Create makes an empty volume of size bytes.
	Create(ctx context.Context, id isle.ID, size int64) error
	// Fill makes the content of a volume anew: a file system of its size with the
	// files of a folder.
	Fill(ctx context.Context, id isle.ID, dir string) error
	// Delete removes it.
	Delete(ctx context.Context, id isle.ID) error
	// Used is how many bytes a volume really occupies on disk.
	Used(id isle.ID) (int64, error)
}

// Config is what Snapshots need.
type Config struct {
	// Dir holds the snapshots: STATE/snapshots.
	Dir     string
	Volumes Volumes
	Store   ledger.Store
	// Key signs; nil: nothing can be sealed.
	Key *seal.Key
	// InUse says what stands on a snapshot: the environments that were forked
	// from it or restored to it. nil: nothing.
	InUse func(isle.Digest) []string
	// WarmCount and WarmBytes bound the warm snapshots of one owner: how many there
	// are, and how much content they have together. Default 8 and 4 GiB.
	WarmCount int
	WarmBytes int64
	Now       func() time.Time // default time.Now
	Slog      *slog.Logger     // nil discards
	// Fault is called by name around each step, for tests that crash there; nil
	// in production. FaultPoints lists the names.
	Fault func(point string)
}
