// Package gatewaytest is a gateway for tests of protocols.
//
// A World is a real Gateway with a real policy, approvals, sessions and secrets,
// over a log in memory. Connect opens a door as a client does.
package gatewaytest

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/gateway"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
)

// A World is a gateway and what is around it. It ends with its test.
type World struct {
	Gateway   *gateway.Gateway
	Policy    *authority.Authority
	Sessions  *session.Sessions
	Approvals *approval.Approvals
	Secrets   *secret.Secrets
	Log       *Log
	t         testing.TB
}

// root applies policies and sets secrets.
var root = isle.Actor{Kind: isle.Human, Name: "root"}

// New returns a World with a policy document. change changes the gateway's
// configuration before it begins.
func New(t testing.TB, document string, protocols map[string]gateway.Protocol, change ...func(*gateway.Config)) *World {
	t.Helper()
	w := &World{Log: &Log{ledgers: map[string]map[string][]byte{}, bound: map[string]audit.Entry{}}, t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.Policy, err = authority.Open(t.Context(), authority.Config{Store: &documents{}})
	must(err)
	w.Apply(document)
	sealer := identitytest.NewSealer()
	w.Secrets, err = secret.Open(t.Context(), secret.Config{Store: w.Log, Sealer: sealer, Log: w.Log})
	must(err)
	w.Sessions, err = session.Open(context.Background(), session.Config{Dir: t.TempDir(), Log: w.Log, Sealer: sealer})
	must(err)
	must(w.Sessions.Recover(t.Context()))
	w.Approvals, err = approval.Open(t.Context(), approval.Config{
		Store: w.Log, Log: w.Log, May: func(approval.Decider, approval.Request) error { return nil },
	})
	must(err)
	cfg := gateway.Config{Policy: w.Policy, Sessions: w.Sessions, Approvals: w.Approvals, Secrets: w.Secrets, Log: w.Log, Protocols: protocols}
	for _, c := range change {
		c(&cfg)
	}
	w.Gateway = gateway.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() { // ends with the test
		for {
			state, asked := w.Policy.State(), w.Policy.Now()
			w.Gateway.PolicyChanged()
			if !w.Policy.Await(ctx, state, asked, nil) {
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		following.Wait()
		w.Gateway.Close()
		w.Sessions.Close()
	})
	return w
}

// Apply puts another policy document in force.
func (w *World) Apply(document string) {
	w.t.Helper()
	_, err := w.Policy.Apply(w.t.Context(), root, authority.Request{
		Document:      policy.Document{Name: policy.DefaultDocument, Format: policy.YAML, Body: []byte(document)},
		Confirmations: 2,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// SetSecret sets what a credential names.
func (w *World) SetSecret(name, value string) {
	w.t.Helper()
	if _, err := w.Secrets.Set(w.t.Context(), root, name, []byte(value)); err != nil {
		w.t.Fatal(err)
	}
}

// Held waits until a request waits for approval, and returns it.
func (w *World) Held() approval.Request {
	w.t.Helper()
	for range 1000 {
		list, err := w.Approvals.List(false)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range list {
			if r.State == approval.Pending {
				return r
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatal("nothing waits for approval")
	return approval.Request{}
}

// Decide approves what waits, or denies it with a reason, as human:root.
func (w *World) Decide(r approval.Request, approve bool, reason string) {
	w.t.Helper()
	var err error
	if approve {
		_, err = w.Approvals.Approve(w.t.Context(), approval.Decider{Actor: root}, r.ID, r.Hash, reason)
	} else {
		_, err = w.Approvals.Deny(w.t.Context(), approval.Decider{Actor: root}, r.ID, reason)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Workload is an environment NAME@STAGE of a project of its name as a caller.
func Workload(name, stage string) gateway.Caller {
	return gateway.Caller{
		Actor: isle.Actor{Kind: isle.Workload, Name: name + "@" + stage}, Owner: "human:ann",
		Place: policy.Place{Project: name, Stage: stage, Environment: name},
		Ref:   isle.Ref{Name: name, Stage: stage}, Instance: isle.NewID(),
	}
}

// Connect opens a connection as a client does, over TCP, and returns the
// client's side and what Serve returned, once it has.
func (w *World) Connect(c gateway.Caller, connection string) (client net.Conn, served <-chan error) {
	w.t.Helper()
	client, inside := Pair(w.t)
	out := make(chan error, 1)
	go func() { // ends with the session; New's cleanup waits for it
		out <- w.Gateway.Serve(context.Background(), c, connection, inside)
	}()
	return client, out
}

// Pair is the two sides of a TCP connection. The first is closed with the test.
func Pair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// A Log is an audit log, and ledgers, in memory.
type Log struct {
	mu      sync.Mutex // guards what follows
	entries []audit.Entry
	away    error
	ledgers map[string]map[string][]byte
	bound   map[string]audit.Entry
}

// Away has every use of the log fail with err, until nil.
func (l *Log) Away(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = err
}

// Append implements gateway.Log and its like.
func (l *Log) Append(ctx context.Context, entries ...audit.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away != nil {
		return l.away
	}
	for _, e := range audit.Explained(ctx, entries) {
		e.Sequence, e.Time = uint64(len(l.entries)), time.Now().UTC().Truncate(time.Microsecond)
		if _, err := e.Encode(); err != nil {
			return err
		}
		l.entries = append(l.entries, e)
	}
	return nil
}

// Next implements session.Log.
func (l *Log) Next(context.Context) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.entries)), l.away
}

// Encoded implements session.Log.
func (l *Log) Encoded(_ context.Context, from uint64, limit int) (out [][]byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := from; i < uint64(len(l.entries)) && len(out) < limit; i++ {
		b, err := l.entries[i].Encode()
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, l.away
}

// Entries are those of an action; "" is any.
func (l *Log) Entries(action isle.Action) (out []audit.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if action == "" || e.Action == action {
			out = append(out, e)
		}
	}
	return out
}

// Ledger implements ledger.Store.
func (l *Log) Ledger(_ context.Context, name string) (out []ledger.Record, last audit.Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, v := range l.ledgers[name] {
		out = append(out, ledger.Record{Key: k, Body: v})
	}
	return out, l.bound[name], l.away
}

// ChangeLedger implements ledger.Store.
func (l *Log) ChangeLedger(ctx context.Context, c ledger.Change) error {
	if err := l.Append(ctx, c.Entries...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ledgers[c.Ledger] == nil {
		l.ledgers[c.Ledger] = map[string][]byte{}
	}
	for _, r := range c.Put {
		l.ledgers[c.Ledger][r.Key] = r.Body
	}
	for _, k := range c.Remove {
		delete(l.ledgers[c.Ledger], k)
	}
	l.bound[c.Ledger] = c.Entries[len(c.Entries)-1]
	return nil
}

// documents is an authority.Store that holds nothing from before.
type documents struct{}

// Policies implements authority.Store.
func (*documents) Policies(context.Context) ([]authority.Stored, uint64, audit.Entry, error) {
	return nil, 0, audit.Entry{}, nil
}

// PutPolicy implements authority.Store.
func (*documents) PutPolicy(context.Context, authority.Stored, uint64) error { return nil }
