package api

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/environment"
	"isle/internal/identity"
	"isle/internal/policy"

	"connectrpc.com/connect"
)

// ring is Credentials in memory.
type ring struct {
	mu    sync.Mutex
	known map[string]identity.Subject // by credential
	over  chan struct{}
	asked []string // sources
}

func newRing() *ring {
	return &ring{known: map[string]identity.Subject{}, over: make(chan struct{})}
}

func (r *ring) give(credential string, s identity.Subject) identity.Subject {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Key = isle.NewID()
	r.known[credential] = s
	return s
}

func (r *ring) revoke(credential string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, credential)
	close(r.over)
	r.over = make(chan struct{})
}

func (r *ring) Authenticate(_ context.Context, credential, source string) (identity.Subject, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, source)
	s, ok := r.known[credential]
	if !ok {
		return s, isle.Errorf(isle.Refused, "the credential is unknown")
	}
	return s, nil
}

func (r *ring) Check(s identity.Subject) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.known {
		if k.Key == s.Key {
			return nil
		}
	}
	return isle.Errorf(isle.Refused, "the key was revoked")
}

func (r *ring) Over() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

var ci = isle.Actor{Kind: isle.Machine, Name: "ci"}

func machinesPolicy() string {
	return strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: admin, subjects: [machine:ci], stages: [testing, staging, production], reason: everything, expires: \"2099-01-01T00:00:00Z\"}", 1)
}

// What a machine may do is what its stage is, whatever its roles say: only the
// diagonal opens.
func TestAMachineActsInItsStageOnly(t *testing.T) {
	stages := []string{"testing", "staging", "production"}
	for _, own := range append(stages, "") {
		for _, of := range stages {
			r := &rooms{}
			a := newPolicy(t)
			apply(t, a, machinesPolicy())
			keys := newRing()
			s := keys.give("k", identity.Subject{Actor: ci, Stage: own})
			g := &guard{policy: a, credentials: keys, log: r, slog: slog.New(slog.DiscardHandler), rules: Config{Environments: r}.rules()}
			_, err := g.check(withSubject(t.Context(), s, ""), islev1connect.EnvironmentServiceExtendProcedure, &islev1.ExtendRequest{Environment: "shop@" + of})
			if may := own == of || own == ""; may != (err == nil) {
				t.Errorf("one of %q meets %q: %v", own, of, err)
			} else if !may {
				e := r.entries[len(r.entries)-1]
				if e.Rule != "built in: a session is in one stage" || e.Actor != ci || e.Details["session"] != own || e.Environment != "shop@"+of {
					t.Errorf("%+v", e)
				}
			}
			if _, err := g.check(withSubject(t.Context(), s, ""), islev1connect.ServerServiceInfoProcedure, &islev1.InfoRequest{}); err != nil {
				t.Errorf("one of %q and what has no stage: %v", own, err)
			}
		}
	}
}

func TestACredentialThatEndedBetweenItsProofAndItsUseCountsForNothing(t *testing.T) {
	for name, end := range map[string]func(*ring, *identity.Subject){
		"revoked": func(k *ring, _ *identity.Subject) { k.revoke("k") },
		"expired": func(_ *ring, s *identity.Subject) { s.Expires = time.Now().Add(-time.Second) },
	} {
		r := &rooms{}
		a := newPolicy(t)
		apply(t, a, machinesPolicy())
		keys := newRing()
		s := keys.give("k", identity.Subject{Actor: ci, Stage: "testing"})
		g := &guard{policy: a, credentials: keys, log: r, slog: slog.New(slog.DiscardHandler), rules: Config{Environments: r}.rules()}
		end(keys, &s)
		ctx := withSubject(t.Context(), s, "")
		if _, err := g.check(ctx, islev1connect.ServerServiceInfoProcedure, &islev1.InfoRequest{}); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), ended) || !strings.Contains(err.Error(), "isle login") {
			t.Errorf("%s: %v", name, err)
		}
		if err := g.mayReadLog(ctx, true); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: the log: %v", name, err)
		}
		if _, err := g.check(ctx, islev1connect.IdentityServiceWhoAmIProcedure, &islev1.WhoAmIRequest{}); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: what takes no grant: %v", name, err)
		}
		if len(r.entries) != 3 || r.entries[0].Rule != ended || r.entries[0].Actor != ci || len(r.read) != 0 {
			t.Errorf("%s: %+v", name, r.entries)
		}
	}
}

func TestAServerWithoutCredentialsProvesNobodyByThem(t *testing.T) {
	r := &rooms{}
	g := &guard{policy: newPolicy(t), log: r, slog: slog.New(slog.DiscardHandler), rules: Config{Environments: r}.rules()}
	ctx := withSubject(t.Context(), identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: Root}}, "")
	if _, err := g.check(ctx, islev1connect.ServerServiceInfoProcedure, &islev1.InfoRequest{}); isle.CodeOf(err) != isle.Refused {
		t.Error(err)
	}
}

func TestWhoeverIsNotAMemberIsToldNothingNotEvenWhoTheyAre(t *testing.T) {
	r := &rooms{}
	keys := newRing()
	s := keys.give("k", identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: "eve"}})
	member := s
	member.Groups = []string{"isle"}
	g := &guard{policy: newPolicy(t), credentials: keys, log: r, slog: slog.New(slog.DiscardHandler), rules: Config{Environments: r}.rules()}
	if _, err := g.check(withSubject(t.Context(), s, "isle"), islev1connect.IdentityServiceWhoAmIProcedure, &islev1.WhoAmIRequest{}); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), OnlyMembers) {
		t.Error(err)
	}
	if _, err := g.check(withSubject(t.Context(), member, "isle"), islev1connect.IdentityServiceWhoAmIProcedure, &islev1.WhoAmIRequest{}); err != nil {
		t.Errorf("a member without any grant: %v", err)
	}
}

// watched runs a watch over one query and returns what ended it.
func watched(t *testing.T, g *guard, s identity.Subject, group string) (context.Context, func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(withSubject(t.Context(), s, group))
	who, _ := callerFrom(ctx)
	queries := queriesOf(who, ask{isle.ActionEnvironmentExec, isle.Resource{Kind: "environment", Name: "shop", Stage: "testing"}, ""})
	done := make(chan struct{})
	go func() { defer close(done); g.watch(ctx, who, queries, cancel) }()
	return ctx, func() { cancel(nil); <-done }
}

func TestWhatIsOpenEndsWhenItsCredentialExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rooms{}
		a := newPolicy(t)
		apply(t, a, machinesPolicy())
		keys := newRing()
		s := keys.give("k", identity.Subject{Actor: ci, Stage: "testing"})
		s.Expires = time.Now().Add(5 * time.Minute)
		g := &guard{policy: a, credentials: keys, log: r, slog: slog.New(slog.DiscardHandler)}
		ctx, stop := watched(t, g, s, "")
		defer stop()
		time.Sleep(5*time.Minute - time.Millisecond)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Fatalf("it ended early: %v", context.Cause(ctx))
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if isle.CodeOf(context.Cause(ctx)) != isle.Refused || len(r.entries) != 1 || r.entries[0].Summary != "ended: the credential has expired" {
			t.Errorf("%v %+v", context.Cause(ctx), r.entries)
		}
	})
}

// What is open over a credential ends with it, and says so in the log; what
// others have open goes on.
func TestOpenStreamsEndWithTheirCredential(t *testing.T) {
	for _, name := range []string{"exec", "port-forward", "audit", "build"} {
		t.Run(name, func(t *testing.T) {
			r := &rooms{process: newProcess()}
			a := newPolicy(t)
			apply(t, a, machinesPolicy())
			keys := newRing()
			keys.give("other", identity.Subject{Actor: ci, Stage: "testing"})
			keys.give("k", identity.Subject{Actor: ci, Stage: "testing"})
			c := serveRemote(t, r, a, keys, "k")
			open := opened(t, c, r, name)
			keys.revoke("other")
			select {
			case err := <-open:
				t.Fatalf("it ended with somebody else's: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			keys.revoke("k")
			err := <-open
			if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "ended: the key was revoked") {
				t.Fatalf("it ended with %v", err)
			}
			r.mu.Lock()
			last := r.entries[len(r.entries)-1]
			r.mu.Unlock()
			if last.Decision != isle.Deny || last.Actor != ci || last.Summary != "ended: the key was revoked" || last.Rule != ended {
				t.Errorf("%+v", last)
			}
		})
	}
}

// opened opens a stream of a kind and returns where its end is told.
func opened(t *testing.T, c *Client, r *rooms, name string) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	switch name {
	case "exec":
		s := c.Environments.Exec(t.Context())
		if err := s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "shop", Command: []string{"cat"}}}}); err != nil {
			t.Fatal(err)
		}
		r.process.(*process).out <- environment.Output{Data: []byte("x")}
		if _, err := s.Receive(); err != nil {
			t.Fatal(err)
		}
		go func() { _, err := s.Receive(); ended <- err }()
	case "port-forward":
		s := c.Environments.PortForward(t.Context())
		for _, m := range []*islev1.PortInput{
			{Input: &islev1.PortInput_Start{Start: &islev1.PortStart{Environment: "shop", Port: 80}}}, {Input: &islev1.PortInput_Data{Data: []byte("x")}},
		} {
			if err := s.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Receive(); err != nil {
			t.Fatal(err)
		}
		go func() { _, err := s.Receive(); ended <- err }()
	case "audit":
		s, err := c.Server.Audit(t.Context(), connect.NewRequest(&islev1.AuditRequest{Follow: true}))
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
	case "build": // an upload whose sender is slow
		s := c.Images.Put(t.Context())
		if err := s.Send(&islev1.PutRequest{Digest: string(isle.DigestOf(nil)), Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		go func() {
			for !r.seen("PutBlob") {
				time.Sleep(time.Millisecond)
			}
			for s.Send(&islev1.PutRequest{Data: []byte("x")}) == nil {
				time.Sleep(time.Millisecond)
			}
			_, err := s.CloseAndReceive()
			ended <- err
		}()
	}
	return ended
}

// A person's token is worth what they are: who leaves the group is outside it,
// also with what they have open.
func TestWhoLeavesTheGroupIsOutsideItWithATokenToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rooms{}
		a := newPolicy(t)
		apply(t, a, strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: developer, subjects: [group:isle]}", 1))
		keys := newRing()
		// The machine's files do not know them: they are in no group when looked up.
		s := keys.give("k", identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: "nobody-by-this-name"}, Groups: []string{"isle"}})
		g := &guard{policy: a, credentials: keys, log: r, slog: slog.New(slog.DiscardHandler)}
		ctx, stop := watched(t, g, s, "isle")
		defer stop()
		synctest.Wait()
		if ctx.Err() != nil {
			t.Fatalf("it ended early: %v", context.Cause(ctx))
		}
		time.Sleep(2 * lookAgain)
		synctest.Wait()
		if isle.CodeOf(context.Cause(ctx)) != isle.Refused || len(r.entries) != 1 || r.entries[0].Rule != strangers {
			t.Errorf("%v %+v", context.Cause(ctx), r.entries)
		}
	})
}
