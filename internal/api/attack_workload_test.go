package api

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A stream stays open in the server, whose memory no limit of an environment
// counts. A service that opens ever more is told that it has enough, and the
// others of its environment get theirs.
func TestOpenCallsOfTheWorkloadAPIAreBounded(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	address := l.socket(callerOf(i, "web"))
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"))
	defer cancel()
	open := func() (err error) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for range maxWorkloadStreams / 2 {
			s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for n := 0; n < maxWorkloadCallsOfOne; n += maxWorkloadStreams / 2 {
		if err := open(); err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
	}
	if err := open(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	if _, err := l.client(callerOf(i, "db")).FetchX509SVID(t.Context()); err != nil {
		t.Errorf("another service: %v", err)
	}
	cancel() // and who ends some may have others
	for again := time.Now().Add(time.Minute); ; {
		_, err := l.client(callerOf(i, "web")).FetchX509SVID(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(again) {
			t.Fatalf("afterwards: %v", err)
		}
	}
}

func TestConnectionsToTheWorkloadAPIAreBoundedForEachEnvironment(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	caller := callerOf(i, "web")
	var shares []*workloadShare
	for range maxWorkloadConnections {
		shares = append(shares, l.api.shares.enter(caller.Instance))
	}
	ours, theirs := net.Pipe()
	l.api.Serve(theirs, caller) // returns at once
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more may stay: %v", err)
	}
	l.api.shares.leave(shares[0])
	if _, err := l.client(caller).FetchX509SVID(t.Context()); err != nil {
		t.Errorf("when another has gone: %v", err)
	}
	other := callerOf(i, "web")
	other.Instance = "zyxwvutsrqponmlkjihgfedcba"
	if _, err := l.client(other).FetchX509SVID(t.Context()); err != nil {
		t.Errorf("another environment: %v", err)
	}
}
