package postgres

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/text/secure/precis"
)

// The mechanisms (RFC 5802, RFC 7677; channel binding RFC 5929).
const (
	scramPlain = "SCRAM-SHA-256"
	scramBound = "SCRAM-SHA-256-PLUS"

	// Bounds of the iterations: fewer than RFC 7677's least is a server that
	// wants a password that is easy to try; more than the most is one that wants
	// our time.
	minIterations = 4096
	maxIterations = 1_000_000
)

// A scram is one SCRAM-SHA-256 exchange, the client's side. Nothing of it is
// used again.
type scram struct {
	password  []byte
	header    string // GS2 header
	binding   []byte // tls-server-end-point, of SCRAM-SHA-256-PLUS
	bare      string // client-first-message-bare
	nonce     string
	signature []byte // what the server must show
}

// newScram chooses a mechanism of those offered. state is nil without TLS.
func newScram(password []byte, offered []string, state *tls.ConnectionState) (*scram, string, error) {
	s := &scram{password: password}
	var plain, bound bool
	for _, m := range offered {
		plain = plain || m == scramPlain
		bound = bound || m == scramBound
	}
	mechanism := scramPlain
	switch {
	case state != nil && bound:
		if s.binding = endPoint(state); s.binding != nil {
			mechanism, s.header = scramBound, "p=tls-server-end-point,,"
		} else {
			s.header = "n,,"
		}
	case state != nil:
		s.header = "y,,"
	default:
		s.header = "n,,"
	}
	if mechanism == scramPlain && !plain {
		return nil, "", fmt.Errorf("the server offers only %q, none of which is known", clip(strings.Join(offered, ", ")))
	}
	nonce := make([]byte, 18)
	rand.Read(nonce)
	s.nonce = base64.StdEncoding.EncodeToString(nonce)
	s.bare = "n=,r=" + s.nonce // PostgreSQL takes the name from the first packet
	return s, mechanism, nil
}

func (s *scram) first() []byte { return []byte(s.header + s.bare) }

// final answers server-first-message.
func (s *scram) final(server []byte) ([]byte, error) {
	var nonce, salt64 string
	iterations := 0
	parts := strings.Split(string(server), ",")
	if len(parts) < 3 || !strings.HasPrefix(parts[0], "r=") || !strings.HasPrefix(parts[1], "s=") || !strings.HasPrefix(parts[2], "i=") {
		return nil, errors.New("the server's SCRAM challenge is malformed")
	}
	nonce, salt64 = parts[0][2:], parts[1][2:]
	iterations, err := strconv.Atoi(parts[2][2:])
	if err != nil || iterations < minIterations || iterations > maxIterations {
		return nil, fmt.Errorf("the server asks for %q SCRAM iterations: %d to %d are accepted", clip(parts[2][2:]), minIterations, maxIterations)
	}
	if !strings.HasPrefix(nonce, s.nonce) || len(nonce) <= len(s.nonce) {
		return nil, errors.New("the server's SCRAM nonce is not ours")
	}
	salt, err := base64.StdEncoding.DecodeString(salt64)
	if err != nil || len(salt) == 0 {
		return nil, errors.New("the server's SCRAM salt is malformed")
	}
	salted, err := pbkdf2.Key(sha256.New, string(prepared(s.password)), salt, iterations, sha256.Size)
	if err != nil {
		return nil, err
	}
	defer clear(salted)
	without := "c=" + base64.StdEncoding.EncodeToString(append([]byte(s.header), s.binding...)) + ",r=" + nonce
	message := []byte(s.bare + "," + string(server) + "," + without)
	key := mac(salted, []byte("Client Key"))
	stored := sha256.Sum256(key)
	proof := mac(stored[:], message)
	for i := range proof {
		proof[i] ^= key[i]
	}
	s.signature = mac(mac(salted, []byte("Server Key")), message)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// verify checks server-final-message: that the server knows the password too.
func (s *scram) verify(server []byte) error {
	v, ok := bytes.CutPrefix(server, []byte("v="))
	if !ok {
		return errors.New("the server did not finish SCRAM")
	}
	v, _, _ = bytes.Cut(v, []byte(","))
	got, err := base64.StdEncoding.DecodeString(string(v))
	if err != nil || s.signature == nil || !hmac.Equal(got, s.signature) {
		return errors.New("the server does not know the password: it is not the one that it should be")
	}
	return nil
}

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

// prepared is the password after SASLprep; PostgreSQL takes one that can't be
// prepared as it is.
func prepared(password []byte) []byte {
	for _, c := range password {
		if c < ' ' || c > '~' {
			if p, err := precis.OpaqueString.Bytes(password); err == nil {
				return p
			}
			return password
		}
	}
	return password
}

// endPoint is the channel binding of RFC 5929, 4.1: the hash of the server's
// certificate, by its signature's hash, SHA-256 in place of MD5 and SHA-1. Nil
// where that is not defined.
func endPoint(state *tls.ConnectionState) []byte {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	c := state.PeerCertificates[0]
	switch c.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		h := sha256.Sum256(c.Raw)
		return h[:]
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h := sha512.Sum384(c.Raw)
		return h[:]
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h := sha512.Sum512(c.Raw)
		return h[:]
	}
	return nil
}
