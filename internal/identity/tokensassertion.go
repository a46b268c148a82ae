package identity

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// Bounds of assertions.
const (
	// MaxAssertion is how far ahead an assertion's end may be.
	MaxAssertion = 5 * time.Minute

	maxJTI = 256 // bytes
	// An assertion that was used is kept until it has expired. So many are kept
	// of one machine, and in all; who wants more has to wait.
	maxUsedOfOne = 1000
	maxUsed      = 10_000
	// maxTried bounds the keys of a machine that one assertion is tried with.
	maxTried = 8
)

// assertionLedger is the ledger of assertions that were used.
const assertionLedger = "assertions"

// forgottenKey is the key of the record that says up to which end the records of
// used assertions were dropped. It is a usedAssertion of nobody.
const forgottenKey = "forgotten"

// A usedAssertion is the record of one. Its key is the SHA-256 of the machine's
// name and the assertion's jti.
type usedAssertion struct {
	key     string
	Machine string    `json:"machine"`
	Until   time.Time `json:"until"` // when it does not count any more by itself
}

func usedKey(machine, jti string) string {
	sum := sha256.Sum256([]byte(machine + "\n" + jti))
	return hex.EncodeToString(sum[:])
}

func readUsed(records []ledger.Record) (used map[string]usedAssertion, forgotten time.Time, err error) {
	used = make(map[string]usedAssertion, len(records))
	for _, r := range records {
		u := usedAssertion{key: r.Key}
		if err := json.Unmarshal(r.Body, &u); err != nil {
			return nil, forgotten, isle.Errorf(isle.Unavailable, "the record of an assertion that was used cannot be read; another version of the program may have written it: %w", err)
		}
		if r.Key == forgottenKey {
			forgotten = u.Until
			continue
		}
		used[r.Key] = u
	}
	return used, forgotten, nil
}

// proveAssertion says which client signed an assertion (RFC 7523, 3): it names
// itself as issuer and subject, this server and nobody else as audience, ends
// within MaxAssertion, and has a jti that was not used before. client is who
// asks, where they say so beside it.
func (t *Tokens) proveAssertion(assertion, client string) (Subject, *usedAssertion, error) {
	claimed := claimedSubject(assertion)
	if client != "" && client != claimed {
		claimed = ""
	}
	claims, signed, err := verifyJWT(assertion, []string{"jwt", "client-authentication+jwt", ""}, func(kid string) []verifyKey {
		if keys := t.keysOf(claimed, kid); len(keys) > 0 {
			return keys
		}
		return []verifyKey{t.decoy} // as much work as with somebody who is known
	})
	if err != nil {
		return Subject{}, nil, unknownClient(err)
	}
	now := t.cfg.Now()
	expires, err := checkTimes(claims, now, Skew)
	if err != nil {
		return Subject{}, nil, unknownClient(err)
	}
	jti, _ := claims["jti"].(string)
	switch {
	case claims["iss"] != claimed || claims["sub"] != claimed:
		err = refuseJWT("its iss and sub are not the client's name")
	case expires.After(now.Add(MaxAssertion + Skew)):
		err = refuseJWT("it ends more than %s ahead (exp)", MaxAssertion)
	case jti == "" || len(jti) > maxJTI:
		err = refuseJWT("it has no jti, or one of more than %d bytes", maxJTI)
	default:
		err = t.forUs(claims)
	}
	if err != nil {
		return Subject{}, nil, unknownClient(err)
	}
	s, err := t.cfg.Clients.Subject(signed.id)
	if err != nil {
		return Subject{}, nil, unknownClient(err)
	}
	if s.Actor != (isle.Actor{Kind: isle.Machine, Name: claimed}) {
		return Subject{}, nil, unknownClient(refuseJWT("its key is not the client's"))
	}
	return s, &usedAssertion{usedKey(claimed, jti), claimed, expires.Add(Skew).UTC()}, nil
}

// claimedSubject is the sub of a JWT that nothing is known of yet; "" if there
// is none.
func claimedSubject(token string) string {
	parts := strings.SplitN(token, ".", 3)
	if len(token) > MaxJWT || len(parts) != 3 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	claims, err := parseObject(b)
	if err != nil {
		return ""
	}
	s, _ := claims["sub"].(string)
	return s
}

// keysOf are the public keys of a machine that a kid can mean: its own ID of the
// key, the JWK's kid, or none, which means any.
func (t *Tokens) keysOf(machine, kid string) (out []verifyKey) {
	if machine == "" {
		return nil
	}
	for _, k := range t.cfg.Clients.PublicKeys(machine) {
		var jwk jose.JSONWebKey
		if k.Kind != PublicKey || json.Unmarshal([]byte(k.JWK), &jwk) != nil {
			continue
		}
		if kid != "" && kid != jwk.KeyID && kid != string(k.ID) {
			continue
		}
		v, err := verifyKeyOf(jwk)
		if err != nil {
			continue
		}
		v.id = k.ID
		if out = append(out, v); len(out) == maxTried {
			break
		}
	}
	return out
}

// forUs says whether an assertion is for this server and for nobody else, who
// could show it here.
func (t *Tokens) forUs(claims map[string]any) error {
	audiences, err := audiencesOf(claims)
	if err != nil {
		return err
	}
	us := t.cfg.URL()
	for _, a := range audiences {
		if a != us && a != us+TokenPath {
			return refuseJWT("it is for another audience (aud)")
		}
	}
	if len(audiences) == 0 {
		return refuseJWT("it has no aud")
	}
	return nil
}

// useUp keeps that an assertion was used, in one transaction with the entry of
// the token that it was used for. Those that have expired go. An assertion that
// was used before is refused, whatever became of the token.
func (t *Tokens) useUp(ctx context.Context, u usedAssertion, e audit.Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, again := t.used[u.key]; again {
		return unknownClient(refuseJWT("it was used before (jti)"))
	}
	if !u.Until.After(t.forgotten) {
		// By a clock that went on it would have ended. This one was put back: what
		// was used and is not remembered must not count again.
		return unknownClient(refuseJWT("it ends before some that are not remembered any more: the server's clock was set back"))
	}
	now := t.cfg.Now()
	var past []string
	mine, forgotten := 0, t.forgotten
	for key, o := range t.used {
		switch {
		case !now.Before(o.Until):
			past = append(past, key)
			if o.Until.After(forgotten) {
				forgotten = o.Until
			}
		case o.Machine == u.Machine:
			mine++
		}
	}
	if mine >= maxUsedOfOne || len(t.used)-len(past) >= maxUsed {
		return isle.Errorf(isle.Exhausted, "%d assertions of %s and %d in all were used and have not expired", mine, u.Machine, len(t.used)-len(past)).
			WithHint("keep an access token until it ends, and let assertions end sooner")
	}
	body, err := json.Marshal(u)
	if err != nil {
		return isle.Errorf(isle.Internal, "the record of an assertion: %w", err)
	}
	put := []ledger.Record{{Key: u.key, Body: body}}
	if len(past) > 0 {
		if body, err = json.Marshal(usedAssertion{Until: forgotten}); err != nil {
			return isle.Errorf(isle.Internal, "the record of assertions: %w", err)
		}
		put = append(put, ledger.Record{Key: forgottenKey, Body: body})
	}
	if err := t.ledger.Change(ctx, put, past, e); err != nil {
		return err
	}
	t.forgotten = forgotten
	for _, key := range past {
		delete(t.used, key)
	}
	t.used[u.key] = u
	return nil
}
