// Package spec is the environment file, isle.yaml, and its lock, isle.lock.
//
// A File declares services; a Service is built from a suite's Debian packages,
// copied files and run steps, and launched with a command, volumes, ports and a
// healthcheck. Parse reads the YAML and reports every problem with line and
// column; a key that does nothing is refused with the nearest known one. A Lock
// pins every input of a File by hash: same Lock, same image digests.
//
// The package reads and writes bytes only. It opens no file but for Tree, which
// hashes the files that a `copy:` names, on the client's side.
package spec

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"isle"
)

// The classes of isolation.
const (
	Container = "container"
	Gvisor    = "gvisor"
)

// A File is a parsed isle.yaml with every default applied.
type File struct {
	Name      string    `json:"name"`      // the project
	Isolation string    `json:"isolation"` // "container" or "gvisor"
	Services  []Service `json:"services"`  // in the order of the file
	Egress    []Egress  `json:"egress,omitempty"`
	Uses      []string  `json:"uses,omitempty"` // names of connections
	// UsesAs are the names by which connections are found inside, by connection, of
	// those that are not found by their own.
	UsesAs map[string]string `json:"uses_as,omitempty"`
	Limits Limits            `json:"limits"`
	TTL    time.Duration     `json:"ttl,omitempty"` // 0: no end
	// Warm has environments begin with the memory of one that was ready, where
	// there is such a state of exactly this release. Class gvisor only.
	Warm bool `json:"warm,omitempty"`
	// Schema is what the release makes of its data; nil: nothing is said.
	Schema *DataSchema `json:"schema,omitempty"`
	// Stages is what a release asks of the stages that it goes through; nil:
	// nothing.
	Stages *Stages `json:"stages,omitempty"`
}

// A DataSchema is what a release makes of its data, and who else can use it then.
type DataSchema struct {
	Version int `json:"version"`
	// CompatibleWith is the least version whose releases can use data that this
	// one has written; Parse makes it Version where the file does not say.
	CompatibleWith int `json:"compatible_with"`
}

// Leaves says why a release of another schema cannot use what one of s has
// written; "" if it can. nil is a schema of version 0, with which every other is
// compatible.
func (s *DataSchema) Leaves(other *DataSchema) string {
	have := 0
	if other != nil {
		have = other.Version
	}
	switch {
	case s == nil || have >= s.CompatibleWith:
		return ""
	case other == nil:
		return fmt.Sprintf("it writes schema %d, which only releases of schema %d and later can use, and the other one names no schema", s.Version, s.CompatibleWith)
	}
	return fmt.Sprintf("it writes schema %d, which only releases of schema %d and later can use, and the other one has schema %d", s.Version, s.CompatibleWith, have)
}

// A Service is one process tree with an image of its own.
type Service struct {
	Name        string            `json:"name"`
	Image       string            `json:"image,omitempty"`    // in place of packages: a reference, or the path of an archive that begins with "./"
	Build       *Build            `json:"build,omitempty"`    // in place of packages: what a Dockerfile makes
	Suite       string            `json:"suite"`              // Debian suite; default "bookworm"; "" with Image or Build
	Packages    []string          `json:"packages,omitempty"` // Debian package names, as written
	Copy        []Copy            `json:"copy,omitempty"`
	Run         []string          `json:"run,omitempty"`     // build-time shell commands (/bin/sh -c), sealed
	Network     string            `json:"network,omitempty"` // of Run and Build: "" none, or NetworkRecord
	User        string            `json:"user,omitempty"`    // name or uid[:gid]; "" is root of the user namespace
	Workdir     string            `json:"workdir,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	Volumes     []Volume          `json:"volumes,omitempty"`
	Writable    int64             `json:"writable,omitempty"` // bytes that can be written to the root, until the launch ends; 0: none
	Tmpfs       []string          `json:"tmpfs,omitempty"`    // absolute paths, besides /tmp, /run and /dev/shm
	Setup       []string          `json:"setup,omitempty"`    // once, on empty volumes, before Command
	Command     []string          `json:"command,omitempty"`  // none: the service idles until down
	Args        []string          `json:"args,omitempty"`     // of the image's entrypoint, in place of its own; never with Command
	OnFork      []string          `json:"on_fork,omitempty"`  // in a fork, before its airlock opens
	Healthcheck *Healthcheck      `json:"healthcheck,omitempty"`
	DependsOn   []string          `json:"depends_on,omitempty"`
	Ports       []Port            `json:"ports,omitempty"`
	Restart     string            `json:"restart"`        // "no" (default), "on-failure", "always"
	Caps        []string          `json:"caps,omitempty"` // "CAP_NET_BIND_SERVICE"; none unless named
}

// NetworkRecord is a Service's Network whose steps reach what the lock pins: what
// they are answered is recorded, and the same for every build after that.
const NetworkRecord = "record"

// A Copy puts files of the project folder into the image.
type Copy struct {
	From string `json:"from"` // relative to the file's folder, slash-separated, never outside it; a trailing slash says that it must be a folder
	To   string `json:"to"`   // absolute, clean: the path of the file, or of the folder whose content is added
}

// A Volume is a writable folder that outlives the service.
type Volume struct {
	Path string `json:"path"` // absolute, clean
	Size int64  `json:"size"` // bytes; default 1 GiB
}

// A Healthcheck says when a service is ready and goes on being so. Exactly one
// of TCP, HTTP and Command is set.
type Healthcheck struct {
	TCP      int           `json:"tcp,omitempty"`  // a port on 127.0.0.1
	HTTP     string        `json:"http,omitempty"` // a URL; 2xx and 3xx are healthy
	Command  []string      `json:"command,omitempty"`
	Interval time.Duration `json:"interval"` // default 5s, once healthy
	Timeout  time.Duration `json:"timeout"`  // default 5s, of one probe
	Start    time.Duration `json:"start"`    // default 60s: how long it may take to become healthy
	Retries  int           `json:"retries"`  // default 3 failures in a row make it unhealthy
}

// A Port is a named port that the server publishes on 127.0.0.1.
type Port struct {
	Name   string `json:"name"`
	Number int    `json:"number"` // 1–65535, inside
}

// An Egress is a destination outside that the environment asks to reach.
type Egress struct {
	Host string `json:"host"` // a DNS name, lower case, or an IPv4 address
	Port int    `json:"port"`
	// Addresses are the private, loopback or link-local networks (CIDR) that
	// the name may resolve to; without them only public addresses are dialed.
	// An Egress whose Host is an address names itself.
	Addresses []string `json:"addresses,omitempty"`
	// Inspect has the gateway open TLS to Host, whose requests policy then speaks
	// of. The launch trusts the authority that it is opened with.
	Inspect bool `json:"inspect,omitempty"`
}

// Inspected are the hosts of the file's egress that the gateway looks into, each
// once, in order.
func (f File) Inspected() []string {
	var hosts []string
	for _, e := range f.Egress {
		if e.Inspect && !slices.Contains(hosts, e.Host) {
			hosts = append(hosts, e.Host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Limits hold for the environment as a whole.
type Limits struct {
	CPUs   float64 `json:"cpus"`   // default 2
	Memory int64   `json:"memory"` // bytes; default 2 GiB
	PIDs   int     `json:"pids"`   // default 1024
}

// DefaultLimits are those of a file that names none.
func DefaultLimits() Limits {
	f, err := Parse("isle.yaml", []byte("name: a\nservices: {a: {command: [a]}}\n"))
	if err != nil {
		return Limits{} // cannot be; a test says so
	}
	return f.Limits
}

// LockVersion is the version of the lock file's own format.
const LockVersion = 1

// A Lock pins every input of a File by hash. It is JSON, sorted and indented,
// so that a change reads well in review. It names packages by hash and by a
// path relative to the mirror, and no host.
type Lock struct {
	Version      int                    `json:"version"`      // LockVersion
	ImageFormat  int                    `json:"image_format"` // image.FormatVersion
	Architecture string                 `json:"architecture"` // Debian's: "amd64"
	Suites       map[string]SuiteLock   `json:"suites"`
	Services     map[string]ServiceLock `json:"services"`
}

// A SuiteLock says which state of a suite the packages were chosen from.
type SuiteLock struct {
	// Releases are the digests of the InRelease files whose signatures were
	// checked, by path relative to the mirror.
	Releases map[string]isle.Digest `json:"releases"`
}

// A ServiceLock pins one service's inputs.
type ServiceLock struct {
	Image    *LockedImage    `json:"image,omitempty"`
	Build    *LockedBuild    `json:"build,omitempty"`
	Suite    string          `json:"suite"`
	Requests []string        `json:"requests"` // the packages asked for, sorted; a difference to the File means the lock is stale
	Packages []LockedPackage `json:"packages"` // sorted by name
	Copy     []LockedCopy    `json:"copy,omitempty"`
	Run      []string        `json:"run,omitempty"`
	Network  []LockedStep    `json:"network,omitempty"` // what steps were answered that have the recorded network
}

// A LockedImage pins the image that a service begins with.
type LockedImage struct {
	Request string `json:"request"` // as the File has it
	// Reference is the whole of what was asked for, without a digest; "" of an
	// archive.
	Reference string `json:"reference,omitempty"`
	// Digest is what the reference meant: of a registry the manifest for the
	// lock's architecture, of the server's own store Isle's image.
	Digest isle.Digest `json:"digest,omitempty"`
	// Tree is the digest of an archive's files.
	Tree isle.Digest `json:"tree,omitempty"`
}

// A LockedBuild pins what a Dockerfile is built from.
type LockedBuild struct {
	Build                // as the File has it
	Tree   isle.Digest   `json:"tree"`   // of the context's files
	File   isle.Digest   `json:"file"`   // of the Dockerfile, as a Tree of one file
	Images []LockedImage `json:"images"` // those that its stages begin with, copy from and mount, by request
}

// A LockedPackage is one Debian package, named by content.
type LockedPackage struct {
	Name         string      `json:"name"`
	Version      string      `json:"version"`
	Architecture string      `json:"architecture"`
	Path         string      `json:"path"`                 // relative to the mirror: pool/main/…
	Repository   string      `json:"repository,omitempty"` // "" the main archive; "security"
	Size         int64       `json:"size"`
	Digest       isle.Digest `json:"digest"`
}

// A LockedCopy pins the files of one Copy.
type LockedCopy struct {
	From string      `json:"from"`
	To   string      `json:"to"`
	Tree isle.Digest `json:"tree"` // digest of the Tree's encoding
}

// A Tree is the content of a copied folder or file: what is hashed, uploaded
// and locked. Entries are sorted by path (bytewise). Owner and time are not
// part of it.
type Tree struct {
	Entries []TreeEntry `json:"entries"`
}

// A TreeEntry is one file, folder or symbolic link.
type TreeEntry struct {
	Path   string      `json:"path"`           // relative, slash-separated, clean; "" is the copied thing itself and always the first entry
	Type   string      `json:"type"`           // "file", "dir", "link"
	Exec   bool        `json:"exec,omitempty"` // 0755 instead of 0644
	Size   int64       `json:"size,omitempty"`
	Digest isle.Digest `json:"digest,omitempty"` // of a file's content
	Target string      `json:"target,omitempty"` // of a link
}

// Connection is the connection that is found inside by a name; the name itself
// where UsesAs has none of it.
func (f File) Connection(name string) string {
	for connection, as := range f.UsesAs {
		if as == name {
			return connection
		}
	}
	return name
}

// TreeName is a name as a TreeEntry has it, which JSON can carry and people can
// read: bytes that are not UTF-8 are escaped.
func TreeName(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	var b strings.Builder
	for len(name) > 0 {
		r, n := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, name[0])
		} else {
			b.WriteString(name[:n])
		}
		name = name[n:]
	}
	return b.String()
}
