package build

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/spec"
)

func TestABuildThatFailedLaterIsAnsweredTheSameByTheNext(t *testing.T) {
	b := newBench(t)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s, the %dth", r.URL.Path, asked.Add(1))
	}))
	defer server.Close()
	b.Dial = func(ctx context.Context, _ string, _ int) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}
	fetch := func(name string) func(context.Context, Step) error {
		return func(_ context.Context, s Step) error {
			res := getFrom(t, s, "packages.example", "/"+name)
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(s.Upper, name), body, 0o644)
		}
	}
	broken := true
	b.sandbox.programs["first"], b.sandbox.programs["second"] = fetch("one"), fetch("two")
	b.sandbox.programs["test"] = func(ctx context.Context, s Step) error {
		if broken {
			if err := fetch("wrong")(ctx, s); err != nil {
				return err
			}
			return isle.Errorf(isle.Failed, "it ended with exit code 1")
		}
		return nil
	}
	f := spec.File{Name: "kept", Services: []spec.Service{{Name: "app", Suite: "bookworm", Packages: []string{"curl"}, Run: []string{"first", "second", "test"}, Network: spec.NetworkRecord}}}
	lock, _ := b.lock(f, nil, "", LockOptions{})
	res, err := b.Build(t.Context(), f, lock, Options{}, b.say)
	if isle.CodeOf(err) != isle.Failed || res.Lock == nil || len(res.Recorded) != 2 || len(res.Images) != 0 {
		t.Fatalf("%v, %+v", err, res)
	}
	if len(lock.Services["app"].Network) != 0 {
		t.Error("the lock that was given is changed")
	}
	if lock, err = spec.ParseLock("isle.lock", res.Lock.Encode()); err != nil {
		t.Fatal(err)
	}
	if steps := lock.Services["app"].Network; len(steps) != 2 || steps[0].Step != "run first" || steps[1].Step != "run second" {
		t.Errorf("the lock keeps %+v", steps)
	}
	before := asked.Load()
	broken = false
	b.sandbox.ran = nil
	res, err = b.Build(t.Context(), f, lock, Options{}, b.say)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Load() != before || len(b.sandbox.ran) != 1 {
		t.Errorf("%d requests more, and %v ran", asked.Load()-before, b.sandbox.ran)
	}
	if got := b.files(res.Images["app"])["/one"]; got.Digest != isle.DigestOf([]byte("/one, the 1th")) {
		t.Errorf("/one is %+v", got)
	}

	// Nothing new is kept of a build that was answered what is locked.
	broken = true
	res, err = b.Build(t.Context(), f, res.Lock, Options{NoCache: true, Frozen: true}, b.say)
	if err == nil || res.Lock != nil {
		t.Errorf("%v, %+v", err, res.Lock)
	}
}
