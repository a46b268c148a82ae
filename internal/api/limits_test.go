package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// spentWriter is a response writer that, like net/http's for HTTP/2, must not be
// touched once its call is over.
type spentWriter struct {
	http.ResponseWriter
	over bool
}

func (w *spentWriter) SetReadDeadline(time.Time) error {
	if w.over {
		panic("the deadline of a call that is over")
	}
	return nil
}

func TestInputThatIsStillReadWhenACallEndsDoesNotEndTheServer(t *testing.T) {
	w := &spentWriter{ResponseWriter: httptest.NewRecorder()}
	var body io.Reader
	r := httptest.NewRequest("POST", "/isle.v1.EnvironmentService/Exec", strings.NewReader("start"))
	impatient(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { body = r.Body })).ServeHTTP(w, r)
	w.over = true
	if _, err := io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
}
