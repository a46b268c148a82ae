package mask_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	pgquery "github.com/wasilibs/go-pgquery"

	"isle/internal/gateway"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/policy"
	"isle/test/lab"
)

// A client speaks PostgreSQL's protocol, and does with masks what the wire does.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader

	blind bool // the database says of no column where it is from
}

func connect(t testing.TB, db *lab.PG, database string) *client {
	t.Helper()
	conn, err := net.Dial("unix", db.Dir+"/.s.PGSQL."+strconv.Itoa(db.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	c := &client{t: t, conn: conn, in: bufio.NewReaderSize(conn, 1<<16)}
	body := binary.BigEndian.AppendUint32(nil, 196608)
	body = append(body, "user\x00postgres\x00database\x00"+database+"\x00\x00"...)
	c.write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...))
	c.until('Z', func(byte, []byte) {})
	return c
}

func (c *client) write(b []byte) {
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func message(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// until reads messages up to one of a kind, which it returns.
func (c *client) until(last byte, each func(kind byte, msg []byte)) []byte {
	c.t.Helper()
	for {
		head, err := c.in.Peek(5)
		if err != nil {
			c.t.Fatal(err)
		}
		msg := make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(c.in, msg); err != nil {
			c.t.Fatal(err)
		}
		if msg[0] == last {
			return msg
		}
		each(msg[0], msg)
	}
}

// rows runs a statement as a loader of catalogs does.
func (c *client) rows(_ context.Context, sql string) (out [][]string, err error) {
	c.write(message('Q', []byte(sql+"\x00")))
	c.until('Z', func(kind byte, msg []byte) {
		switch kind {
		case 'D':
			var row []string
			b := msg[7:]
			for range binary.BigEndian.Uint16(msg[5:]) {
				n := int(int32(binary.BigEndian.Uint32(b)))
				row = append(row, string(b[4:4+max(n, 0)]))
				b = b[4+max(n, 0):]
			}
			out = append(out, row)
		case 'E':
			err = fmt.Errorf("%q", msg)
		}
	})
	return out, err
}

// A reply is what a statement gave.
type reply struct {
	err     error  // it was refused before it was sent, or at its result
	sent    []byte // every byte that the client of the gateway would get
	raw     []byte // every byte that came
	failed  bool
	rows    int
	changed bool
}

// run plans a statement, sends it, and rewrites what comes.
func (c *client) run(s *mask.Session, sql string, lift bool, format int16) (r reply) {
	c.t.Helper()
	ctx := context.Background()
	plan, err := s.Plan(ctx, statement(sql, lift))
	if err != nil {
		r.err = err
		return r
	}
	c.write(message('P', []byte("\x00"+sql+"\x00\x00\x00")))
	bind := binary.BigEndian.AppendUint16([]byte("\x00\x00\x00\x00\x00\x00\x00\x01"), uint16(format))
	c.write(message('B', bind))
	c.write(message('D', []byte("P\x00")))
	c.write(message('E', []byte("\x00\x00\x00\x00\x00")))
	c.write(message('S', nil))
	var rows *mask.Rows
	ready := c.until('Z', func(kind byte, msg []byte) {
		r.raw = append(r.raw, msg...)
		switch kind {
		case 'T':
			fields, err := mask.Fields(msg)
			if err != nil {
				c.t.Fatal(err)
			}
			for i := range fields {
				if c.blind {
					fields[i].Table, fields[i].Attr = 0, 0
				}
			}
			if rows, err = s.Rows(ctx, plan, fields, nil); err != nil {
				r.err = err
			}
			r.sent = append(r.sent, msg...)
		case 'D':
			r.rows++
			if r.err != nil {
				return
			}
			before := len(r.sent)
			if r.sent, err = rows.Row(r.sent, msg); err != nil {
				c.t.Fatal(err)
			}
			r.changed = r.changed || string(r.sent[before:]) != string(msg)
		case 'E', 'N':
			r.failed = r.failed || kind == 'E'
			var changed bool
			r.sent, changed = plan.Scrub(r.sent, msg)
			r.changed = r.changed || changed
		default:
			r.sent = append(r.sent, msg...)
		}
	})
	if ready[5] == 'I' {
		s.Idle()
	}
	return r
}

func statement(sql string, lift bool) mask.Statement {
	return mask.Statement{Lift: lift, Tree: func() (*pg.Node, error) {
		tree, err := pgquery.Parse(sql)
		if err != nil {
			return nil, err
		}
		if len(tree.Stmts) != 1 {
			return nil, fmt.Errorf("%d statements", len(tree.Stmts))
		}
		return tree.Stmts[0].Stmt, nil
	}}
}

func parse(_ context.Context, sql string) (*pg.ParseResult, error) { return pgquery.Parse(sql) }

// server is one PostgreSQL for all tests, each of which has its own database.
var server = sync.OnceValues(func() (*lab.PG, error) { return lab.StartPostgres() })

var databases atomic.Int32

func TestMain(m *testing.M) {
	code := m.Run()
	if databases.Load() > 0 {
		if db, err := server(); err == nil {
			db.Close()
		}
	}
	os.Exit(code)
}

// shop is a database with masks, and its masks.
func shop(t testing.TB, masks []policy.Mask, detect ...string) (db *lab.PG, database string, m *mask.Masks) {
	t.Helper()
	name := fmt.Sprintf("shop%d", databases.Add(1))
	db, err := server()
	if err != nil {
		t.Fatal(err)
	}
	setup, err := os.ReadFile("testdata/setup.sql")
	if err != nil {
		t.Fatal(err)
	}
	db.Must(t, "postgres", "CREATE DATABASE "+name)
	db.Must(t, name, string(setup))
	return db, name, masksOf(t, masks, detect...)
}

func masksOf(t testing.TB, masks []policy.Mask, detect ...string) *mask.Masks {
	t.Helper()
	m, err := mask.New(mask.Config{
		Connection: policy.Connection{Name: "shop-db", Mask: masks, Detect: detect},
		Key:        gateway.MaskKey([]byte("a key of the server"), "shop-db"), Parse: parse,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// all are the masks of the corpus.
func all() []policy.Mask {
	var out []policy.Mask
	for _, c := range []string{"customers.phone", "customers.pin", "customers.big", "customers.amount", "customers.born", "customers.seen",
		"customers.token", "customers.photo", "customers.prefs", "customers.tags", "customers.city", "people.email", "public.events.who", "loose.hard", "public.buyers.email"} {
		out = append(out, policy.Mask{Column: c, Show: "full"})
	}
	return append(out, policy.Mask{Column: "customers.email", Show: "partial"},
		policy.Mask{Column: "loose.soft", Show: "hash", Allow: []string{"filter", "order", "group", "aggregate"}})
}
