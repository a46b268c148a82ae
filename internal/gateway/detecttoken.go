package gateway

import (
	"bytes"
	"encoding/base64"
	"hash/crc32"
)

// A tokenForm is how the tokens of one issuer look.
type tokenForm struct {
	prefix string
	least  int  // characters after the prefix
	exact  int  // 0: any number
	signs  bool // "_" and "-" belong to it
	sum    bool // ends in six characters of base62, the CRC-32 of what is before
}

// tokenForms are the forms of tokens by their first character.
var tokenForms = [128][]tokenForm{
	'i': {{prefix: "isle_", exact: 46, sum: true}, {prefix: "islep_", exact: 46, sum: true}},
	'g': {{prefix: "ghp_", least: 36}, {prefix: "gho_", least: 36}, {prefix: "ghu_", least: 36}, {prefix: "ghs_", least: 36},
		{prefix: "ghr_", least: 36}, {prefix: "github_pat_", least: 40, signs: true}, {prefix: "glpat-", least: 20, signs: true}},
	's': {{prefix: "sk_live_", least: 16}, {prefix: "sk_test_", least: 16}, {prefix: "sk-", least: 20, signs: true}, {prefix: "shpat_", least: 32}},
	'r': {{prefix: "rk_live_", least: 16}, {prefix: "rk_test_", least: 16}},
	'x': {{prefix: "xoxb-", least: 10, signs: true}, {prefix: "xoxp-", least: 10, signs: true}, {prefix: "xoxa-", least: 10, signs: true},
		{prefix: "xoxr-", least: 10, signs: true}, {prefix: "xoxs-", least: 10, signs: true}, {prefix: "xapp-", least: 10, signs: true}},
	'A': {{prefix: "AKIA", exact: 16}, {prefix: "ASIA", exact: 16}, {prefix: "AIza", least: 35, signs: true}},
	'n': {{prefix: "npm_", least: 36}},
	'p': {{prefix: "pypi-", least: 32, signs: true}},
	'd': {{prefix: "dop_v1_", least: 64}},
	'h': {{prefix: "hf_", least: 30}, {prefix: "hvs.", least: 24, signs: true}},
	'S': {{prefix: "SG.", least: 22, signs: true}},
}

// maskToken masks a token that begins at i, and returns its end, or i.
func maskToken(b []byte, i int, fill byte) int {
	if len(b)-i < 20 { // the shortest there is
		return i
	}
	if b[i] == 'e' {
		return maskJWT(b, i, fill)
	}
	forms := tokenForms[b[i]&127]
	for k := range forms {
		f := &forms[k]
		if b[i+1] != f.prefix[1] || len(b)-i < len(f.prefix)+f.least+f.exact || string(b[i:i+len(f.prefix)]) != f.prefix {
			continue
		}
		end := i + len(f.prefix)
		for end < len(b) && (classes[b[end]]&isWord != 0 || f.signs && classes[b[end]]&isSign != 0) {
			end++
		}
		n := end - i - len(f.prefix)
		if n < f.least || f.exact > 0 && n != f.exact || f.sum && !summed(b[i:end]) {
			continue
		}
		cover(b[i+len(f.prefix):end], fill)
		return end
	}
	return i
}

// summed reports whether the last six characters are the CRC-32 (IEEE) of what
// is before them, in base62 with zeros in front.
func summed(token []byte) bool {
	const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	body, sum := token[:len(token)-6], token[len(token)-6:]
	rest := crc32.ChecksumIEEE(body)
	for i := len(sum) - 1; i >= 0; i-- {
		if sum[i] != base62[rest%62] {
			return false
		}
		rest /= 62
	}
	return true
}

// maskJWT masks a JSON Web Token in its compact form (RFC 7519), three parts of
// base64url of which the first is a JSON object with "alg".
func maskJWT(b []byte, i int, fill byte) int {
	if len(b)-i < 24 || string(b[i:i+3]) != "eyJ" {
		return i
	}
	var dots [2]int
	n, end := 0, i
	for ; end < len(b); end++ {
		if b[end] == '.' && n < 2 {
			dots[n] = end
			n++
		} else if classes[b[end]]&(isWord|isSign) == 0 {
			break
		}
	}
	if n < 2 || dots[1]-dots[0] < 4 || dots[0]-i > 4096 {
		return i
	}
	header, err := base64.RawURLEncoding.DecodeString(string(b[i:dots[0]]))
	if err != nil || !bytes.Contains(header, []byte(`"alg"`)) {
		return i
	}
	cover(b[i+3:end], fill)
	return end
}

func cover(b []byte, fill byte) {
	for k := range b {
		if b[k] != '.' {
			b[k] = fill
		}
	}
}
