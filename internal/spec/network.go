package spec

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"isle"
)

// A LockedStep is what one step with the recorded network was answered.
type LockedStep struct {
	Stage     string     `json:"stage,omitempty"` // of a Dockerfile; "" is the service's own `run`
	Step      string     `json:"step"`            // the instruction or command, and which one of several that are the same
	Materials []Material `json:"materials"`       // by URL, then by Method and Accept
}

// A Material is one answer over HTTP, by the request that gets it.
type Material struct {
	Method string `json:"method,omitempty"` // "" is GET; "HEAD"; "POST" of what git fetches
	URL    string `json:"url"`              // with its query, without user information and fragment
	Accept string `json:"accept,omitempty"` // the request's header, by which servers choose between forms
	// Body is the digest of what a POST sends; "" of other requests.
	Body   isle.Digest `json:"body,omitempty"`
	Status int         `json:"status"`
	// Header is what of the answer's header is kept: names as in MaterialHeaders.
	Header map[string]string `json:"header,omitempty"`
	Size   int64             `json:"size"`   // of the body in bytes
	Digest isle.Digest       `json:"digest"` // of the body
	Time   time.Time         `json:"time"`   // the answer's Date, in seconds
}

// Key is the request that a material answers.
func (m Material) Key() string {
	key := m.Method + "\n" + m.URL + "\n" + m.Accept
	if m.Body != "" {
		key += "\n" + string(m.Body)
	}
	return key
}

// IsGitFetch reports whether a path is where git asks for what it fetches
// (gitprotocol-http(5)): the only POST that is recorded, for it changes nothing.
func IsGitFetch(path string) bool { return strings.HasSuffix(path, "/git-upload-pack") }

// MaterialHeaders are the headers of an answer that are kept (RFC 9110, RFC 9111
// and RFC 8288), in order. What else a server says changes from answer to answer,
// is about the connection, or is about whoever asks.
func MaterialHeaders() []string {
	return []string{
		"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Type",
		"Etag", "Expires", "Last-Modified", "Link", "Location", "Vary",
	}
}

// Bounds of what is recorded.
const (
	// MaxMaterials is how many answers one step may have.
	MaxMaterials = 20_000
	// MaxMaterialURL and MaxMaterialHeader are bytes of an address and of one
	// value of a header.
	MaxMaterialURL    = 8 << 10
	MaxMaterialHeader = 8 << 10
	// MaxMaterialSize is bytes of one body.
	MaxMaterialSize = 4 << 30
	maxLockedSteps  = 1024
	maxStepText     = 4 << 10
)

// Check says what is wrong with a material; nil: nothing. A lock is somebody
// else's file, and what it says is sent to programs as an answer of HTTP.
func (m Material) Check() error {
	if err := CheckMaterialURL(m.URL); err != nil {
		return err
	}
	switch u, err := url.Parse(m.URL); {
	case err != nil:
		return err
	case m.Method == "POST" && !(IsGitFetch(u.Path) && m.Body.Valid()):
		return fmt.Errorf("a POST to %s can be no recorded request: only what git fetches with is", clip(m.URL))
	case m.Method != "" && m.Method != "HEAD" && m.Method != "POST":
		return fmt.Errorf("method %q can be no recorded request's", clip(m.Method))
	case m.Method != "POST" && m.Body != "":
		return fmt.Errorf("%s: a request without a body has one", clip(m.URL))
	}
	switch {
	case len(m.Accept) > MaxMaterialHeader || !fieldText(m.Accept):
		return fmt.Errorf("accept of %s is no header", clip(m.URL))
	case m.Status < 200 || m.Status > 599:
		return fmt.Errorf("%d is no status of an answer", m.Status)
	case m.Size < 0 || m.Size > MaxMaterialSize:
		return fmt.Errorf("%s: %d is no size of an answer", clip(m.URL), m.Size)
	case !m.Digest.Valid():
		return fmt.Errorf("%s: %q is no sha256 digest", clip(m.URL), clip(string(m.Digest)))
	case m.Time.IsZero() || m.Time.Year() > 9999 || m.Time.Location() != time.UTC || m.Time.Nanosecond() != 0:
		return fmt.Errorf("%s: its time is none in whole seconds of UTC", clip(m.URL))
	}
	for name, value := range m.Header {
		if !slices.Contains(MaterialHeaders(), name) {
			return fmt.Errorf("%s: header %q is none that is kept", clip(m.URL), clip(name))
		}
		if len(value) > MaxMaterialHeader || !fieldText(value) {
			return fmt.Errorf("%s: header %s has a value that no header can have", clip(m.URL), name)
		}
	}
	return nil
}

// CheckMaterialURL says why an address can be no material's; nil: it can.
func CheckMaterialURL(s string) error {
	if len(s) > MaxMaterialURL || !fieldText(s) {
		return fmt.Errorf("%q is no URL", clip(s))
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q is no URL of HTTP", clip(s))
	case u.User != nil:
		return fmt.Errorf("the URL at %s has a user and a password in it", clip(u.Host))
	case u.Fragment != "":
		return fmt.Errorf("%q has a fragment, which no request has", clip(s))
	}
	return nil
}

// fieldText reports whether s can stand in a message of HTTP (RFC 9110, section
// 5.5).
func fieldText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) && cleanText(strings.ReplaceAll(s, "\t", " "))
}

// CompareMaterials is their order in a lock.
func CompareMaterials(a, b Material) int {
	if c := strings.Compare(a.URL, b.URL); c != 0 {
		return c
	}
	return strings.Compare(a.Key(), b.Key())
}

// network checks what a service's steps were answered.
func (c *lockChecker) network(where string, steps []LockedStep) {
	if len(steps) > maxLockedSteps {
		c.problem(where, "has more steps than a service can have")
		return
	}
	seen := map[[2]string]bool{}
	for i, s := range steps {
		at := fmt.Sprintf("%s[%d]", where, i)
		id := [2]string{s.Stage, s.Step}
		switch {
		case seen[id]:
			c.problem(at+".step", "%q is here a second time", clip(s.Step))
		case s.Step == "" || len(s.Step) > maxStepText || !cleanText(s.Step) || len(s.Stage) > 128 || !cleanText(s.Stage):
			c.problem(at+".step", "%q is no step", clip(s.Step))
		case len(s.Materials) > MaxMaterials:
			c.problem(at, "has %d answers; a step has at most %d", len(s.Materials), MaxMaterials)
			continue
		}
		seen[id] = true
		for j, m := range s.Materials {
			switch {
			case m.Check() != nil:
				c.problem(fmt.Sprintf("%s.materials[%d]", at, j), "%v", m.Check())
			case j > 0 && CompareMaterials(s.Materials[j-1], m) >= 0:
				c.problem(fmt.Sprintf("%s.materials[%d]", at, j), "%s is out of order or here a second time", clip(m.URL))
			}
		}
	}
}
