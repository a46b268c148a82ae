package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/identity"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
)

// recorded are real sessions on two connections of a stage, and on one of another.
func recorded(t *testing.T, r *rooms) (s *session.Sessions, testing, production, mail *session.Live) {
	t.Helper()
	dir := t.TempDir()
	ring, err := secret.OpenKeyring(filepath.Join(dir, "keys", "state"), true)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = session.Open(t.Context(), session.Config{Dir: filepath.Join(dir, "recordings"), Log: r, Sealer: ring}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	begin := func(connection, stage string) *session.Live {
		l, err := s.Begin(t.Context(), session.Info{Actor: isle.Actor{Kind: isle.Workload, Name: "shop@" + stage}, Connection: connection, Stage: stage, Kind: "postgres"})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Record(session.Event{Kind: session.Statement, Text: []byte("SELECT '" + connection + "\xff'"), Decision: isle.Allow}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	return s, begin("orders-db", "testing"), begin("sales-db", "production"), begin("mail-db", "testing")
}

// servesRecordings serves somebody with sessions behind; subject is what a
// credential proved.
func servesRecordings(t *testing.T, r *rooms, p Policy, s *session.Sessions, who isle.Actor, keys Credentials, subject *identity.Subject) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: New(Config{Environments: r, Builder: r, Blobs: r, Audit: r, Host: r, Policy: p, Recordings: s, Credentials: keys, Log: slog.New(slog.DiscardHandler)}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, actorKey{}, caller{actor: who, member: true, subject: subject})
		},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

func listed(t *testing.T, c *Client) (names []string) {
	t.Helper()
	res, err := c.Sessions.ListSessions(t.Context(), connect.NewRequest(&islev1.ListSessionsRequest{All: true}))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range res.Msg.GetSessions() {
		names = append(names, s.GetConnection()+"@"+s.GetStage())
	}
	return names
}

func searched(t *testing.T, c *Client) (texts []string) {
	t.Helper()
	stream, err := c.Sessions.SearchSessions(t.Context(), connect.NewRequest(&islev1.SearchSessionsRequest{Text: "select"}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		texts = append(texts, string(stream.Msg().GetEvent().GetText()))
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return texts
}

func replayed(t *testing.T, c *Client, id isle.ID) (n int, err error) {
	t.Helper()
	stream, err := c.Sessions.ReplaySession(t.Context(), connect.NewRequest(&islev1.ReplaySessionRequest{Id: string(id)}))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		n++
	}
	return n, stream.Err()
}

func TestSessionsAreShownReplayedAndEndedAsPolicySaysOfTheirConnection(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	s, orders, production, mail := recorded(t, r)
	grant := func(roles ...string) {
		t.Helper()
		var lines strings.Builder
		for _, role := range append(roles, "base") {
			lines.WriteString("\n  - {role: " + role + ", subjects: [human:ann]}")
		}
		apply(t, a, strings.Replace(policy.Default, "bindings:", "bindings:"+lines.String(), 1)+`
connections:
  orders-db: {kind: postgres, address: "192.0.2.1:5432", database: orders, stage: testing, credential: {secret: orders-db}}
  mail-db: {kind: postgres, address: "192.0.2.1:5432", database: mail, stage: testing, credential: {secret: mail-db}}
  sales-db: {kind: postgres, address: "192.0.2.1:5432", database: sales, stage: production, credential: {secret: sales-db}}
roles:
  base: {actions: [server:read], resources: ["server:server"]}
  seer: {actions: [session:read], resources: ["connection:orders-db"]}
  reader: {actions: [recording:read], resources: ["connection:orders-db"]}
  ender: {actions: [session:end], resources: ["connection:orders-db"]}
`)
	}
	grant()
	c := servesRecordings(t, r, a, s, isle.Actor{Kind: isle.Human, Name: "ann"}, newRing(), nil)
	if got := listed(t, c); len(got) != 0 {
		t.Errorf("somebody who may see none is shown %v", got)
	}
	if got := searched(t, c); len(got) != 0 {
		t.Errorf("somebody who may read none finds %q", got)
	}
	grant("seer")
	if got := listed(t, c); strings.Join(got, " ") != "orders-db@testing" {
		t.Errorf("listed: %v", got)
	}
	if got := searched(t, c); len(got) != 0 {
		t.Errorf("found: %q", got)
	}
	if _, err := replayed(t, c, orders.ID()); isle.CodeOf(err) != isle.Refused {
		t.Errorf("replayed: %v", err)
	}
	for _, l := range []*session.Live{production, mail} {
		if _, err := c.Sessions.GetSession(t.Context(), connect.NewRequest(&islev1.GetSessionRequest{Id: string(l.ID())})); isle.CodeOf(err) != isle.Refused {
			t.Errorf("got: %v", err)
		}
	}
	grant("seer", "reader")
	if n, err := replayed(t, c, orders.ID()); err != nil || n != 1 {
		t.Errorf("%d events, %v", n, err)
	}
	if _, err := replayed(t, c, mail.ID()); isle.CodeOf(err) != isle.Refused {
		t.Errorf("replayed: %v", err)
	}
	if got := searched(t, c); len(got) != 1 || !strings.Contains(got[0], "orders-db\xff") {
		t.Errorf("found: %q", got)
	}
	read := 0
	for _, e := range r.read {
		if e.Action == isle.ActionRecordingRead {
			if read++; e.Resource != orders.Info().Resource() {
				t.Errorf("recorded as read: %+v", e)
			}
		}
	}
	if read != 2 {
		t.Errorf("%d reads are recorded, want a replay and a search", read)
	}
	end := func(l *session.Live) error {
		_, err := c.Sessions.EndSession(t.Context(), connect.NewRequest(&islev1.EndSessionRequest{Id: string(l.ID()), Reason: "enough"}))
		return err
	}
	if err := end(orders); isle.CodeOf(err) != isle.Refused || orders.Cause() != nil {
		t.Errorf("ended: %v", err)
	}
	grant("ender")
	if err := end(production); isle.CodeOf(err) != isle.Refused || production.Cause() != nil {
		t.Errorf("ended: %v", err)
	}
	if err := end(orders); err != nil {
		t.Fatal(err)
	}
	<-orders.Done()
	if err := orders.Cause(); !strings.Contains(err.Error(), "ended by human:ann: enough") {
		t.Error(err)
	}
}

// Who acts in one stage sees nothing of another, whatever roles say.
func TestWhoActsInOneStageSeesItsSessionsAlone(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	apply(t, a, machinesPolicy())
	s, _, production, _ := recorded(t, r)
	keys := newRing()
	subject := keys.give("k", identity.Subject{Actor: ci, Stage: "testing"})
	c := servesRecordings(t, r, a, s, ci, keys, &subject)
	if got := listed(t, c); strings.Contains(strings.Join(got, " "), "production") || len(got) != 2 {
		t.Errorf("listed: %v", got)
	}
	if got := searched(t, c); len(got) != 2 {
		t.Errorf("found: %q", got)
	}
	if _, err := replayed(t, c, production.ID()); isle.CodeOf(err) != isle.Refused {
		t.Errorf("replayed: %v", err)
	}
}
