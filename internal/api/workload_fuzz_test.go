package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"isle"
	"isle/internal/identity"
)

// always gives documents that say for whom they were asked.
type always struct{ SVIDs }

func (always) JWTSVID(id identity.SPIFFEID, audience []string) (identity.JWTSVID, error) {
	return identity.JWTSVID{ID: id, Token: id.String() + " for " + strings.Join(audience, " ")}, nil
}

// Whatever bytes come as a request for a JWT-SVID: the answer is a refusal, or
// the caller's own for an audience.
func FuzzJWTSVIDRequest(f *testing.F) {
	for _, r := range []*workload.JWTSVIDRequest{
		{Audience: []string{"a"}}, {}, {Audience: []string{"a", ""}}, {Audience: []string{"a"}, SpiffeId: "spiffe://x/p/testing/e/db"},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b)
	}
	f.Add([]byte{1, 0, 0, 0, 1}, []byte{0xff})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff}, []byte{})
	caller := WorkloadCaller{ID: identity.SPIFFEID{TrustDomain: "x", Project: "p", Stage: "testing", Name: "e", Service: "web"}, Ref: isle.Ref{Name: "e", Stage: "testing"}}
	issued := false
	h := workloadHandler(WorkloadConfig{SVIDs: always{}, Log: slog.New(slog.DiscardHandler), Refused: func(WorkloadCaller, string, string) {},
		Issuing: func(_ context.Context, _ WorkloadCaller, _ string, audience []string) error {
			issued = len(audience) > 0
			return nil
		}})
	f.Fuzz(func(t *testing.T, prefix, message []byte) {
		r := httptest.NewRequest("POST", workloadService+"FetchJWTSVID", bytes.NewReader(append(prefix, message...)))
		r.ProtoMajor, r.ProtoMinor = 2, 0
		r.Header.Set("Content-Type", "application/grpc")
		r = r.WithContext(context.WithValue(r.Context(), workloadKey{}, &workloadConn{caller: caller}))
		w := httptest.NewRecorder()
		issued = false
		h.ServeHTTP(w, r)
		answer := w.Result()
		status := answer.Trailer.Get("Grpc-Status") + answer.Header.Get("Grpc-Status")
		given := strings.Contains(w.Body.String(), " for ")
		if status == "" || given != (status == "0") || given && (!issued || !strings.Contains(w.Body.String(), caller.ID.String()+" for ")) {
			t.Fatalf("status %q, recorded %v: %q", status, issued, w.Body.String())
		}
	})
}
