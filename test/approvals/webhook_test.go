// Package approvals lets a real server tell a webhook, and the webhook bring a
// decision back.
package approvals

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

const key = "the webhook's secret, of some length"

// sign is the signature as docs/approvals.md has it.
func sign(direction, stamp string, body []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	io.WriteString(h, direction+"\n"+stamp+"\n")
	h.Write(body)
	return "v1=" + hex.EncodeToString(h.Sum(nil))
}

type told struct {
	Event   string
	Request struct{ ID, State, Shown, Actor string }

	Callback struct{ URL, Approve, Deny string }
}

func TestAWebhookBringsADecisionBack(t *testing.T) {
	got := make(chan told, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if sign("isle-webhook", r.Header.Get("Isle-Timestamp"), body) != r.Header.Get("Isle-Signature") {
			t.Error("the signature is wrong")
		}
		var m told
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		got <- m
	}))
	defer hook.Close()

	s, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	server := s.Command("server", "--listen", "127.0.0.1:0", "--names", "off")
	var log bytes.Buffer
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	defer func() { s.Isle("server", "stop"); <-ended }()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.State, "isle.sock")); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the server does not come up\n%s", log.String())
		}
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(`
bindings: [{role: admin, subjects: [human:root]}]
connections:
  orders-db: {kind: postgres, address: "db.example:5432", database: orders, stage: testing}
webhooks:
  ops: {url: "`+hook.URL+`/hook", secret: ops-hook, approvers: [human:root]}
approvals:
  - {actions: [access:request], resources: [connection:orders-db], approvers: [human:root], notify: [ops]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Isle("apply", "-f", policy); err != nil {
		t.Fatal(err)
	}
	set := s.Command("secret", "set", "ops-hook")
	set.Stdin = strings.NewReader(key)
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := s.Isle("request", "door", "orders-db", "--why", "ticket 12", "-o", "json"); err == nil {
		t.Fatalf("nobody was asked: %s", out)
	}
	m := <-got
	if m.Event != "approval.asked" || m.Request.Actor != "human:root" || !strings.Contains(m.Request.Shown, "door orders-db") || m.Callback.URL == "" {
		t.Fatalf("%+v", m)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} // whose certificate it is, is tested elsewhere
	back := func(token, signed string) (int, string) {
		body, _ := json.Marshal(map[string]string{"webhook": "ops", "request": m.Request.ID, "decision": "approve", "token": token, "approver": "human:root", "reason": "fine"})
		stamp := strconv.FormatInt(time.Now().Unix(), 10)
		req, err := http.NewRequest(http.MethodPost, m.Callback.URL, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Isle-Timestamp", stamp)
		req.Header.Set("Isle-Signature", sign(signed, stamp, body))
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(answer)
	}
	if code, said := back(m.Callback.Approve, "isle-webhook"); code != http.StatusForbidden {
		t.Errorf("signed for the other direction: %d %s", code, said)
	}
	if code, said := back(m.Callback.Deny, "isle-callback"); code != http.StatusForbidden {
		t.Errorf("the other token: %d %s", code, said)
	}
	if code, said := back(m.Callback.Approve, "isle-callback"); code != http.StatusOK {
		t.Fatalf("%d %s\n%s", code, said, log.String())
	}
	if code, _ := back(m.Callback.Approve, "isle-callback"); code != http.StatusConflict {
		t.Errorf("the same again: %d", code)
	}
	if m := <-got; m.Event != "approval.decided" || m.Request.Shown != "" {
		t.Errorf("%+v", m)
	}
	if out, err := s.Isle("approvals"); err != nil || !strings.Contains(out, "granted, ") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := s.Isle("audit", "search", "--action", "approval:decide", "-o", "json"); err != nil || !strings.Contains(out, `"vouched_by":"webhook:ops"`) || !strings.Contains(out, `"webhook:ops"`) {
		t.Errorf("%v %s", err, out)
	}
	secrets := s.Command("audit", "search", "-o", "json")
	if out, err := secrets.Output(); err != nil || bytes.Contains(out, []byte(m.Callback.Approve)) || bytes.Contains(out, []byte(key)) || strings.Contains(log.String(), key) {
		t.Errorf("%v: a token or a key is in the log", err)
	}
}
