package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"isle"
)

// tries is how often a request is made before its failure is final, with
// pauses of 0.5, 1 and 2 seconds between.
const tries = 4

// stall is how long a body may bring nothing.
const stall = 60 * time.Second

// errShort is a body that ended early or stalled; what came of it is kept.
var errShort = errors.New("the connection ended early")

// joinURL puts a relative path behind a base URL, escaped.
func joinURL(base, relative string) string {
	return base + "/" + (&url.URL{Path: path.Clean("/" + relative)}).EscapedPath()[1:]
}

// An answer is a finished request.
type answer struct {
	fetched
	unchanged bool // 304: nothing was written
}

// do makes one request and lets body take what comes, watching for stalls.
// Status codes 200, 206 and 304 are success; 404 and 410 are NotFound, the
// client's other mistakes Invalid, everything else Unavailable.
func (a *Archive) do(ctx context.Context, address string, header http.Header, body func(*http.Response, io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return isle.Errorf(isle.Invalid, "%q is no URL: %w", address, err)
	}
	r.Header = header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("User-Agent", "isle")
	response, err := a.client.Do(r)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "the mirror does not answer: %w", err).
			WithHint("check the network and apt's proxy settings, or name another with --mirror URL")
	}
	defer response.Body.Close()
	switch s := response.StatusCode; {
	case s == 200 || s == 206 || s == 304:
	case s == 404 || s == 410:
		return isle.Errorf(isle.NotFound, "%s: the mirror has no such file", redact(address))
	case s >= 400 && s < 500 && s != 408 && s != 416 && s != 429:
		return isle.Errorf(isle.Invalid, "%s: the mirror answers %s", redact(address), response.Status).WithHint("name another with --mirror URL")
	default:
		return &isle.Error{Code: isle.Unavailable, Message: fmt.Sprintf("%s: the mirror answers %s", redact(address), response.Status),
			Hint: "try again, or name another with --mirror URL", Err: statusError(s)}
	}
	timer := time.AfterFunc(stall, cancel)
	defer timer.Stop()
	return body(response, &watched{response.Body, timer})
}

// A statusError is an HTTP status that may pass.
type statusError int

func (e statusError) Error() string { return http.StatusText(int(e)) }

// watched puts off the stall timer as bytes come.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(stall)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errShort, err)
	}
	return n, err
}

// get fetches a small file into dst, at most limit bytes of it, again after
// passing failures. dst must be empty; it is emptied between tries.
func (a *Archive) get(ctx context.Context, address string, known fetched, limit int64, dst interface {
	io.Writer
	Reset()
}) (answer, error) {
	header := http.Header{}
	if known.ETag != "" {
		header.Set("If-None-Match", known.ETag)
	} else if known.LastModified != "" {
		header.Set("If-Modified-Since", known.LastModified)
	}
	var out answer
	err := a.retry(ctx, address, func() error {
		dst.Reset()
		return a.do(ctx, address, header, func(r *http.Response, body io.Reader) error {
			out.ETag, out.LastModified = r.Header.Get("ETag"), r.Header.Get("Last-Modified")
			if out.unchanged = r.StatusCode == 304; out.unchanged {
				return nil
			}
			n, err := io.Copy(dst, io.LimitReader(body, limit+1))
			switch {
			case err != nil:
				return isle.Errorf(isle.Unavailable, "%s: %w", redact(address), err)
			case n > limit:
				return isle.Errorf(isle.Invalid, "%s is larger than %d bytes", redact(address), limit)
			case r.ContentLength >= 0 && n != r.ContentLength:
				return isle.Errorf(isle.Unavailable, "%s: %w", redact(address), errShort)
			}
			return nil
		})
	})
	return out, err
}

// retry calls f until it succeeds, fails for good, or has been tried enough.
func (a *Archive) retry(ctx context.Context, what string, f func() error) error {
	pause := a.pause
	for try := 1; ; try++ {
		err := f()
		if err == nil || ctx.Err() != nil || try == tries || isle.CodeOf(err) != isle.Unavailable {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		a.cfg.Log.Warn("download failed; trying again", "what", redact(what), "try", try, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// redact removes a password from a URL before people see it.
func redact(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Redacted()
	}
	return address
}

// diskError gives a failure of the file system its code.
func diskError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return isle.Errorf(isle.Exhausted, "no space left to %s: %w", what, err).WithHint("free some with `isle gc`, or use another --state folder")
	default:
		return isle.Errorf(isle.Internal, "%s: %w", what, err)
	}
}

// writeAtomic replaces a file of the cache.
func writeAtomic(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "new-")
	if err != nil {
		return diskError("write the package cache", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return diskError("write the package cache", err)
}

// safePath reports whether a path from outside is relative and stays below its
// root.
func safePath(p string) bool {
	return p != "" && len(p) < 1024 && !strings.HasPrefix(p, "/") && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../") && !strings.ContainsAny(p, "\x00\n\\")
}
