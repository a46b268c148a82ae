package recorder

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/conceal"
)

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, text)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatGitFetchesIsAnsweredByWhatItAsksFor(t *testing.T) {
	var asked atomic.Int64
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		fmt.Fprintf(w, "%d: %s %s %s %q", asked.Add(1), r.Method, r.Header.Get("Content-Type"), r.Header.Get("Content-Encoding"), body)
	})
	const url = "https://git.example.com/tool.git/git-upload-pack"
	ask := func(n *near) []string {
		return []string{
			n.ask(t, "POST", url, "0032want a", "Content-Type", gitRequest),
			n.ask(t, "POST", url, "0032want b", "Content-Type", gitRequest),
			n.ask(t, "POST", url, zipped(t, "0032want c"), "Content-Type", gitRequest, "Content-Encoding", "gzip"),
			n.ask(t, "POST", url, "0032want a", "Content-Type", gitRequest),
		}
	}
	n := f.record(Options{})
	first := ask(n)
	n.Close()
	for i, want := range []string{`1: POST application/x-git-upload-pack-request  "0032want a"`, `2: POST`, `3: POST application/x-git-upload-pack-request gzip "\x1f`, "1: POST"} {
		if !strings.HasPrefix(first[i], "200") || !strings.Contains(first[i], want) {
			t.Errorf("want %q, got\n%s", want, first[i])
		}
	}
	materials := n.Materials()
	if len(materials) != 3 || n.Fresh() != 3 {
		t.Fatalf("%d answers, %d new: %+v", len(materials), n.Fresh(), materials)
	}
	for _, m := range materials {
		if err := m.Check(); err != nil {
			t.Error(err)
		}
	}
	f.away.Store(true)
	again := f.record(Options{Locked: materials, Frozen: true})
	for i, got := range ask(again) {
		if got != first[i] {
			t.Errorf("recorded\n%s\nreplayed\n%s", first[i], got)
		}
	}
	if got := again.ask(t, "POST", url, "0032want d", "Content-Type", gitRequest); !strings.HasPrefix(got, "504") {
		t.Errorf("what the lock lacks is answered\n%s", got)
	}
	again.Close()
	if err := again.Judge(nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "POST "+url) {
		t.Errorf("%v", err)
	}
}

func TestNoOtherPOSTIsRecorded(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	const url = "https://git.example.com/tool/git-upload-pack"
	for name, got := range map[string]string{
		"another place":   n.ask(t, "POST", "https://git.example.com/tool/git-receive-pack", "0032", "Content-Type", gitRequest),
		"another type":    n.ask(t, "POST", url, "0032", "Content-Type", "application/json"),
		"nothing":         n.ask(t, "POST", url, "", "Content-Type", gitRequest),
		"too much":        n.ask(t, "POST", url, strings.Repeat("x", maxAsked+1), "Content-Type", gitRequest),
		"said compressed": n.ask(t, "POST", url, "0032", "Content-Type", gitRequest, "Content-Encoding", "gzip"),
		"compressed":      n.ask(t, "POST", url, zipped(t, "0032"), "Content-Type", gitRequest),
		"a credential":    n.ask(t, "POST", url, "0032", "Content-Type", gitRequest, "Authorization", "Basic eDp5"),
		"another method":  n.ask(t, "PUT", url, "0032", "Content-Type", gitRequest),
	} {
		if !strings.HasPrefix(got, "4") {
			t.Errorf("%s is answered\n%s", name, got)
		}
	}
	n.Close()
	if f.dials.Load() != 0 || len(n.Materials()) != 0 {
		t.Errorf("%d connections, %v", f.dials.Load(), n.Materials())
	}
}

func TestASecretOfTheStepIsInNothingThatIsLocked(t *testing.T) {
	const secret = "canary&of/a+step"
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/tells" {
			w.Header().Set("Location", "https://example.com/?key="+secret)
			w.WriteHeader(http.StatusFound)
		}
	})
	n := f.record(Options{Secrets: conceal.Of(secret)})
	for name, got := range map[string]string{
		"in the query":  n.ask(t, "GET", "https://example.com/a?token=canary%26of%2Fa%2Bstep", ""),
		"in the path":   n.ask(t, "GET", "https://example.com/canary%26of%2Fa+step", ""),
		"otherwise so":  n.ask(t, "GET", "https://example.com/?%63anary%26of/a%2Bstep", ""),
		"in Accept":     n.ask(t, "GET", "https://example.com/", "", "Accept", "x/"+secret),
		"in base64":     n.ask(t, "GET", "https://example.com/Y2FuYXJ5Jm9mL2Erc3RlcA", ""),
		"as the host":   n.ask(t, "GET", "https://63616e617279266f662f612b73746570.example.com/", ""),
		"and by others": n.ask(t, "POST", "https://example.com/"+secret, "x"),
	} {
		if !strings.HasPrefix(got, "403") || !strings.Contains(got, "has a secret of the step") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if f.dials.Load() != 0 {
		t.Errorf("%d connections", f.dials.Load())
	}
	if got := n.ask(t, "GET", "https://example.com/tells", ""); !strings.HasPrefix(got, "502") || strings.Contains(got, "canary") {
		t.Errorf("an answer that has it: %s", got)
	}
	n.Close()
	said := fmt.Sprint(n.said, n.Materials(), n.Judge(isle.Errorf(isle.Failed, "it ended with exit code 1")))
	for _, form := range conceal.Of(secret).All() {
		if strings.Contains(said, string(form)) {
			t.Errorf("%q is in %s", form, said)
		}
	}
}
