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
	"encoding/json"
	"time"

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
}

// Encode returns the canonical encoding: JSON with fields in the declared
// order, map keys sorted, no insignificant space, HTML characters not escaped.
func (e Entry) Encode() ([]byte, error) {
	return json.Marshal(e)
}
