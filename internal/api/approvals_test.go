package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/environment"
	"isle/internal/ledger/ledgertest"
	"isle/internal/spec"
)

// heldPolicy lets ann decide about orders-db, bob see it, and the shop ask.
const heldPolicy = `
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: decider, subjects: [human:ann]}
  - {role: looker, subjects: [human:bob]}
  - {role: asker, subjects: [{project: shop, stage: testing}, human:cora]}
roles:
  decider: {actions: [approval:read, approval:decide], resources: ["connection:orders-db@testing"]}
  looker: {actions: [approval:read], resources: ["connection:orders-db@testing"]}
  asker: {actions: [access:request], resources: ["connection:orders-db@testing"]}
connections:
  orders-db: {kind: postgres, address: "db.example:5432", database: orders, stage: testing}
  other-db: {kind: postgres, address: "db.example:5432", database: other, stage: testing}
approvals:
  - {actions: [access:request], resources: [connection:orders-db], approvers: [human:ann]}
`

// A heldLab is an API whose approvals are real.
type heldLab struct {
	t      *testing.T
	rooms  *rooms
	policy *authority.Authority
	held   *approval.Approvals
}

type noGrants struct{}

func (noGrants) Check(context.Context, []byte) error   { return nil }
func (noGrants) Publish(context.Context, []byte) error { return nil }

func newHeldLab(t *testing.T) *heldLab {
	t.Helper()
	l := &heldLab{t: t, rooms: &rooms{envs: map[isle.Ref]environment.Environment{}}, policy: newPolicy(t)}
	apply(t, l.policy, heldPolicy)
	store := ledgertest.New()
	var err error
	l.held, err = approval.Open(t.Context(), approval.Config{
		Store: store, Log: store, Grants: noGrants{},
		May: func(d approval.Decider, r approval.Request) error {
			if d.Actor.Name != "ann" {
				return isle.Errorf(isle.Refused, "%s is no approver", d.Actor)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// as serves somebody.
func (l *heldLab) as(name string) *Client {
	l.t.Helper()
	socket := filepath.Join(l.t.TempDir(), "s")
	s, err := net.Listen("unix", socket)
	if err != nil {
		l.t.Fatal(err)
	}
	r := l.rooms
	srv := &http.Server{
		Handler: New(Config{Environments: r, Builder: r, Blobs: r, Audit: r, Host: r, Policy: l.policy, Approvals: l.held, Log: slog.New(slog.DiscardHandler)}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return WithActor(ctx, isle.Actor{Kind: isle.Human, Name: name})
		},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(s) }()
	c := NewClient(socket)
	l.t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

// hold has a statement wait, of an environment whose owner is dan.
func (l *heldLab) hold() approval.Request {
	l.t.Helper()
	_, err := l.held.Acquire(l.t.Context(), approval.Request{
		Actor: isle.Actor{Kind: isle.Workload, Name: "shop@testing"}, Owner: "human:dan", Instance: isle.NewID(), Ref: isle.Ref{Name: "shop", Stage: "testing"},
		Connection: "orders-db", Kind: "postgres", Stage: "testing", Actions: []isle.Action{isle.ActionPostgresWrite}, Text: []byte("DELETE FROM x \xff"),
		Rule: "approval at main.yaml:1:1", Approvers: []string{"human:ann"}, NoWait: true,
	}, nil)
	if isle.CodeOf(err) != isle.Held {
		l.t.Fatal(err)
	}
	list, _ := l.held.List(false)
	return list[len(list)-1]
}

func TestWhoSeesAndDecidesWhatWaits(t *testing.T) {
	l := newHeldLab(t)
	r := l.hold()
	for name, want := range map[string]struct{ sees, decides bool }{
		"ann": {true, true}, "bob": {true, false}, "dan": {true, false}, "eve": {false, false},
	} {
		c := l.as(name)
		list, err := c.Approvals.ListApprovals(t.Context(), connect.NewRequest(&islev1.ListApprovalsRequest{}))
		if err != nil || (len(list.Msg.GetApprovals()) == 1) != want.sees {
			t.Errorf("%s lists %d, %v", name, len(list.Msg.GetApprovals()), err)
		}
		got, err := c.Approvals.GetApproval(t.Context(), connect.NewRequest(&islev1.GetApprovalRequest{Id: string(r.ID)}))
		if (err == nil) != want.sees || err == nil && string(got.Msg.GetApproval().GetText()) != "DELETE FROM x \xff" {
			t.Errorf("%s gets it: %v", name, err)
		}
		if want.decides {
			continue
		}
		_, err = c.Approvals.Approve(t.Context(), connect.NewRequest(&islev1.ApproveRequest{Id: string(r.ID), Hash: string(r.Hash)}))
		if isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s approves: %v", name, err)
		}
		if _, err = c.Approvals.Deny(t.Context(), connect.NewRequest(&islev1.DenyRequest{Id: string(r.ID)})); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s denies: %v", name, err)
		}
	}
	if _, err := l.as("ann").Approvals.Approve(t.Context(), connect.NewRequest(&islev1.ApproveRequest{Id: string(r.ID), Hash: string(r.Hash)})); err != nil {
		t.Error(err)
	}
	if _, err := l.as("root").Approvals.GetApproval(t.Context(), connect.NewRequest(&islev1.GetApprovalRequest{Id: "nothing\x1b"})); isle.CodeOf(err) == "" || err == nil {
		t.Error(err)
	}
}

func TestAccessIsAskedForByWhomThePolicyLets(t *testing.T) {
	l := newHeldLab(t)
	ask := func(name, connection string) (*islev1.Approval, error) {
		res, err := l.as(name).Approvals.RequestAccess(t.Context(), connect.NewRequest(&islev1.AccessRequest{What: "door", Name: connection, Why: "x", For: durationpb.New(time.Hour)}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetApproval(), nil
	}
	r, err := ask("cora", "orders-db")
	if err != nil || r.GetState() != approval.Pending || r.GetApprovers()[0] != "human:ann" || !strings.HasPrefix(r.GetRule(), "approval at main.yaml:") {
		t.Fatalf("%v %v", err, r)
	}
	if r, err = ask("root", "other-db"); err != nil || r.GetRule() != approval.Keepers {
		t.Errorf("%v %v", err, r)
	}
	for name, connection := range map[string]string{"cora": "other-db", "eve": "orders-db"} {
		if _, err := ask(name, connection); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s asks for %s: %v", name, connection, err)
		}
	}
	if _, err := ask("cora", "no-db"); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	if _, err := l.as("cora").Approvals.BreakGlass(t.Context(), connect.NewRequest(&islev1.AccessRequest{What: "door", Name: "orders-db", Why: "x", For: durationpb.New(time.Minute)})); isle.CodeOf(err) != isle.Refused {
		t.Errorf("cora breaks the glass: %v", err)
	}
}

func TestAWorkloadAsksForAccessOnItsSocketAndSeesItsOwn(t *testing.T) {
	l := newHeldLab(t)
	i := newIssuer(t)
	w := &workloadLab{t: t}
	var refused []audit.Entry
	file := spec.File{Uses: []string{"orders-db"}, UsesAs: map[string]string{"orders-db": "db"}}
	access := &WorkloadAccess{
		Policy: l.policy, Approvals: l.held,
		Owner:      func(isle.ID) (string, string, bool) { return "human:dan", "shop", true },
		Connection: func(_ isle.ID, name string) string { return file.Connection(name) },
		Refused:    func(_ WorkloadCaller, e audit.Entry) { refused = append(refused, e) },
	}
	w.api = NewWorkloadAPI(WorkloadConfig{SVIDs: i, Log: slog.New(slog.DiscardHandler), Access: func() *WorkloadAccess { return access }})
	t.Cleanup(func() { w.api.Close() })
	mine := callerOf(i, "web")
	other := mine
	other.Instance = "zzzzzzzzzzzzzzzzzzzzzzzzzz"
	do := func(c WorkloadCaller, method, path, body string, header bool) (int, accessAnswer) {
		socket := strings.TrimPrefix(w.socket(c), "unix://")
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}, DisableKeepAlives: true}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://isle"+path, strings.NewReader(body))
		if header {
			req.Header.Set("workload.spiffe.io", "true")
		}
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		var out accessAnswer
		json.Unmarshal(b, &out)
		return res.StatusCode, out
	}
	const good = `{"door":"orders-db","for":"30m","why":"nightly import"}`
	status, asked := do(mine, "POST", "/access", good, true)
	if status != 202 || asked.State != approval.Pending || asked.Granted {
		t.Fatalf("%d %+v", status, asked)
	}
	r, err := l.held.Get(asked.Request)
	if err != nil || r.Actor.Name != "shop@testing" || r.Owner != "human:dan" || r.Access.Subject.String() != "{project: shop, stage: testing, name: shop}" {
		t.Fatalf("%+v", r)
	}
	for name, c := range map[string]struct {
		caller             WorkloadCaller
		method, path, body string
		header             bool
		want               int
	}{
		"without the header":     {mine, "POST", "/access", good, false, 400},
		"another connection":     {mine, "POST", "/access", `{"door":"other-db","why":"x"}`, true, 403},
		"none":                   {mine, "POST", "/access", `{"door":"no-db","why":"x"}`, true, 404},
		"no reason":              {mine, "POST", "/access", `{"door":"orders-db"}`, true, 400},
		"an unknown key":         {mine, "POST", "/access", `{"door":"orders-db","why":"x","owner":"human:ann"}`, true, 400},
		"no JSON":                {mine, "POST", "/access", `xx`, true, 400},
		"a large one":            {mine, "POST", "/access", `{"why":"` + strings.Repeat("x", maxAccessBody) + `"}`, true, 400},
		"another's request":      {other, "GET", "/access/" + string(asked.Request), "", true, 404},
		"a break-glass":          {mine, "POST", "/access/break-glass", good, true, 404},
		"a role and a door":      {mine, "POST", "/access", `{"door":"orders-db","role":"x","why":"x"}`, true, 400},
		"longer than there is":   {mine, "POST", "/access", `{"door":"orders-db","why":"x","for":"48h"}`, true, 400},
		"the API without gRPC":   {mine, "POST", "/SpiffeWorkloadAPI/FetchX509SVID", good, true, 415},
		"its own, as it stands":  {mine, "GET", "/access/" + string(asked.Request), "", true, 202},
		"the same asked for now": {mine, "POST", "/access", good, true, 202},
		"by its name inside":     {mine, "POST", "/access", `{"door":"db","for":"30m","why":"nightly import"}`, true, 202},
	} {
		if status, out := do(c.caller, c.method, c.path, c.body, c.header); status != c.want || (name == "the same asked for now" || name == "by its name inside") && out.Request != asked.Request || !c.header && out.Request != "" {
			t.Errorf("%s: %d %+v", name, status, out)
		}
	}
	if len(refused) != 1 || refused[0].Action != isle.ActionAccessRequest || refused[0].Environment != "shop@testing" {
		t.Errorf("%+v", refused)
	}
	ann := approval.Decider{Actor: isle.Actor{Kind: isle.Human, Name: "ann"}}
	if _, err := l.held.Approve(t.Context(), ann, r.ID, r.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if status, out := do(mine, "GET", "/access/"+string(asked.Request), "", true); status != 200 || !out.Granted || out.Until == nil {
		t.Errorf("%d %+v", status, out)
	}
}
