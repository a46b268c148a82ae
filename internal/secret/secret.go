// Package secret keeps what connections are opened with.
//
// A Secret has a name and versions, of which the last counts. A version is
// stored, sealed by the Keyring, or is a reference: it says where outside the
// value is, and that is taken from there each time that it is used (nothing is
// kept in between). The Keyring's key is outside the state folder, so a copy of
// that folder opens nothing. No value is given back to who set it: a Value goes
// to the gateway only, and does not print itself.
//
// Secrets are records of the ledger "secret", one for each version, and which
// key they are sealed under is one of the ledger "key": the audit log vouches
// for both, and a record that was put back or moved is not used.
package secret

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity"
	"isle/internal/ledger"
)

// Bounds.
const (
	// MaxValue bounds a value in bytes, wherever it is from.
	MaxValue = 64 << 10
	// KeptVersions is how many versions of a secret have a value: an earlier one
	// is destroyed when it falls out.
	KeptVersions = 10
	// KnownVersions is how many versions of a secret are listed.
	KnownVersions = 100
	// MaxSecrets bounds how many there are.
	MaxSecrets = 1000
)

// The backends: where a value is.
const (
	Stored      = "stored"
	Environment = "environment" // a variable of the server's own environment
	File        = "file"
	Vault       = "vault" // the protocol of Vault's KV version 2
)

// A Secret is what is known of one, its value aside.
type Secret struct {
	Name     string
	Versions []Version // the last one counts
}

// Last is the version that counts.
func (s Secret) Last() Version { return s.Versions[len(s.Versions)-1] }

// A Version is one setting of a secret.
type Version struct {
	Number    int // counts from 1
	Created   time.Time
	CreatedBy isle.Actor
	Backend   string
	Reference string // of a value that is outside: a variable, a path, MOUNT/PATH#FIELD
	Destroyed bool   // its value is gone

	sealed []byte // of a stored one
}

// Config is what Secrets need.
type Config struct {
	Store  ledger.Store
	Sealer identity.Sealer
	Log    Log
	Now    func() time.Time // default time.Now
	Slog   *slog.Logger     // nil discards

	// Getenv looks up a variable of the server's environment; nil has none.
	Getenv func(name string) (string, bool)
	// Files are the folders below which files may be named: a server reads what
	// others may not, and must not do so for whoever may set secrets.
	Files []string
	// Vault says which server of that protocol is asked; none if its Address
	// is "".
	Vault VaultConfig
}

// Log is where entries go that belong to no change.
type Log interface {
	Append(ctx context.Context, entries ...audit.Entry) error
}

// A Value is a secret in the clear. Whatever prints, logs or encodes it gets
// "[secret]".
type Value struct {
	// A function, since package fmt prints a function's address and no more,
	// also where it meets a Value in a field that is not exported, past Format.
	bytes func() []byte
}

// redacted is what stands for a value.
const redacted = "[secret]"

func newValue(b []byte) Value { return Value{func() []byte { return b }} }

// Reveal returns the value itself, not a copy: it is zeroes after Destroy.
func (v Value) Reveal() []byte {
	if v.bytes == nil {
		return nil
	}
	return v.bytes()
}

// Destroy overwrites the value in memory. What was made of it in between (a
// string, what a library copied) it does not reach.
func (v Value) Destroy() { clear(v.Reveal()) }

// String implements fmt.Stringer.
func (v Value) String() string { return redacted }

// Format implements fmt.Formatter, for every verb.
func (v Value) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler, and so JSON, YAML and XML.
func (v Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (v Value) LogValue() slog.Value { return slog.StringValue(redacted) }
