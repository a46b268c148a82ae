package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"isle"
	"isle/internal/spec"
)

// What git asks for when it clones and fetches over HTTP (gitprotocol-http(5),
// "Smart Service git-upload-pack") is a POST that changes nothing. It is the only one
// that is recorded: its answer belongs to the bytes that ask for it.
const (
	gitRequest = "application/x-git-upload-pack-request"
	// maxAsked is how many bytes such a request has; it is in memory meanwhile.
	maxAsked = 1 << 20
	// askedIn is how long it may take to come.
	askedIn = time.Minute
)

// isGit reports whether a request is such a one, as far as its header says.
func isGit(req *http.Request) bool {
	return req.Method == http.MethodPost && req.Header.Get("Content-Type") == gitRequest && spec.IsGitFetch(req.URL.Path)
}

// readAsked reads what git asks for into the query. Whether it is compressed is told
// by its first bytes, since the lock has a digest of them alone: a packet begins with
// hexadecimal digits.
func (q *query) readAsked(w http.ResponseWriter, req *http.Request) error {
	no := func(status int, format string, args ...any) error {
		return &refusal{status, fmt.Sprintf("%v: ", *q) + fmt.Sprintf(format, args...), false}
	}
	deadline := http.NewResponseController(w)
	if err := deadline.SetReadDeadline(time.Now().Add(askedIn)); err != nil {
		return no(http.StatusBadRequest, "%v", err)
	}
	asked, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxAsked))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return no(http.StatusRequestEntityTooLarge, "it asks for more than %d KiB; fetch fewer branches, or at a depth", maxAsked>>10)
		}
		return no(http.StatusBadRequest, "it could not be read: %v", err)
	}
	deadline.SetReadDeadline(time.Time{})
	encoding := ""
	if bytes.HasPrefix(asked, []byte{0x1f, 0x8b}) {
		encoding = "gzip"
	}
	if len(asked) == 0 || req.Header.Get("Content-Encoding") != encoding {
		return no(http.StatusBadRequest, "it is nothing that git asks for")
	}
	q.asked, q.encoding, q.Body = asked, encoding, isle.DigestOf(asked)
	return nil
}
