package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"isle"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
)

// A workloadLab is a Workload API with a socket for each service, as isle-init
// would offer them.
type workloadLab struct {
	t   *testing.T
	api *WorkloadAPI

	mu      sync.Mutex // guards what follows
	issued  []string
	refused []string
	failing error // of the log
}

func newWorkloadLab(t *testing.T, svids SVIDs) *workloadLab {
	t.Helper()
	l := &workloadLab{t: t}
	l.api = NewWorkloadAPI(WorkloadConfig{SVIDs: svids, Log: slog.New(slog.DiscardHandler),
		Issuing: func(_ context.Context, c WorkloadCaller, kind string, audience []string) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.issued = append(l.issued, fmt.Sprint(c.ID.Service, " ", kind, audience))
			return l.failing
		},
		Refused: func(c WorkloadCaller, kind, asked string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.refused = append(l.refused, c.ID.Service+" "+kind+" "+asked)
		}})
	t.Cleanup(func() { l.api.Close() })
	return l
}

func (l *workloadLab) record() (issued, refused []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.issued), slices.Clone(l.refused)
}

// socket serves a caller on a socket, and returns its address.
func (l *workloadLab) socket(c WorkloadCaller) string {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "s")
	s, err := net.Listen("unix", path)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	go func() {
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			go l.api.Serve(conn, c)
		}
	}()
	return "unix://" + path
}

// client is go-spiffe's, of a caller.
func (l *workloadLab) client(c WorkloadCaller) *workloadapi.Client {
	l.t.Helper()
	client, err := workloadapi.New(l.t.Context(), workloadapi.WithAddr(l.socket(c)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { client.Close() })
	return client
}

func newIssuer(t *testing.T) *identity.Issuer {
	t.Helper()
	i, err := identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: ledgertest.New(), Sealer: identitytest.NewSealer(), TrustDomain: "isle.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func callerOf(i *identity.Issuer, service string) WorkloadCaller {
	ref := isle.Ref{Name: "shop", Stage: "testing"}
	return WorkloadCaller{ID: i.ID(ref, "shop", service), Ref: ref, Instance: "0123456789abcdefghijklmnop"}
}

func TestGoSpiffesClientGetsEveryDocumentOfItsOwnIdentity(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	ctx := t.Context()
	web, db := l.client(callerOf(i, "web")), l.client(callerOf(i, "db"))
	const id = "spiffe://isle.example.org/shop/testing/shop/web"

	got, err := web.FetchX509Context(ctx)
	if err != nil {
		t.Fatal(err)
	}
	svid := got.DefaultSVID()
	if svid.ID.String() != id || len(got.SVIDs) != 1 {
		t.Errorf("web is %s, of %d", svid.ID, len(got.SVIDs))
	}
	roots, err := got.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, c := range roots.X509Authorities() {
		pool.AddCert(c)
	}
	if _, err := svid.Certificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("its certificate does not lead to the bundle: %v", err)
	}
	if left := time.Until(svid.Certificates[0].NotAfter); left > identity.MaxSVID {
		t.Errorf("it lives for %v", left)
	}
	if other, err := db.FetchX509SVID(ctx); err != nil || other.ID.String() != strings.Replace(id, "/web", "/db", 1) {
		t.Errorf("db is %v, %v", other, err)
	}
	if set, err := web.FetchX509Bundles(ctx); err != nil || set.Len() != 1 {
		t.Errorf("bundles: %v, %v", set, err)
	}

	jwt, err := web.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "billing", ExtraAudiences: []string{"ledger"}})
	if err != nil || jwt.ID.String() != id {
		t.Fatalf("%+v, %v", jwt, err)
	}
	keys, err := web.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := jwtsvid.ParseAndValidate(jwt.Marshal(), keys, []string{"ledger"}); err != nil || parsed.ID.String() != id {
		t.Errorf("%+v, %v", parsed, err)
	}
	if parsed, err := db.ValidateJWTSVID(ctx, jwt.Marshal(), "billing"); err != nil || parsed.ID.String() != id {
		t.Errorf("db about web's: %+v, %v", parsed, err)
	}
	for token, audience := range map[string]string{jwt.Marshal(): "other", jwt.Marshal() + "x": "billing", "": "billing", jwt.Marshal() + " ": ""} {
		if _, err := db.ValidateJWTSVID(ctx, token, audience); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%.20q for %q: %v", token, audience, err)
		}
	}
	// Its own by name is its own.
	if again, err := web.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "billing", Subject: jwt.ID}); err != nil || again.ID != jwt.ID {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := web.FetchWITSVID(ctx, ""); status.Code(err) != codes.Unimplemented {
		t.Errorf("a WIT-SVID: %v", err)
	}
	if _, err := web.FetchWITBundles(ctx); status.Code(err) != codes.Unimplemented {
		t.Errorf("WIT bundles: %v", err)
	}
	issued, refused := l.record()
	if want := []string{"web x509-svid[]", "db x509-svid[]", "web jwt-svid[billing ledger]", "web jwt-svid[billing]"}; !slices.Equal(issued, want) || refused != nil {
		t.Errorf("recorded %q, refused %q", issued, refused)
	}
}

func TestAServiceGetsNothingOfAnother(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	web := l.client(callerOf(i, "web"))
	for _, asked := range []string{"spiffe://isle.example.org/shop/testing/shop/db", "spiffe://isle.example.org/shop/production/shop/web", "spiffe://isle.example.org", "spiffe://other.example.org/shop/testing/shop/web"} {
		subject, err := spiffeid.FromString(asked)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := web.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a", Subject: subject}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", asked, err)
		}
	}
	issued, refused := l.record()
	if len(issued) != 0 || len(refused) != 4 || refused[0] != "web jwt-svid spiffe://isle.example.org/shop/testing/shop/db" {
		t.Errorf("issued %q, refused %q", issued, refused)
	}
}

// call makes a call without go-spiffe's care.
func call(t *testing.T, address string, headers metadata.MD, do func(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error) error {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(t.Context(), headers))
	defer cancel()
	return do(ctx, workload.NewSpiffeWorkloadAPIClient(conn))
}

func fetchX509(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
	s, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	return err
}

func fetchJWT(r *workload.JWTSVIDRequest) func(context.Context, workload.SpiffeWorkloadAPIClient) error {
	return func(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
		_, err := c.FetchJWTSVID(ctx, r)
		return err
	}
}

func TestWhatTheStandardRefusesIsRefused(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	web, nobody := l.socket(callerOf(i, "web")), l.socket(WorkloadCaller{})
	yes := metadata.Pairs("workload.spiffe.io", "true")
	many := make([]string, maxJWTAudiences+1)
	for i := range many {
		many[i] = fmt.Sprint("a", i)
	}
	for _, c := range []struct {
		name    string
		address string
		headers metadata.MD
		do      func(context.Context, workload.SpiffeWorkloadAPIClient) error
		want    codes.Code
	}{
		{"all is well", web, yes, fetchX509, codes.OK},
		{"no header", web, nil, fetchX509, codes.InvalidArgument},
		{"no header, unary", web, nil, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{"a"}}), codes.InvalidArgument},
		{"header of another value", web, metadata.Pairs("workload.spiffe.io", "True"), fetchX509, codes.InvalidArgument},
		{"header twice", web, metadata.Pairs("workload.spiffe.io", "true", "workload.spiffe.io", "true"), fetchX509, codes.InvalidArgument},
		{"no identity", nobody, yes, fetchX509, codes.PermissionDenied},
		{"no identity, JWT", nobody, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{"a"}}), codes.PermissionDenied},
		{"no audience", web, yes, fetchJWT(&workload.JWTSVIDRequest{}), codes.InvalidArgument},
		{"an empty audience", web, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{"a", ""}}), codes.InvalidArgument},
		{"too many audiences", web, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: many}), codes.InvalidArgument},
		{"a long audience", web, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("a", maxAudience+1)}}), codes.InvalidArgument},
		{"an ID that is none", web, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "db"}), codes.InvalidArgument},
		{"a large request", web, yes, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("a", maxWorkloadMessage)}}), codes.ResourceExhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := call(t, c.address, c.headers, c.do); status.Code(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	// An unknown method, and the log that cannot be written.
	err := call(t, web, yes, func(ctx context.Context, _ workload.SpiffeWorkloadAPIClient) error {
		conn, err := grpc.NewClient(web, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.Invoke(ctx, "/SpiffeWorkloadAPI/FetchEverything", &workload.X509SVIDRequest{}, &workload.X509SVIDResponse{})
	})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	l.mu.Lock()
	l.failing = isle.Errorf(isle.Unavailable, "the audit log cannot be written")
	l.mu.Unlock()
	for _, do := range []func(context.Context, workload.SpiffeWorkloadAPIClient) error{fetchX509, fetchJWT(&workload.JWTSVIDRequest{Audience: []string{"a"}})} {
		if err := call(t, web, yes, do); status.Code(err) != codes.Unavailable {
			t.Errorf("without a log: %v", err)
		}
	}
}

// What is no HTTP/2 is hung up on, and what is no gRPC is told so.
func TestGarbageOnTheSocketIsHungUpOn(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	address := strings.TrimPrefix(l.socket(callerOf(i, "web")), "unix://")
	for _, said := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /SpiffeWorkloadAPI/FetchX509SVID HTTP/1.1\r\nHost: x\r\nWorkload.spiffe.io: true\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", strings.Repeat("\x00", 1<<16),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 1<<12), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x01\x04\x00\x00\x00\x00\x00x",
	} {
		c, err := net.Dial("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			io.WriteString(c, said)
			c.(*net.UnixConn).CloseWrite()
		}()
		b, err := io.ReadAll(c)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() || strings.Contains(string(b), "BEGIN") || strings.Contains(string(b), "spiffe://") {
			t.Errorf("%.40q: %q, %v", said, b, err)
		}
		c.Close()
	}
	if _, err := l.client(callerOf(i, "web")).FetchX509SVID(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A watcher counts what a stream brings.
type watcher struct {
	updates chan *workloadapi.X509Context
	errs    chan error
}

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }
func (w watcher) OnX509ContextWatchError(err error)              { w.errs <- err }

func TestAStreamBringsTheNewBundleAndEndsWithItsConnection(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	w := watcher{make(chan *workloadapi.X509Context, 10), make(chan error, 10)}
	client := l.client(callerOf(i, "web"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- client.WatchX509Context(ctx, w) }()
	first := <-w.updates
	if err := i.EndAll(t.Context(), "a test"); err != nil {
		t.Fatal(err)
	}
	second := <-w.updates
	domain := first.DefaultSVID().ID.TrustDomain()
	old, _ := first.Bundles.GetX509BundleForTrustDomain(domain)
	new, _ := second.Bundles.GetX509BundleForTrustDomain(domain)
	for _, c := range old.X509Authorities() {
		if new.HasX509Authority(c) {
			t.Error("an ended root is in the new bundle")
		}
	}
	if slices.Equal(first.DefaultSVID().Certificates[0].Raw, second.DefaultSVID().Certificates[0].Raw) {
		t.Error("the SVID is the one of before")
	}
	if issued, _ := l.record(); len(issued) != 1 {
		t.Errorf("a renewal was recorded: %q", issued)
	}
	l.api.Close()
	if err := <-w.errs; status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	cancel()
	<-ended
}

// A client that reads nothing, with as many streams as it may have, holds up
// nobody else.
func TestASlowReaderHoldsUpNobody(t *testing.T) {
	i := newIssuer(t)
	l := newWorkloadLab(t, i)
	address := l.socket(callerOf(i, "web"))
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<16))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := workload.NewSpiffeWorkloadAPIClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	for range maxWorkloadStreams {
		if _, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{}); err != nil { // and never Recv
			t.Fatal(err)
		}
	}
	for range 20 {
		if err := i.EndAll(t.Context(), "a test"); err != nil {
			t.Fatal(err)
		}
		if _, err := l.client(callerOf(i, "db")).FetchX509SVID(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCallsBeyondAnEnvironmentsShareWait(t *testing.T) {
	var p pace
	now := 0
	for range 1000 {
		p.mu.Lock()
		before := p.next
		p.mu.Unlock()
		end := make(chan struct{})
		close(end)
		if p.wait(end, workloadCall) {
			now++
		} else if p.next != before {
			t.Fatal("a call that did not wait was paid for")
		}
	}
	if most := int(workloadBurst / workloadCall); now < most || now > most+200 {
		t.Errorf("%d calls went through at once, of a burst of %d", now, most)
	}
	var s workloadShares
	s.of = map[isle.ID]*workloadShare{}
	used := s.enter(isle.NewID())
	for range maxShares + 10 {
		s.leave(s.enter(isle.NewID()))
	}
	if len(s.of) > maxShares || s.of == nil {
		t.Errorf("%d shares are kept", len(s.of))
	}
	s.leave(used)
}
