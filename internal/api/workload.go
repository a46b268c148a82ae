package api

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/types/known/structpb"

	"isle"
	"isle/internal/identity"
)

// SVIDs gives the documents of workloads' identities; *identity.Issuer
// implements it.
type SVIDs interface {
	X509SVID(id identity.SPIFFEID) (identity.X509SVID, error)
	JWTSVID(id identity.SPIFFEID, audience []string) (identity.JWTSVID, error)
	ValidateJWTSVID(token, audience string) (subject string, claims map[string]any, err error)
	Bundle() identity.Bundle
	// Over is closed when the bundle changes, and when what was issued should
	// be issued anew.
	Over() <-chan struct{}
}

// A WorkloadCaller is the launch at the other end of a connection to its
// Workload API.
type WorkloadCaller struct {
	// ID is its identity. The zero SPIFFEID has none, and is refused.
	ID       identity.SPIFFEID
	Ref      isle.Ref
	Instance isle.ID
}

// The kinds of document that a workload gets.
const (
	IssueX509 = "x509-svid"
	IssueJWT  = "jwt-svid"
)

// A WorkloadConfig is what the Workload API stands in front of.
type WorkloadConfig struct {
	SVIDs SVIDs
	// Issuing records that a document is about to be given, and returns when
	// that is durable; where it fails it is not given. It is called for each
	// request, and not when a stream renews what it gave. It does not let a
	// caller fill the log.
	Issuing func(ctx context.Context, caller WorkloadCaller, kind string, audience []string) error
	// Refused records that a caller asked for what is not its own.
	Refused func(caller WorkloadCaller, kind, asked string)
	// Access returns where workloads ask for access for a time; nil: nowhere. It
	// is called when somebody asks.
	Access func() *WorkloadAccess
	Log    *slog.Logger
	Now    func() time.Time // nil is time.Now
}

// Bounds of the Workload API.
const (
	maxWorkloadMessage = 16 << 10 // bytes of a request; a JWT-SVID is below half of that
	maxJWTAudiences    = 16
	maxAudience        = 256 // bytes
)

// workloadService is the path of the SPIFFE Workload API's service.
const workloadService = "/SpiffeWorkloadAPI/"

// workloads implements the SPIFFE Workload API (SPIFFE Workload API standard):
// all profiles but that of WIT-SVIDs, which it says to be unimplemented.
type workloads struct {
	WorkloadConfig
}

// workloadHandler returns the API as gRPC over HTTP/2. Requests' contexts have
// their caller (withWorkload).
func workloadHandler(cfg WorkloadConfig) http.Handler {
	w := &workloads{cfg}
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxWorkloadMessage),
		connect.WithRecover(func(_ context.Context, s connect.Spec, _ http.Header, p any) error {
			cfg.Log.Error("a call of the Workload API panicked", "procedure", s.Procedure, "panic", p, "stack", string(debug.Stack()))
			return connect.NewError(connect.CodeInternal, errors.New("the server made a mistake"))
		}),
	}
	mux := http.NewServeMux()
	handle := func(method string, h *connect.Handler) { mux.Handle(workloadService+method, h) }
	handle("FetchX509SVID", connect.NewServerStreamHandlerSimple(workloadService+"FetchX509SVID", w.fetchX509SVID, options...))
	handle("FetchX509Bundles", connect.NewServerStreamHandlerSimple(workloadService+"FetchX509Bundles", w.fetchX509Bundles, options...))
	handle("FetchJWTSVID", connect.NewUnaryHandlerSimple(workloadService+"FetchJWTSVID", w.fetchJWTSVID, options...))
	handle("FetchJWTBundles", connect.NewServerStreamHandlerSimple(workloadService+"FetchJWTBundles", w.fetchJWTBundles, options...))
	handle("ValidateJWTSVID", connect.NewUnaryHandlerSimple(workloadService+"ValidateJWTSVID", w.validateJWTSVID, options...))
	handle("FetchWITSVID", connect.NewServerStreamHandlerSimple(workloadService+"FetchWITSVID",
		func(context.Context, *workload.WITSVIDRequest, *connect.ServerStream[workload.WITSVIDResponse]) error {
			return errNoWIT()
		}, options...))
	handle("FetchWITBundles", connect.NewServerStreamHandlerSimple(workloadService+"FetchWITBundles",
		func(context.Context, *workload.WITBundlesRequest, *connect.ServerStream[workload.WITBundlesResponse]) error {
			return errNoWIT()
		}, options...))
	return mux
}

func errNoWIT() error {
	return connect.NewError(connect.CodeUnimplemented, errors.New("there are no WIT-SVIDs here; ask for an X.509-SVID or a JWT-SVID"))
}

// workloadError is the status for an error: a client of the Workload API reads
// the text and knows nothing of details.
func workloadError(err error) error {
	flat := Flatten(err)
	return connect.NewError(connectCode(flat.Code), errors.New(flat.Error()))
}

// fetchX509SVID gives the caller its X.509-SVID with the bundle, and again
// whenever the bundle changes and when half of the SVID's life is over (Workload
// API standard, 5.2.1).
func (w *workloads) fetchX509SVID(ctx context.Context, _ *workload.X509SVIDRequest, stream *connect.ServerStream[workload.X509SVIDResponse]) error {
	caller := workloadFrom(ctx)
	for first := true; ; first = false {
		over := w.SVIDs.Over()
		svid, err := w.SVIDs.X509SVID(caller.ID)
		if err == nil && first {
			err = w.Issuing(ctx, caller, IssueX509, nil)
		}
		if err != nil {
			return workloadError(err)
		}
		bundle := w.SVIDs.Bundle()
		err = stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId:    caller.ID.String(),
			X509Svid:    bytes.Join(svid.Chain, nil),
			X509SvidKey: svid.Key,
			Bundle:      bytes.Join(bundle.X509, nil),
		}}})
		clear(svid.Key)
		if err != nil {
			return err
		}
		if err := wait(ctx, over, w.renewal(svid.Expires)); err != nil {
			return err
		}
	}
}

// renewal is how long a document that was issued just now is good until another
// takes its place.
func (w *workloads) renewal(expires time.Time) time.Duration {
	return max(expires.Sub(w.Now())/2, 100*time.Millisecond)
}

// wait returns nil when there is something new to send, and why the stream is
// over otherwise.
func wait(ctx context.Context, over <-chan struct{}, after time.Duration) error {
	var due <-chan time.Time
	if after > 0 {
		timer := time.NewTimer(after)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-over:
	case <-due:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// fetchX509Bundles gives the roots of the trust domain, and again when they
// change.
func (w *workloads) fetchX509Bundles(ctx context.Context, _ *workload.X509BundlesRequest, stream *connect.ServerStream[workload.X509BundlesResponse]) error {
	return w.follow(ctx, func(b identity.Bundle) []byte { return bytes.Join(b.X509, nil) }, func(domain string, roots []byte) error {
		return stream.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{domain: roots}})
	})
}

// fetchJWTBundles gives the keys of the trust domain's JWT-SVIDs, and again when
// they change.
func (w *workloads) fetchJWTBundles(ctx context.Context, _ *workload.JWTBundlesRequest, stream *connect.ServerStream[workload.JWTBundlesResponse]) error {
	return w.follow(ctx, func(b identity.Bundle) []byte { return b.JWKS }, func(domain string, keys []byte) error {
		return stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{domain: keys}})
	})
}

// follow sends a part of the bundle now and when it has changed, by the trust
// domain's SPIFFE ID, until ctx ends.
func (w *workloads) follow(ctx context.Context, part func(identity.Bundle) []byte, send func(domain string, part []byte) error) error {
	var sent []byte
	for {
		over := w.SVIDs.Over()
		bundle := w.SVIDs.Bundle()
		if bundle.TrustDomain == "" { // nobody issues
			return connect.NewError(connect.CodeUnavailable, errors.New("this server has no bundle now; `isle doctor` says why"))
		}
		if now := part(bundle); sent == nil || !bytes.Equal(now, sent) {
			if err := send("spiffe://"+bundle.TrustDomain, now); err != nil {
				return err
			}
			sent = now
		}
		if err := wait(ctx, over, 0); err != nil {
			return err
		}
	}
}

// fetchJWTSVID gives the caller a JWT-SVID for an audience.
func (w *workloads) fetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	caller := workloadFrom(ctx)
	if len(r.Audience) == 0 || len(r.Audience) > maxJWTAudiences {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a JWT-SVID is for 1 to 16 audiences: say for whom it is"))
	}
	for _, a := range r.Audience {
		if a == "" || len(a) > maxAudience {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("an audience has 1 to 256 bytes: the name or URL of who checks the JWT-SVID"))
		}
	}
	if asked := r.SpiffeId; asked != "" && asked != caller.ID.String() {
		if !strings.HasPrefix(asked, "spiffe://") {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("what was asked for is no SPIFFE ID"))
		}
		w.Refused(caller, IssueJWT, asked)
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("a service gets documents of its own identity only, which is "+caller.ID.String()))
	}
	svid, err := w.SVIDs.JWTSVID(caller.ID, r.Audience)
	if err == nil {
		err = w.Issuing(ctx, caller, IssueJWT, r.Audience)
	}
	if err != nil {
		return nil, workloadError(err)
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: caller.ID.String(), Svid: svid.Token}}}, nil
}

// validateJWTSVID says whom a JWT-SVID names, if it counts for the audience.
func (w *workloads) validateJWTSVID(_ context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if r.Audience == "" || len(r.Audience) > maxAudience || r.Svid == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which JWT-SVID to check, and for which audience"))
	}
	subject, claims, err := w.SVIDs.ValidateJWTSVID(r.Svid, r.Audience)
	if err != nil { // Workload API standard, 6.2.3: whatever is wrong with it
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New(Flatten(err).Error()))
	}
	fields, err := structpb.NewStruct(claims)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a claim of the JWT-SVID cannot be told"))
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: subject, Claims: fields}, nil
}
