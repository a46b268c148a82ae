package approval

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/policy"
)

// CallbackPath is where webhooks bring decisions back to.
const CallbackPath = "/approvals/callback"

// maxCallback bounds the body of a callback in bytes.
const maxCallback = 16 << 10

// tokens are those by which a decision about a request may be brought back, once.
// They end with the server.
type tokens struct {
	key [32]byte

	mu   sync.Mutex // held over a callback; guards used
	used map[string]isle.ID
}

func newTokens() *tokens {
	t := &tokens{used: map[string]isle.ID{}}
	rand.Read(t.key[:])
	return t
}

// make is the token of a webhook for a decision about a request, as it is.
func (t *tokens) make(hook string, r Request, approve bool) string {
	h := hmac.New(sha256.New, t.key[:])
	io.WriteString(h, hook+"\n"+string(r.ID)+"\n"+string(r.Hash)+"\n"+strconv.FormatBool(approve))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// A callback is what a webhook brings back.
type callback struct {
	Webhook  string  `json:"webhook"`
	Request  isle.ID `json:"request"`
	Decision string  `json:"decision"` // "approve" or "deny"
	Token    string  `json:"token"`
	Approver string  `json:"approver"` // human:NAME
	Reason   string  `json:"reason"`
}

// CallbackConfig is what a Callback needs beside the Notifier that gave the tokens.
type CallbackConfig struct {
	Approvals *Approvals
	Notifier  *Notifier
	// Groups are those of a person; an error says that nobody is called so.
	Groups func(person string) ([]string, error)
	// Refused records what was refused of a webhook that is there. source is the
	// address that it came from.
	Refused func(e audit.Entry, source string)
}

// NewCallback returns the handler of CallbackPath. A callback is signed under its
// webhook's secret and not older than Window; its token is of the request, the
// decision and the webhook, and counts once. It names a person: that it is they
// who decided, whoever holds the webhook's secret vouches for, and only for those
// whom the policy lists as the webhook's approvers. Whether that person may
// decide is asked of the policy as ever.
func NewCallback(cfg CallbackConfig) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			answer(w, http.StatusMethodNotAllowed, "a decision is brought back with POST")
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxCallback+1))
		if err != nil || len(body) > maxCallback {
			answer(w, http.StatusRequestEntityTooLarge, "the body is too large")
			return
		}
		var c callback
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		if d.Decode(&c) != nil || d.More() {
			answer(w, http.StatusBadRequest, "the body is no decision: want {webhook, request, decision, token, approver, reason}")
			return
		}
		got, err := cfg.decide(r, c, body)
		switch {
		case err == nil:
			answer(w, http.StatusOK, "request "+string(got.ID)+" is "+got.State)
		case isle.CodeOf(err) == isle.Conflict:
			answer(w, http.StatusConflict, err.Error())
		case isle.CodeOf(err) == isle.Unavailable:
			answer(w, http.StatusServiceUnavailable, "try again")
		default:
			answer(w, http.StatusForbidden, err.Error())
		}
	})
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": text})
}

// refusal is what everybody gets who cannot prove to be a webhook: it says
// nothing of what there is.
func refusal() error { return isle.Errorf(isle.Refused, "this counts for nothing here") }

// decide proves a callback, and does what it says.
func (cfg CallbackConfig) decide(r *http.Request, c callback, body []byte) (Request, error) {
	n := cfg.Notifier
	hooks := n.cfg.Hooks()
	i := slices.IndexFunc(hooks, func(w policy.Webhook) bool { return w.Name == c.Webhook })
	if i < 0 || len(hooks[i].Approvers) == 0 {
		return Request{}, refusal()
	}
	hook := hooks[i]
	if err := n.proven(r, hook, body); err != nil {
		cfg.refused(r, hook, "its signature or its time is wrong")
		return Request{}, err
	}
	approve := c.Decision == "approve"
	name, human := strings.CutPrefix(c.Approver, "human:")
	n.tokens.mu.Lock()
	defer n.tokens.mu.Unlock()
	request, err := cfg.Approvals.Get(c.Request)
	switch {
	case err != nil || !approve && c.Decision != "deny":
		return Request{}, refusal()
	case !hmac.Equal([]byte(c.Token), []byte(n.tokens.make(hook.Name, request, approve))):
		cfg.refused(r, hook, "its token is not that of the request "+string(c.Request))
		return Request{}, refusal()
	case n.tokens.used[c.Token] != "":
		return Request{}, isle.Errorf(isle.Conflict, "this decision was brought back already")
	case !human || !slices.Contains(hook.Approvers, c.Approver):
		cfg.refused(r, hook, c.Approver+" is none of its approvers")
		return Request{}, isle.Errorf(isle.Refused, "%s is none of the approvers of webhook %s", cut(c.Approver, 100), hook.Name)
	}
	groups, err := cfg.Groups(name)
	if err != nil {
		cfg.refused(r, hook, err.Error())
		return Request{}, isle.Errorf(isle.Refused, "%s is nobody whom this server knows", cut(c.Approver, 100))
	}
	who := Decider{Actor: isle.Actor{Kind: isle.Human, Name: name}, Groups: groups, Via: hook.Name}
	var got Request
	if approve {
		got, err = cfg.Approvals.Approve(r.Context(), who, c.Request, request.Hash, c.Reason)
	} else {
		got, err = cfg.Approvals.Deny(r.Context(), who, c.Request, c.Reason)
	}
	if err == nil {
		for token, id := range n.tokens.used { // of what has ended no token counts
			if old, gerr := cfg.Approvals.Get(id); gerr != nil || !old.Live() {
				delete(n.tokens.used, token)
			}
		}
		n.tokens.used[c.Token] = c.Request
	}
	return got, err
}

// proven checks the signature and the time of a callback.
func (n *Notifier) proven(r *http.Request, hook policy.Webhook, body []byte) error {
	stamp := r.Header.Get(HeaderTimestamp)
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || strconv.FormatInt(at, 10) != stamp {
		return refusal()
	}
	if age := n.cfg.Now().Sub(time.Unix(at, 0)); age > Window || age < -Window {
		return refusal()
	}
	ctx, cancel := context.WithTimeout(r.Context(), sendTimeout)
	defer cancel()
	key, err := n.cfg.Secret(ctx, hook.Secret)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "the secret of webhook %s cannot be had: %w", hook.Name, err)
	}
	defer key.Destroy()
	if !hmac.Equal([]byte(r.Header.Get(HeaderSignature)), []byte(Sign(key.Reveal(), inward, stamp, body))) {
		return refusal()
	}
	return nil
}

// refused records a callback that does not count.
func (cfg CallbackConfig) refused(r *http.Request, hook policy.Webhook, why string) {
	if cfg.Refused == nil {
		return
	}
	e := audit.NewEvent(isle.Actor{Kind: isle.Machine, Name: "webhook:" + hook.Name}, isle.ActionApprovalDecide, isle.Resource{Kind: "connection", Name: "?", Stage: isle.DefaultStage}, isle.Deny, "a callback: "+why)
	e.Rule = "callback of webhook " + hook.Name
	cfg.Refused(e, r.RemoteAddr)
}
