package api

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/policy"
)

// tree is a log in memory.
type tree struct {
	entries [][]byte
	hashes  []tlog.Hash
	edge    audit.Tree
}

func newTree(t *testing.T, n int) *tree {
	t.Helper()
	tr := &tree{}
	for i := range n {
		e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "test"}, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: "a"}, isle.Allow, "")
		e.Sequence = uint64(i)
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		next, completed := tr.edge.Add(tlog.RecordHash(b))
		tr.edge, tr.entries, tr.hashes = next, append(tr.entries, b), append(tr.hashes, completed...)
	}
	return tr
}

func (t *tree) Head() audit.Head { return t.edge.Head() }
func (t *tree) Hashes(context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = t.hashes[x]
		}
		return out, nil
	})
}
func (t *tree) Encoded(_ context.Context, from uint64, limit int) ([][]byte, error) {
	return t.entries[from:min(uint64(len(t.entries)), from+uint64(limit))], nil
}

func TestTheLogIsServedAsTheSpecificationSays(t *testing.T) {
	log, key := newTree(t, 600), signer(t)
	srv := httptest.NewServer(NewTiles(log, key, slog.New(slog.DiscardHandler)))
	defer srv.Close()
	for path, want := range map[string]struct {
		status    int
		size      int // -1: any
		kind, age string
	}{
		"/checkpoint":             {200, -1, "text/plain; charset=utf-8", "no-cache"},
		"/tile/0/000":             {200, 256 * 32, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/0/002.p/88":        {200, 88 * 32, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/0/002.p/7":         {200, 7 * 32, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/0/002.p/89":        {404, -1, "", "no-store"},
		"/tile/0/002":             {404, -1, "", "no-store"},
		"/tile/1/000.p/2":         {200, 2 * 32, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/1/000.p/3":         {404, -1, "", "no-store"},
		"/tile/entries/001":       {200, -1, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/entries/002.p/88":  {200, -1, "application/octet-stream", "max-age=31536000, immutable"},
		"/tile/entries/002.p/89":  {404, -1, "", "no-store"},
		"/tile/0/0":               {404, -1, "", ""},
		"/tile/0/%30%30%30":       {404, -1, "", ""},
		"/tile/data/000":          {404, -1, "", ""},
		"/tile/0/000.p/%2e%2e/":   {404, -1, "", ""},
		"/tile/":                  {404, -1, "", ""},
		"/isle.v1.ServerService/": {404, -1, "", ""},
	} {
		res, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want.status || want.size >= 0 && len(b) != want.size {
			t.Errorf("%s: %s, %d bytes", path, res.Status, len(b))
		}
		if want.kind != "" && res.Header.Get("Content-Type") != want.kind || want.age != "" && res.Header.Get("Cache-Control") != want.age {
			t.Errorf("%s: %v", path, res.Header)
		}
	}
	// Bundles are compressed for whoever takes it, and only then.
	for accept, want := range map[string]string{"gzip": "gzip", "br, gzip;q=0.5": "gzip", "identity": "", "gzip;q=0": ""} {
		req, _ := http.NewRequest(http.MethodGet, srv.URL+"/tile/entries/000", nil)
		req.Header.Set("Accept-Encoding", accept)
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = res.Body
		if got := res.Header.Get("Content-Encoding"); got != want {
			t.Errorf("Accept-Encoding %s: %q", accept, got)
		} else if want == "gzip" {
			if body, err = gzip.NewReader(res.Body); err != nil {
				t.Fatal(err)
			}
		}
		b, _ := io.ReadAll(body)
		res.Body.Close()
		if list, err := audit.ParseBundle(b, 256); err != nil || string(list[255]) != string(log.entries[255]) {
			t.Errorf("Accept-Encoding %s: %v", accept, err)
		}
	}
	if res, err := srv.Client().Post(srv.URL+"/checkpoint", "text/plain", strings.NewReader("x")); err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %v %v", res.Status, err)
	}
}

func TestTheLogOnTheSocketIsForWhoMayReadIt(t *testing.T) {
	r := &rooms{}
	allowed := newPolicy(t)
	c := NewClient(serve(t, r, &decider{allowed, func(q policy.Query) policy.Answer {
		if q.Action == isle.ActionAuditRead {
			return policy.Answer{Decision: isle.Deny, Rule: "auditors only"}
		}
		return allowed.Decide(q)
	}}))
	defer c.Close()
	for _, path := range []string{"checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"} {
		if _, err := c.Fetch(t.Context(), path); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: %v", path, err)
		}
	}
	if len(r.entries) != 3 || r.entries[0].Decision != isle.Deny || r.entries[0].Rule != "auditors only" {
		t.Errorf("%+v", r.entries)
	}
	if r.seen("Encoded") || r.seen("Head") {
		t.Error("it was read all the same")
	}
}

func TestACallIsRecordedByTheAnswerThatLetItBe(t *testing.T) {
	r := &rooms{}
	asked := 0
	c := NewClient(serve(t, r, &decider{newPolicy(t), func(policy.Query) policy.Answer {
		asked++
		return policy.Answer{Decision: isle.Allow, Rule: fmt.Sprintf("answer %d", asked)}
	}}))
	defer c.Close()
	for range 2 {
		if _, err := c.Policy.Show(t.Context(), connect.NewRequest(&islev1.ShowRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 2 || len(r.read) != 2 || r.read[0].Rule != "answer 1" || r.read[1].Rule != "answer 2" {
		t.Errorf("two calls asked %d times: %+v", asked, r.read)
	}
}

func TestAReadIsRecordedBeforeItIsDone(t *testing.T) {
	r := &rooms{}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	for _, name := range []string{"EnvironmentService/List", "EnvironmentService/Doors", "EnvironmentService/Logs", "ServerService/Audit", "ServerService/Info"} {
		calls(t.Context(), c)[name]()
	}
	var got []string
	for _, e := range r.read {
		got = append(got, string(e.Action))
	}
	if s := strings.Join(got, " "); s != "environment:list environment:read environment:logs audit:read" {
		t.Errorf("recorded: %s", s)
	}
}
