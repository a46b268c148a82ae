package api

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/build"
	"isle/internal/environment"
	"isle/internal/policy"
)

// An entry has a bound: a name that is larger than that must not be a way to be
// refused without a trace.
func TestWhatIsRefusedIsWrittenDownHoweverLongItsName(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 200_000), strings.Repeat("é", 100_000), strings.Repeat("\x1b[2J\n", 1000), "a@" + strings.Repeat("\"", 99_999)} {
		r := &rooms{}
		a := newPolicy(t)
		c := serveAs(t, r, a, "eve")
		up, err := c.Environments.Up(t.Context(), connect.NewRequest(&islev1.UpRequest{Source: source(), Name: name, Stage: name}))
		if err == nil {
			up.Receive()
			err = up.Err()
		}
		if isle.CodeOf(err) != isle.Refused {
			t.Fatal(err)
		}
		if _, err = c.Environments.Extend(t.Context(), connect.NewRequest(&islev1.ExtendRequest{Environment: name, Never: true})); isle.CodeOf(err) != isle.Refused {
			t.Fatal(err)
		}
		if len(r.entries) != 2 {
			t.Fatalf("%d entries", len(r.entries))
		}
		for _, e := range r.entries {
			b, err := e.Encode()
			if err != nil || len(b) > 4000 {
				t.Errorf("it does not fit into the log: %d bytes, %v", len(b), err)
				continue
			}
			if again, err := audit.Decode(b); err != nil || again.Resource.Name == "" {
				t.Error(err)
			}
		}
	}
}

// Volumes outlive their environment. What a policy says of their project goes
// on to count, for what it grants and for what it forbids.
func TestVolumesThatAreLeftAreStillTheirProjects(t *testing.T) {
	ref := isle.Ref{Name: "shop", Stage: "testing"}
	r := &rooms{volumes: []environment.Volume{{Ref: ref, Project: "shop"}}}
	a := newPolicy(t)
	granted := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: developer, subjects: [human:ann]}", 1)
	apply(t, a, granted)
	forbid := policy.Document{Name: "hand", Format: policy.Cedar, Body: []byte(`@id("keep") forbid (principal, action == Action::"environment:down", resource in Project::"shop");`)}
	if _, err := a.Apply(t.Context(), isle.Actor{Kind: isle.Human, Name: Root}, authority.Request{Document: forbid}); err != nil {
		t.Fatal(err)
	}
	stream, err := serveAs(t, r, a, "ann").Environments.Down(t.Context(), connect.NewRequest(&islev1.DownRequest{Environments: []string{"shop"}, Volumes: true}))
	if err == nil {
		for stream.Receive() {
		}
		err = stream.Err()
	}
	if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "cedar keep") || r.seen("Down") {
		t.Errorf("the data of a project was deleted though the policy forbids it: %v", err)
	}
}

// Nothing is done, and nothing shown, that cannot be written down.
func TestNothingHappensWhereTheLogCannotBeWritten(t *testing.T) {
	r := &rooms{full: isle.Errorf(isle.Exhausted, "no space for the log"), missing: []isle.Digest{}}
	r.envs = map[isle.Ref]environment.Environment{{Name: "shop", Stage: "testing"}: {}}
	a := newPolicy(t)
	c := NewClient(serve(t, r, a))
	defer c.Close()
	all := calls(t.Context(), c)
	for _, name := range procedures() {
		switch name {
		case "ServerService/Info", "ServerService/Doctor", "ServerService/Checkpoint": // what a client needs to see why
			continue
		case "EnvironmentService/Down", "EnvironmentService/Extend", "EnvironmentService/Exec", "EnvironmentService/CopyIn", "EnvironmentService/CopyOut", "EnvironmentService/ListFiles", "EnvironmentService/PortForward", "EnvironmentService/Diff":
			continue // room environment writes before it does them, and tests that
		case "EnvironmentService/Up", "BuildService/Build", "BuildService/Lock", "BuildService/Export": // below; or its input here is none
			continue
		case "ConnectionService/ListConnections", "ConnectionService/GetConnection", "ConnectionService/Connect":
			continue // what one may open, one is shown; room gateway writes a session before it opens it, and tests that
		case "PolicyService/Apply":
			continue // room authority writes in the change's transaction
		}
		r.reached = nil
		if err := all[name](); isle.CodeOf(err) != isle.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
		for _, what := range []string{"PutBlob", "Import", "Export", "Collect", "Caches", "PruneCaches", "ExportCache", "ImportCache", "Stop", "Encoded", "Missing", "Logs", "Doors"} {
			if r.seen(what) {
				t.Errorf("%s reached %s", name, what)
			}
		}
	}
	// A build works on until its first step, which is written down before it is done.
	begun := false
	r.build = func(ctx context.Context, p build.Progress) (build.Result, error) {
		p(build.Event{Step: "run", State: "start"})
		if err := ctx.Err(); err != nil {
			return build.Result{}, err
		}
		begun = true
		return build.Result{}, nil
	}
	for _, name := range []string{"BuildService/Build", "EnvironmentService/Up"} {
		if err := all[name](); isle.CodeOf(err) != isle.Exhausted || begun || r.seen("Up") {
			t.Errorf("%s: %v, built %v", name, err, begun)
		}
	}
	// The log itself, tile by tile: the second request comes as far as the first.
	for range 3 {
		if _, err := c.Fetch(t.Context(), "tile/entries/000.p/1"); err == nil || !strings.Contains(err.Error(), "no space") || r.seen("Encoded") {
			t.Errorf("it is read without a trace: %v", err)
		}
	}
}

// Up builds what is not built yet. Who may not build does not build by it, and
// launches what is there.
func TestALaunchIsNoWayToBuild(t *testing.T) {
	r := &rooms{}
	steps := 0
	r.build = func(ctx context.Context, p build.Progress) (build.Result, error) {
		for range steps {
			p(build.Event{Step: "run", State: "start"})
			if err := ctx.Err(); err != nil {
				return build.Result{}, err
			}
		}
		return build.Result{}, nil
	}
	a := newPolicy(t)
	apply(t, a, strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: launcher, subjects: [human:ann]}", 1)+
		"roles: {launcher: {actions: [environment:launch], resources: [\"environment:one@testing\"]}}\n")
	c := serveAs(t, r, a, "ann")
	up := func() error {
		s, err := c.Environments.Up(t.Context(), connect.NewRequest(&islev1.UpRequest{Source: source(), Name: "one"}))
		if err != nil {
			return err
		}
		for s.Receive() {
		}
		return s.Err()
	}
	if err := up(); err != nil || !r.seen("Up") {
		t.Fatalf("what is built already: %v", err)
	}
	r.reached, steps = nil, 2
	if err := up(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "image:build") || r.seen("Up") {
		t.Errorf("%v", err)
	}
	for _, e := range r.entries {
		if e.Action == isle.ActionImageBuild && e.Decision == isle.Allow {
			t.Errorf("it is recorded as allowed: %+v", e)
		}
	}
}
