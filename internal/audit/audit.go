// Package audit is the record of what was done, refused and approved.
//
// An Entry says who did what to what, when, and what was decided. An intent is
// written before an effect and an outcome, linked to it, after; what crashed in
// between is closed as unknown by recovery. Entries are numbered from 0 without
// gaps and are never changed: a store appends each in the transaction of the
// change that it describes, durable before the effect. Encode is the canonical
// encoding that will be the leaf of the Merkle tree; it is final.
package audit

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"isle"
)

// Version is the version of the entry format.
const Version = 1

// Kind says which half of an action an entry is.
type Kind string

// The kinds of entry.
const (
	Intent  Kind = "intent"  // about to be done; durable before the effect
	Outcome Kind = "outcome" // how an intent ended; Link names it
	Event   Kind = "event"   // complete in itself: a refusal, an exit, a session's start
)

// An Entry is one line of the log. The order of the fields is the order of the
// canonical encoding. Sequence and Time are given by the store on append.
type Entry struct {
	Version     int               `json:"v"`
	Sequence    uint64            `json:"seq"`
	Time        time.Time         `json:"time"` // UTC, microseconds; never before the previous entry's
	ID          isle.ID           `json:"id"`
	Kind        Kind              `json:"kind"`
	Actor       isle.Actor        `json:"actor"`
	OnBehalfOf  []isle.Actor      `json:"on_behalf_of,omitempty"` // nearest first
	Sessions    []isle.ID         `json:"sessions,omitempty"`     // open exec sessions, where the actor is a workload
	Environment string            `json:"environment,omitempty"`  // NAME@STAGE, always with the stage
	Instance    isle.ID           `json:"instance,omitempty"`
	Release     isle.Digest       `json:"release,omitempty"`
	Action      isle.Action       `json:"action"`
	Resource    isle.Resource     `json:"resource"`
	Decision    isle.Decision     `json:"decision"`
	Rule        string            `json:"rule,omitempty"`   // what decided
	Result      string            `json:"result,omitempty"` // of outcomes and events: "ok", an isle.Code, "unknown"
	Summary     string            `json:"summary,omitempty"`
	Details     map[string]string `json:"details,omitempty"` // never a secret
	Link        isle.ID           `json:"link,omitempty"`    // an outcome's intent
	Recording   isle.Digest       `json:"recording,omitempty"`
	Count       int               `json:"count,omitempty"` // of aggregated refusals
	Bound       *Bound            `json:"bound,omitempty"` // of the change of a ledger
}

// A Bound says what a table of records holds after the change that its entry
// describes, so that the log vouches for the table. Room ledger makes them.
type Bound struct {
	Ledger string      `json:"ledger"`
	Epoch  uint64      `json:"epoch"` // the number of the change, from 1
	State  isle.Digest `json:"state"` // over all of the records
}

// MaxSize bounds an encoded entry in bytes: the entry bundles of C2SP
// tlog-tiles give an entry's length 16 bits.
const MaxSize = 1<<16 - 1

// Bounds of what the constructors keep of text that may come from outside.
const (
	maxName    = 512 // of actors and resources; no name that is valid is longer
	maxSummary = 1 << 10
	maxDetail  = 2 << 10
	maxDetails = 12
)

// Encode returns the canonical encoding: JSON (RFC 8259) with the fields in the
// declared order, map keys sorted, no insignificant space, HTML characters not
// escaped, text that is not UTF-8 replaced by U+FFFD, and the time in UTC with
// at most microseconds. It fails with Invalid for another version than Version
// and for an entry of more than MaxSize bytes.
func (e Entry) Encode() ([]byte, error) {
	if e.Version != Version {
		return nil, isle.Errorf(isle.Invalid, "audit entry %s: version %d, this program writes version %d", e.ID, e.Version, Version)
	}
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, isle.Errorf(isle.Invalid, "audit entry %s: %w", e.ID, err)
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(out) > MaxSize {
		return nil, isle.Errorf(isle.Invalid, "audit entry %s: %d bytes, at most %d", e.ID, len(out), MaxSize)
	}
	return out, nil
}

// Decode reads a canonical encoding. It is strict: what Encode would not have
// written byte for byte (an unknown field, other spacing, another order, a
// field twice, a time that is not UTC) is Invalid.
func Decode(b []byte) (Entry, error) {
	if len(b) > MaxSize {
		return Entry{}, isle.Errorf(isle.Invalid, "audit entry: %d bytes, at most %d", len(b), MaxSize)
	}
	var e Entry
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return Entry{}, isle.Errorf(isle.Invalid, "audit entry: %w", err)
	}
	again, err := e.Encode()
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(again, b) {
		return Entry{}, isle.Errorf(isle.Invalid, "audit entry %s is not in its canonical encoding", e.ID)
	}
	return e, nil
}

// NewIntent returns the entry to append before an effect.
func NewIntent(actor isle.Actor, action isle.Action, resource isle.Resource, summary string) Entry {
	actor.Name, resource.Name, resource.Stage = clip(actor.Name, maxName), clip(resource.Name, maxName), clip(resource.Stage, maxName)
	return Entry{
		Version: Version, ID: isle.NewID(), Kind: Intent, Actor: actor, Action: action,
		Resource: resource, Decision: isle.Allow, Summary: clip(summary, maxSummary),
	}
}

// NewEvent returns an entry that is complete in itself. Its result is "ok"
// where the decision is allow, and refused otherwise.
func NewEvent(actor isle.Actor, action isle.Action, resource isle.Resource, decision isle.Decision, summary string) Entry {
	e := NewIntent(actor, action, resource, summary)
	e.Kind, e.Decision, e.Result = Event, decision, OK
	if decision != isle.Allow {
		e.Result = string(isle.Refused)
	}
	return e
}

// Results of outcomes and events, beside an isle.Code.
const (
	OK      = "ok"
	Unknown = "unknown" // the server died between intent and outcome
)

// Result is "ok" for nil and the error's code otherwise.
func Result(err error) string {
	if err == nil {
		return OK
	}
	return string(isle.CodeOf(err))
}

// Outcome returns how the intent e ended: linked to it and about the same
// action of the same actor. An error's text becomes the summary.
func (e Entry) Outcome(err error) Entry {
	o := e
	o.ID, o.Link, o.Kind = isle.NewID(), e.ID, Outcome
	o.Sequence, o.Time, o.Details, o.Bound = 0, time.Time{}, nil, nil
	o.Result, o.Summary = Result(err), ""
	if err != nil {
		o.Summary = clip(err.Error(), maxSummary)
	}
	return o
}

// Unknown returns the outcome of an intent whose end nobody saw.
func (e Entry) Unknown(summary string) Entry {
	o := e.Outcome(nil)
	o.Result, o.Summary = Unknown, clip(summary, maxSummary)
	return o
}

// In returns e as an entry about the environment.
func (e Entry) In(ref isle.Ref, instance isle.ID) Entry {
	e.Environment, e.Instance = ref.Name+"@"+ref.Stage, instance
	return e
}

// With returns e with one more detail. Values are cut to a bound, and details
// beyond a number are dropped: they may come from outside.
func (e Entry) With(key, value string) Entry {
	details := make(map[string]string, len(e.Details)+1)
	maps.Copy(details, e.Details)
	if len(details) < maxDetails {
		details[clip(key, 64)] = clip(value, maxDetail)
	}
	e.Details = details
	return e
}

// clip cuts s to at most n bytes, at a character's boundary, and replaces what
// is no text. What is left at most doubles in JSON, so that an entry made by
// the constructors always fits MaxSize.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return utf8.RuneError
		}
		return r
	}, s[:min(len(s), 4*n)])
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
