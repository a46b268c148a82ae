package inspection

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"isle"
)

func authority(t *testing.T, hosts ...string) *Authority {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(key, Scope{Name: "a test", From: time.Now(), Until: time.Now().Add(time.Hour), Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// verified is whether a client that trusts the authority takes its certificate
// for the host.
func verified(t *testing.T, a *Authority, host string) error {
	t.Helper()
	c, err := a.For(host)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("its own certificate is none")
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
	return err
}

func TestACertificateCountsForItsHostAlone(t *testing.T) {
	a := authority(t)
	for _, host := range []string{"registry.example", "192.0.2.1", "2001:db8::1"} {
		if err := verified(t, a, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	c, err := a.For("registry.example")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if leaf.VerifyHostname("other.example") == nil || leaf.IsCA {
		t.Error("it counts for another host, or signs")
	}
	if again, _ := a.For("registry.example"); again != c {
		t.Error("another is made for each connection")
	}
}

func TestAnAuthorityForSomeHostsCountsForNoOther(t *testing.T) {
	a := authority(t, "one.example")
	if err := verified(t, a, "one.example"); err != nil {
		t.Error(err)
	}
	if err := verified(t, a, "two.example"); err == nil {
		t.Error("what it signs for another host is taken")
	}
}

func TestAPeerCannotAskForCertificatesWithoutEnd(t *testing.T) {
	a := authority(t)
	for i := range maxLeaves {
		a.leaves[fmt.Sprint(i, ".example")] = &leaf{until: time.Now().Add(time.Hour)}
	}
	if _, err := a.For("one.more.example"); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("%v", err)
	}
}
