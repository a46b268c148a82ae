// Package release keeps what was released.
//
// A Release is a sealed tuple: the images of a project's services, and what its
// file says, with the doors that it asks for, the connections whose secrets it
// refers to by name, and its limits. Its Manifest names all of that, and the
// release's own Digest is that of the manifest's canonical JSON, which a key of
// this server signs: equal inputs give an equal release, whoever makes it, when
// and where. What is known of how it came about is in Attestations: signed
// statements that name the digest and are no part of it, one of the provenance
// and one with the bill of materials.
//
// Which releases there are and the keys of other servers that are trusted are
// records of the ledger "release": the audit log vouches for them.
package release

import (
	"context"
	"io"
	"log/slog"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/policy"
	"isle/internal/seal"
	"isle/internal/spec"
)

// Version is the version of the manifest's format.
const Version = 1

// A Manifest is the tuple. The order of the fields is the order of its canonical
// encoding. Nothing in it says who made it, when or where.
type Manifest struct {
	Version  int       `json:"version"` // Version
	Project  string    `json:"project"`
	Spec     spec.File `json:"spec"`     // with every default applied
	Services []Service `json:"services"` // in the order of the file
}

// A Service is one service's image. The layers have no titles, which are for
// people.
type Service struct {
	Name   string      `json:"name"`
	Digest isle.Digest `json:"digest"` // of Image
	Image  image.Image `json:"image"`
}

// Images are the images by service.
func (m Manifest) Images() map[string]image.Image {
	out := map[string]image.Image{}
	for _, s := range m.Services {
		out[s.Name] = s.Image
	}
	return out
}

// A Source is what git knew of the files that a release was made of. Who asked
// for it says so.
type Source struct {
	Branch     string `json:"branch,omitempty"`
	Commit     string `json:"commit,omitempty"` // in hexadecimal; "" where there is none
	Dirty      bool   `json:"dirty,omitempty"`  // the files are not known to be the commit's
	Repository string `json:"repository,omitempty"`
}

// A Release is a sealed Manifest and what this server knows of it.
type Release struct {
	Digest       isle.Digest
	Manifest     Manifest
	Created      time.Time  // when it came to this server
	By           isle.Actor // who brought it
	Source       Source     // of the first provenance
	Attestations []Attestation
	Signer       string // the name of the key
	Trusted      bool   // it is signed by a key that this server trusts
	Imported     bool   // it came in a file
	// Keep is until when somebody keeps it, whatever rules say; zero: nobody does.
	Keep time.Time
	// Broken is why a listed release cannot be used; nil where nothing is known
	// to be wrong.
	Broken error
}

// Images are the layers on disk; *image.Store implements it.
type Images interface {
	// Verify checks that the layers of an image are what their digests say.
	Verify(ctx context.Context, m image.Image) ([]string, error)
	// Reread is Verify that reads every byte, whatever is known of the files.
	Reread(ctx context.Context, m image.Image) error
	// LayerPath is where the file of a layer is; HasLayer whether it is there.
	LayerPath(d isle.Digest) string
	HasLayer(d isle.Digest) bool
	// PutLayer stores the file of a layer, if it has the digest.
	PutLayer(ctx context.Context, d isle.Digest, r io.Reader) error
	// PutImage makes an image known whose layers are there.
	PutImage(m image.Image) error
	// Image returns an image that was built here, with its titles.
	Image(d isle.Digest) (image.Image, error)
}

// Config is what Releases need.
type Config struct {
	// Dir holds the releases: STATE/releases.
	Dir   string
	Store ledger.Store
	// Key signs; nil: nothing can be released.
	Key *seal.Key
	// Builder is the URI of who builds here, and BuilderVersion what that calls
	// itself: provenance names both.
	Builder, BuilderVersion string
	Images                  Images
	// InUse names what runs a release; nil: nothing.
	InUse func(isle.Digest) []string
	// Reach is what the environment of a project in a stage may do through its
	// doors, by the policy in force; nil: nobody knows, and it is not recorded.
	Reach func(project, stage string, f spec.File) policy.Reach
	Now   func() time.Time // default time.Now
	Slog  *slog.Logger     // nil discards
	// Fault is called by name around each step, for tests that crash there; nil
	// in production. FaultPoints lists the names.
	Fault func(point string)
}
