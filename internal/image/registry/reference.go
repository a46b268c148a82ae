// Package registry speaks to registries of images, as the OCI distribution
// specification has it.
//
// A Reference names an image: REGISTRY/REPOSITORY:TAG or @DIGEST. A tag may mean
// another image tomorrow; a digest never does. Credentials are what a registry
// knows a caller by. A Client pulls what a reference names, resuming what broke
// off, and pushes; it believes nothing that a registry says without hashing it.
package registry

import (
	"errors"
	"net"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"isle"
)

// Local is the registry of references to images of the server's own store:
// localhost/shop:1. Nothing is ever fetched for one.
const Local = "localhost"

// A Reference names an image.
type Reference struct {
	Registry   string // HOST or HOST:PORT; Local
	Repository string // "team/shop"
	Tag        string // "" where there is a digest alone
	Digest     isle.Digest
}

// Parse reads a reference as Docker does: without a registry it is one of Docker's
// own, without tag and digest its tag is "latest".
func Parse(s string) (Reference, error) {
	if len(s) > 512 {
		return Reference{}, bad(s, errors.New("it is too long"))
	}
	rest, digest, pinned := strings.Cut(s, "@")
	r := Reference{Digest: isle.Digest(digest)}
	if pinned && !r.Digest.Valid() {
		return r, bad(s, errors.New("after @ comes sha256: and 64 lower-case hexadecimal characters"))
	}
	if local, ok := strings.CutPrefix(rest, Local+"/"); ok {
		rest, r.Registry = "local.invalid/"+local, Local // which the parser takes for a registry
	}
	t, err := name.NewTag(rest, name.WithDefaultTag("latest"))
	if err != nil {
		return r, bad(s, errors.New("want [REGISTRY/]REPOSITORY[:TAG][@DIGEST], all but REGISTRY and TAG in lower case"))
	}
	if r.Registry == "" {
		r.Registry = t.RegistryStr()
	}
	r.Repository, r.Tag = t.RepositoryStr(), t.TagStr()
	if pinned && !strings.Contains(rest[strings.LastIndexByte(rest, '/')+1:], ":") {
		r.Tag = ""
	}
	if !host(r.Registry) || !repository(r.Repository) {
		return r, bad(s, errors.New("want [REGISTRY/]REPOSITORY[:TAG][@DIGEST], all but REGISTRY and TAG in lower case"))
	}
	return r, nil
}

// host reports whether s is HOST or HOST:PORT and no more: it becomes part of a
// URL.
func host(s string) bool {
	return s != "" && !strings.HasPrefix(s, ".") && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-:[]") == ""
}

// repository reports whether s is a name of the distribution specification: words
// of lower-case letters and digits, with separators between them alone.
func repository(s string) bool {
	if len(s) > 240 { // so that it can be written in full and read again
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || strings.Trim(part[:1]+part[len(part)-1:], "._-") != part[:1]+part[len(part)-1:] || strings.Contains(part, "..") {
			return false
		}
	}
	return true
}

func bad(s string, err error) error {
	return isle.Errorf(isle.Invalid, "%.100q is no reference to an image: %w", s, err)
}

// String is the whole reference.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// Name is REGISTRY/REPOSITORY, which policy speaks of.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// Local reports whether the image is one of the server's own store.
func (r Reference) Local() bool { return r.Registry == Local }

// Pinned is the reference to what its tag meant once.
func (r Reference) Pinned(d isle.Digest) Reference {
	r.Digest = d
	return r
}

// loopback reports whether a HOST[:PORT] is this machine itself: it alone may be
// spoken to without TLS.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == Local || ip != nil && ip.IsLoopback()
}

// FromArchive is the name that an image gets which an archive calls so: of the
// server's own store, whatever registry the archive says it is from.
func FromArchive(s string) (Reference, error) {
	r, err := Parse(s)
	if err != nil {
		return r, err
	}
	r.Registry, r.Digest = Local, ""
	r.Repository = strings.TrimPrefix(r.Repository, "library/")
	if r.Tag == "" {
		r.Tag = "latest"
	}
	return r, nil
}
