package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/environment"
	"isle/internal/policy"
)

// versions is an authority.Store in memory.
type versions struct {
	mu   sync.Mutex
	docs map[string]authority.Stored
	last uint64
}

func (v *versions) Policies(context.Context) (docs []authority.Stored, epoch uint64, last audit.Entry, err error) {
	return nil, 0, last, nil
}

func (v *versions) PutPolicy(_ context.Context, d authority.Stored, epoch uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.docs[d.Name], v.last = d, epoch
	return nil
}

func newPolicy(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.Open(t.Context(), authority.Config{Store: &versions{docs: map[string]authority.Stored{}}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A decider decides otherwise than its policy.
type decider struct {
	*authority.Authority
	decide func(policy.Query) policy.Answer
}

func (d *decider) Decide(q policy.Query) policy.Answer { return d.decide(q) }

func apply(t *testing.T, a *authority.Authority, body string) {
	t.Helper()
	_, err := a.Apply(t.Context(), isle.Actor{Kind: isle.Human, Name: Root}, authority.Request{
		Document: policy.Document{Name: "main", Format: policy.YAML, Body: []byte(body)}, Confirmations: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serveAs serves somebody who is not root.
func serveAs(t *testing.T, r *rooms, p Policy, name string, groups ...string) *Client {
	t.Helper()
	if r.envs == nil {
		r.envs = map[isle.Ref]environment.Environment{}
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: New(Config{Environments: r, Builder: r, Blobs: r, Audit: r, Host: r, Policy: p, Log: slog.New(slog.DiscardHandler)}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return WithActor(ctx, isle.Actor{Kind: isle.Human, Name: name}, groups...)
		},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

func TestARefusalNamesTheRuleAndTheGrantToAskFor(t *testing.T) {
	r := &rooms{}
	c := serveAs(t, r, newPolicy(t), "ann", "devs")
	_, err := c.Environments.Extend(t.Context(), connect.NewRequest(&islev1.ExtendRequest{Environment: "shop@staging"}))
	e, ok := err.(*isle.Error)
	if !ok || e.Code != isle.Refused || !strings.Contains(e.Message, "human:ann may not environment:extend environment:shop@staging: default: nothing grants it") ||
		!strings.Contains(e.Hint, "{role: operator, subjects: [human:ann], stages: [staging]}") {
		t.Fatalf("%v", err)
	}
	if len(r.entries) != 1 || r.entries[0].Rule != "default: nothing grants it" || r.entries[0].Decision != isle.Deny || r.entries[0].Environment != "shop@staging" {
		t.Errorf("%+v", r.entries)
	}
}

func TestACallIsInOneStage(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	c := serveAs(t, r, a, "root")
	stream, err := c.Environments.Down(t.Context(), connect.NewRequest(&islev1.DownRequest{Environments: []string{"a", "b@staging"}}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	if err := stream.Err(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "one stage at a time") {
		t.Errorf("%v", err)
	}
	if r.seen("Down") {
		t.Error("part of it was done")
	}
}

func TestListShowsWhatMayBeRead(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	apply(t, a, policy.Default+`
roles:
  lister: {actions: [environment:list], resources: ["server:server"]}
  reader: {actions: [environment:read], resources: ["environment:shop@testing"]}
`)
	c := serveAs(t, r, a, "ann")
	if _, err := c.Environments.List(t.Context(), connect.NewRequest(&islev1.ListRequest{})); isle.CodeOf(err) != isle.Refused {
		t.Fatal(err)
	}
	base := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: lister, subjects: [human:ann]}", 1) + `
roles:
  lister: {actions: [environment:list], resources: ["server:server"]}
  reader: {actions: [environment:read], resources: ["environment:shop@testing"]}
`
	apply(t, a, base)
	count := func() int {
		res, err := c.Environments.List(t.Context(), connect.NewRequest(&islev1.ListRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return len(res.Msg.GetEnvironments())
	}
	if n := count(); n != 0 {
		t.Errorf("%d are shown to somebody who may read none", n)
	}
	apply(t, a, strings.Replace(base, "bindings:", "bindings:\n  - {role: reader, subjects: [human:ann]}", 1))
	if n := count(); n != 1 {
		t.Errorf("%d are shown", n)
	}
}

// What is open ends when the grant does; what is granted still goes on.
func TestOpenStreamsEndWithTheirGrant(t *testing.T) {
	for _, name := range []string{"exec", "port-forward", "audit"} {
		t.Run(name, func(t *testing.T) {
			r := &rooms{process: newProcess()}
			a := newPolicy(t)
			granted := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: developer, subjects: [group:devs], stages: [testing]}\n  - {role: auditor, subjects: [group:devs]}", 1)
			apply(t, a, granted)
			c := serveAs(t, r, a, "ann", "devs")
			ended := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			switch name {
			case "exec":
				s := c.Environments.Exec(ctx)
				if err := s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "shop", Command: []string{"cat"}}}}); err != nil {
					t.Fatal(err)
				}
				r.process.(*process).out <- environment.Output{Data: []byte("x")}
				if _, err := s.Receive(); err != nil {
					t.Fatal(err)
				}
				go func() { _, err := s.Receive(); ended <- err }()
			case "port-forward":
				s := c.Environments.PortForward(ctx)
				if err := s.Send(&islev1.PortInput{Input: &islev1.PortInput_Start{Start: &islev1.PortStart{Environment: "shop", Port: 80}}}); err != nil {
					t.Fatal(err)
				}
				if err := s.Send(&islev1.PortInput{Input: &islev1.PortInput_Data{Data: []byte("x")}}); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Receive(); err != nil {
					t.Fatal(err)
				}
				go func() { _, err := s.Receive(); ended <- err }()
			case "audit":
				s, err := c.Server.Audit(ctx, connect.NewRequest(&islev1.AuditRequest{Follow: true}))
				if err != nil {
					t.Fatal(err)
				}
				if !s.Receive() {
					t.Fatal(s.Err())
				}
				go func() {
					for s.Receive() {
					}
					ended <- s.Err()
				}()
			}
			apply(t, a, granted+"\n# a change that takes nothing away\n")
			select {
			case err := <-ended:
				t.Fatalf("it ended though it is granted: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			apply(t, a, policy.Default)
			err := <-ended
			if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "ended by a change of policy") {
				t.Fatalf("it ended with %v", err)
			}
			last := r.entries[len(r.entries)-1]
			if last.Decision != isle.Deny || last.Actor.Name != "ann" || last.Summary != "ended by a change of policy" {
				t.Errorf("%+v", last)
			}
		})
	}
}

func TestAnExpiredGrantEndsWhatIsOpen(t *testing.T) {
	r := &rooms{process: newProcess()}
	a := newPolicy(t)
	end := time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339)
	apply(t, a, strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: developer, subjects: [human:ann], expires: \""+end+"\"}", 1))
	c := serveAs(t, r, a, "ann")
	s := c.Environments.Exec(t.Context())
	if err := s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "shop", Command: []string{"cat"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(); isle.CodeOf(err) != isle.Refused {
		t.Fatalf("%v", err)
	}
}

func TestDownOfAllEndsWhatTheCallerMaySeeAndOnlyIfTheyMay(t *testing.T) {
	granted := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: ROLE, subjects: [human:ann]STAGES}", 1)
	for _, c := range []struct {
		role, stages string
		want         isle.Code
		reached      bool
	}{
		{"developer", ", stages: [testing]", "", true},
		{"auditor", "", isle.Refused, false},            // sees it and may not end it
		{"developer", ", stages: [staging]", "", false}, // sees nothing
	} {
		r := &rooms{envs: map[isle.Ref]environment.Environment{{Name: "shop", Stage: "testing"}: {}}}
		a := newPolicy(t)
		apply(t, a, strings.NewReplacer("ROLE", c.role, "STAGES", c.stages).Replace(granted))
		stream, err := serveAs(t, r, a, "ann").Environments.Down(t.Context(), connect.NewRequest(&islev1.DownRequest{All: true, Volumes: true}))
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
		}
		if err := stream.Err(); c.want == "" && err != nil || c.want != "" && isle.CodeOf(err) != c.want || r.seen("Down") != c.reached {
			t.Errorf("%s%s: %v, reached %v", c.role, c.stages, err, r.reached)
		}
	}
}

// The kernel may vouch for somebody who is neither root nor in the group: the
// file mode keeps them out, and the guard does if it does not.
func TestAStrangerIsToldSoAndWrittenDown(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	apply(t, a, "bindings:\n  - {role: admin, subjects: [human:root, human:eve]}\n")
	g := &guard{policy: a, log: r, slog: slog.New(slog.DiscardHandler), rules: Config{Environments: r}.rules()}
	ctx := context.WithValue(t.Context(), actorKey{}, caller{actor: isle.Actor{Kind: isle.Human, Name: "eve"}})
	_, err := g.check(ctx, islev1connect.ServerServiceInfoProcedure, &islev1.InfoRequest{})
	if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), OnlyMembers+"; you are eve") {
		t.Error(err)
	}
	if len(r.entries) != 1 || r.entries[0].Rule != strangers {
		t.Errorf("%+v", r.entries)
	}
	if _, err := g.check(WithActor(t.Context(), isle.Actor{Kind: isle.Human, Name: "eve"}), islev1connect.ServerServiceInfoProcedure, &islev1.InfoRequest{}); err != nil {
		t.Errorf("a member with a role: %v", err)
	}
}
