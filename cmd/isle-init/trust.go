package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

// Where a service finds the authorities that it trusts, if egress of its
// environment is inspected: those of its image and the one that inspected egress
// is opened with.
const (
	trustDir    = "/run/isle/trust"
	trustOwn    = trustDir + "/inspection.pem" // that one alone
	trustBundle = trustDir + "/bundle.pem"
	trustJava   = trustDir + "/bundle.jks"
	// maxBundle bounds what is read of an image's own authorities, in bytes.
	maxBundle = 4 << 20

	javaVariable = "JAVA_TOOL_OPTIONS"
)

// bundles are where images have the authorities that they trust: Debian, Red
// Hat, Alpine.
var bundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// offerTrust writes the files, for every user inside. A service without them
// does not start: its clients would trust nobody.
func (s *service) offerTrust() error {
	trust := s.self.trusted()
	if len(trust) == 0 {
		return nil
	}
	if err := os.MkdirAll(trustDir, 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of trusted authorities: %w", err)
	}
	all := trust
	for _, name := range bundles {
		own, err := readBundle(name)
		if err == nil {
			all = append(append(own, '\n'), trust...)
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot read the authorities that the image trusts: %w", err)
		}
	}
	for name, b := range map[string][]byte{trustOwn: trust, trustBundle: all, trustJava: javaStore(all)} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return fmt.Errorf("cannot write trusted authorities: %w", err)
		}
	}
	return nil
}

// readBundle reads a regular file.
func readBundle(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New(name+" is no file"))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err == nil && len(b) > maxBundle {
		err = fmt.Errorf("%s has more than %d bytes", name, maxBundle)
	}
	return b, err
}

// trustVariables tell programs of the files: OpenSSL and Go, curl, Python's
// requests, Node.js, git, the SDKs of AWS, Rust's cargo, and Java.
func (s *service) trustVariables() map[string]string {
	if len(s.self.trusted()) == 0 {
		return nil
	}
	return map[string]string{
		"SSL_CERT_FILE": trustBundle, "CURL_CA_BUNDLE": trustBundle, "REQUESTS_CA_BUNDLE": trustBundle, "GIT_SSL_CAINFO": trustBundle,
		"AWS_CA_BUNDLE": trustBundle, "CARGO_HTTP_CAINFO": trustBundle, "NODE_EXTRA_CA_CERTS": trustOwn,
		javaVariable: javaOptions,
	}
}

const javaOptions = "-Djavax.net.ssl.trustStore=" + trustJava + " -Djavax.net.ssl.trustStoreType=JKS"

// withJava adds what Java has to be told to what somebody tells it already.
func (s *service) withJava(m map[string]string) {
	if have := m[javaVariable]; len(s.self.trusted()) > 0 && !strings.Contains(have, "javax.net.ssl.trustStore=") {
		m[javaVariable] = strings.TrimSpace(have + " " + javaOptions)
	}
}

// javaStore is a Java key store (JKS, version 2) of the certificates of a PEM
// bundle. Nothing in it is secret; the digest at its end is made with the
// password that all such stores have.
func javaStore(bundle []byte) []byte {
	var entries bytes.Buffer
	n := uint32(0)
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		put := func(v any) { binary.Write(&entries, binary.BigEndian, v) }
		text := func(s string) {
			put(uint16(len(s)))
			entries.WriteString(s)
		}
		put(uint32(2)) // a trusted certificate
		text(fmt.Sprintf("isle%d", n))
		put(uint64(0)) // made when
		text("X.509")
		put(uint32(len(block.Bytes)))
		entries.Write(block.Bytes)
	}
	out := binary.BigEndian.AppendUint32(nil, 0xfeedfeed)
	out = binary.BigEndian.AppendUint32(out, 2)
	out = binary.BigEndian.AppendUint32(out, n)
	out = append(out, entries.Bytes()...)
	h := sha1.New() // the format's
	for _, c := range utf16.Encode([]rune("changeit")) {
		binary.Write(h, binary.BigEndian, c)
	}
	io.WriteString(h, "Mighty Aphrodite")
	h.Write(out)
	return h.Sum(out)
}
