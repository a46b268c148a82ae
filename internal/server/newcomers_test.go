package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// Who has connected, and asks only once the server hands over, is answered.
func TestWhoConnectedBeforeAHandoverIsAnswered(t *testing.T) {
	s := &Server{handover: &Handover{inherited: map[string]*os.File{}, held: map[string]fileListener{}}}
	l, err := s.handover.Listen("remote", func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	s.newcomers.watch(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }() // ends with closeDoors
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	waiting := func() int {
		s.newcomers.mu.Lock()
		defer s.newcomers.mu.Unlock()
		return len(s.newcomers.open)
	}
	for end := time.Now().Add(10 * time.Second); waiting() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not accepted")
		}
	}
	handed := make(chan struct{})
	go func() { // ends once the request below is answered
		defer close(handed)
		s.closeDoors([]net.Listener{l}, served)
		srv.Shutdown(t.Context())
	}()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: isle\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); string(body) != "hello" {
		t.Errorf("the answer is %q, %v", body, err)
	}
	<-handed
	if s.handover.kept["remote"] == 0 {
		t.Error("the listener is not kept for the successor")
	}
}
