package record_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/build"
)

const fetching = `name: record
services:
  web:
    packages: [curl]
    network: record
    run:
      - |
        curl -fsS https://files.example.com/a >/a
        curl -fsS -o /dev/null -w '%{http_code}\n' -L https://files.example.com/moved
        curl -sS https://files.example.com/none >/none || true
`

// files is a server whose answers are others each time.
func files(count *atomic.Int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /a", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "the %dth\n", count.Add(1)) })
	mux.HandleFunc("GET /moved", func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		http.Redirect(w, r, "/a", http.StatusFound)
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		http.NotFound(w, r)
	})
	return mux
}

func TestWhatAStepFetchedIsTheSameWithoutANetwork(t *testing.T) {
	w := newWorld(t)
	var requests atomic.Int64
	w.serve("files.example.com", files(&requests))
	p := w.project(fetching, nil)
	first := w.mustBuild(p, build.Options{})
	said := w.said()
	if !strings.Contains(said, "network: 3 requests, 3 of them new in isle.lock") || !strings.Contains(said, "recorded https://files.example.com/a: 200") {
		t.Errorf("the build said:\n%s", said)
	}
	if n := len(p.lock.Services["web"].Network); n != 1 {
		t.Fatalf("%d steps in the lock", n)
	}
	asked := requests.Load()
	w.leave()

	// The same Builder has it, and one that has built nothing makes it again.
	again := w.mustBuild(p, build.Options{})
	if a, b := first.Images["web"].Digest(), again.Images["web"].Digest(); a != b || len(again.Recorded) != 0 {
		t.Errorf("%s, then %s; recorded %v", a, b, again.Recorded)
	}
	w.another()
	for _, o := range []build.Options{{Frozen: true}, {NoCache: true}} {
		if res := w.mustBuild(p, o); res.Images["web"].Digest() != first.Images["web"].Digest() {
			t.Errorf("%+v: %s, then %s\n%s", o, first.Images["web"].Digest(), res.Images["web"].Digest(), w.said())
		}
	}
	if _, err := w.Verify(t.Context(), p.file, p.lock, build.Options{Frozen: true}, w.say); err != nil {
		t.Error(err)
	}
	if n := requests.Load(); n != asked || len(w.dialed) != 0 {
		t.Errorf("%d requests more, of %v", n-asked, w.dialed)
	}
}

func TestAFrozenBuildAsksForNothingThatIsNotLocked(t *testing.T) {
	w := newWorld(t)
	var requests atomic.Int64
	w.serve("files.example.com", files(&requests))
	p := w.project(strings.Replace(fetching, "curl -fsS -o", "test ! -e /more || true; curl -fsS -o", 1), nil)
	lock, _, err := w.Lock(t.Context(), p.file, nil, p.copies, build.LockOptions{}, w.say)
	if err != nil {
		t.Fatal(err)
	}
	p.lock = lock
	_, err = w.build(p, build.Options{Frozen: true})
	if isle.CodeOf(err) != isle.Conflict || !strings.Contains(fmt.Sprint(err), "isle.lock does not have: https://files.example.com/a") {
		t.Errorf("a frozen build of a lock without answers: %v", err)
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestAFileFromElsewhereIsAddedAsItIsPinned(t *testing.T) {
	w := newWorld(t)
	var requests atomic.Int64
	w.serve("files.example.com", files(&requests))
	const dockerfile = "FROM scratch\nADD https://files.example.com/a /in/\nADD --chown=5:6 --chmod=644 https://files.example.com/moved?x=1 /in/b\n"
	p := w.project("name: add\nservices: {web: {build: ., network: record}}", map[string]string{"Dockerfile": dockerfile})
	first := w.mustBuild(p, build.Options{}).Images["web"]
	for path, want := range map[string]string{"/in/a": "-rw------- 0:0", "/in/b": "-rw-r--r-- 5:6"} {
		if got := w.listing(first)[path]; got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	w.leave()
	w.another()
	if again := w.mustBuild(p, build.Options{Frozen: true}).Images["web"]; again.Digest() != first.Digest() {
		t.Errorf("%s, then %s", first.Digest(), again.Digest())
	}

	// A checksum pins it without the lock, and another one is not taken.
	sum := isle.DigestOf([]byte("the 1th\n"))
	pinned := func(sum isle.Digest) *project {
		return w.project("name: add\nservices: {web: {build: .}}", map[string]string{"Dockerfile": "FROM scratch\nADD --checksum=" + string(sum) + " https://files.example.com/a /\n"})
	}
	w.mustBuild(pinned(sum), build.Options{})
	w.away = false
	if _, err := w.build(pinned(isle.DigestOf([]byte("x"))), build.Options{}); isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "what it got has sha256:") {
		t.Errorf("with another checksum: %v", err)
	}
	if _, err := w.build(w.project("name: add\nservices: {web: {build: .}}", map[string]string{"Dockerfile": "FROM scratch\nADD https://files.example.com/a /\n"}), build.Options{}); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("with nothing that pins it: %v", err)
	}
}

func TestNothingIsSentToAHostThatTheCallerMayNotReach(t *testing.T) {
	w := newWorld(t)
	var requests atomic.Int64
	w.serve("files.example.com", files(&requests))
	p := w.project(fetching, nil)
	var asked []string
	_, err := w.build(p, build.Options{Reach: func(host string, port int) error {
		asked = append(asked, fmt.Sprint(host, port))
		return isle.Errorf(isle.Refused, "no role grants it")
	}})
	if err == nil || !strings.Contains(err.Error(), "https://files.example.com/a: no role grants it") {
		t.Errorf("the build's error is %v", err)
	}
	if requests.Load() != 0 || len(w.dialed) != 0 || len(asked) == 0 {
		t.Errorf("%d requests to %v, asked for %v", requests.Load(), w.dialed, asked)
	}
}
