// Package session keeps what passes through the gateway, while it does and
// afterwards.
//
// A session is one use of one connection by one actor, from the first byte to
// the last. It is Live until it ends: its client leaves, somebody ends it, or
// it cannot be recorded any more. Its recording is the sequence of Events that
// its protocol tells of: statements with their decisions, holds, results and,
// where the connection asks for that, rows. An event is what the protocol makes
// of it: secrets and masked values are taken out before it comes here, since
// nothing here could know them.
//
// A session's start and end are audit entries. Its recording is one file of
// blocks, compressed and sealed under a key of its own; blocks make chunks, each
// chunk's hash covers the hash before it, and chunk hashes become audit entries
// within seconds. So whoever has the log finds a recording that was changed,
// cut, exchanged or taken away. docs/sessions.md describes the file and says
// what a crash can lose.
package session

import (
	"context"
	"log/slog"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity"
)

// The states of a session.
const (
	Active = "active" // something is being done
	Idle   = "idle"   // nothing is, for now
	Held   = "held"   // it waits for a human's approval
	Ended  = "ended"
)

// Info is what is known of a session beside its events.
type Info struct {
	ID         isle.ID    `json:"id"`
	Actor      isle.Actor `json:"actor"`
	Owner      string     `json:"owner,omitempty"` // who answers for the actor, kind:name
	Ref        isle.Ref   `json:"environment"`     // where the actor is inside one
	Instance   isle.ID    `json:"instance,omitempty"`
	Connection string     `json:"connection"`
	Kind       string     `json:"kind"`  // of the connection
	Stage      string     `json:"stage"` // of the connection
	Source     string     `json:"source,omitempty"`
	Address    string     `json:"address,omitempty"`
	Database   string     `json:"database,omitempty"`
	Role       string     `json:"role,omitempty"`

	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Last    time.Time `json:"last,omitzero"` // when something happened or passed last
	State   string    `json:"state"`
	Why     string    `json:"why,omitempty"` // it ended

	Statements int64   `json:"statements"`
	Refused    int64   `json:"refused"`
	Held       int64   `json:"held"`
	Rows       int64   `json:"rows"`
	BytesIn    int64   `json:"bytes_in"`  // from the client
	BytesOut   int64   `json:"bytes_out"` // to the client
	Rate       float64 `json:"rate"`      // statements a second, lately; of a live one
	Results    bool    `json:"results"`   // rows are recorded
}

// Resource is the connection that the session is of, which decisions about the
// session and its recording are about.
func (i Info) Resource() isle.Resource {
	return isle.Resource{Kind: "connection", Name: i.Connection, Stage: i.Stage}
}

// The kinds of event. A protocol may have others of its own.
const (
	Statement = "statement" // one that passes, or waited and passes now
	Result    = "result"    // how a statement ended
	Failure   = "error"     // a statement ended so instead
	Refused   = "refused"   // a statement or request was, and did not pass
	Holding   = "held"      // one waits for approval; then it is approved or denied
	Approved  = "approved"
	Denied    = "denied"
	Row       = "row" // of a result, masked, where rows are recorded
	Notice    = "notice"
	Request   = "request"  // of HTTP: what a statement is elsewhere
	Response  = "response" // of HTTP: what a result is elsewhere
	End       = "end"      // the last one of each recording; Text is the reason
)

// An Event is one thing that happened in a session. No secret and no masked
// value is in it: its protocol took them out. What is longer than a bound is
// cut, and Cut says so.
type Event struct {
	At       time.Time     // zero: now
	Kind     string        // one of the constants above, or a protocol's own
	Text     []byte        // the statement or request line, exactly
	Params   []string      // as text
	Shape    string        // the text without literals and comments
	Decision isle.Decision // "" where there was none to make
	Rule     string        // that decided
	Approval isle.ID
	Tag      string // "DELETE 3", "200"
	Rows     int64  // of a result
	Bytes    int64  // of a result, or of a body
	Took     time.Duration
	Error    string // scrubbed
	Data     []byte // of a row: JSON, or what the protocol says

	// Cut is how long Text or Data was, in bytes, where it was longer than what
	// is kept of it; Digest is then that of the whole.
	Cut    int64
	Digest isle.Digest
}

// Log is where entries go, and where recovery reads what must be.
type Log interface {
	// Append makes the entries durable, all or none, before it returns.
	Append(ctx context.Context, entries ...audit.Entry) error
	// Next is the sequence number that the next entry will have.
	Next(ctx context.Context) (uint64, error)
	// Encoded returns up to limit entries from a sequence number on, in their
	// canonical encoding; there are no more if it returns fewer.
	Encoded(ctx context.Context, from uint64, limit int) ([][]byte, error)
}

// Config is what Sessions need.
type Config struct {
	// Dir is the folder of recordings. It is made, for its owner only.
	Dir    string
	Log    Log
	Sealer identity.Sealer // of the keys of recordings
	Slog   *slog.Logger    // nil discards

	// Keep is how long a recording is kept after its session ended; 0 is
	// DefaultKeep.
	Keep time.Duration
	// Max is how many bytes all recordings together may have; what was recorded
	// first goes first. 0 is DefaultMax.
	Max int64

	Now func() time.Time // default time.Now

	// Of tests; 0 is what docs/sessions.md says.
	flushEvery, sealEvery, tick time.Duration
	reserve                     uint64
	share                       int64
}

// Retention.
const (
	DefaultKeep = 30 * 24 * time.Hour
	DefaultMax  = 10 << 30
	// MinKeep is how long a recording is kept whatever Max says: nobody makes
	// what they just did forgotten by doing a lot of something else.
	MinKeep = 24 * time.Hour
)

// Bounds.
const (
	// MaxText is how many bytes of an event's text, and of its data, are kept.
	MaxText = 256 << 10
	// MaxSessions bounds how many are live at a time.
	MaxSessions = 10000

	maxEnding = 1000    // sessions that are over and not closed yet
	maxShort  = 2 << 10 // bytes of every other text of an event
	maxParams = 1000    // of an event

	flushEvery = 100 * time.Millisecond // an event is in its file after that at the latest
	sealEvery  = 8 * time.Second        // a block is in a sealed chunk after that, and a tick
	sealBytes  = 1 << 20                // or once there are as many
	tick       = time.Second            // how often it is looked for what to seal
	logWithin  = 10 * time.Second       // how long the log may be away before sessions end

	followEvery = 250 * time.Millisecond // how often a reader looks for more

	// What a session holds in memory: it is written early from maxEarly bytes on,
	// and whoever records waits at maxPending; and all of them together.
	maxEarly     = 32 << 10
	maxPending   = 256 << 10
	maxUnwritten = 64 << 20

	// maxReserve bounds what recordings leave free of a disk, in bytes.
	maxReserve = 256 << 20
)
