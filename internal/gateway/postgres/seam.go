package postgres

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"isle"
	"isle/internal/policy"
)

// What follows stands for what other rooms have.

type Param struct {
	Type         string
	Value        []byte
	Null, Binary bool
}

type Pair struct{ Key, Value string }

type Ask struct {
	Facts    *policy.Facts
	Text     []byte
	Params   []Param
	Context  []Pair
	InWrite  bool
	Waiting  func(Request) error
	Estimate func(ctx context.Context) string
	Quiet    bool
}

type Request struct {
	ID      isle.ID
	Rule    string
	Why     string
	Expires time.Time
}

type Pass interface {
	Done(outcome string, rows int64)
	Rule() string
	Approval() isle.ID
}

type Event struct {
	At       time.Time
	Kind     string
	Text     []byte
	Params   []string
	Shape    string
	Decision isle.Decision
	Rule     string
	Approval isle.ID
	Tag      string
	Rows     int64
	Bytes    int64
	Took     time.Duration
	Error    string
	Data     []byte
}

// A door is what is used of a gateway.Door.
type door interface {
	Same(other door) bool
	Connection() policy.Connection
	Dial(ctx context.Context) (net.Conn, error)
	TLS(ctx context.Context) (*tls.Config, error)
	Secret(ctx context.Context) (hidden, error)
	Ask(ctx context.Context, a Ask) (Pass, error)
	Record(e Event) error
}

type Part struct {
	Start, End int
	Facts      *policy.Facts
	Class      string
}

type Read struct {
	Facts *policy.Facts
	Parts []Part
}

type Settings struct{ StandardConforming bool }

// hidden is what is used of a secret.Value.
type hidden interface {
	Reveal() []byte
	Destroy()
}

// A Reader reads SQL.
type Reader interface {
	Read(ctx context.Context, sql string, s Settings) (*Read, error)
}
