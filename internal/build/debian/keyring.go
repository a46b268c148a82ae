package debian

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"isle"
)

// keyring reads the keys that may sign a source's releases: those it names
// itself, or else what apt trusts for every source and the Debian archive
// keyring. files are the names of what was looked at, for messages.
func (a *Archive) keyring(s source) (keys openpgp.EntityList, files []string) {
	if s.inlineKey != "" {
		return readKeys([]byte(s.inlineKey)), []string{"the source's own Signed-By"}
	}
	var fingerprints []string
	for _, by := range s.signedBy {
		if strings.HasPrefix(by, "/") {
			files = append(files, filepath.Join(a.cfg.Root, by))
		} else if by = strings.TrimSuffix(by, "!"); by != "" {
			fingerprints = append(fingerprints, strings.ToUpper(by))
		}
	}
	if len(files) == 0 {
		files = append(files, filepath.Join(a.cfg.Root, "usr/share/keyrings/debian-archive-keyring.gpg"), filepath.Join(a.cfg.Root, "etc/apt/trusted.gpg"))
		more, _ := filepath.Glob(filepath.Join(a.cfg.Root, "etc/apt/trusted.gpg.d/*"))
		files = append(files, more...)
	}
	seen := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || len(b) > 8<<20 {
			continue
		}
		for _, e := range readKeys(b) {
			print := strings.ToUpper(string(hexOf(e.PrimaryKey.Fingerprint)))
			if !seen[print] && (len(fingerprints) == 0 || hasSuffixAny(print, fingerprints)) {
				keys = append(keys, e)
				seen[print] = true
			}
		}
	}
	return keys, files
}

// readKeys reads a binary or armored keyring; what it cannot read it leaves out.
func readKeys(b []byte) openpgp.EntityList {
	if bytes.Contains(b, []byte("-----BEGIN PGP")) {
		keys, _ := openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
		return keys
	}
	keys, _ := openpgp.ReadKeyRing(bytes.NewReader(b))
	return keys
}

func hexOf(b []byte) []byte {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return out
}

func hasSuffixAny(s string, suffixes []string) bool {
	for _, x := range suffixes {
		if strings.HasSuffix(s, x) {
			return true
		}
	}
	return false
}

// verifyRelease checks the signature of an InRelease file (OpenPGP cleartext
// signature framework, RFC 9580 section 7) and returns the text that is signed
// and nothing around it. One good signature by a known key suffices.
func verifyRelease(where string, data []byte, keys openpgp.EntityList, files []string, now time.Time) ([]byte, error) {
	if len(keys) == 0 {
		return nil, isle.Errorf(isle.Unavailable, "%s cannot be checked: no archive key in %s", where, strings.Join(files, ", ")).
			WithHint("install the package debian-archive-keyring")
	}
	block, rest := clearsign.Decode(data)
	if block == nil || block.ArmoredSignature == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(data, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, isle.Errorf(isle.Invalid, "%s is no signed release file", where).
			WithHint("the mirror may be behind a login page or a broken proxy")
	}
	signature, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, 1<<20))
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s has a damaged signature: %w", where, err)
	}
	config := &packet.Config{Time: func() time.Time { return now }}
	for {
		_, signer, err := openpgp.VerifyDetachedSignature(keys, bytes.NewReader(block.Bytes), bytes.NewReader(signature), config)
		if err == nil {
			return block.Plaintext, nil
		}
		if errors.Is(err, pgperrors.ErrKeyExpired) && signer != nil && len(keys) > 1 {
			keys = without(keys, signer) // another signature may be by a living key
			continue
		}
		if errors.Is(err, pgperrors.ErrUnknownIssuer) {
			return nil, isle.Errorf(isle.Untrusted, "%s is signed by a key that is not in %s", where, strings.Join(files, ", ")).
				WithHint("if the mirror is right, update the package debian-archive-keyring")
		}
		return nil, isle.Errorf(isle.Untrusted, "%s has a wrong signature: %w", where, err).
			WithHint("the mirror or the network changed it: nothing was taken from it")
	}
}

func without(keys openpgp.EntityList, e *openpgp.Entity) (out openpgp.EntityList) {
	for _, k := range keys {
		if k != e {
			out = append(out, k)
		}
	}
	return out
}
