package spec

import (
	"strings"
	"testing"

	"isle"
)

func TestAnImageIsAReferenceOrAFileOfTheProject(t *testing.T) {
	parse := func(image string) (File, error) {
		return Parse("isle.yaml", []byte("name: shop\nservices: {web: {image: '"+image+"'}}\n"))
	}
	for _, good := range []string{"shop", "registry.example/team/shop:1", "localhost/shop:1", "127.0.0.1:5000/shop@sha256:" + strings.Repeat("0", 64), "./shop.tar", "./layouts/shop"} {
		f, err := parse(good)
		if err != nil || f.Services[0].Image != good || f.Services[0].Suite != "" {
			t.Errorf("%s: %+v, %v", good, f.Services, err)
		}
	}
	for _, bad := range []string{"Shop", "/etc/shop.tar", "../shop.tar", "./../shop.tar", "./a/../../b", "shop:", "http://registry.example/shop", "shop@sha256:0"} {
		if _, err := parse(bad); isle.CodeOf(err) != isle.Invalid || err == nil {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := Parse("isle.yaml", []byte("name: shop\nservices: {web: {image: shop, packages: [python3]}}\n")); err == nil || !strings.Contains(err.Error(), "packages") {
		t.Errorf("an image and packages: %v", err)
	}
}

func TestALockPinsAnImageByDigest(t *testing.T) {
	d := isle.DigestOf([]byte("x"))
	lock := func(s ServiceLock) *Lock {
		return &Lock{Version: LockVersion, ImageFormat: 1, Architecture: "amd64", Suites: map[string]SuiteLock{}, Services: map[string]ServiceLock{"web": s}}
	}
	for _, good := range []LockedImage{
		{Request: "./shop.tar", Tree: d}, {Request: "localhost/shop:1", Reference: "localhost/shop:1", Digest: d},
		{Request: "registry.example/shop@" + string(d), Reference: "registry.example/shop", Digest: d},
	} {
		l, err := ParseLock("isle.lock", lock(ServiceLock{Image: &good}).Encode())
		if err != nil || *l.Services["web"].Image != good {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for name, bad := range map[string]ServiceLock{
		"no digest":          {Image: &LockedImage{Request: "localhost/shop:1", Reference: "localhost/shop:1"}},
		"no tree":            {Image: &LockedImage{Request: "./shop.tar", Digest: d}},
		"another reference":  {Image: &LockedImage{Request: "localhost/shop:1", Reference: "registry.example/shop:1", Digest: d}},
		"no request":         {Image: &LockedImage{Digest: d}},
		"packages beside it": {Image: &LockedImage{Request: "./shop.tar", Tree: d}, Requests: []string{"python3"}},
		"a suite beside it":  {Image: &LockedImage{Request: "./shop.tar", Tree: d}, Suite: "bookworm"},
	} {
		if _, err := ParseLock("isle.lock", lock(bad).Encode()); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}
