package approval

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger/ledgertest"
	"isle/internal/policy"
	"isle/internal/secret"
)

// hookKey is the secret of the tests' webhooks.
const hookKey = "a webhook's secret of some length"

// A hookLab is a webhook and the server that tells it.
type hookLab struct {
	*lab
	hook     policy.Webhook
	notifier *Notifier
	a        *Approvals
	handler  http.Handler
	got      chan *http.Request // with its body read
	bodies   chan []byte
	answer   func(w http.ResponseWriter)

	refusedMu sync.Mutex
	refused   []audit.Entry
}

func newHookLab(t *testing.T) *hookLab {
	l := &hookLab{lab: newLab(t), got: make(chan *http.Request, 20), bodies: make(chan []byte, 20), answer: func(http.ResponseWriter) {}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		l.answer(w)
		l.got <- r
		l.bodies <- b
	}))
	t.Cleanup(srv.Close)
	l.hook = policy.Webhook{Name: "ops", URL: srv.URL + "/hook", Secret: "hook", Format: "isle", Approvers: []string{"human:ann"}}
	store := ledgertest.New()
	secrets, err := secret.Open(t.Context(), secret.Config{Store: store, Log: store, Getenv: func(string) (string, bool) { return hookKey, true }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Refer(t.Context(), ann.Actor, "hook", secret.Environment, "ISLE_SECRET_HOOK"); err != nil {
		t.Fatal(err)
	}
	l.notifier = NewNotifier(NotifierConfig{
		Hooks:  func() []policy.Webhook { return []policy.Webhook{l.hook} },
		Secret: secrets.Resolve,
		Dial: func(ctx context.Context, _ policy.Webhook, host string, port int) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		},
		URL: func() string { return "https://isle.example:7443" }, Now: l.clock.now, Retries: []time.Duration{time.Millisecond, time.Millisecond},
	})
	t.Cleanup(l.notifier.Close)
	l.a = l.open()
	l.a.cfg.Notify = l.notifier.Notify
	l.handler = NewCallback(CallbackConfig{
		Approvals: l.a, Notifier: l.notifier,
		Groups: func(person string) ([]string, error) {
			if person == "ghost" {
				return nil, isle.Errorf(isle.Refused, "there is no user ghost")
			}
			return nil, nil
		},
		Refused: func(e audit.Entry, _ string) {
			l.refusedMu.Lock()
			defer l.refusedMu.Unlock()
			l.refused = append(l.refused, e)
		},
	})
	return l
}

// told waits for what the webhook is told.
func (l *hookLab) told1() (*http.Request, hookBody) {
	l.t.Helper()
	r, body := <-l.got, <-l.bodies
	if Sign([]byte(hookKey), outward, r.Header.Get(HeaderTimestamp), body) != r.Header.Get(HeaderSignature) {
		l.t.Error("its signature is wrong")
	}
	var b hookBody
	if err := json.Unmarshal(body, &b); err != nil {
		l.t.Fatal(err)
	}
	return r, b
}

// back brings a decision back.
func (l *hookLab) back(c callback, change func(r *http.Request)) *httptest.ResponseRecorder {
	body, _ := json.Marshal(c)
	r := httptest.NewRequest(http.MethodPost, CallbackPath, bytes.NewReader(body))
	stamp := strconv.FormatInt(l.clock.now().Unix(), 10)
	r.Header.Set(HeaderTimestamp, stamp)
	r.Header.Set(HeaderSignature, Sign([]byte(hookKey), inward, stamp, body))
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	l.handler.ServeHTTP(w, r)
	return w
}

func hooked() Request {
	r := request()
	r.Notify = []string{"ops"}
	return r
}

func TestAWebhookIsToldAndBringsADecisionBackOnce(t *testing.T) {
	l := newHookLab(t)
	c := l.ask(l.a, hooked())
	_, b := l.told1()
	if b.Event != Asked || b.Request.Shown != string(request().Text) || b.Request.Params[0] != "int4: 7" || b.Request.Hash != request().Sum() || b.Callback == nil || b.Callback.URL != "https://isle.example:7443"+CallbackPath {
		t.Fatalf("%+v", b)
	}
	good := callback{Webhook: "ops", Request: b.Request.ID, Decision: "approve", Token: b.Callback.Approve, Approver: "human:ann", Reason: "fine"}
	for name, bad := range map[string]struct {
		c      func(c *callback)
		r      func(r *http.Request)
		status int
	}{
		"another webhook":           {c: func(c *callback) { c.Webhook = "other" }, status: 403},
		"another request":           {c: func(c *callback) { c.Request = isle.NewID() }, status: 403},
		"the other decision":        {c: func(c *callback) { c.Decision = "deny" }, status: 403},
		"no decision":               {c: func(c *callback) { c.Decision = "" }, status: 403},
		"no token":                  {c: func(c *callback) { c.Token = "" }, status: 403},
		"somebody not listed":       {c: func(c *callback) { c.Approver = "human:bob" }, status: 403},
		"a machine":                 {c: func(c *callback) { c.Approver = "machine:ann" }, status: 403},
		"no signature":              {r: func(r *http.Request) { r.Header.Del(HeaderSignature) }, status: 403},
		"a signature of the server": {r: func(r *http.Request) { r.Header.Set(HeaderSignature, strings.Repeat("0", 67)) }, status: 403},
		"an old one": {r: func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			stamp := strconv.FormatInt(l.clock.now().Add(-Window-time.Second).Unix(), 10)
			r.Header.Set(HeaderTimestamp, stamp)
			r.Header.Set(HeaderSignature, Sign([]byte(hookKey), inward, stamp, body))
		}, status: 403},
		"one that was sent to the webhook": {r: func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			r.Header.Set(HeaderSignature, Sign([]byte(hookKey), outward, r.Header.Get(HeaderTimestamp), body))
		}, status: 403},
		"a GET": {r: func(r *http.Request) { r.Method = http.MethodGet }, status: 405},
	} {
		c := good
		if bad.c != nil {
			bad.c(&c)
		}
		if w := l.back(c, bad.r); w.Code != bad.status {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if len(l.refused) < 6 {
		t.Errorf("%d refusals are recorded", len(l.refused))
	}
	if w := l.back(good, nil); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	if err := c.wait(); err != nil {
		t.Fatal(err)
	}
	if w := l.back(good, nil); w.Code != 409 {
		t.Errorf("the same again: %d", w.Code)
	}
	got, _ := l.a.Get(b.Request.ID)
	if len(got.Decisions) != 1 || got.Decisions[0].Via != "ops" || got.Decisions[0].Actor != ann.Actor {
		t.Errorf("%+v", got.Decisions)
	}
	if _, b := l.told1(); b.Event != Decided || b.Request.Shown != "" || b.Callback != nil {
		t.Errorf("%+v", b)
	}
}

func TestAWebhookThatDecidesNothingGetsNobodysData(t *testing.T) {
	for _, format := range []string{"isle", "slack"} {
		l := newHookLab(t)
		l.hook.Approvers, l.hook.Format = nil, format
		r := hooked()
		r.Text, r.Params = []byte("UPDATE customers SET email = 'ann@example.com' WHERE id = $1"), []Param{{Type: "text", Value: []byte("4711-secret")}}
		r.Shape, r.Why = "UPDATE customers SET email = $1 WHERE id = $2", "<!channel> `x`\nnew line"
		l.ask(l.a, r)
		<-l.got
		body := string(<-l.bodies)
		for _, never := range []string{"ann@example.com", "4711-secret", "callback", "<!channel>"} {
			if strings.Contains(body, never) && !(never == "<!channel>" && format == "isle") {
				t.Errorf("%s: it says %s: %s", format, never, body)
			}
		}
		if !strings.Contains(body, "UPDATE customers") {
			t.Errorf("%s: %s", format, body)
		}
		if w := l.back(callback{Webhook: "ops", Decision: "approve", Approver: "human:ann"}, nil); w.Code != 403 {
			t.Errorf("it decides: %d", w.Code)
		}
	}
}

func TestAWebhookThatFailsIsToldAgainAndHoldsNobodyUp(t *testing.T) {
	l := newHookLab(t)
	tries := 0
	l.answer = func(w http.ResponseWriter) {
		if tries++; tries < 3 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}
	c := l.ask(l.a, hooked())
	r := <-c.waiting // it waits whatever the webhook does
	first, _ := l.told1()
	l.told1()
	last, _ := l.told1()
	if first.Header.Get(HeaderDelivery) != last.Header.Get(HeaderDelivery) {
		t.Error("a delivery that is sent again has another ID")
	}
	l.answer = func(w http.ResponseWriter) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(http.StatusFound) }
	l.a.Deny(t.Context(), ann, r.ID, "no")
	l.told1()
	l.notifier.Close()
	if len(l.got) != 0 {
		t.Error("it followed a redirect, or tried again what was not going to work")
	}
}

func TestBreakGlassIsToldToEveryWebhook(t *testing.T) {
	l := newHookLab(t)
	if _, err := l.a.Break(t.Context(), accessRequest(ann.Actor)); err != nil {
		t.Fatal(err)
	}
	if _, b := l.told1(); b.Event != Broken || b.Request.Actor != "human:ann" {
		t.Errorf("%+v", b)
	}
}

func FuzzCallback(f *testing.F) {
	f.Add([]byte(`{"webhook":"ops","request":"x","decision":"approve","token":"y","approver":"human:ann"}`), "1", "v1=")
	l := &hookLab{lab: &lab{clock: &clock{}}}
	n := NewNotifier(NotifierConfig{Hooks: func() []policy.Webhook { return []policy.Webhook{{Name: "ops", Approvers: []string{"human:ann"}}} },
		Secret: func(context.Context, string) (secret.Value, error) {
			return secret.Value{}, isle.Errorf(isle.Unavailable, "away")
		}, Now: l.clock.now})
	h := NewCallback(CallbackConfig{Notifier: n, Approvals: &Approvals{}})
	f.Fuzz(func(t *testing.T, body []byte, stamp, signature string) {
		r := httptest.NewRequest(http.MethodPost, CallbackPath, bytes.NewReader(body))
		r.Header.Set(HeaderTimestamp, stamp)
		r.Header.Set(HeaderSignature, signature)
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code == http.StatusOK {
			t.Fatalf("%q counts", body)
		}
	})
}
