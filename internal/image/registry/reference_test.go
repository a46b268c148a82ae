package registry

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"isle"
)

func TestReferencesAreReadAsDockerDoes(t *testing.T) {
	d := "sha256:" + strings.Repeat("0a", 32)
	for in, want := range map[string]Reference{
		"shop":                              {Registry: name.DefaultRegistry, Repository: "library/shop", Tag: "latest"},
		"team/shop:2":                       {Registry: name.DefaultRegistry, Repository: "team/shop", Tag: "2"},
		"registry.example/a/b/c:1.0":        {Registry: "registry.example", Repository: "a/b/c", Tag: "1.0"},
		"127.0.0.1:5000/shop":               {Registry: "127.0.0.1:5000", Repository: "shop", Tag: "latest"},
		"localhost:5000/shop@" + d:          {Registry: "localhost:5000", Repository: "shop", Digest: isle.Digest(d)},
		"registry.example:5000/shop:1@" + d: {Registry: "registry.example:5000", Repository: "shop", Tag: "1", Digest: isle.Digest(d)},
		"localhost/shop":                    {Registry: Local, Repository: "shop", Tag: "latest"},
		"localhost/team/shop:1":             {Registry: Local, Repository: "team/shop", Tag: "1"},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("%s is %+v, not %+v (%v)", in, got, want, err)
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("%s, written as %s, is %+v (%v)", in, got, again, err)
		}
	}
	for _, in := range []string{"", ":", "Shop", "a/../b", "shop:", "shop@", "shop@sha256:00", "shop:a b", "/shop", "registry.example/", "shop@sha512:" + strings.Repeat("0", 128), "http://registry.example/shop", strings.Repeat("a", 1000)} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%.40q is %+v", in, got)
		} else if isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

func TestThisMachineAloneIsSpokenToWithoutTLS(t *testing.T) {
	for host, want := range map[string]bool{"localhost:5000": true, "127.0.0.1": true, "127.9.9.9:80": true, "[::1]:5000": true, "10.0.0.1:5000": false, "registry.local": false, "localhost.example": false, "127.0.0.1.example": false} {
		if loopback(host) != want {
			t.Errorf("%s: %v", host, !want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("shop:1")
	f.Add("localhost/a/b@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, and written again %+v (%v)", s, r, again, err)
		}
		if strings.Contains(r.Repository, "..") || strings.ContainsAny(r.Name(), " \n\x00?#") {
			t.Errorf("%q is %+v", s, r)
		}
	})
}
