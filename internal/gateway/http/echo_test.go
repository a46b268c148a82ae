package httpdoor_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"isle/internal/session"
)

// A server that says back what it was asked with does not put the credential in
// the recording, in whatever form and wherever in the body.
func TestACredentialThatIsSaidBackIsNotInTheRecording(t *testing.T) {
	const secret = "canary/4d1c+77?&="
	for kind, form := range map[string]string{
		"kind: bearer":              secret,
		"kind: header, header: Key": secret,
		"kind: basic, user: shop":   base64.StdEncoding.EncodeToString([]byte("shop:" + secret)),
	} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			said := r.Header.Get("Authorization") + r.Header.Get("Key")
			if !strings.Contains(said, form) {
				t.Errorf("%s: asked with %q", kind, said)
			}
			// One stands across the end of what is kept.
			io.WriteString(w, said+" "+secret+" kept "+strings.ReplaceAll(secret, "/", `\/`)+strings.Repeat(".", 256<<10-140)+strings.Repeat(secret, 40))
		}))
		w := world(t, server, "    credential: {"+kind+", secret: crm-key}\n    results: true", "")
		w.SetSecret("crm-key", secret)
		conn, served := w.Connect(shop(), "crm")
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: crm\r\nConnection: close\r\n\r\n")
		if b, err := io.ReadAll(conn); err != nil || !bytes.Contains(b, []byte(" 200 ")) {
			t.Fatalf("%s: %v %.200s", kind, err, b)
		}
		conn.Close()
		<-served
		server.Close()
		list, err := w.Sessions.Past(t.Context(), session.Filter{}, 10)
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		found := false
		if err := w.Sessions.Events(t.Context(), list[0].ID, false, func(e session.Event) error {
			found = found || bytes.Contains(e.Data, []byte("kept"))
			for _, s := range []string{"canary", form} {
				if bytes.Contains(e.Data, []byte(s)) {
					t.Errorf("%s: %q is in an event %s of %d bytes: %.60q … %.60q", kind, s, e.Kind, len(e.Data), e.Data, e.Data[max(0, len(e.Data)-60):])
				}
			}
			return nil
		}); err != nil || !found {
			t.Errorf("%s: %v; the response is in the recording: %v", kind, err, found)
		}
	}
}
