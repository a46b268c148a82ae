package e2e

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"
)

// web serves HTTPS as example.com on 127.0.0.1 until the script ends, and puts
// the port, and the path of a file with the certificate, into variables: web PORT
// CA. It answers what it was asked, with the credential; /json has an address.
func web(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: web PORT CA")
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/json" {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"id": 7, "email": "ann@example.com"}`)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "%q", fmt.Sprintf("%s %s Host=%s Authorization=%s known=%t %s", r.Method, r.URL.Path, r.Host,
			r.Header.Get("Authorization"), r.Header.Get("Authorization") == "Bearer s3cr3t-t0ken", b))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	ts.Defer(s.Close)
	file := ts.MkAbs("web-ca.pem")
	ts.Check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	ts.Setenv(args[0], strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port))
	ts.Setenv(args[1], file)
}
