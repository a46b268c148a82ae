package httpdoor

import (
	"net/url"
	"strings"
	"testing"
)

func TestAPathIsReadInOneWay(t *testing.T) {
	for _, c := range []struct{ raw, path, forward string }{
		{"/", "/", "/"},
		{"/a/b", "/a/b", "/a/b"},
		{"/a/b/", "/a/b/", "/a/b/"},
		{"/a/./b", "/a/b", "/a/b"},
		{"/a/../b", "/b", "/b"},
		{"/a/%2e%2e/b", "/b", "/b"},
		{"/a/.%2E/b/..", "/", "/"},
		{"/a/b/.", "/a/b/", "/a/b/"},
		{"/%61dmin", "/admin", "/%61dmin"},
		{"/caf%C3%A9%20x", "/café x", "/caf%C3%A9%20x"},
		{"/100%25", "/100%", "/100%25"},
		{"/a?", "", ""},
		{"/...", "/...", "/..."},
		{"/a%3Fb%23c", "/a?b#c", "/a%3Fb%23c"},
		{"*", "*", "*"},
	} {
		got, err := readTarget(c.raw)
		if c.path == "" {
			if err == nil {
				t.Errorf("%s is read as %+v", c.raw, got)
			}
			continue
		}
		if err != nil || got.path != c.path || got.forward != c.forward || got.uncertain != "" {
			t.Errorf("%s is %+v, %v; want %s, %s", c.raw, got, err, c.path, c.forward)
		}
	}
}

func TestAPathThatServersReadDifferentlyIsRefusedOrUncertain(t *testing.T) {
	for _, raw := range []string{"/a%00b", "/a%0d%0ab", "/a\\b", "/a%5cb", "/%252e%252e/a", "/a%252fb", "/%25252e", "/..", "/../a", "/a/../../b",
		"/%2e%2e/a", "/a%", "/a%2", "/a%zz", "//evil.example/a", "/a/..//b", "", "a", "/a b", "/a\x7f", "/a%7f"} {
		if got, err := readTarget(raw); err == nil {
			t.Errorf("%q is read as %+v", raw, got)
		}
	}
	for _, raw := range []string{"/a%2fb", "/a%2Fb", "/a;x=1", "/a;/b", "/a%3bx", "/a//b", "/a/%c0%af/b", "/a/..;/b", "/a/.;x/b", "/%ff"} {
		if got, err := readTarget(raw); err != nil || got.uncertain == "" {
			t.Errorf("%q is read as %+v, %v, without a doubt", raw, got, err)
		}
	}
}

func TestShapesLeaveOutWhichOne(t *testing.T) {
	for path, want := range map[string]string{
		"/customers/17/orders":                            "/customers/…/orders",
		"/customers/5b0d3c1e-6f52-4e1e-9f39-3a5d5b8f6a11": "/customers/…",
		"/v1/users/ann@example.com":                       "/v1/users/…",
		"/v2/health":                                      "/v2/health",
	} {
		if got := shapeOf(path); got != want {
			t.Errorf("%s has the shape %s, want %s", path, got, want)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/", "/a%2fb", "/a//b", "/;a/..", "/%25", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := readTarget(raw)
		if err != nil || raw == "*" {
			return
		}
		for _, s := range []string{got.forward, got.path} {
			if !strings.HasPrefix(s, "/") {
				t.Fatalf("%q: %+v is no path", raw, got)
			}
		}
		if strings.HasPrefix(got.forward, "//") {
			t.Fatalf("%q: %+v names a host", raw, got)
		}
		// What goes on is read alike once more, and has no dot segment left.
		again, err := readTarget(got.forward)
		if err != nil || again.path != got.path {
			t.Fatalf("%q: %+v, then %+v, %v", raw, got, again, err)
		}
		if got.uncertain != "" {
			return
		}
		for s := range strings.SplitSeq(got.path, "/") {
			if s == "." || s == ".." {
				t.Fatalf("%q: %+v has a dot segment", raw, got)
			}
		}
		// What is certain net/url reads as the same path.
		if u, err := url.ParseRequestURI(got.forward); err != nil || u.Path != got.path {
			t.Fatalf("%q: %+v, net/url %v, %v", raw, got, u, err)
		}
	})
}
