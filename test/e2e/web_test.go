package e2e

import (
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
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
// web -site ADDRESS CA serves it at port 443 of another address of loopback.
func web(ts *testscript.TestScript, neg bool, args []string) {
	site := len(args) == 3 && args[0] == "-site"
	if site {
		args = args[1:]
	}
	if neg || len(args) != 2 {
		ts.Fatalf("usage: web [-site] PORT CA")
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
	if site {
		s.Listener.Close()
		s.Listener = anyLoopback(ts)
	}
	s.EnableHTTP2 = true
	s.StartTLS()
	ts.Defer(s.Close)
	file := ts.MkAbs("web-ca.pem")
	ts.Check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	ts.Setenv(args[1], file)
	if site {
		ts.Setenv(args[0], s.Listener.Addr().(*net.TCPAddr).IP.String())
		return
	}
	ts.Setenv(args[0], strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port))
}

// anyLoopback listens at port 443 of an address of loopback that nobody else has.
func anyLoopback(ts *testscript.TestScript) net.Listener {
	for range 100 {
		at := fmt.Sprintf("127.%d.%d.%d:443", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
		if l, err := net.Listen("tcp", at); err == nil {
			return l
		}
	}
	ts.Fatalf("no address of loopback has its port 443 free")
	return nil
}
