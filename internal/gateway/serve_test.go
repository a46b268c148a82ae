package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
	"isle/internal/policy"
)

// words is a protocol of lines: "ACTION…" asks for the actions, and the answer is
// "ok" or "no: " and the error. "boom" breaks it, "slow" never starts.
type words struct{ facts map[string]*policy.Facts }

func newWords() *words {
	return &words{facts: map[string]*policy.Facts{
		"read":     {Actions: []isle.Action{isle.ActionPostgresSelect}, Statements: []string{"select"}, Tables: []string{"orders"}, Shape: "select * from orders"},
		"write":    {Actions: []isle.Action{isle.ActionPostgresWrite}, Statements: []string{"update"}, Tables: []string{"orders"}, Shape: "update orders set a = ? where b = ?"},
		"wipe":     {Actions: []isle.Action{isle.ActionPostgresWrite}, Statements: []string{"delete"}, Tables: []string{"orders"}, Unbounded: true, Shape: "delete from orders"},
		"both":     {Actions: []isle.Action{isle.ActionPostgresSelect, isle.ActionPostgresSchema}, Statements: []string{"ddl"}, Tables: []string{"orders"}, Shape: "create table orders as select ?"},
		"payments": {Actions: []isle.Action{isle.ActionPostgresSelect}, Statements: []string{"select"}, Tables: []string{"payments"}, Shape: "select * from payments"},
		"held":     {Actions: []isle.Action{isle.ActionPostgresWrite}, Statements: []string{"update"}, Tables: []string{"ledger"}, Shape: "update ledger set a = ?"},
		"two":      {Actions: []isle.Action{isle.ActionPostgresWrite}, Statements: []string{"update", "delete"}, Tables: []string{"ledger", "accounts"}, Shape: "two"},
		"later":    {Actions: []isle.Action{isle.ActionPostgresWrite}, Statements: []string{"update"}, Tables: []string{"later"}, Shape: "update later"},
		"nothing":  {},
	}}
}

func (p *words) Refuse(client net.Conn, err error) { fmt.Fprintf(client, "refused: %v\n", err) }

func (p *words) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	stop := context.AfterFunc(ctx, func() {
		fmt.Fprintf(client, "over: %v\n", context.Cause(ctx))
		client.Close()
	})
	defer stop()
	for s := bufio.NewScanner(client); s.Scan(); {
		switch s.Text() {
		case "boom":
			panic("boom")
		case "slow":
			continue // until ctx's end closes the client
		}
		d.Started()
		word := strings.TrimPrefix(s.Text(), "in write: ")
		pass, err := d.Ask(ctx, gateway.Ask{
			Facts: p.facts[word], Text: []byte(word), InWrite: word != s.Text(),
			Estimate: func(context.Context) string { return "about 3 rows" },
			Waiting: func(r approval.Request) error {
				_, err := fmt.Fprintf(client, "waits: %s\n", r.Rule)
				return err
			},
		})
		if err != nil {
			fmt.Fprintf(client, "no: %v\n", err)
			continue
		}
		pass.Done("DONE 1", 1)
		fmt.Fprintf(client, "ok\n")
	}
	return nil
}

const document = `
connections:
  orders-db: {kind: postgres, address: "127.0.0.1:5432", stage: testing, rules: [{effect: deny, tables: [payments], reason: payments are nobody's}]}
  prod-db: {kind: postgres, address: "127.0.0.1:5432", stage: production}
roles:
  reader: {actions: [connection:open, postgres:select], resources: [connection:orders-db, connection:prod-db]}
  writer: {actions: [connection:open, postgres:select, postgres:write], resources: [connection:orders-db]}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: reader, subjects: [{project: shop, stage: testing}]}
  - {role: writer, subjects: [{project: mill, stage: testing}]}
`

// A client speaks words.
type client struct {
	t      testing.TB
	conn   net.Conn
	lines  *bufio.Scanner
	served <-chan error
}

func connect(w *gatewaytest.World, t testing.TB, c gateway.Caller, name string) *client {
	conn, served := w.Connect(c, name)
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &client{t, conn, bufio.NewScanner(conn), served}
}

// say sends a word, unless it is "", and returns the answer.
func (c *client) say(word string) string {
	c.t.Helper()
	if word != "" {
		if _, err := io.WriteString(c.conn, word+"\n"); err != nil {
			c.t.Fatal(err)
		}
	}
	if !c.lines.Scan() {
		c.t.Fatalf("%q: no answer: %v", word, c.lines.Err())
	}
	return c.lines.Text()
}

func (c *client) wants(word, want string) {
	c.t.Helper()
	if got := c.say(word); !strings.Contains(got, want) {
		c.t.Errorf("%q: %q, want %q", word, got, want)
	}
}

// leave ends the session and returns why it did.
func (c *client) leave() error {
	c.conn.Close()
	return <-c.served
}

func world(t testing.TB, change ...func(*gateway.Config)) *gatewaytest.World {
	return gatewaytest.New(t, document, map[string]gateway.Protocol{"postgres": newWords()}, change...)
}

func TestAConnectionIsOpenedByWhomPolicyLetsAndByNobodyElse(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c.wants("read", "ok")
	if err := c.leave(); err != nil {
		t.Error(err)
	}
	for _, x := range []struct {
		caller     gateway.Caller
		name, want string
		code       isle.Code
	}{
		{gatewaytest.Workload("thief", "testing"), "orders-db", "may not connection:open connection:orders-db@testing: default: nothing grants it (ask whoever keeps the policy for the binding", isle.Refused},
		{gatewaytest.Workload("shop", "testing"), "prod-db", "built in: a workload stays in its stage", isle.Refused},
		{gatewaytest.Workload("shop", "production"), "orders-db", "built in: a workload stays in its stage", isle.Refused},
		{gatewaytest.Workload("shop", "testing"), "no-db", "", isle.NotFound},
		{gateway.Caller{Actor: isle.Actor{Kind: isle.Human, Name: "root"}, Stage: "production"}, "orders-db", "a session is in one stage", isle.Refused},
	} {
		c := connect(w, t, x.caller, x.name)
		if x.want != "" {
			c.wants("", "refused: ")
			if got := c.lines.Text(); !strings.Contains(got, x.want) {
				t.Errorf("%s at %s: %s", x.caller.Actor, x.name, got)
			}
		}
		if err := <-c.served; isle.CodeOf(err) != x.code {
			t.Errorf("%s at %s: %v", x.caller.Actor, x.name, err)
		}
	}
	refused := 0
	for _, e := range w.Log.Entries(isle.ActionConnectionOpen) {
		if e.Decision == isle.Deny && e.Rule != "" {
			refused++
		}
	}
	if refused != 5 {
		t.Errorf("%d refusals are in the log, want 5", refused)
	}
	if opened := w.Log.Entries(isle.ActionSessionOpen); len(opened) != 1 || opened[0].Rule != "role reader, bound to {project: shop, stage: testing}" || opened[0].Environment != "shop@testing" {
		t.Errorf("%+v", opened)
	}
}

func TestWhatChangesSomethingIsInTheLogAndWhatReadsIsNot(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("mill", "testing"), "orders-db")
	c.wants("read", "ok")
	c.wants("write", "ok")
	c.wants("wipe", "no: workload:mill@testing may not postgres:write connection:orders-db@testing: built in: no write without WHERE")
	c.wants("payments", "payments are nobody's")
	c.wants("both", "postgres:schema connection:orders-db@testing: default: nothing grants it")
	c.wants("nothing", "built in: what it does is not known")
	c.wants("read", "ok")
	if err := c.leave(); err != nil {
		t.Error(err)
	}
	if n := len(w.Log.Entries(isle.ActionPostgresSelect)); n != 1 { // the refusal of payments
		t.Errorf("%d entries about reading", n)
	}
	writes := w.Log.Entries(isle.ActionPostgresWrite)
	if len(writes) != 2 {
		t.Fatalf("%+v", writes)
	}
	e := writes[0]
	if e.Decision != isle.Allow || e.Summary != "update orders set a = ? where b = ?" || e.Details["hash"] != string(isle.DigestOf([]byte("write"))) ||
		e.Details["session"] == "" || e.OnBehalfOf[0].String() != "human:ann" || e.Rule != "role writer, bound to {project: mill, stage: testing}" || e.Instance == "" {
		t.Errorf("%+v", e)
	}
	if e := writes[1]; e.Decision != isle.Deny || e.Rule != "built in: no write without WHERE" {
		t.Errorf("%+v", e)
	}
	w.Sessions.Close() // closings are written together
	if s := w.Log.Entries(isle.ActionSessionClose); len(s) != 1 || s[0].Details["statements"] != "3" || s[0].Details["refused"] != "4" {
		t.Errorf("%+v", s)
	}
}

func TestNothingPassesWhereTheLogIsAway(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("mill", "testing"), "orders-db")
	c.wants("write", "ok")
	w.Log.Away(isle.Errorf(isle.Unavailable, "the disk is full"))
	c.wants("write", "no: connection orders-db: it could not be written to the audit log, so it is not done: the disk is full")
	second := connect(w, t, gatewaytest.Workload("mill", "testing"), "orders-db")
	second.wants("", "refused: the disk is full")
	w.Log.Away(nil)
	c.wants("write", "ok")
}

func TestWhatIsOpenEndsAtOnceAndSaysWhy(t *testing.T) {
	shop := gatewaytest.Workload("shop", "testing")
	for name, x := range map[string]struct {
		document, want string
	}{
		"its grant is gone":            {strings.Replace(document, "project: shop", "project: other", 1), "over: workload:shop@testing may not connection:open connection:orders-db@testing: default: nothing grants it"},
		"its connection is gone":       {strings.ReplaceAll(strings.Replace(document, "orders-db: {", "else-db: {", 1), "connection:orders-db", "connection:else-db"), "over: connection orders-db was removed"},
		"its connection is another":    {strings.Replace(document, "127.0.0.1:5432", "127.0.0.1:5433", 1), "over: connection orders-db was changed (connect again)"},
		"its credential is another":    {strings.Replace(document, "stage: testing,", "stage: testing, credential: {secret: x},", 1), "over: connection orders-db was changed"},
		"its stage is another":         {strings.Replace(document, `stage: testing, rules`, `stage: staging, rules`, 1), "over: connection orders-db was changed"},
		"it has to be approved by now": {document + "approvals: [{actions: [connection:open], resources: [connection:orders-db], approvers: [human:root]}]\n", "over: connection orders-db: to have it open needs a human's approval now"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			c := connect(w, t, shop, "orders-db")
			c.wants("read", "ok")
			w.Apply(x.document)
			c.wants("", x.want)
			if err := <-c.served; err == nil || !strings.Contains("over: "+err.Error(), x.want) {
				t.Errorf("served: %v", err)
			}
			w.Gateway.Close()
			w.Sessions.Close()
			if s := w.Log.Entries(isle.ActionSessionClose); len(s) != 1 || !strings.Contains("over: "+s[0].Summary, strings.SplitN(x.want, " (", 2)[0]) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestARuleThatChangesIsFollowedAndEndsNothing(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c.wants("read", "ok")
	c.wants("payments", "no: ")
	w.Apply("\n\n" + strings.Replace(document, "tables: [payments]", "tables: [orders]", 1)) // and every position is another
	c.wants("payments", "ok")
	c.wants("read", "no: ")
}

func TestAGrantThatEndsEndsWhatItOpened(t *testing.T) {
	w := world(t)
	until := time.Now().Add(1500 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	w.Apply(strings.Replace(document, "{role: reader,", "{role: reader, expires: \""+until+"\",", 1))
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c.wants("read", "ok")
	c.wants("", "over: workload:shop@testing may not connection:open")
}

func TestACallerThatCountsNoMoreIsCutOff(t *testing.T) {
	w := world(t)
	over := make(chan struct{})
	var gone atomic.Bool
	shop := gatewaytest.Workload("shop", "testing")
	shop.Over = func() <-chan struct{} { return over }
	shop.Check = func() error {
		if gone.Load() {
			return isle.Errorf(isle.Unavailable, "the environment is being torn down")
		}
		return nil
	}
	c := connect(w, t, shop, "orders-db")
	c.wants("read", "ok")
	gone.Store(true)
	close(over)
	c.wants("", "over: the environment is being torn down")
	if err := <-c.served; isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
	late := connect(w, t, shop, "orders-db")
	late.wants("", "refused: the environment is being torn down")
}

func TestASessionThatSomebodyEndsIsOver(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c.wants("read", "ok")
	w.Sessions.Close()
	c.wants("", "over: ")
	if err := <-c.served; err == nil {
		t.Error("it was over, and nobody said so")
	}
}

func TestAProtocolThatBreaksEndsItsConnectionAlone(t *testing.T) {
	w := world(t)
	other := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	io.WriteString(c.conn, "boom\n")
	if err := <-c.served; isle.CodeOf(err) != isle.Internal {
		t.Error(err)
	}
	other.wants("read", "ok")
}

func TestAStartThatTakesTooLongIsEnded(t *testing.T) {
	w := world(t, func(c *gateway.Config) { c.Start = 50 * time.Millisecond })
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	io.WriteString(c.conn, "slow\n")
	c.wants("", "over: connection orders-db: the start took longer than 50ms")
}

func TestOneCallerHasSoManySessionsAndOthersAreServedStill(t *testing.T) {
	w := world(t)
	shop := gatewaytest.Workload("shop", "testing")
	var all []*client
	for range gateway.MaxSessionsEach {
		c := connect(w, t, shop, "orders-db")
		all = append(all, c)
	}
	for _, c := range all {
		c.wants("read", "ok")
	}
	one := connect(w, t, shop, "orders-db")
	one.wants("", "refused: workload:shop@testing has 256 sessions open, as many as one may")
	connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db").wants("read", "ok") // another instance
	if err := all[0].leave(); err != nil {
		t.Error(err)
	}
	connect(w, t, shop, "orders-db").wants("read", "ok")
}

func TestAGatewayThatClosesTellsItsClients(t *testing.T) {
	w := world(t)
	c := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	c.wants("read", "ok")
	w.Gateway.Close()
	c.wants("", "over: the server is stopping")
	connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db").wants("", "refused: the server is stopping")
	w.Sessions.Close()
	if n := len(w.Log.Entries(isle.ActionSessionClose)); n != 1 {
		t.Errorf("%d sessions were closed", n)
	}
}

func TestAnAllowedReadIsDecidedWithoutAllocating(t *testing.T) {
	w := gatewaytest.New(t, document, map[string]gateway.Protocol{"postgres": asked{t}})
	_, served := w.Connect(gatewaytest.Workload("shop", "testing"), "orders-db")
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

// asked asks and leaves.
type asked struct{ t *testing.T }

func (p asked) Serve(ctx context.Context, _ net.Conn, d *gateway.Door) error {
	d.Started()
	f := newWords().facts["read"]
	text := []byte("select")
	if n := testing.AllocsPerRun(100, func() {
		pass, err := d.Ask(ctx, gateway.Ask{Facts: f, Text: text, Quiet: true})
		if err != nil {
			p.t.Error(err)
		}
		pass.Done("SELECT 1", 1)
	}); n > 0 {
		p.t.Errorf("%v allocations", n)
	}
	return nil
}

func BenchmarkAskOfAnAllowedRead(b *testing.B) {
	w := gatewaytest.New(b, document, map[string]gateway.Protocol{"postgres": bench{b}})
	_, served := w.Connect(gatewaytest.Workload("shop", "testing"), "orders-db")
	if err := <-served; err != nil {
		b.Fatal(err)
	}
}

type bench struct{ b *testing.B }

func (p bench) Serve(ctx context.Context, _ net.Conn, d *gateway.Door) error {
	d.Started()
	f := newWords().facts["read"]
	p.b.Run("quiet", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pass, err := d.Ask(ctx, gateway.Ask{Facts: f, Quiet: true})
			if err != nil {
				b.Fatal(err)
			}
			pass.Done("", 0)
		}
	})
	text := []byte("select * from orders where id = 1")
	p.b.Run("recorded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pass, err := d.Ask(ctx, gateway.Ask{Facts: f, Text: text})
			if err != nil {
				b.Fatal(err)
			}
			pass.Done("SELECT 1", 1)
		}
	})
	return nil
}
