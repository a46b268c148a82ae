// Package server puts the rooms together into the one process that runs
// environments.
//
// Config is all that can be set. New constructs every room and wires it; it is
// the only place that does. Run reconciles, serves, and ends in order: no new
// calls, calls in progress cut off, rooms closed, the state folder given free.
// Environments run on without it. On SIGHUP it becomes the program that is at
// its path now, with the same process ID, and hands over its listening sockets.
package server

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"isle"
	"isle/internal/api"
	"isle/internal/secret"
)

// DefaultState is the state folder of an installed server.
const DefaultState = "/var/lib/isle"

// runFolder holds sockets that are not in their state folder.
const runFolder = "/run/isle"

// DefaultNames is where the installed server serves published HTTP ports by
// name.
const DefaultNames = "127.0.0.1:7480"

// Config is everything that can be set about a server. The zero value of each
// field is its default.
type Config struct {
	// State is the folder that holds everything: records, audit log, images,
	// volumes, logs. It is made, for root only (0700), where it is missing.
	// One server runs on a state folder; two folders are two servers that know
	// nothing of each other. Default /var/lib/isle.
	State string

	// Socket is the path of the unix socket that is served: for root and the
	// group (0660) where there is that group, else for root only (0600). Default: SocketPath(State).
	Socket string

	// Names is the TCP address, on loopback, at which published HTTP ports are
	// reached by name: http://PORT.NAME.localhost:7480/, or
	// PORT.NAME.STAGE.localhost where the stage is not testing. "off" turns it
	// off. Where the port is taken any free one is used. Default 127.0.0.1:7480
	// for the default state folder, and any free port for others.
	Names string

	// Mirror is the base URL of the Debian mirror to take packages from.
	// Default: the machine's, from apt's configuration.
	Mirror string

	// BuildNetworks are networks that are not public, which build steps with the
	// recorded network may reach even so. Where a build goes is up to who builds,
	// so no file can say this. Default: none.
	BuildNetworks []netip.Prefix

	// Runtime is the OCI runtime that starts containers: "crun", "runc" or a
	// path. Default: crun if there is one, else runc.
	Runtime string

	// Init is the path of isle-init. Default: beside the program, or in
	// ../libexec/isle from there.
	Init string

	// Runsc is the path of isle-runsc, which the class gvisor needs. Default:
	// beside the program, or in ../libexec/isle from there; where it is at
	// neither, that class is not there.
	Runsc string

	// Spares is how many instances are kept ready for the next launches, by class
	// of isolation: "container", "gvisor". What is ready takes memory, of gvisor
	// some 30 MiB each. Default: none.
	Spares map[string]int

	// WarmKeep is how long a ready state is kept that no environment has begun
	// with, until the next `isle gc`. Default 14 days.
	WarmKeep time.Duration

	// WarmMax is how many bytes the ready states of one owner's environments may
	// have together, and WarmCount how many there may be; those used the longest
	// ago make room. Default 4 GiB and 8.
	WarmMax   int64
	WarmCount int

	// Drain is how long what an instance was asked may take to end once another
	// one has taken its place, and KeepBefore how long it is kept after that,
	// frozen, so that a stage can go back to it at once. Default: 30 s and 1 hour.
	Drain, KeepBefore time.Duration

	// DriftSample is how many bytes of the layers of what runs of releases are read
	// again in a minute, to find what was changed on disk; every minute all of it is
	// compared with its release besides. 0: nothing is looked at.
	DriftSample int64

	// Cgroup is the control group below which every environment's is made.
	// Default: one named for the state folder, below the root.
	Cgroup string

	// Group is the group of the operating system whose members may connect to
	// the socket; what they may do is up to the policy. Where there is no such
	// group only root may connect. Default isle.
	Group string

	// DefaultPolicy replaces the policy by the one that a first start writes:
	// the way back in where nobody may change it any more.
	DefaultPolicy bool

	// Log is a file to write the log to, kept below 16 MiB by rotation to
	// Log.1. Default: standard error.
	Log string

	// LogLevel is the least level that is logged. Default: info.
	LogLevel slog.Level

	// Version is what the program calls itself.
	Version string

	// Checkpoints is a folder outside the state folder, in which the last
	// checkpoint of its audit log is kept: a state that is older or another than
	// that is not served. Default /var/lib/isle-checkpoints.
	Checkpoints string

	// AcceptRollback serves a state that does not go on from the kept
	// checkpoint, and records in the audit log that it was accepted.
	AcceptRollback bool

	// AuditListen is a TCP address at which the audit log is served to whoever
	// can reach it, without a question, for monitors and witnesses: the paths of
	// c2sp.org/tlog-tiles. Default: none.
	AuditListen string

	// Keys is a folder outside the state folder, for the keys that seal what is
	// stored in the state: one file for each state folder. Default
	// /var/lib/isle-keys, and then it must not be inside the state folder.
	Keys string

	// NewKey gives up what the key of before has sealed, where that key is gone:
	// another one takes its place.
	NewKey bool

	// TrustDomain is the name of the server's trust domain, which every identity
	// has in its name: it never changes. Default: a random one, made at the first start.
	TrustDomain string

	// SecretFiles are the folders below which files may be named as secrets.
	// Default /etc/isle/secrets.
	SecretFiles []string

	// Vault is asked for secrets that refer to it. Default: none.
	Vault secret.VaultConfig

	// Listen is a TCP address at which the API is served to callers from
	// elsewhere, over TLS, who prove themselves by a token: ":7443". Default: none.
	Listen string

	// Gateway is a TCP address at which connections are opened by people and
	// machines outside of environments, over TLS, who prove themselves by a token or
	// key: by clients of PostgreSQL and of HTTPS. Default: none.
	Gateway string

	// TLSCert and TLSKey are PEM files of the certificate that is shown at both,
	// with its chain, and of its key; they are read again when they change.
	// Default: one that the server makes itself, of one key for good.
	TLSCert, TLSKey string

	// URL is what the server is called from elsewhere, https://HOST[:PORT]: its
	// tokens name it as their issuer. Default: https and the address of Listen,
	// with the machine's name where that is every address.
	URL string

	// RecordingsKeep is how long the recording of a session is kept after its
	// end, at least a day. Default 30 days.
	RecordingsKeep time.Duration

	// RecordingsMax is how many bytes all recordings may have together; where
	// they have more those of the first sessions are deleted, but none that is
	// younger than a day. Default 10 GiB.
	RecordingsMax int64

	// Now is for tests: the clock that the log, the policy and every credential
	// go by. nil: the machine's.
	Now func() time.Time

	// Fault is for tests: the name of a point at which the server kills itself
	// (SIGKILL), as if the machine had, or @ and the path of a file that has the
	// name, and is removed when it happens; or, for measurements, + and the path
	// of a file that gets the time of each point. It is set by ISLE_FAULT. The points
	// are those of FaultPoints in the rooms environment, airlock, release, approval
	// and driver/local, and of an older state that is accepted rollback.ending.0,
	// rollback.ending.1 and rollback.unmarked. Default: none.
	Fault string
}

// defaultWarmKeep is the default of Config.WarmKeep.
const defaultWarmKeep = 14 * 24 * time.Hour

// Bounds of the process.
const (
	// graceful is how long calls in progress may go on when the server ends.
	graceful = 3 * time.Second
	// teardown is how long they may then take to undo what they hold.
	teardown = 15 * time.Second
	// maxConnections bounds open connections on the unix socket.
	maxConnections = 1024
)

// SocketPath is where the server of a state folder listens: /run/isle/isle.sock
// for the default one, isle.sock in the folder for others, and a path made from
// its hash where that would be too long for a socket's address (sun_path has
// 108 bytes, unix(7)).
func SocketPath(state string) string {
	if abs, err := filepath.Abs(state); err == nil {
		state = abs
	}
	if state == DefaultState {
		return filepath.Join(runFolder, "isle.sock")
	}
	if p := filepath.Join(state, "isle.sock"); len(p) <= 100 {
		return p
	}
	sum := sha256.Sum256([]byte(state))
	return filepath.Join(runFolder, hex.EncodeToString(sum[:8])+".sock")
}

// withDefaults returns c with every default filled in.
func (c Config) withDefaults() (Config, error) {
	if c.State == "" {
		c.State = DefaultState
	}
	abs, err := filepath.Abs(c.State)
	if err != nil {
		return c, isle.Errorf(isle.Invalid, "state folder %s: %w", c.State, err)
	}
	c.State = abs
	if c.Socket == "" {
		c.Socket = SocketPath(c.State)
	}
	if c.Checkpoints == "" {
		c.Checkpoints = DefaultCheckpoints
	}
	if c.WarmKeep <= 0 {
		c.WarmKeep = defaultWarmKeep
	}
	if c.SecretFiles == nil {
		c.SecretFiles = []string{DefaultSecretFiles}
	}
	if err := c.checkRemote(); err != nil {
		return c, err
	}
	if c.Names == "" {
		c.Names = "127.0.0.1:0"
		if c.State == DefaultState {
			c.Names = DefaultNames
		}
	}
	if c.Group == "" {
		c.Group = api.Group
	}
	if c.Init == "" {
		c.Init, err = findInit()
	} else if !isProgram(c.Init) {
		err = isle.Errorf(isle.NotFound, "--init %s is no program", c.Init)
	}
	if c.Runsc == "" {
		c.Runsc, _ = findBeside("isle-runsc")
	}
	return c, err
}

// findInit looks for isle-init where building and installing put it.
func findInit() (string, error) {
	path, places := findBeside("isle-init")
	if path == "" {
		return "", isle.Errorf(isle.Unavailable, "isle-init is neither at %s", strings.Join(places, " nor at ")).
			WithHint("install it there with `make build` or `make install`, or name it with --init")
	}
	return path, nil
}

// findBeside looks for a program beside this one, or in libexec, and returns ""
// and where it was looked for where it is not there.
func findBeside(name string) (path string, places []string) {
	exe, err := os.Executable()
	if err != nil {
		return "", nil
	}
	dir := filepath.Dir(exe)
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		dir = filepath.Dir(real)
	}
	for _, p := range []string{filepath.Join(dir, name), filepath.Join(dir, "..", "libexec", "isle", name)} {
		if isProgram(p) {
			return filepath.Clean(p), nil
		}
		places = append(places, filepath.Clean(p))
	}
	return "", places
}

func isProgram(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
