// Package isle is the vocabulary of the system: the words that every room
// shares, and nothing that does anything.
//
// An environment is a set of services that share one network, launched from
// sealed images. An ID names one launch and is never used again; a Ref
// (NAME@STAGE) is the name people use and may be used again after a teardown.
// A Digest names content. An Actor does an Action to a Resource; the answer to
// "may it" is a Decision; what went wrong is an Error with one of a few Codes.
//
// The package imports the standard library only.
package isle

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// An ID names one instance of something and is never used again. It is 26
// lower-case characters of base32 (RFC 4648 "extended hex", no padding): 48
// bits of Unix time in milliseconds, then 80 random bits, so IDs sort by time.
type ID string

var idEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NewID returns a fresh ID.
func NewID() ID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli())<<16)
	rand.Read(b[6:])
	return ID(idEncoding.EncodeToString(b[:]))
}

// Valid reports whether id has the shape that NewID gives. It guards every
// place where an ID becomes part of a path.
func (id ID) Valid() bool {
	if len(id) != 26 {
		return false
	}
	for _, c := range id {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'v') {
			return false
		}
	}
	return true
}

// Time is when id was made, to the millisecond; zero if id is not Valid.
func (id ID) Time() time.Time {
	b, err := idEncoding.DecodeString(string(id))
	if err != nil || len(b) != 16 {
		return time.Time{}
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]) >> 16))
}

// A Digest names content: "sha256:" and 64 lower-case hexadecimal characters,
// as in the OCI image specification.
type Digest string

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	s := sha256.Sum256(b)
	return DigestFromSum(s[:])
}

// DigestFromSum returns the Digest for a finished SHA-256 sum.
func DigestFromSum(sum []byte) Digest { return Digest("sha256:" + hex.EncodeToString(sum)) }

// Hex returns the 64 hexadecimal characters without the algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Short returns the first twelve hexadecimal characters, for people.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		h = h[:12]
	}
	return h
}

// Valid reports whether d is a well-formed SHA-256 digest. It guards every
// place where a Digest becomes part of a path.
func (d Digest) Valid() bool {
	h, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(h) != 64 {
		return false
	}
	for _, c := range h {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// A Ref addresses an environment by the name people use: NAME@STAGE. At most
// one live environment has a given Ref.
type Ref struct {
	Name  string `json:"name"`
	Stage string `json:"stage"`
}

// DefaultStage is the stage of an environment when none is said.
const DefaultStage = "testing"

// ParseRef reads NAME[@STAGE].
func ParseRef(s string) (Ref, error) {
	name, stage, ok := strings.Cut(s, "@")
	if !ok {
		stage = DefaultStage
	}
	if !ValidName(name) || !ValidName(stage) {
		return Ref{}, Errorf(Invalid, "environment %q: want NAME or NAME@STAGE, each of lower-case letters, digits and dashes, at most 40, beginning with a letter", s)
	}
	return Ref{Name: name, Stage: stage}, nil
}

// String returns NAME for the default stage and NAME@STAGE otherwise.
func (r Ref) String() string {
	if r.Stage == DefaultStage || r.Stage == "" {
		return r.Name
	}
	return r.Name + "@" + r.Stage
}

// ValidName reports whether s can name a project, environment, service or
// stage: a lower-case letter, then letters, digits and dashes, at most 40
// characters, not ending in a dash (a DNS label, RFC 1123).
func ValidName(s string) bool {
	if s == "" || len(s) > 40 || s[len(s)-1] == '-' {
		return false
	}
	for i, c := range s {
		switch {
		case c >= 'a' && c <= 'z':
		case i > 0 && (c >= '0' && c <= '9' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// Slug makes a valid name out of arbitrary text: lower case, everything else a
// dash. Where characters had to be cut it ends in eight hexadecimal characters
// of the text's hash, so different texts stay different.
func Slug(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' && b.Len() > 0 {
			b.WriteRune(c)
		} else if n := b.Len(); n > 0 && b.String()[n-1] != '-' {
			b.WriteByte('-')
		}
	}
	out := strings.TrimRight(b.String(), "-")
	if out == "" {
		out = "env"
	}
	if len(out) > 40 {
		sum := sha256.Sum256([]byte(s))
		out = strings.TrimRight(out[:31], "-") + "-" + hex.EncodeToString(sum[:4])
	}
	return out
}

// ActorKind says what sort of someone an Actor is.
type ActorKind string

// The kinds of actor.
const (
	Human    ActorKind = "human"    // a person, by operating-system user for now
	Machine  ActorKind = "machine"  // a script or agent outside, by key or token
	Workload ActorKind = "workload" // what runs inside an environment
	System   ActorKind = "system"   // the server itself: reconcile, ttl, restart
)

// An Actor is who does something.
type Actor struct {
	Kind ActorKind `json:"kind"`
	Name string    `json:"name"` // "root", "uid:1000", a SPIFFE ID, "reconcile"
}

// String returns kind:name.
func (a Actor) String() string { return string(a.Kind) + ":" + a.Name }

// An Action is what is done, as noun:verb: "environment:launch". All of them
// are declared here, so that the list is the reference.
type Action string

// The actions.
const (
	ActionImageLock          Action = "image:lock"
	ActionImageBuild         Action = "image:build"
	ActionImageRead          Action = "image:read"
	ActionImageExport        Action = "image:export"
	ActionImageImport        Action = "image:import"
	ActionImagePull          Action = "image:pull"
	ActionImageRecord        Action = "image:record"
	ActionImagePush          Action = "image:push"
	ActionImageRemove        Action = "image:remove"
	ActionEnvironmentLaunch  Action = "environment:launch"
	ActionEnvironmentDown    Action = "environment:down"
	ActionEnvironmentList    Action = "environment:list"
	ActionEnvironmentRead    Action = "environment:read"
	ActionEnvironmentExtend  Action = "environment:extend"
	ActionEnvironmentExec    Action = "environment:exec"
	ActionEnvironmentCopy    Action = "environment:copy"
	ActionEnvironmentDiff    Action = "environment:diff"
	ActionEnvironmentLogs    Action = "environment:logs"
	ActionEnvironmentPort    Action = "environment:port-forward"
	ActionEnvironmentVisit   Action = "environment:visit"
	ActionEnvironmentFork    Action = "environment:fork"
	ActionEnvironmentRestore Action = "environment:restore"
	ActionServiceStart       Action = "service:start"
	ActionServiceReplace     Action = "service:replace"
	ActionServiceRestart     Action = "service:restart"
	ActionServiceExit        Action = "service:exit"
	ActionVolumeCreate       Action = "volume:create"
	ActionVolumeDelete       Action = "volume:delete"
	ActionVolumeCross        Action = "volume:cross-stage"
	ActionSnapshotCreate     Action = "snapshot:create"
	ActionSnapshotRead       Action = "snapshot:read"
	ActionSnapshotTag        Action = "snapshot:tag"
	ActionSnapshotRemove     Action = "snapshot:remove"
	ActionSnapshotExport     Action = "snapshot:export"
	ActionSnapshotImport     Action = "snapshot:import"
	ActionSnapshotTrust      Action = "snapshot:trust" // a key of another server
	ActionReleaseCreate      Action = "release:create"
	ActionReleaseRead        Action = "release:read"
	ActionReleaseRemove      Action = "release:remove"
	ActionReleaseExport      Action = "release:export"
	ActionReleaseImport      Action = "release:import"
	ActionReleasePromote     Action = "release:promote" // to a stage
	ActionReleaseSkip        Action = "release:skip"    // stages, on the way
	ActionReleaseRollback    Action = "release:rollback"
	ActionReleaseDrift       Action = "release:drift" // something is not as released
	ActionReleaseKeep        Action = "release:keep"  // for a time, whatever rules say
	ActionReleaseWatch       Action = "release:watch" // a stage, from the first launch of what it points at
	ActionReleaseHistory     Action = "release:history"
	ActionReleaseClear       Action = "release:clear" // a mark that a rollback has left
	ActionReleaseTrust       Action = "release:trust" // a key of another server
	ActionEgressConnect      Action = "egress:connect"
	ActionAuditRead          Action = "audit:read"
	ActionAuditAccept        Action = "audit:accept-rollback" // a log that does not go on from the kept checkpoint
	ActionServerRead         Action = "server:read"
	ActionServerCollect      Action = "server:collect"
	ActionServerReconcile    Action = "server:reconcile"
	ActionServerStop         Action = "server:stop"
	ActionPolicyRead         Action = "policy:read"
	ActionPolicyApply        Action = "policy:apply"
	ActionIdentityCreate     Action = "identity:create"
	ActionIdentityRead       Action = "identity:read"
	ActionIdentityRotate     Action = "identity:rotate"
	ActionIdentityRevoke     Action = "identity:revoke"
	ActionIdentityTransfer   Action = "identity:transfer"
	ActionIdentityUse        Action = "identity:authenticate" // a credential was shown
	ActionIdentityEndAll     Action = "identity:end-all"      // every credential of before ends
	ActionTokenCreate        Action = "token:create"
	ActionTokenRead          Action = "token:read"
	ActionTokenRevoke        Action = "token:revoke"
	ActionTokenIssue         Action = "token:issue" // an access token for a machine's key
	ActionSVIDIssue          Action = "svid:issue"  // to a workload
	ActionIssuerRotate       Action = "issuer:rotate"
	ActionSecretSet          Action = "secret:set"
	ActionSecretRead         Action = "secret:read"
	ActionSecretCheck        Action = "secret:check"
	ActionSecretBuild        Action = "secret:build"
	ActionSecretDelete       Action = "secret:delete"
	ActionSecretKey          Action = "secret:use-key" // another key seals from now on
	ActionConnectionOpen     Action = "connection:open"
	ActionPostgresSelect     Action = "postgres:select"
	ActionPostgresWrite      Action = "postgres:write"
	ActionPostgresSchema     Action = "postgres:schema"
	ActionPostgresAdmin      Action = "postgres:admin"
	ActionHTTPRead           Action = "http:read"
	ActionHTTPWrite          Action = "http:write"
	ActionApprovalRead       Action = "approval:read"
	ActionApprovalDecide     Action = "approval:decide"
	ActionAccessRequest      Action = "access:request"
	ActionAccessBreakGlass   Action = "access:break-glass"
	ActionSessionRead        Action = "session:read"
	ActionSessionEnd         Action = "session:end"
	ActionSessionOpen        Action = "session:open" // of a connection; its close is session:close
	ActionSessionClose       Action = "session:close"
	ActionRecordingRead      Action = "recording:read"
	ActionRecordingKeep      Action = "recording:keep"   // hashes of what was recorded
	ActionRecordingDelete    Action = "recording:delete" // by retention
)

// A Resource is what an action is done to: kind:name, in a stage.
type Resource struct {
	Kind  string `json:"kind"` // "environment", "service", "volume", "snapshot", "release", "image", "egress", "server", "audit"
	Name  string `json:"name"`
	Stage string `json:"stage,omitempty"`
}

// Staged reports whether resources of the kind belong to a stage.
func Staged(kind string) bool {
	switch kind {
	case "environment", "service", "volume", "snapshot", "egress", "connection", "identity":
		return true
	}
	return false
}

// String returns kind:name[@stage].
func (r Resource) String() string {
	if r.Stage == "" {
		return r.Kind + ":" + r.Name
	}
	return r.Kind + ":" + r.Name + "@" + r.Stage
}

// A Decision is the answer to whether an actor may.
type Decision string

// The decisions.
const (
	Allow Decision = "allow"
	Deny  Decision = "deny"
	Hold  Decision = "hold" // waits for a human
)

// A Code says what kind of failure an Error is. There are few on purpose: the
// edges map each to an exit code and a status once.
type Code string

// The error codes.
const (
	Invalid     Code = "invalid"     // the input is wrong: say what, where, and what to do
	NotFound    Code = "not_found"   // there is no such thing
	Conflict    Code = "conflict"    // it is there already, or something else has it
	Refused     Code = "refused"     // policy says no, or the operating system does
	Held        Code = "held"        // it awaits a human's approval
	Untrusted   Code = "untrusted"   // it is not what it was, or not from whom it must be: a wrong signature, a log that was tampered with
	Unavailable Code = "unavailable" // something needed is missing or away; may work later
	Exhausted   Code = "exhausted"   // no space, or a limit is reached
	Failed      Code = "failed"      // what was asked ran and failed (a build step, a health check)
	Internal    Code = "internal"    // our fault
)

// An Error is a failure that a person will read. Message says what happened
// and to what; Hint says what to do next.
type Error struct {
	Code    Code
	Message string
	Hint    string // one sentence or command; may be empty
	Err     error  // the cause; may be nil
}

// Error returns message, cause and hint, in that order.
func (e *Error) Error() string {
	s := e.Message
	if _, said := e.Err.(quiet); e.Err != nil && !said {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Errorf makes an Error of the code. A %w in the format becomes the cause; where
// the format ends in ": %w" the message ends before it, since Error adds it.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
	if e.Err == nil {
		return e
	}
	if m, ok := strings.CutSuffix(e.Message, ": "+e.Err.Error()); ok && strings.HasSuffix(format, ": %w") {
		e.Message = m
		return e
	}
	// The cause's text is inside the message already: keep the chain, not the text.
	e.Err = quiet{e.Err}
	return e
}

// quiet is a cause whose text the message has.
type quiet struct{ error }

func (q quiet) Unwrap() error { return q.error }

// CodeOf returns the code of the first *Error in err's chain, or Internal.
func CodeOf(err error) Code {
	for err != nil {
		if e, ok := err.(*Error); ok {
			return e.Code
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = u.Unwrap()
	}
	return Internal
}
