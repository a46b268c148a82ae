// Package identity says who somebody is that is not a person at this machine's
// socket, and ends that.
//
// A workload's identity is where it runs: spiffe://TRUST-DOMAIN/PROJECT/STAGE/
// NAME/SERVICE (SPIFFE-ID standard). The Issuer gives it SVIDs, short-lived
// documents of it: X.509 certificates and JWTs, which others check by the trust
// domain's Bundle. A machine is an identity outside (a CI job, a script, a
// server, an agent): it has an owner, a purpose, an end and one stage, and
// proves itself by a Key: an API key, of which only a hash is kept, or a public
// key. A person proves themself from elsewhere by a personal token, which is a
// key too. The Registry keeps machines and keys. A machine also gets access
// tokens for its key, by OAuth 2.0 client credentials (RFC 6749), that last for
// minutes.
//
// A Subject is who was proven by which credential. It counts only as long as
// the credential does: whoever serves it asks again, and is told when to.
package identity

import (
	"strings"
	"time"

	"isle"
)

// Lifetimes.
const (
	// MaxSVID is how long an SVID lives at most: what was revoked is believed
	// by others, who only look at the SVID, for at most that long.
	MaxSVID = 5 * time.Minute
	// AccessToken is how long an access token lives.
	AccessToken = 5 * time.Minute
)

// A SPIFFEID names a workload of this trust domain.
type SPIFFEID struct {
	TrustDomain string
	Project     string
	Stage       string
	Name        string // the environment's
	Service     string
}

// String is the ID as a URI: spiffe://TRUST-DOMAIN/PROJECT/STAGE/NAME/SERVICE.
func (id SPIFFEID) String() string {
	return "spiffe://" + strings.Join([]string{id.TrustDomain, id.Project, id.Stage, id.Name, id.Service}, "/")
}

// A Machine is the record of a machine identity. A name is never used again,
// since bindings name machines by it.
type Machine struct {
	ID        isle.ID    `json:"id"`
	Name      string     `json:"name"`
	Owner     isle.Actor `json:"owner"`   // a person
	Purpose   string     `json:"purpose"` // one line
	Stage     string     `json:"stage"`   // the one that it acts in
	Created   time.Time  `json:"created"`
	CreatedBy isle.Actor `json:"created_by"`
	Expires   time.Time  `json:"expires"`
	Revoked   time.Time  `json:"revoked,omitzero"`
	// OwnerLeft is when the owner was said to have left; from Stops on it does
	// not count any more unless it gets another owner.
	OwnerLeft time.Time `json:"owner_left,omitzero"`
	Stops     time.Time `json:"stops,omitzero"`
}

// The kinds of Key.
const (
	APIKey    = "api-key"    // a secret, kept by whoever has it; also an OAuth client's secret
	PublicKey = "public-key" // the client signs assertions (private_key_jwt, RFC 7523)
	Personal  = "personal"   // a person's token: an API key that is theirs
)

// A Key is the record of one credential.
type Key struct {
	ID      isle.ID     `json:"id"`
	Kind    string      `json:"kind"`
	Holder  isle.Actor  `json:"holder"` // whom it proves: a machine or a person
	Hash    isle.Digest `json:"hash,omitempty"`
	Hint    string      `json:"hint,omitempty"` // the first characters, to find it again
	JWK     string      `json:"jwk,omitempty"`  // of a public key (RFC 7517)
	Purpose string      `json:"purpose,omitempty"`
	Stage   string      `json:"stage,omitempty"` // of a personal token: the only one it acts in; "": any, one at a time
	Created time.Time   `json:"created"`
	Expires time.Time   `json:"expires"`
	Revoked time.Time   `json:"revoked,omitzero"`
	// LastUsed and LastSource are true to the hour, and at once for a new source.
	LastUsed   time.Time `json:"last_used,omitzero"`
	LastSource string    `json:"last_source,omitempty"` // an address without its port
}

// A Subject is who a credential proved.
type Subject struct {
	Actor   isle.Actor
	Groups  []string  // of a person, as the operating system has them now
	Stage   string    // "": not confined to one
	Key     isle.ID   // that it stands on
	Expires time.Time // of the credential itself: an access token's, else its key's
	Owner   isle.Actor
}

// A Sealer encrypts what may stand in the store only encrypted. Its key is
// outside the state folder. Purpose is bound to what is sealed: what was sealed
// for one purpose does not open for another.
type Sealer interface {
	Seal(purpose string, plain []byte) ([]byte, error)
	// Open fails with Invalid where sealed is not what Seal gave for the
	// purpose under this key.
	Open(purpose string, sealed []byte) ([]byte, error)
}
