package initproto

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"isle"
)

// The kinds of Event.
const (
	EventSetup   = "setup"
	EventStarted = "started"
	EventHealth  = "health"
	EventExited  = "exited"
)

// An Event is one thing isle-init tells.
type Event struct {
	Seq     uint64 `json:"seq"` // grows, over Log frames too
	Kind    string `json:"kind"`
	Code    int    `json:"code,omitempty"`    // of setup and exited: 0–255
	Output  string `json:"output,omitempty"`  // of setup: its end, at most MaxOutput
	Healthy bool   `json:"healthy,omitempty"` // of health
	Detail  string `json:"detail,omitempty"`  // of health and exited: why, at most MaxDetail
}

// ParseEvent reads the payload of an Event frame and bounds what is in it.
func ParseEvent(b []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("%w: event: %v", errFrame, err)
	}
	switch e.Kind {
	case EventSetup, EventStarted, EventHealth, EventExited:
	default:
		return e, fmt.Errorf("%w: event of kind %q", errFrame, bound(e.Kind, 32))
	}
	if e.Code < 0 || e.Code > 255 {
		return e, fmt.Errorf("%w: exit code %d", errFrame, e.Code)
	}
	e.Output = lastBytes(e.Output, MaxOutput)
	e.Detail = bound(e.Detail, MaxDetail)
	return e, nil
}

// LogHeaderSize is what precedes the data in a Log frame's payload, in bytes.
const LogHeaderSize = 8 + 8 + 1

// A Log is a piece of the command's output.
type Log struct {
	Seq    uint64
	At     time.Time
	Stderr bool
	Data   []byte
}

// PutHeader writes everything but the data to the first LogHeaderSize bytes
// of b.
func (l *Log) PutHeader(b []byte) {
	binary.BigEndian.PutUint64(b, l.Seq)
	binary.BigEndian.PutUint64(b[8:], uint64(l.At.UnixNano()))
	b[16] = 0
	if l.Stderr {
		b[16] = 1
	}
}

// ParseLog reads the payload of a Log frame. Data is part of b.
func ParseLog(b []byte) (Log, error) {
	if len(b) < LogHeaderSize || b[16] > 1 {
		return Log{}, fmt.Errorf("%w: log", errFrame)
	}
	return Log{
		Seq:    binary.BigEndian.Uint64(b),
		At:     time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))),
		Stderr: b[16] == 1,
		Data:   b[LogHeaderSize:],
	}, nil
}

// The kinds of Request.
const (
	RequestExec    = "exec"
	RequestForward = "forward"
	RequestCopyIn  = "copy-in"
	RequestCopyOut = "copy-out"
	RequestList    = "list"
	RequestFolder  = "folder"
	RequestSignal  = "signal"
	RequestStop    = "stop"
)

// A Request is one piece of work for isle-init.
type Request struct {
	Kind string `json:"kind"`

	Command  []string          `json:"command,omitempty"` // exec
	Env      map[string]string `json:"env,omitempty"`
	User     string            `json:"user,omitempty"`    // exec; copy-in: the owner of what is written
	Workdir  string            `json:"workdir,omitempty"` // exec
	Terminal bool              `json:"terminal,omitempty"`
	Rows     uint16            `json:"rows,omitempty"`
	Columns  uint16            `json:"columns,omitempty"`

	Port   int           `json:"port,omitempty"`   // forward
	Path   string        `json:"path,omitempty"`   // copy-in, copy-out, list, folder: absolute
	Signal string        `json:"signal,omitempty"` // signal
	Grace  time.Duration `json:"grace,omitempty"`  // stop
}

// Check says what is wrong with a Request. Both sides ask it: home before
// sending, isle-init after receiving.
func (r *Request) Check() error {
	switch r.Kind {
	case RequestExec:
		if len(r.Command) == 0 || r.Command[0] == "" {
			return isle.Errorf(isle.Invalid, "exec: there is no command").WithHint("say which after --")
		}
		for _, a := range r.Command {
			if strings.IndexByte(a, 0) >= 0 {
				return isle.Errorf(isle.Invalid, "exec: an argument has a NUL byte in it")
			}
		}
		for k, v := range r.Env {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.IndexByte(v, 0) >= 0 {
				return isle.Errorf(isle.Invalid, "exec: %q cannot be a variable", bound(k, 64))
			}
		}
		if strings.IndexByte(r.User, 0) >= 0 || r.Workdir != "" && !absolute(r.Workdir) {
			return isle.Errorf(isle.Invalid, "exec: user %q, working folder %q: want a user's name and an absolute path", bound(r.User, 64), bound(r.Workdir, 256))
		}
	case RequestForward:
		if r.Port < 1 || r.Port > 65535 {
			return isle.Errorf(isle.Invalid, "port %d: want one from 1 to 65535", r.Port)
		}
	case RequestCopyIn, RequestCopyOut, RequestList, RequestFolder:
		if !absolute(r.Path) {
			return isle.Errorf(isle.Invalid, "path %q: want an absolute path", bound(r.Path, 256))
		}
	case RequestSignal:
		if _, err := ParseSignal(r.Signal); err != nil {
			return err
		}
	case RequestStop:
		if r.Grace < 0 {
			return isle.Errorf(isle.Invalid, "grace of %v: want one that is not negative", r.Grace)
		}
	default:
		return isle.Errorf(isle.Invalid, "request %q is unknown", bound(r.Kind, 32))
	}
	return nil
}

// absolute reports whether p is an absolute path that a system call can take.
func absolute(p string) bool {
	return path.IsAbs(p) && len(p) < 4096 && strings.IndexByte(p, 0) < 0
}

// ParseRequest reads and checks the payload of a Request frame.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%w: request: %v", errFrame, err)
	}
	return r, r.Check()
}

// A Response, and a Result, is how a piece of work went: an *isle.Error in
// pieces, or nothing.
type Response struct {
	Code    isle.Code `json:"code,omitempty"` // "" all is well
	Message string    `json:"message,omitempty"`
	Hint    string    `json:"hint,omitempty"`
}

// ResponseOf puts err, or success, into a Response.
func ResponseOf(err error) Response {
	if err == nil {
		return Response{}
	}
	if e, ok := err.(*isle.Error); ok {
		c := *e
		c.Hint = ""
		return Response{Code: e.Code, Message: bound(c.Error(), MaxDetail), Hint: bound(e.Hint, MaxDetail)}
	}
	return Response{Code: isle.CodeOf(err), Message: bound(err.Error(), MaxDetail)}
}

// ParseResponse reads the payload of a Response or Result frame and returns
// the error in it: first the one that work met, then one of the protocol.
func ParseResponse(b []byte) (failure, err error) {
	var r Response
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: response: %v", errFrame, err)
	}
	switch r.Code {
	case "":
		return nil, nil
	case isle.Invalid, isle.NotFound, isle.Conflict, isle.Refused, isle.Held, isle.Untrusted, isle.Unavailable, isle.Exhausted, isle.Failed, isle.Internal:
	default:
		r.Code = isle.Failed
	}
	return &isle.Error{Code: r.Code, Message: bound(r.Message, MaxDetail), Hint: bound(r.Hint, MaxDetail)}, nil
}

// exitMessage is the payload of an Exit frame.
type exitMessage struct {
	Code   int    `json:"code"`
	Reason string `json:"reason,omitempty"`
}

// EncodeExit returns the payload of an Exit frame.
func EncodeExit(e Exit) []byte {
	b, err := json.Marshal(exitMessage{e.Code, bound(e.Reason, MaxDetail)})
	if err != nil {
		return []byte(`{"code":255}`) // cannot happen: an int and a valid string
	}
	return b
}

// ParseExit reads the payload of an Exit frame.
func ParseExit(b []byte) (Exit, error) {
	var e exitMessage
	if err := json.Unmarshal(b, &e); err != nil || e.Code < 0 || e.Code > 255 {
		return Exit{}, fmt.Errorf("%w: exit", errFrame)
	}
	return Exit{Code: e.Code, Reason: bound(e.Reason, MaxDetail)}, nil
}

// EncodeResize returns the payload of a Resize frame.
func EncodeResize(rows, columns uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, rows), columns)
}

// ParseResize reads the payload of a Resize frame.
func ParseResize(b []byte) (rows, columns uint16, err error) {
	if len(b) != 4 {
		return 0, 0, fmt.Errorf("%w: resize", errFrame)
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), nil
}

// EncodeNumber returns the payload of an Ack or Window frame.
func EncodeNumber(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// ParseNumber reads the payload of an Ack or Window frame.
func ParseNumber(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: number", errFrame)
	}
	return binary.BigEndian.Uint64(b), nil
}

// bound returns at most n bytes of s, as valid UTF-8 without control
// characters other than line ends and tabs: such text reaches terminals.
func bound(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	s = strings.ToValidUTF8(s, "�")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// lastBytes returns the last n bytes of s, beginning with a whole rune.
func lastBytes(s string, n int) string {
	if len(s) > n {
		s = s[len(s)-n:]
		for len(s) > 0 && !utf8.RuneStart(s[0]) {
			s = s[1:]
		}
	}
	return s
}
