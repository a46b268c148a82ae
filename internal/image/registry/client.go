package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/image/oci"
)

// Bounds of what a registry may say and how long it may take.
const (
	maxManifest  = 4 << 20   // bytes; the distribution specification asks for no more
	maxAnswer    = 1 << 20   // bytes of a token's answer
	maxError     = 4 << 10   // bytes that are read of an error's text
	maxBlob      = 128 << 30 // bytes of one layer as it comes
	maxRedirects = 5
	dialTimeout  = 20 * time.Second // also of TLS's handshake
	headTimeout  = time.Minute      // until an answer begins
	stallTimeout = time.Minute      // without a byte of a body
	maxTries     = 5                // in a row without anything new
	maxWait      = time.Minute      // that a registry may ask for before the next try
)

// A Client speaks to registries. Its methods may be called from several
// goroutines.
type Client struct {
	Images *image.Store // where blobs go
	Log    *slog.Logger // nil: nothing is logged

	pause time.Duration // before a second try; 0 is half a second
	stall time.Duration // 0 is stallTimeout
}

// Options are of one call.
type Options struct {
	Credential Credential
	Platform   oci.Platform
	// Progress is told of blobs: "start", "progress", "cached" and "done", with
	// the bytes that are there. It may be nil.
	Progress func(d oci.Descriptor, state string, done int64)
}

// A LoginNeeded is a registry that wants to know who asks, or somebody else.
type LoginNeeded struct{ Registry string }

// Error implements error.
func (e *LoginNeeded) Error() string { return "the registry " + e.Registry + " wants a login" }

// Resolve asks what a reference means for a platform. The layers of what it
// returns are pulled into the store when they are opened. Where the reference has
// a digest, bytes with another are Untrusted.
func (c *Client) Resolve(ctx context.Context, r Reference, o Options) (oci.Picture, error) {
	if r.Local() {
		return oci.Picture{}, isle.Errorf(isle.Invalid, "%s is of this server's own store, and no registry has it", r)
	}
	s := newSession(c, r, o.Credential, "pull")
	root, err := s.root(ctx, r)
	if err != nil {
		return oci.Picture{}, err
	}
	content := func(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) { return s.blob(ctx, d, o.Progress) }
	return oci.Choose(ctx, content, root, o.Platform)
}

// root fetches what the reference itself names, an index or a manifest, and puts
// it into the store.
func (s *session) root(ctx context.Context, r Reference) (oci.Descriptor, error) {
	if r.Digest != "" {
		if b, err := s.client.Images.ReadBlob(r.Digest, maxManifest); err == nil {
			return describe(b, ""), nil
		}
	}
	what := r.Tag
	if r.Digest != "" {
		what = string(r.Digest)
	}
	var b []byte
	var kind string
	err := s.tries(ctx, func() (bool, error) {
		res, err := s.do(ctx, http.MethodGet, "manifests/"+what, http.Header{"Accept": {strings.Join(oci.Accepted(), ", ")}}, nil)
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		if b, err = io.ReadAll(io.LimitReader(res.Body, maxManifest+1)); err != nil {
			return false, away(err)
		}
		kind = res.Header.Get("Content-Type")
		return false, nil
	})
	if err != nil {
		return oci.Descriptor{}, err
	}
	if len(b) > maxManifest {
		return oci.Descriptor{}, isle.Errorf(isle.Invalid, "the manifest of %s has more than %d bytes", r, maxManifest)
	}
	d := describe(b, kind)
	if r.Digest != "" && d.Digest != r.Digest {
		return d, isle.Errorf(isle.Untrusted, "the registry %s answers with %s where %s was asked for", r.Registry, d.Digest, r.Digest).
			WithHint("it is not what was pinned: don't use it before you know why")
	}
	return d, s.client.Images.PutBlob(ctx, d.Digest, bytes.NewReader(b))
}

// describe is the descriptor of a manifest's bytes. What they say of their type
// themselves counts before what was said of them.
func describe(b []byte, said string) oci.Descriptor {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	d := oci.Descriptor{Digest: isle.DigestOf(b), Size: int64(len(b))}
	if kind, _, err := mime.ParseMediaType(said); err == nil {
		d.MediaType = kind
	}
	if json.Unmarshal(b, &m) == nil {
		switch {
		case m.MediaType != "":
			d.MediaType = m.MediaType
		case m.Manifests != nil:
			d.MediaType = oci.Accepted()[0]
		case d.MediaType == "" || d.MediaType == "application/json":
			d.MediaType = oci.Accepted()[1]
		}
	}
	return d
}

// blob opens what a descriptor names, out of the store, into which it is pulled
// first where it is not there.
func (s *session) blob(ctx context.Context, d oci.Descriptor, progress func(oci.Descriptor, string, int64)) (io.ReadCloser, error) {
	if progress == nil {
		progress = func(oci.Descriptor, string, int64) {}
	}
	if !d.Digest.Valid() || d.Size < 0 || d.Size > maxBlob {
		return nil, isle.Errorf(isle.Invalid, "%.80q with %d bytes is no blob that is pulled", d.Digest, d.Size)
	}
	if f, err := s.client.Images.OpenBlob(d.Digest); err == nil {
		return f, nil
	}
	path := "blobs/" + string(d.Digest)
	for _, kind := range oci.Accepted() {
		if d.MediaType == kind {
			path = "manifests/" + string(d.Digest)
		}
	}
	progress(d, "start", 0)
	var most int64
	err := s.tries(ctx, func() (bool, error) {
		before := most
		err := s.client.Images.PullBlob(ctx, d.Digest, d.Size, func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
			return s.from(ctx, path, offset, d.Size)
		}, func(done int64) {
			most = max(most, done)
			progress(d, "progress", done)
		})
		return most > before, err
	})
	if err != nil {
		return nil, err
	}
	progress(d, "done", d.Size)
	return s.client.Images.OpenBlob(d.Digest)
}

// from opens a blob from an offset on.
func (s *session) from(ctx context.Context, path string, offset, size int64) (io.ReadCloser, int64, error) {
	h := http.Header{"Accept": {strings.Join(oci.Accepted(), ", ") + ", */*"}}
	if offset > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	res, err := s.do(ctx, http.MethodGet, path, h, nil)
	if err != nil {
		cancel(nil)
		return nil, 0, err
	}
	stall := s.client.stall
	if stall == 0 {
		stall = stallTimeout
	}
	body := &patient{ReadCloser: res.Body, cancel: cancel, ctx: ctx, limit: stall}
	body.timer = time.AfterFunc(stall, body.expire)
	start := int64(0)
	if res.StatusCode == http.StatusPartialContent {
		if start, err = rangeStart(res.Header.Get("Content-Range")); err != nil || start > size {
			body.Close()
			return nil, 0, isle.Errorf(isle.Unavailable, "the registry %s answers with another range than was asked for", s.ref.Registry)
		}
	}
	return body, start, nil
}

// rangeStart reads where an answer of a part begins (RFC 9110, section 14.4).
func rangeStart(s string) (int64, error) {
	s, ok := strings.CutPrefix(s, "bytes ")
	first, _, dash := strings.Cut(s, "-")
	if !ok || !dash {
		return 0, errors.New("no range")
	}
	return strconv.ParseInt(first, 10, 64)
}

// A patient body ends a call that brings nothing for a while.
type patient struct {
	io.ReadCloser
	ctx    context.Context // of the request, ended by expire
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

var errStalled = errors.New("nothing came any more")

func (p *patient) expire() { p.cancel(errStalled) }

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if n > 0 {
		p.timer.Reset(p.limit)
	}
	if err != nil && errors.Is(context.Cause(p.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

// Close implements io.Closer.
func (p *patient) Close() error {
	p.timer.Stop()
	err := p.ReadCloser.Close()
	p.cancel(nil)
	return err
}

// tries does something again while it is Unavailable and either brings something
// new or has not been tried too often.
func (s *session) tries(ctx context.Context, do func() (progress bool, err error)) error {
	pause := s.client.pause
	if pause == 0 {
		pause = 500 * time.Millisecond
	}
	for n := 1; ; n++ {
		progress, err := do()
		if err == nil || isle.CodeOf(err) != isle.Unavailable || ctx.Err() != nil {
			return err
		}
		if progress {
			n = 1
		}
		if n >= maxTries {
			return err
		}
		if s.client.Log != nil {
			s.client.Log.Info("a registry is asked again", "registry", s.ref.Registry, "err", err)
		}
		wait := pause << (n - 1)
		var later *askLater
		if errors.As(err, &later) {
			wait = max(wait, min(later.after, maxWait))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// askLater is a registry that says when to ask again.
type askLater struct{ after time.Duration }

func (e *askLater) Error() string { return "it is asked too often" }

// away is the error of a connection that failed.
func away(err error) error {
	var known *isle.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the URL, whose query may hold a token
	}
	return isle.Errorf(isle.Unavailable, "the registry cannot be reached: %w", err)
}
