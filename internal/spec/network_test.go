package spec

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"isle"
)

// recordedLock is a lock with what a step was answered.
func recordedLock() *Lock {
	l := testLock()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	web := l.Services["web"]
	web.Network = []LockedStep{{Stage: "app", Step: "RUN npm ci", Materials: []Material{
		{URL: "https://example.com/a?b=%20", Accept: "*/*", Status: 200, Header: map[string]string{"Content-Type": "text/plain", "Etag": `"x"`}, Size: 7, Digest: isle.DigestOf([]byte("a")), Time: at},
		{Method: "HEAD", URL: "https://example.com/b", Status: 404, Digest: isle.DigestOf(nil), Time: at},
	}}, {Step: "run make", Materials: []Material{{URL: "http://example.com:8080/", Status: 302, Header: map[string]string{"Location": "/x"}, Digest: isle.DigestOf(nil), Time: at}}}}
	l.Services["web"] = web
	return l
}

func TestWhatStepsWereAnsweredSurvivesInALock(t *testing.T) {
	want := recordedLock()
	got, err := ParseLock("isle.lock", want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAnAnswerThatNoRecorderWroteIsRefused(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"method", `"HEAD"`, `"PUT"`, `method "PUT"`},
		{"a POST of anything", `"HEAD"`, `"POST"`, "only what git fetches with"},
		{"scheme", "https://example.com/a", "file:///etc/passwd", "no URL of HTTP"},
		{"password", "https://example.com/a", "https://me:secret@example.com/a", "has a user and a password"},
		{"fragment", "?b=%20", "#b", "has a fragment"},
		{"header injected", `"text/plain"`, `"a\r\nSet-Cookie: b"`, "header Content-Type has a value that no header can have"},
		{"header", `"Content-Type"`, `"Set-Cookie"`, `header "Set-Cookie" is none that is kept`},
		{"status", `"status": 404`, `"status": 101`, "101 is no status"},
		{"size", `"size": 7`, `"size": -7`, "-7 is no size"},
		{"huge", `"size": 7`, `"size": 5000000000`, "is no size"},
		{"accept injected", `"*/*"`, `"a\nb"`, "accept of"},
		{"time", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5Z", "its time is none"},
		{"no time", "2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z", "its time is none"},
		{"digest", string(isle.DigestOf([]byte("a"))), "sha256:a", "no sha256 digest"},
		{"order", "https://example.com/a", "https://example.com/c", "out of order"},
		{"twice", `"run make"`, `""`, "is no step"},
		{"a body of a GET", `"status": 404`, `"status": 404, "body": "x"`, "a request without a body has one"},
		{"key", `"status": 404`, `"status": 404, "trailer": "x"`, `unknown field "trailer"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := strings.Replace(string(recordedLock().Encode()), c.old, c.new, 1)
			if in == string(recordedLock().Encode()) {
				t.Fatal("nothing was changed")
			}
			_, err := ParseLock("isle.lock", []byte(in))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
