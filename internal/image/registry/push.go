package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"isle"
	"isle/internal/image/oci"
)

// Push gives a registry a package under a reference with a tag. What it has
// already is not sent again.
func (c *Client) Push(ctx context.Context, r Reference, p oci.Package, o Options) error {
	if r.Local() || r.Tag == "" {
		return isle.Errorf(isle.Invalid, "%s cannot be pushed to: want REGISTRY/REPOSITORY:TAG", r)
	}
	if o.Progress == nil {
		o.Progress = func(oci.Descriptor, string, int64) {}
	}
	s := newSession(c, r, o.Credential, "pull,push")
	for _, d := range p.Blobs() {
		if err := s.tries(ctx, func() (bool, error) { return false, s.upload(ctx, d, o.Progress) }); err != nil {
			return err
		}
	}
	b, err := c.Images.ReadBlob(p.Manifest.Digest, maxManifest)
	if err != nil {
		return err
	}
	return s.tries(ctx, func() (bool, error) {
		res, err := s.do(ctx, http.MethodPut, "manifests/"+r.Tag, http.Header{"Content-Type": {p.Manifest.MediaType}}, bytesOf(b))
		if err != nil {
			return false, err
		}
		drain(res)
		return false, nil
	})
}

// upload sends a blob in one piece (distribution specification, "Pushing a blob
// monolithically").
func (s *session) upload(ctx context.Context, d oci.Descriptor, progress func(oci.Descriptor, string, int64)) error {
	res, err := s.do(ctx, http.MethodHead, "blobs/"+string(d.Digest), nil, nil)
	if err == nil {
		drain(res)
		progress(d, "cached", d.Size)
		return nil
	}
	if isle.CodeOf(err) != isle.NotFound {
		return err
	}
	progress(d, "start", 0)
	if res, err = s.do(ctx, http.MethodPost, "blobs/uploads/", nil, nil); err != nil {
		return err
	}
	drain(res)
	to, err := s.location(res)
	if err != nil {
		return err
	}
	q := to.Query()
	q.Set("digest", string(d.Digest))
	to.RawQuery = q.Encode()
	res, err = s.do(ctx, http.MethodPut, to.String(), http.Header{"Content-Type": {"application/octet-stream"}}, &content{size: d.Size, open: func() (io.ReadCloser, error) {
		f, err := s.client.Images.OpenBlob(d.Digest)
		if err != nil {
			return nil, err
		}
		return &told{ReadCloser: f, progress: func(n int64) { progress(d, "progress", n) }}, nil
	}})
	if err != nil {
		return err
	}
	drain(res)
	progress(d, "done", d.Size)
	return nil
}

// location is where an upload goes: of the registry, or where its answer leads to
// over TLS.
func (s *session) location(res *http.Response) (*url.URL, error) {
	to, err := res.Request.URL.Parse(res.Header.Get("Location"))
	if err != nil || res.Header.Get("Location") == "" || to.Scheme != "https" && !(loopback(s.ref.Registry) && loopback(to.Host)) {
		return nil, isle.Errorf(isle.Failed, "the registry %s does not say where an upload goes, or not over TLS", s.ref.Registry)
	}
	return to, nil
}

// content is what a request sends; it is opened for each attempt.
type content struct {
	size int64
	open func() (io.ReadCloser, error)
}

func bytesOf(b []byte) *content {
	return &content{int64(len(b)), func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(b))), nil }}
}

// A told reader tells how far it is.
type told struct {
	io.ReadCloser
	n        int64
	progress func(int64)
}

func (t *told) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.n += int64(n)
	if err == nil || errors.Is(err, io.EOF) {
		t.progress(t.n)
	}
	return n, err
}
