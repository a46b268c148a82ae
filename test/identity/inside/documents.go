package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience is how long anything may take.
const patience = 60 * time.Second

// documents gets everything that there is, with each of go-spiffe's ways.
func documents([]string) {
	ctx, cancel := background()
	defer cancel()
	say("socket", "%s", os.Getenv("SPIFFE_ENDPOINT_SOCKET"))
	x, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		say("x509", "%v", err)
		return
	}
	svid := x.DefaultSVID()
	say("x509", "%s", svid.ID)
	say("x509 lives", "%v", time.Until(svid.Certificates[0].NotAfter) <= 5*time.Minute)
	roots, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err == nil {
		pool := x509.NewCertPool()
		for _, c := range roots.X509Authorities() {
			pool.AddCert(c)
		}
		_, err = svid.Certificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	}
	say("x509 leads to the bundle", "%v", err)

	sources(ctx)

	keys, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		say("jwt bundles", "%v", err)
		return
	}
	jwt, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "billing"})
	if err != nil {
		say("jwt", "%v", err)
		return
	}
	say("jwt", "%s", jwt.ID)
	_, err = jwtsvid.ParseAndValidate(jwt.Marshal(), keys, []string{"billing"})
	say("jwt is good here", "%v", err)
	_, err = workloadapi.ValidateJWTSVID(ctx, jwt.Marshal(), "billing")
	say("jwt is good there", "%v", err)
	_, err = workloadapi.ValidateJWTSVID(ctx, jwt.Marshal(), "another")
	say("jwt for another", "%s", code(err))
}

// sources are what programs use.
func sources(ctx context.Context) {
	xs, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		say("x509 source", "%v", err)
		return
	}
	defer xs.Close()
	svid, err := xs.GetX509SVID()
	say("x509 source", "%s %v", svid.ID, err)
	js, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		say("jwt source", "%v", err)
		return
	}
	defer js.Close()
	jwt, err := js.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}})
	say("jwt source", "%s %v", jwt.ID, err)
	bs, err := workloadapi.NewBundleSource(ctx)
	if err != nil {
		say("bundle source", "%v", err)
		return
	}
	defer bs.Close()
	_, err = bs.GetBundleForTrustDomain(svid.ID.TrustDomain())
	say("bundle source", "%v", err)
}

// first says so when it has its first SVID, and goes on.
func first([]string) {
	ctx, cancel := background()
	defer cancel()
	if _, err := workloadapi.FetchX509SVID(ctx); err != nil {
		say("first", "%v", err)
		return
	}
	say("ready", "")
	select {}
}

// idle says that it runs, and goes on.
func idle([]string) {
	say("ready", "")
	select {}
}

// A watcher says what a stream brings.
type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	say("update", "%s", c.DefaultSVID().ID)
}
func (watcher) OnX509ContextWatchError(err error) { say("broken", "%s", code(err)) }

// watch follows its identity for as long as it is let.
func watch([]string) {
	say("watch", "%v", workloadapi.WatchX509Context(context.Background(), watcher{}))
}

// fetch asks for its SVID again and again, each time with a client of its own,
// and says how each went that went otherwise than the one before.
func fetch([]string) {
	last, times := "", 0
	for {
		ctx, cancel := background()
		_, err := workloadapi.FetchX509SVID(ctx)
		cancel()
		times++
		if now := code(err); now != last || times%100 == 0 {
			last = now
			say("fetch", "%s %d %v", now, times, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A witness sees a stream begin and break.
type witness struct{ begun, broken chan error }

func (w witness) OnX509ContextUpdate(*workloadapi.X509Context) {
	select {
	case w.begun <- nil:
	default:
	}
}
func (w witness) OnX509ContextWatchError(err error) {
	select {
	case w.broken <- err:
	default:
	}
}

// last ends only once it has lost its identity: the stream that was open, and
// everything that it asks for then. What it saw it writes to a file.
func last(args []string) {
	signal.Ignore(syscall.SIGTERM)
	w := witness{make(chan error, 1), make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go workloadapi.WatchX509Context(ctx, w)
	<-w.begun
	say("last", "it has an identity")
	stopping := make(chan os.Signal, 1)
	signal.Reset(syscall.SIGTERM)
	signal.Notify(stopping, syscall.SIGTERM)
	<-stopping
	out := fmt.Sprintf("stream: %s\n", code(<-w.broken))
	cancel()
	for {
		short, done := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := workloadapi.FetchX509SVID(short)
		_, jerr := workloadapi.FetchJWTSVID(short, jwtsvid.Params{Audience: "a"})
		done()
		if status.Code(err) == codes.PermissionDenied && status.Code(jerr) == codes.PermissionDenied {
			out += "then: PermissionDenied\n"
			break
		}
	}
	if err := os.WriteFile(args[0], []byte(out), 0o644); err != nil {
		say("last", "%v", err)
	}
}

// serve accepts mTLS from one service, and answers with its name.
func serve(args []string) {
	source, err := workloadapi.NewX509Source(context.Background())
	if err != nil {
		say("serve", "%v", err)
		os.Exit(1)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:"+args[0], tlsconfig.MTLSServerConfig(source, source, authorize(source, args[1])))
	if err != nil {
		say("serve", "%v", err)
		os.Exit(1)
	}
	say("serve", "ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprint(c, "hello")
		}()
	}
}

// authorize lets in a service of one's own environment.
func authorize(source *workloadapi.X509Source, service string) tlsconfig.Authorizer {
	svid, err := source.GetX509SVID()
	if err != nil {
		say("authorize", "%v", err)
		os.Exit(1)
	}
	id := svid.ID.String()
	for i := len(id) - 1; ; i-- {
		if id[i] == '/' {
			return tlsconfig.AuthorizeID(spiffeid.RequireFromString(id[:i+1] + service))
		}
	}
}

// dial speaks mTLS with what a service is to be.
func dial(args []string) {
	ctx, cancel := background()
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		say("dial", "%v", err)
		return
	}
	defer source.Close()
	d := &tls.Dialer{NetDialer: &net.Dialer{}, Config: tlsconfig.MTLSClientConfig(source, source, authorize(source, args[1]))}
	c, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+args[0])
	if err != nil {
		say("dial", "%v", err)
		return
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	say("dial", "%s %v", b, err)
}
