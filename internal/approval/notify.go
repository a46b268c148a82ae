package approval

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/policy"
	"isle/internal/secret"
)

// What a Notice tells.
const (
	Asked   = "approval.asked"   // something waits for a decision
	Decided = "approval.decided" // it is approved or denied
	Broken  = "break-glass"      // access was taken at once
)

// A Notice is what people elsewhere are to hear.
type Notice struct {
	What    string
	Request Request
}

// The headers of what is sent to webhooks, and of what they bring back. The
// signature is "v1=" and, in hexadecimal, HMAC-SHA256 (RFC 2104) under the
// webhook's secret of the direction ("isle-webhook" out, "isle-callback" in), a
// newline, the timestamp in Unix seconds, a newline and the body.
const (
	HeaderTimestamp = "Isle-Timestamp"
	HeaderSignature = "Isle-Signature"
	HeaderDelivery  = "Isle-Delivery" // the same when it is sent again

	outward = "isle-webhook"
	inward  = "isle-callback"
)

// Bounds of deliveries.
const (
	maxDeliveries = 1000 // that are under way or wait
	maxEachHook   = 100  // of them, to one webhook
	maxSending    = 16   // at once
	sendTimeout   = 10 * time.Second
	maxHookText   = 64 << 10 // bytes of a text that is sent; one that is longer is decided about with isle approvals
	// Window is how old a signature may be, either way.
	Window = 5 * time.Minute
)

// retries are the pauses before a delivery is tried again.
func retries() []time.Duration {
	return []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute}
}

// NotifierConfig is what a Notifier needs.
type NotifierConfig struct {
	// Hooks are the webhooks of the policy in force.
	Hooks  func() []policy.Webhook
	Secret func(ctx context.Context, name string) (secret.Value, error)
	// Dial connects to where a webhook is, as the gateway lets it.
	Dial func(ctx context.Context, w policy.Webhook, host string, port int) (net.Conn, error)
	// URL is the server's as others call it; "" as long as there is none, and then
	// nothing can be brought back.
	URL     func() string
	Now     func() time.Time
	Slog    *slog.Logger
	Retries []time.Duration // default four, within three minutes
}

// A Notifier tells webhooks. It is safe for concurrent use.
type Notifier struct {
	cfg     NotifierConfig
	tokens  *tokens
	ctx     context.Context
	cancel  context.CancelFunc
	sending chan struct{}
	work    sync.WaitGroup

	mu    sync.Mutex // guards what follows
	total int
	each  map[string]int
	done  bool
}

// NewNotifier returns a Notifier, whose Close ends it.
func NewNotifier(cfg NotifierConfig) *Notifier {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.URL == nil {
		cfg.URL = func() string { return "" }
	}
	if cfg.Retries == nil {
		cfg.Retries = retries()
	}
	n := &Notifier{cfg: cfg, tokens: newTokens(), sending: make(chan struct{}, maxSending), each: map[string]int{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Close ends all deliveries, and returns when they have ended.
func (n *Notifier) Close() {
	n.mu.Lock()
	n.done = true
	n.mu.Unlock()
	n.cancel()
	n.work.Wait()
}

// Notify begins to tell the webhooks that a notice is for: those that the rule
// names, and of access that was taken at once every one. It does not block; what
// is beyond the bounds is not told, and the server's log says so.
func (n *Notifier) Notify(what Notice) {
	for _, w := range n.cfg.Hooks() {
		named := what.What == Broken
		for _, name := range what.Request.Notify {
			named = named || name == w.Name
		}
		if !named {
			continue
		}
		n.mu.Lock()
		full := n.done || n.total >= maxDeliveries || n.each[w.Name] >= maxEachHook
		if !full {
			n.total++
			n.each[w.Name]++
			n.work.Add(1)
		}
		n.mu.Unlock()
		if full {
			n.cfg.Slog.Error("a webhook is not told: too much waits to be told already", "webhook", w.Name, "what", what.What, "request", what.Request.ID)
			continue
		}
		go n.deliver(w, what) // ends with Close at the latest
	}
}

// deliver sends a notice, and again where that fails.
func (n *Notifier) deliver(w policy.Webhook, what Notice) {
	defer n.work.Done()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.total--
		if n.each[w.Name]--; n.each[w.Name] == 0 {
			delete(n.each, w.Name)
		}
	}()
	id := isle.NewID()
	body, err := n.body(w, what, id)
	for i := 0; err == nil; i++ {
		var again bool
		again, err = n.send(w, id, body)
		if err == nil {
			return
		}
		if !again || i >= len(n.cfg.Retries) {
			break
		}
		t := time.NewTimer(n.cfg.Retries[i])
		select {
		case <-t.C:
			err = nil
		case <-n.ctx.Done():
			t.Stop()
		}
		if n.ctx.Err() != nil {
			return
		}
	}
	n.cfg.Slog.Error("a webhook could not be told", "webhook", w.Name, "what", what.What, "request", what.Request.ID, "err", err)
}

// send sends a body once. again says that a failure may pass.
func (n *Notifier) send(w policy.Webhook, id isle.ID, body []byte) (again bool, err error) {
	select {
	case n.sending <- struct{}{}:
		defer func() { <-n.sending }()
	case <-n.ctx.Done():
		return false, n.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(n.ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	key, err := n.cfg.Secret(ctx, w.Secret)
	if err != nil {
		return true, err
	}
	stamp := strconv.FormatInt(n.cfg.Now().Unix(), 10)
	req.Header.Set(HeaderSignature, Sign(key.Reveal(), outward, stamp, body))
	key.Destroy()
	req.Header.Set(HeaderTimestamp, stamp)
	req.Header.Set(HeaderDelivery, string(id))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "isle")
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			number, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			return n.cfg.Dial(ctx, w, host, number)
		},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10, TLSHandshakeTimeout: sendTimeout,
	}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // it is sent where the policy says, and nowhere else
	}}
	res, err := client.Do(req)
	if err != nil {
		return isle.CodeOf(errors.Unwrap(err)) != isle.Refused, err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // what it says counts for nothing
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return false, nil
	}
	return res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout,
		fmt.Errorf("it answers %s", res.Status)
}

// Sign is the signature of a body under a key, for a direction and a time.
func Sign(key []byte, direction, timestamp string, body []byte) string {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, direction+"\n"+timestamp+"\n")
	h.Write(body)
	return "v1=" + hex.EncodeToString(h.Sum(nil))
}

// hookBody is what a webhook of format isle gets.
type hookBody struct {
	Delivery isle.ID       `json:"delivery"`
	Event    string        `json:"event"`
	Webhook  string        `json:"webhook"`
	Server   string        `json:"server,omitempty"`
	Request  hookRequest   `json:"request"`
	Callback *hookCallback `json:"callback,omitempty"`
}

// hookRequest is what is said of a request. Its text is there only for webhooks
// that may bring a decision back: parameters and literals are somebody's data.
type hookRequest struct {
	ID          isle.ID       `json:"id"`
	State       string        `json:"state"`
	Asked       time.Time     `json:"asked"`
	Expires     time.Time     `json:"expires"`
	Actor       string        `json:"actor"`
	Owner       string        `json:"owner,omitempty"`
	Chain       []string      `json:"chain,omitempty"`
	Environment string        `json:"environment,omitempty"`
	Connection  string        `json:"connection"`
	Stage       string        `json:"stage"`
	Kind        string        `json:"kind"`
	Database    string        `json:"database,omitempty"`
	Actions     []isle.Action `json:"actions"`
	Rule        string        `json:"rule"`
	Shape       string        `json:"shape,omitempty"`
	Estimate    string        `json:"estimate,omitempty"`
	Why         string        `json:"why,omitempty"`
	Hash        isle.Digest   `json:"hash"`
	Count       int           `json:"count"`
	Decisions   []Verdict     `json:"decisions,omitempty"`
	Until       time.Time     `json:"until,omitzero"`

	Shown    string   `json:"shown,omitempty"` // the text, as isle approvals shows it
	Params   []string `json:"params,omitempty"`
	Settings []Pair   `json:"settings,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// hookCallback is how a decision is brought back.
type hookCallback struct {
	URL     string `json:"url"`
	Approve string `json:"approve"` // a token, for once
	Deny    string `json:"deny"`
}

// body is what a webhook is sent.
func (n *Notifier) body(w policy.Webhook, what Notice, id isle.ID) ([]byte, error) {
	r := what.Request
	if w.Format == "slack" {
		return slackBody(what)
	}
	b := hookBody{Delivery: id, Event: what.What, Webhook: w.Name, Server: n.cfg.URL(), Request: hookRequest{
		ID: r.ID, State: r.State, Asked: r.Asked, Expires: r.Expires, Actor: r.Actor.String(), Owner: r.Owner, Chain: r.Chain, Connection: r.Connection,
		Stage: r.Stage, Kind: r.Kind, Database: r.Database, Actions: r.Actions, Rule: r.Rule, Shape: r.Shape, Estimate: r.Estimate, Why: r.Why,
		Hash: r.Hash, Count: max(r.Count, 1), Decisions: r.Decisions, Until: r.Until,
	}}
	if r.Ref.Name != "" {
		b.Request.Environment = r.Ref.Name + "@" + r.Ref.Stage
	}
	if what.What == Asked && len(w.Approvers) > 0 && b.Server != "" && r.size() <= maxHookText {
		b.Request.Shown, b.Request.Warnings = Reveal(r.Text)
		for _, p := range r.Params {
			shown, warnings := p.Show()
			b.Request.Params = append(b.Request.Params, p.Type+": "+shown)
			b.Request.Warnings = append(b.Request.Warnings, warnings...)
		}
		b.Request.Settings = r.Context
		b.Callback = &hookCallback{
			URL: strings.TrimSuffix(b.Server, "/") + CallbackPath, Approve: n.tokens.make(w.Name, r, true), Deny: n.tokens.make(w.Name, r, false),
		}
	}
	return json.Marshal(b)
}

// slackBody is a message for Slack's incoming webhooks: text, and the same as
// blocks. The text of the request is its shape, without anybody's data.
func slackBody(what Notice) ([]byte, error) {
	r := what.Request
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "`", "'", "*", "∗", "_", "_", "~", "∼").Replace
	say := func(s string) string {
		shown, _ := Reveal([]byte(s))
		return escape(cut(strings.ReplaceAll(shown, "\n", " "), 1500))
	}
	head := map[string]string{
		Asked:   "Approval wanted: " + r.Actor.String(),
		Decided: "Request " + string(r.ID) + " is " + r.State,
		Broken:  "BREAK-GLASS: " + r.Actor.String() + " took access at once",
	}[what.What]
	lines := []string{"*Where:* " + say(r.Connection+"@"+r.Stage), "*Does:* " + say(joined(r.Actions))}
	for _, f := range [][2]string{{"Owner", r.Owner}, {"Estimate", r.Estimate}, {"Why", r.Why}} {
		if f[1] != "" {
			lines = append(lines, "*"+f[0]+":* "+say(f[1]))
		}
	}
	for _, v := range r.Decisions {
		verb := "denied"
		if v.Approve {
			verb = "approved"
		}
		lines = append(lines, say(v.Actor.String()+" "+verb+" "+v.Reason))
	}
	section := func(s string) map[string]any {
		return map[string]any{"type": "section", "text": map[string]any{"type": "mrkdwn", "text": s}}
	}
	blocks := []any{section("*" + say(head) + "*"), section(strings.Join(lines, "\n"))}
	if r.Shape != "" {
		blocks = append(blocks, section("```"+say(r.Shape)+"```"))
	}
	if what.What == Asked {
		blocks = append(blocks, section("`isle approvals approve "+string(r.ID)+"`"))
	}
	return json.Marshal(map[string]any{"text": say(head), "blocks": blocks})
}
