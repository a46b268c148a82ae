package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"isle"
	"isle/internal/image"
	"isle/internal/image/oci"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// A shelf is a registry with a repository "shop".
type shelf struct {
	t   *testing.T
	url string
}

func newShelf(t *testing.T) *shelf {
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return &shelf{t, server.URL}
}

func (s *shelf) send(method, path, kind string, b []byte) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+"/v2/shop/"+path, bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		s.t.Fatalf("%s %s: %s", method, path, res.Status)
	}
}

// image stores an image of one file and returns its manifest's descriptor.
func (s *shelf) image(content string) map[string]any {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "content", Mode: 0o644, Size: int64(len(content))})
	io.WriteString(tw, content)
	tw.Close()
	described := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": kind, "digest": isle.DigestOf(b), "size": len(b)}
	}
	layer := b.Bytes()
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": oci.Here().Architecture, "rootfs": map[string]any{"type": "layers", "diff_ids": []isle.Digest{isle.DigestOf(layer)}}})
	kind := oci.Accepted()[1]
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kind, "config": described("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{described("application/vnd.oci.image.layer.v1.tar", layer)}})
	for _, blob := range [][]byte{layer, config} {
		s.send(http.MethodPost, "blobs/uploads/?digest="+string(isle.DigestOf(blob)), "application/octet-stream", blob)
	}
	d := described(kind, manifest)
	s.send(http.MethodPut, "manifests/"+string(isle.DigestOf(manifest)), kind, manifest)
	return d
}

// index stores an index of images and returns its digest.
func (s *shelf) index(images ...map[string]any) isle.Digest {
	kind := oci.Accepted()[0]
	b, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kind, "manifests": images})
	s.send(http.MethodPut, "manifests/"+string(isle.DigestOf(b)), kind, b)
	return isle.DigestOf(b)
}

// A file that pins an image by its digest means that image, whatever isle.lock was
// made to say.
func TestALockDoesNotReplaceAnImageThatTheFilePins(t *testing.T) {
	s, b := newShelf(t), newBench(t)
	b.Registry = &registry.Client{Images: b.Images}
	good, evil := s.image("good"), s.image("evil")
	for name, pinned := range map[string]isle.Digest{"manifest": good["digest"].(isle.Digest), "index": s.index(good)} {
		request := strings.TrimPrefix(s.url, "http://") + "/shop@" + string(pinned)
		f := spec.File{Name: "pins-" + name, Services: []spec.Service{{Name: "web", Image: request}}}
		lock, _ := b.lock(f, nil, "", LockOptions{})
		if got := b.files(b.build(f, lock).Images["web"])["/content"]; got.Digest != isle.DigestOf([]byte("good")) {
			t.Fatalf("%s: what is pinned is %v", name, got)
		}
		lock.Services["web"].Image.Digest = evil["digest"].(isle.Digest)
		if _, err := spec.ParseLock("isle.lock", lock.Encode()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it may be there already
			if _, err := b.Build(context.Background(), f, lock, Options{}, b.say); isle.CodeOf(err) != isle.Untrusted {
				t.Errorf("%s: the lock's other image: %v", name, err)
			}
		}
	}
}

// Who may not read an image of the store does not build on it either, by whichever
// name or digest.
func TestAnImageThatMayNotBeReadIsNotBuiltOn(t *testing.T) {
	b := newBench(t)
	secret := b.mustDocker("FROM scratch\nCOPY x /x\n", map[string]string{"x": "secret"})
	other := b.mustDocker("FROM scratch\nCOPY x /x\n", map[string]string{"x": "other"})
	for name, m := range map[string]image.Image{"localhost/theirs/web:1": secret, "localhost/mine/web:1": other} {
		if err := b.Images.SetName(image.Name{Name: name, Image: m.Digest(), From: image.FromBuild, Time: time.Unix(1, 0).UTC()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Images.Named("localhost/shop/web:latest"); err == nil { // what mustDocker calls it
		if err := b.Images.RemoveName("localhost/shop/web:latest"); err != nil {
			t.Fatal(err)
		}
	}
	mine := func(r registry.Reference) error {
		if r.Name() != "localhost/mine/web" {
			return isle.Errorf(isle.Refused, "%s may not be read", r)
		}
		return nil
	}
	file := func(image string) spec.File {
		return spec.File{Name: "mine", Services: []spec.Service{{Name: "web", Image: image}}}
	}
	theirs := file("localhost/theirs/web:1")
	if _, _, err := b.Lock(context.Background(), theirs, nil, nil, LockOptions{Pull: mine}, b.say); isle.CodeOf(err) != isle.Refused {
		t.Errorf("locked: %v", err)
	}
	lock, _ := b.lock(theirs, nil, "", LockOptions{})
	b.build(theirs, lock) // by who may, so that it is known
	if _, err := b.Build(context.Background(), theirs, lock, Options{Pull: mine}, b.say); isle.CodeOf(err) != isle.Refused {
		t.Errorf("built: %v", err)
	}
	if err := b.Images.RemoveName("localhost/mine/web:latest"); err != nil {
		t.Fatal(err)
	}
	own := file("localhost/mine/web:1")
	lock, _ = b.lock(own, nil, "", LockOptions{Pull: mine})
	if _, err := b.Build(context.Background(), own, lock, Options{Pull: mine}, b.say); err != nil {
		t.Errorf("one's own: %v", err)
	}
	if err := b.Images.RemoveName("localhost/mine/web:latest"); err != nil {
		t.Fatal(err)
	}
	lock.Services["web"].Image.Digest = secret.Digest()
	if _, err := b.Build(context.Background(), own, lock, Options{Pull: mine}, b.say); isle.CodeOf(err) != isle.Refused {
		t.Errorf("under one's own name with their digest: %v", err)
	}
	lock.Services["web"].Image.Request, lock.Services["web"].Image.Reference = "registry.example/x:1", "registry.example/x:1"
	f := file("registry.example/x:1")
	if res, err := b.Build(context.Background(), f, lock, Options{Pull: mine}, b.say); err == nil {
		t.Errorf("as if it were a registry's: %v", res.Images)
	}
}
