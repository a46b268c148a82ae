package httpdoor

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/gateway"
)

// A problem is an answer of the gateway's own (RFC 9457). A client tells it from
// what is behind the gateway by its content type and its type.
type problem struct {
	Type     string  `json:"type"` // "urn:isle:problem:refused"
	Title    string  `json:"title"`
	Status   int     `json:"status"`
	Detail   string  `json:"detail,omitempty"`
	Hint     string  `json:"hint,omitempty"`
	Rule     string  `json:"rule,omitempty"`
	Approval isle.ID `json:"approval,omitempty"`
	// After is in how many seconds it may be tried again; 0 says nothing of it.
	After int `json:"retry_after,omitempty"`

	close bool
}

// problemType begins the types.
const problemType = "urn:isle:problem:"

// write answers with the problem. Nothing was written before.
func (p problem) write(w http.ResponseWriter) {
	p.Type = problemType + p.Type
	b, err := json.Marshal(p)
	if err != nil { // text, numbers: it does not happen
		b = []byte("{}")
	}
	b = append(b, '\n')
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Cache-Control", "no-store")
	if p.After > 0 {
		h.Set("Retry-After", strconv.Itoa(p.After))
	}
	if p.close {
		h.Set("Connection", "close")
	}
	w.WriteHeader(p.Status)
	w.Write(b)
}

// closing answers, and lets nothing follow on the same connection.
func (p problem) closing(w http.ResponseWriter) {
	p.close = true
	p.write(w)
}

// problemOf says an error to a client.
func problemOf(err error) problem {
	var wrong *badRequest
	var many *tooMany
	var answer *badResponse
	switch {
	case errors.As(err, &wrong):
		return problem{Status: wrong.status, Type: "bad-request", Title: "The gateway does not pass this request", Detail: wrong.what}
	case errors.As(err, &many):
		return problem{Status: http.StatusTooManyRequests, Type: "too-many", Title: "Too many requests", Detail: many.Error(), After: int((many.after + time.Second - 1) / time.Second)}
	case errors.As(err, &answer):
		return problem{Status: http.StatusBadGateway, Type: "bad-answer", Title: "The gateway does not pass this answer", Detail: answer.what}
	}
	err = gateway.Told(err)
	p := problem{Status: http.StatusBadGateway, Type: "unavailable", Title: "It cannot be done now", Detail: err.Error()}
	var ours *isle.Error
	if errors.As(err, &ours) {
		bare := *ours
		bare.Hint = ""
		p.Detail, p.Hint = bare.Error(), ours.Hint
	}
	switch isle.CodeOf(err) {
	case isle.Refused:
		p.Status, p.Type, p.Title = http.StatusForbidden, "refused", "Refused by policy"
	case isle.Held:
		p.Status, p.Type, p.Title, p.After = http.StatusForbidden, "held", "A human has to approve it", 10
		p.Approval = named(p.Detail)
	case isle.Exhausted:
		p.Status, p.Type, p.Title, p.After = http.StatusTooManyRequests, "too-many", "Too much at once", 1
	case isle.Unavailable:
		p.Status, p.After = http.StatusServiceUnavailable, 1
	case isle.Internal:
		p.Detail, p.Hint = "it could not be done", "the server's log says more"
	}
	return p
}

// named is the request for approval that a text names.
func named(text string) isle.ID {
	for word := range strings.FieldsSeq(text) {
		if id := isle.ID(strings.Trim(word, ",.:;")); id.Valid() {
			return id
		}
	}
	return ""
}
