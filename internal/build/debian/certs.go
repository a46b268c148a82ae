package debian

import (
	"bytes"
	"crypto/sha1"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"sort"
	"strings"
	"unicode/utf16"
)

// certificates does what update-ca-certificates does: one bundle of all
// authorities, a link to each, and links by subject hash, by which OpenSSL
// finds them (X509_LOOKUP_hash_dir(3)).
func (s *system) certificates() {
	const root = "usr/share/ca-certificates/"
	var names []string
	for _, dir := range s.t.list(root) {
		for _, name := range s.t.list(root + dir) {
			if strings.HasSuffix(name, ".crt") {
				names = append(names, dir+"/"+name)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	sort.Strings(names)
	var bundle, list bytes.Buffer
	list.WriteString("# The certificate authorities that are trusted, below /usr/share/ca-certificates.\n")
	hashes := map[string]int{}
	for _, name := range names {
		text := s.t.read(root + name)
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			continue
		}
		list.WriteString(name + "\n")
		bundle.Write(bytes.TrimRight(text, "\n"))
		bundle.WriteByte('\n')
		short := strings.TrimSuffix(name[strings.IndexByte(name, '/')+1:], ".crt") + ".pem"
		s.link("etc/ssl/certs/"+short, "/"+root+name)
		if h, ok := subjectHash(block.Bytes); ok {
			s.link(fmt.Sprintf("etc/ssl/certs/%08x.%d", h, hashes[fmt.Sprint(h)]), short)
			hashes[fmt.Sprint(h)]++
		}
	}
	s.file("etc/ca-certificates.conf", list.String())
	s.file("etc/ssl/certs/ca-certificates.crt", bundle.String())
}

// subjectHash is what `openssl x509 -subject_hash` prints: the first four bytes
// of the SHA-1 of the subject's canonical form.
func subjectHash(der []byte) (uint32, bool) {
	subject, ok := subjectOf(der)
	if !ok {
		return 0, false
	}
	canonical, ok := canonicalName(subject)
	if !ok {
		return 0, false
	}
	sum := sha1.Sum(canonical)
	return binary.LittleEndian.Uint32(sum[:4]), true
}

// subjectOf finds the subject of a certificate (RFC 5280, 4.1): the content of
// its SEQUENCE of RDNs.
func subjectOf(der []byte) ([]byte, bool) {
	var certificate, tbs asn1.RawValue
	if _, err := asn1.Unmarshal(der, &certificate); err != nil {
		return nil, false
	}
	if _, err := asn1.Unmarshal(certificate.Bytes, &tbs); err != nil {
		return nil, false
	}
	rest := tbs.Bytes
	skip := 4 // serial, algorithm, issuer, validity
	for i := 0; len(rest) > 0; i++ {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return nil, false
		}
		if i == 0 && v.Class == asn1.ClassContextSpecific && v.Tag == 0 {
			skip++ // the version is optional
		}
		if i == skip {
			return v.Bytes, v.Tag == asn1.TagSequence
		}
	}
	return nil, false
}

// canonicalName is OpenSSL's canonical form of a name (crypto/x509/x_name.c):
// the RDNs without the outer SEQUENCE, strings as UTF-8 in lower case without
// superfluous blanks.
func canonicalName(name []byte) (out []byte, ok bool) {
	for len(name) > 0 {
		var rdn asn1.RawValue
		var err error
		if name, err = asn1.Unmarshal(name, &rdn); err != nil || rdn.Tag != asn1.TagSet {
			return nil, false
		}
		var attributes [][]byte
		for set := rdn.Bytes; len(set) > 0; {
			var attribute, oid, value asn1.RawValue
			if set, err = asn1.Unmarshal(set, &attribute); err != nil {
				return nil, false
			}
			rest, err := asn1.Unmarshal(attribute.Bytes, &oid)
			if err != nil {
				return nil, false
			}
			if _, err := asn1.Unmarshal(rest, &value); err != nil {
				return nil, false
			}
			encoded := append(append([]byte{}, oid.FullBytes...), canonicalString(value)...)
			attributes = append(attributes, tlv(asn1.TagSequence|0x20, encoded))
		}
		sort.Slice(attributes, func(i, j int) bool { return bytes.Compare(attributes[i], attributes[j]) < 0 }) // DER: SET OF is sorted
		out = append(out, tlv(asn1.TagSet|0x20, bytes.Join(attributes, nil))...)
	}
	return out, true
}

func canonicalString(v asn1.RawValue) []byte {
	var text string
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, 26: // 26: VisibleString
		text = string(v.Bytes)
	case asn1.TagT61String: // Latin-1, as OpenSSL takes it
		for _, c := range v.Bytes {
			text += string(rune(c))
		}
	case asn1.TagBMPString:
		var units []uint16
		for i := 0; i+1 < len(v.Bytes); i += 2 {
			units = append(units, binary.BigEndian.Uint16(v.Bytes[i:]))
		}
		text = string(utf16.Decode(units))
	default:
		return v.FullBytes
	}
	blank := func(c rune) bool { return c == ' ' || c >= '\t' && c <= '\r' }
	text = strings.Join(strings.FieldsFunc(text, blank), " ")
	lower := strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, text)
	return tlv(asn1.TagUTF8String, []byte(lower))
}

// tlv encodes one DER value with a low tag number.
func tlv(tag byte, content []byte) []byte {
	out := []byte{tag}
	switch n := len(content); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	default:
		out = append(out, 0x82, byte(n>>8), byte(n))
	}
	return append(out, content...)
}
