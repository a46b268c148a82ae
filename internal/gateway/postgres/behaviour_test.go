package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
)

func code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return fmt.Sprint(err)
}

// refuseKind refuses statements of a kind.
func refuseKind(kind string) func(context.Context, gateway.Ask) error {
	return func(_ context.Context, a gateway.Ask) error {
		for _, s := range a.Facts.Statements {
			if s == kind {
				return isle.Errorf(isle.Refused, "%s is refused", kind).WithHint("ask")
			}
		}
		return nil
	}
}

func TestARefusalInAPipelineStandsAtItsPlaceAndRollsBackWhatWasBeforeIt(t *testing.T) {
	f := orders()
	f.decide = refuseKind("delete")
	addr := listen(t, f)
	psql(t, addr, "create table if not exists piped (a int)")
	c := dial(t, addr)
	b := &pgx.Batch{}
	b.Queue("select 1")
	b.Queue("insert into piped values (1)")
	b.Queue("delete from piped")
	b.Queue("select 2")
	r := c.SendBatch(t.Context(), b)
	var n int
	if err := r.QueryRow().Scan(&n); err != nil || n != 1 {
		t.Errorf("first: %d, %v", n, err)
	}
	if _, err := r.Exec(); err != nil {
		t.Errorf("second: %v", err)
	}
	if _, err := r.Exec(); code(err) != stateRefused {
		t.Errorf("third: %v", err)
	}
	if err := r.Close(); code(err) != stateRefused {
		t.Errorf("at the end: %v", err)
	}
	if err := c.QueryRow(t.Context(), "select count(*) from piped").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows stayed, %v", n, err)
	}
}

func TestSegmentsOfAPipelineFailOneByOne(t *testing.T) {
	f := orders()
	f.decide = refuseKind("delete")
	addr := listen(t, f)
	psql(t, addr, "create table if not exists piped (a int)")
	c := dial(t, addr).PgConn()
	p := c.StartPipeline(t.Context())
	for _, sql := range []string{"select 1", "delete from piped", "select 2", "select 1/0", "select 3"} {
		p.SendQueryParams(sql, nil, nil, nil, nil)
		if err := p.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for {
		r, err := p.GetResults()
		if err != nil {
			got = append(got, code(err))
			if code(err) == err.Error() {
				t.Fatal(err)
			}
			continue
		}
		if r == nil {
			break
		}
		if reader, ok := r.(*pgconn.ResultReader); ok {
			if result := reader.Read(); result.Err != nil {
				got = append(got, code(result.Err))
			} else {
				got = append(got, string(result.Rows[0][0]))
			}
		}
		if len(got) == 5 {
			if _, ok := r.(*pgconn.PipelineSync); ok && len(got) == 5 {
				break
			}
		}
	}
	p.Close()
	if s := strings.Join(got, " "); s != "1 42501 2 22012 3" {
		t.Errorf("the pipeline answered %s", s)
	}
}

func TestANameExecutesWhatItWasPreparedAs(t *testing.T) {
	f := orders()
	var asked []string
	f.decide = func(_ context.Context, a gateway.Ask) error {
		asked = append(asked, string(a.Text))
		return refuseKind("delete")(nil, a)
	}
	c := dial(t, listen(t, f)).PgConn()
	ctx := t.Context()
	if _, err := c.Prepare(ctx, "x", "delete from pg_class", nil); err != nil {
		t.Fatal(err)
	}
	// The server refuses a second statement of the name, in a segment of its own,
	// while the client goes on as if it had not.
	fe := c.Frontend()
	fe.SendParse(&pgproto3.Parse{Name: "x", Query: "select 1"})
	fe.SendSync(&pgproto3.Sync{})
	fe.SendBind(&pgproto3.Bind{PreparedStatement: "x"})
	fe.SendExecute(&pgproto3.Execute{})
	fe.SendSync(&pgproto3.Sync{})
	if err := fe.Flush(); err != nil {
		t.Fatal(err)
	}
	var codes []string
	for ready := 0; ready < 2; {
		m, err := fe.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			codes = append(codes, m.Code)
		case *pgproto3.ReadyForQuery:
			ready++
		}
	}
	if s := strings.Join(codes, " "); s != "42P05 42501" {
		t.Errorf("answered %s; asked for %q", s, asked)
	}
}

func TestCopyPassesBothWays(t *testing.T) {
	addr := listen(t, orders())
	c := dial(t, addr).PgConn()
	ctx := t.Context()
	if _, err := c.Exec(ctx, "create temp table lines (a int, b text)").ReadAll(); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	for i := range 20000 {
		fmt.Fprintf(&in, "%d\t%s\n", i, strings.Repeat("x", i%200))
	}
	sent := in.String()
	tag, err := c.CopyFrom(ctx, &in, "copy lines from stdin")
	if err != nil || tag.RowsAffected() != 20000 {
		t.Fatalf("%v, %v", tag, err)
	}
	var out bytes.Buffer
	if _, err := c.CopyTo(ctx, &out, "copy (select * from lines order by a) to stdout"); err != nil || out.String() != sent {
		i := 0
		for o := out.String(); i < len(o) && i < len(sent) && o[i] == sent[i]; i++ {
		}
		t.Errorf("%d bytes came back of %d, %v; they differ from %d on: %.80q for %.80q", out.Len(), len(sent), err, i, out.String()[i:], sent[i:])
	}
	if _, err := c.CopyFrom(ctx, strings.NewReader("x\n"), "copy lines from stdin"); code(err) != "22P02" {
		t.Errorf("bad data: %v", err)
	}
	if _, err := c.CopyFrom(ctx, failing{}, "copy lines from stdin"); code(err) != "57014" && err == nil {
		t.Errorf("a copy that the client gives up: %v", err)
	}
	// In the extended protocol, as libpq does it: Sync before the data too.
	fe := c.Frontend()
	fe.SendParse(&pgproto3.Parse{Query: "copy lines from stdin"})
	fe.SendBind(&pgproto3.Bind{})
	fe.SendExecute(&pgproto3.Execute{})
	fe.SendSync(&pgproto3.Sync{})
	fe.Send(&pgproto3.CopyData{Data: []byte("1\tone\n")})
	fe.Send(&pgproto3.CopyDone{})
	fe.SendSync(&pgproto3.Sync{})
	if err := fe.Flush(); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		m, err := fe.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			t.Fatal(m.Message)
		case *pgproto3.ReadyForQuery:
			done = true
		}
	}
	r, err := c.Exec(ctx, "select count(*) from lines").ReadAll()
	if err != nil || string(r[0].Rows[0][0]) != "20001" {
		t.Errorf("afterwards: %v, %v", r, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

func TestCancelReachesTheServer(t *testing.T) {
	c := dial(t, listen(t, orders()))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			c.PgConn().CancelRequest(ctx)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	_, err := c.Exec(t.Context(), "select pg_sleep(60)")
	if code(err) != "57014" {
		t.Errorf("pg_sleep ended with %v", err)
	}
}

func TestNotificationsPassWhileIdle(t *testing.T) {
	addr := listen(t, orders())
	a, b := dial(t, addr), dial(t, addr)
	if _, err := a.Exec(t.Context(), "listen news"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Exec(t.Context(), "notify news, 'hello'"); err != nil {
		t.Fatal(err)
	}
	n, err := a.WaitForNotification(t.Context())
	if err != nil || n.Payload != "hello" {
		t.Errorf("%v, %v", n, err)
	}
}

// holding waits as an approval does, and says so.
func holdKind(kind string, decision <-chan error) func(context.Context, gateway.Ask) error {
	return func(ctx context.Context, a gateway.Ask) error {
		if a.Facts.Statements[0] != kind {
			return nil
		}
		if err := a.Waiting(approval.Request{ID: "the-approval", Rule: "orders:1", Expires: time.Now().Add(time.Hour)}); err != nil {
			return err
		}
		select {
		case err := <-decision:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func TestAHeldStatementCompletesOnTheSameConnection(t *testing.T) {
	f := orders()
	decision := make(chan error, 1)
	f.decide = holdKind("update", decision)
	addr := listen(t, f)
	psql(t, addr, "create table if not exists held (a int); insert into held values (1)")
	for _, mode := range []string{"simple_protocol", "exec"} {
		config, err := pgx.ParseConfig("postgres://x@" + addr + "/?sslmode=disable&default_query_exec_mode=" + mode)
		if err != nil {
			t.Fatal(err)
		}
		notices := make(chan string, 10)
		config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices <- n.Message; decision <- nil }
		c, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		tag, err := c.Exec(t.Context(), "update held set a = a + 1")
		if err != nil || tag.RowsAffected() == 0 {
			t.Errorf("%s: %v, %v", mode, tag, err)
		}
		if n := <-notices; !strings.Contains(n, "the-approval") {
			t.Errorf("%s: notice %q", mode, n)
		}
	}
}

func TestCancelWithdrawsAHold(t *testing.T) {
	f := orders()
	f.decide = holdKind("update", nil)
	config, err := pgx.ParseConfig("postgres://x@" + listen(t, f) + "/?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) { go c.CancelRequest(context.Background()) }
	c, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(t.Context(), "update nothing set a = 1"); code(err) != stateCanceled {
		t.Errorf("%v", err)
	}
	var n int
	if err := c.QueryRow(t.Context(), "select 7").Scan(&n); err != nil || n != 7 {
		t.Errorf("afterwards: %d, %v", n, err)
	}
}

func TestAClientThatGoesAwayWithdrawsItsHold(t *testing.T) {
	f := orders()
	withdrawn := make(chan error, 1)
	hold := holdKind("update", nil)
	f.decide = func(ctx context.Context, a gateway.Ask) error {
		err := hold(ctx, a)
		if a.Facts.Statements[0] == "update" {
			withdrawn <- err
		}
		return err
	}
	c := dial(t, listen(t, f)).PgConn()
	fe := c.Frontend()
	fe.Send(&pgproto3.Query{String: "update nothing set a = 1"})
	if err := fe.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := fe.Receive(); err != nil { // the notice
		t.Fatal(err)
	}
	c.Conn().Close()
	if err := <-withdrawn; err == nil {
		t.Error("the hold was granted")
	}
}

func TestAHoldThatIsDeniedTellsWhy(t *testing.T) {
	f := orders()
	decision := make(chan error, 1)
	decision <- isle.Errorf(isle.Refused, "human:ann denied it: not before Monday")
	f.decide = holdKind("update", decision)
	out := psql(t, listen(t, f), "update nothing set a = 1;\nselect 5")
	if !strings.Contains(out, "not before Monday") || !strings.HasSuffix(out, "5\n") || !strings.Contains(out, "waits for an approval") {
		t.Errorf("psql printed %s", out)
	}
}

func TestLongValuesAreStreamed(t *testing.T) {
	addr := listen(t, orders())
	c := dial(t, addr)
	var s string
	if err := c.QueryRow(t.Context(), "select repeat('x', 50000000)").Scan(&s); err != nil || len(s) != 50000000 {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	if err := c.QueryRow(t.Context(), "select $1::text", s[:5000000]).Scan(&s); err != nil || len(s) != 5000000 {
		t.Errorf("%d bytes of a parameter, %v", len(s), err)
	}
	if _, err := c.Exec(t.Context(), "select $1", strings.Repeat("y", maxMessage+1)); code(err) != stateLimit {
		t.Errorf("a parameter that is too long: %v", err)
	}
	if err := c.QueryRow(t.Context(), "select 'after'").Scan(&s); err != nil || s != "after" {
		t.Errorf("afterwards: %q, %v", s, err)
	}
}

func TestAServerThatIsKilledIsToldToTheClient(t *testing.T) {
	c := dial(t, listen(t, orders()))
	var pid int
	if err := c.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	server.Must(t, "postgres", fmt.Sprintf("select pg_terminate_backend(%d)", pid))
	_, err := c.Exec(t.Context(), "select 1")
	if code(err) != "57P01" {
		t.Errorf("%v", err)
	}
}

func TestARoleThatNoRuleHoldsIsRefused(t *testing.T) {
	server.Must(t, "postgres", `create role strong login superuser password 'geheim'; create role plain nologin;
create role creator login createrole password 'geheim'; create role reader login password 'geheim' in role pg_read_server_files;
create role member login noinherit password 'geheim' in role creator; create role disguised login password 'geheim'; grant plain to disguised; alter role disguised set role plain`)
	t.Cleanup(func() {
		server.Must(t, "postgres", "drop role strong, member, creator, reader, disguised, plain")
	})
	for role, why := range map[string]string{"strong": "is a superuser", "creator": "createrole", "reader": "files", "member": "createrole", "disguised": "RESET ROLE"} {
		f := orders()
		f.connection.Credential.User = role
		out := psql(t, listen(t, f), "select 1")
		if !strings.Contains(out, why) || !strings.Contains(out, "create role") {
			t.Errorf("%s: %s", role, out)
		}
	}
}

func TestWhatAClientBeginsWithIsChecked(t *testing.T) {
	addr := listen(t, orders())
	for options, want := range map[string]string{
		"dbname=other":            "does not lead to database",
		"dbname=orders":           "42",
		"dbname=orders-db user=x": "42",
		"dbname=orders-db options='-c role=postgres'":      "can't begin with role",
		"dbname=orders-db options='-csearch_path=pg_temp'": "can't begin with search_path",
		"dbname=orders-db options='-c timezone=UTC'":       "42",
		"dbname=orders-db replication=database":            "replication connections",
		"dbname=orders-db client_encoding=latin1":          "read as UTF-8",
		"dbname=orders-db options='-F'":                    "does not pass",
	} {
		host, port, _ := net.SplitHostPort(addr)
		out := psql(t, addr, "select 42", "-d", options+" host="+host+" port="+port)
		if !strings.Contains(out, want) {
			t.Errorf("%s: %s", options, out)
		}
	}
}

func TestFunctionCallsAreRefusedAndTheSessionGoesOn(t *testing.T) {
	c := dial(t, listen(t, orders())).PgConn()
	fe := c.Frontend()
	fe.Send(&pgproto3.FunctionCall{Function: 1, ResultFormatCode: 0})
	fe.Send(&pgproto3.Query{String: "select 42"})
	if err := fe.Flush(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for ready := 0; ready < 2; {
		m, err := fe.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			got = append(got, m.Code)
		case *pgproto3.DataRow:
			got = append(got, string(m.Values[0]))
		case *pgproto3.ReadyForQuery:
			ready++
		}
	}
	if strings.Join(got, " ") != "42501 42" {
		t.Error(got)
	}
}

func TestAClientThatSaysGoodbyeAtOnceStillGetsItsAnswers(t *testing.T) {
	addr := listen(t, orders())
	for name, goodbye := range map[string]func(c *pgconn.PgConn){
		"Terminate":   func(c *pgconn.PgConn) { c.Frontend().Send(&pgproto3.Terminate{}); c.Frontend().Flush() },
		"end of file": func(c *pgconn.PgConn) { c.Frontend().Flush(); c.Conn().(*net.TCPConn).CloseWrite() },
	} {
		c := dial(t, addr).PgConn()
		c.Frontend().Send(&pgproto3.Query{String: "select 'first', pg_sleep(0.1)"})
		c.Frontend().Send(&pgproto3.Query{String: "select 'second'"})
		goodbye(c)
		if all, err := io.ReadAll(c.Conn()); err != nil || !strings.Contains(string(all), "first") || !strings.Contains(string(all), "second") {
			t.Errorf("%s: %q, %v", name, all, err)
		}
	}
}

func TestAHalfClosedClientEndsItsSession(t *testing.T) {
	c := dial(t, listen(t, orders())).PgConn()
	c.Conn().(*net.TCPConn).CloseWrite()
	if _, err := io.ReadAll(c.Conn()); err != nil {
		t.Error(err)
	}
}
