package secret

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// Encodings are the forms in which a value could be found somewhere.
func Encodings(v string) []string {
	return []string{
		v, hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v))),
		strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(v)), "="), base64.RawURLEncoding.EncodeToString([]byte(v)),
	}
}
