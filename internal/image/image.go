// Package image is what an environment's root is made of.
//
// A Layer is one EROFS file named by the SHA-256 digest of its bytes. An Image
// is an ordered list of layers, lowest first, and its digest covers that list:
// change a byte anywhere and it is another image. Provenance is not part of the
// digest, so that a cached build gives the same one. A Store keeps blobs
// (downloaded packages, copied files), layers and images in one folder; what
// it hands out is read-only and was hashed.
package image

import (
	"encoding/json"
	"slices"
	"strings"

	"isle"
)

// FormatVersion is the version of the image format: how layers are written and
// what the digest covers. A lock records it; another version, other digests.
const FormatVersion = 1

// An Image is a read-only root: layers stacked lowest first.
type Image struct {
	Format       int     `json:"format"`       // FormatVersion
	Architecture string  `json:"architecture"` // Debian's name: "amd64"
	Layers       []Layer `json:"layers"`
	// Config is what an image from elsewhere says of how it is run; nil where a
	// file says all of it.
	Config *Config `json:"config,omitempty"`
}

// A Layer is one EROFS file.
type Layer struct {
	Digest isle.Digest `json:"digest"`
	Size   int64       `json:"size"`  // bytes
	Kind   string      `json:"kind"`  // "packages", "system", "copy", "run"; "oci" from elsewhere
	Title  string      `json:"title"` // for people: "postgresql-15 and 84 more"
}

// A Config is what an image from elsewhere says of how it is run: the fields of
// the OCI image specification (config.md), and those that Docker has beside
// them. What a file says of a service comes before it.
type Config struct {
	User        string            `json:"user,omitempty"` // NAME, UID, and either with :GROUP or :GID
	Env         []string          `json:"env,omitempty"`  // NAME=VALUE
	Entrypoint  []string          `json:"entrypoint,omitempty"`
	Cmd         []string          `json:"cmd,omitempty"`
	Workdir     string            `json:"workdir,omitempty"`
	Volumes     []string          `json:"volumes,omitempty"` // paths, sorted; nothing is mounted there by itself
	Ports       []string          `json:"ports,omitempty"`   // "80/tcp", sorted; nothing is published by itself
	Labels      map[string]string `json:"labels,omitempty"`
	StopSignal  string            `json:"stop_signal,omitempty"`
	Shell       []string          `json:"shell,omitempty"`
	OnBuild     []string          `json:"on_build,omitempty"` // instructions of a Dockerfile that begins with the image
	Healthcheck *Healthcheck      `json:"healthcheck,omitempty"`
	Author      string            `json:"author,omitempty"`
}

// A Healthcheck is a Config's, as Docker has it; times are in nanoseconds.
type Healthcheck struct {
	Test          []string `json:"test,omitempty"` // begins with NONE, CMD or CMD-SHELL
	Interval      int64    `json:"interval,omitempty"`
	Timeout       int64    `json:"timeout,omitempty"`
	StartPeriod   int64    `json:"start_period,omitempty"`
	StartInterval int64    `json:"start_interval,omitempty"`
	Retries       int      `json:"retries,omitempty"`
}

// Command is what the image runs: its entrypoint with its arguments.
func (c *Config) Command() []string {
	if c == nil {
		return nil
	}
	return slices.Concat(c.Entrypoint, c.Cmd)
}

// Variables are the image's Env by name.
func (c *Config) Variables() map[string]string {
	out := map[string]string{}
	if c == nil {
		return out
	}
	for _, e := range c.Env {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			out[name] = value
		}
	}
	return out
}

// Digest is the digest of the image's canonical JSON without titles: format,
// architecture, each layer's digest, size and kind, and the Config.
func (m Image) Digest() isle.Digest {
	c := m
	c.Layers = make([]Layer, len(m.Layers))
	for i, l := range m.Layers {
		l.Title = ""
		c.Layers[i] = l
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and integers only
	}
	return isle.DigestOf(b)
}

// Size is the sum of the layers' sizes in bytes.
func (m Image) Size() (n int64) {
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}
