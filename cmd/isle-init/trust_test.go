package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"isle/internal/initproto"
)

func authority(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAServiceTrustsWhatItsInspectedEgressIsOpenedWith(t *testing.T) {
	trust := authority(t, "inspection")
	s := launch(t, func(b *initproto.Boot) {
		b.Trust = trust
		b.Env = map[string]string{"JAVA_TOOL_OPTIONS": "-Xmx64m", "GIT_SSL_CAINFO": "/mine"}
	})
	for script, want := range map[string]string{
		"cat $NODE_EXTRA_CA_CERTS":                  string(trust),
		"tail -n +1 $SSL_CERT_FILE":                 string(trust),
		"echo $GIT_SSL_CAINFO":                      "/mine\n",
		"echo $JAVA_TOOL_OPTIONS":                   "-Xmx64m " + javaOptions + "\n",
		"head -c 4 " + trustJava + " | od -An -tx1": " fe ed fe ed\n",
	} {
		if got := s.sh(script); !strings.HasSuffix(got.stdout, want) || got.exit.Code != 0 {
			t.Errorf("%s: %+v, want %q", script, got, want)
		}
	}
	if got := launch(t, nil).sh("echo -n $SSL_CERT_FILE; ls " + trustDir); got.stdout != "" {
		t.Errorf("without inspected egress there is %q", got.stdout)
	}
}

func TestAJavaStoreHoldsEveryCertificate(t *testing.T) {
	a, b := authority(t, "a"), authority(t, "b")
	store := javaStore(append(append(a, "# a comment\n"...), b...))
	if binary.BigEndian.Uint32(store[8:]) != 2 {
		t.Errorf("it says to have %d", binary.BigEndian.Uint32(store[8:]))
	}
	for _, p := range [][]byte{a, b} {
		block, _ := pem.Decode(p)
		if !bytes.Contains(store, block.Bytes) {
			t.Error("one is missing")
		}
	}
}
