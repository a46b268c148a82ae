package httpdoor

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"isle"
)

const (
	// copySize is how much of a body is copied at once, in bytes.
	copySize = 32 << 10
	// maxKept bounds, in bytes, what a recording holds of one response.
	maxKept = 256 << 10
	// firstPart bounds what is held back of a masked document, in bytes, so that
	// one that can't be read to its end is refused rather than broken off.
	firstPart = 64 << 10
)

// reply passes a response on.
func (x *exchange) reply(res *http.Response) error {
	if res.StatusCode == http.StatusSwitchingProtocols {
		return x.switched(res)
	}
	if limit := x.conn.Limits.Response; limit > 0 && res.ContentLength > limit {
		return x.unfit("the response is larger than the connection lets through")
	}
	h := x.w.Header()
	x.incoming(res.Header, h)
	hideFields(x.hidden, h)
	if x.hidden != nil {
		x.veil = &veil{forms: x.hidden, sink: x.emit}
		defer x.veil.end()
	}
	rewrite := none
	if x.masked {
		var err error
		if rewrite, err = x.rewriting(res); err != nil {
			clear(h)
			return err
		}
		x.retag(h)
	}
	if len(res.Trailer) > 0 && x.r.ProtoMajor == 1 {
		delete(h, "Content-Length") // there is a trailer only where the body is chunked
		for name := range res.Trailer {
			h.Add("Trailer", name)
		}
	}
	if x.conn.Results {
		x.tap = &tap{}
	}
	var err error
	if rewrite == none {
		x.begin(res.StatusCode)
		if res.ContentLength < 0 { // a stream: when its first piece comes nobody knows
			err = http.NewResponseController(x.w).Flush()
		}
		if err == nil {
			err = x.copyBody(res.Body, res.ContentLength)
		}
	} else {
		err = x.mask(res, rewrite)
	}
	if err == nil && x.veil != nil {
		err = x.veil.write(nil, false, true)
	}
	if err != nil {
		return err
	}
	hideFields(x.hidden, res.Trailer)
	for name, values := range res.Trailer {
		if inTrailer(name) {
			h[http.TrailerPrefix+name] = values
		}
	}
	return nil
}

func (x *exchange) begin(status int) {
	x.replied = true
	x.w.WriteHeader(status)
}

// unfit is why a response is not passed on.
func (x *exchange) unfit(why string) error {
	return &badResponse{why}
}

// A badResponse is what is wrong with what the real thing answered.
type badResponse struct{ what string }

func (e *badResponse) Error() string { return e.what }

var buffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// copyBody copies a body as it comes: each piece is sent before the next is
// waited for.
// Its length is -1 where that is not known.
func (x *exchange) copyBody(src io.Reader, length int64) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for came := int64(0); ; {
		n, err := src.Read(*buf)
		if n > 0 {
			came += int64(n)
			if werr := x.write((*buf)[:n], n < copySize, came == length); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write sends a piece of the response, at once if asked to, without the
// credential. It overwrites p. The last one need not say so.
func (x *exchange) write(p []byte, now, last bool) error {
	if x.veil != nil {
		return x.veil.write(p, now, last)
	}
	return x.emit(p, now)
}

// emit sends what may be seen.
func (x *exchange) emit(p []byte, now bool) error {
	x.out.n.Add(int64(len(p)))
	if limit := x.conn.Limits.Response; limit > 0 && x.out.n.Load() > limit {
		return x.unfit("the response is larger than the connection lets through")
	}
	if x.tap != nil {
		x.tap.add(p)
	}
	if _, err := x.w.Write(p); err != nil {
		return err
	}
	if now {
		return http.NewResponseController(x.w).Flush()
	}
	return nil
}

// How the body of a response is rewritten.
type way int

const (
	none way = iota
	document
	lines
	stream
)

// rewriting says how a masked connection's response is rewritten, from its
// content type. What is not JSON can't be masked and is refused, unless an allow
// rule of the connection lets it pass as it is.
func (x *exchange) rewriting(res *http.Response) (way, error) {
	if x.r.Method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified || res.ContentLength == 0 {
		return none, nil
	}
	kind, parameters, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil {
		kind = ""
	}
	w := none
	switch {
	case kind == "application/x-ndjson" || kind == "application/jsonl" || kind == "application/x-jsonlines" || kind == "application/ndjson":
		w = lines
	case kind == "text/event-stream":
		w = stream
	case kind == "application/json" || kind == "text/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json"):
		w = document
	}
	why := ""
	switch coding := res.Header.Get("Content-Encoding"); {
	case w == none:
		if x.door.Lifts(x.facts) {
			return none, nil
		}
		why = "its content type " + strings.TrimSpace(printable(kind)) + " is not JSON"
	case coding != "" && !strings.EqualFold(coding, "identity"):
		why = "it is compressed, although that was not asked for"
	case res.StatusCode == http.StatusPartialContent:
		why = "it is a part of a document"
	case parameters["charset"] != "" && !strings.EqualFold(parameters["charset"], "utf-8") && !strings.EqualFold(parameters["charset"], "us-ascii"):
		why = "it is not in UTF-8"
	default:
		return w, nil
	}
	return none, isle.Errorf(isle.Refused, "connection %s masks what it answers, and cannot mask this response: %s", x.conn.Name, why).
		WithHint("an allow rule of the connection for this path lets what is not JSON pass unmasked")
}

// printable leaves out what should not stand in a message.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), 100)])
}

// mask sends a response with its fields masked.
func (x *exchange) mask(res *http.Response, how way) error {
	h := x.w.Header()
	for _, name := range []string{"Content-Length", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Accept-Ranges"} {
		delete(h, name)
	}
	var first []byte // of a document: until it is clear that it can be read
	sink := func(p []byte) error {
		if !x.replied && how == document && len(first)+len(p) <= firstPart {
			first = append(first, p...)
			return nil
		}
		if !x.replied {
			x.begin(res.StatusCode)
			if err := x.write(first, false, false); err != nil {
				return err
			}
		}
		return x.write(p, true, false)
	}
	var err error
	if how == stream {
		x.begin(res.StatusCode)
		if err = http.NewResponseController(x.w).Flush(); err == nil {
			err = x.masking.events(res.Body, sink)
		}
	} else {
		err = newRewriter(x.masking, res.Body, sink).document(how == lines)
	}
	if errors.Is(err, errNotJSON) {
		return x.unfit("its content type says that it is JSON, and it can't be read as that, so that it can't be masked")
	}
	if err == nil && !x.replied {
		x.begin(res.StatusCode)
		err = x.write(first, false, false)
	}
	return err
}

// retag marks entity tags, by which a client knows what it has, as those of what
// is masked.
func (x *exchange) retag(h http.Header) {
	if tag := h.Get("Etag"); strings.HasSuffix(tag, `"`) {
		h.Set("Etag", strings.TrimSuffix(tag, `"`)+x.suffix+`"`)
	}
	delete(h, "Accept-Ranges")
	delete(h, "Content-Length")
}

// untag takes the mark off again. A tag without it is not of what was sent, and
// stays as it is: it fits nothing.
func (x *exchange) untag(tags string) string { return strings.ReplaceAll(tags, x.suffix+`"`, `"`) }

// switched passes bytes both ways once the real thing speaks WebSocket. Each
// direction ends on its own; the request's context ends both.
func (x *exchange) switched(res *http.Response) error {
	r, ok := x.w.(*response)
	far, ok2 := res.Body.(io.ReadWriteCloser)
	if !x.upgrade || !ok || !ok2 {
		return x.unfit("it switches to another protocol, which was not asked for")
	}
	h := x.w.Header()
	x.incoming(res.Header, h)
	hideFields(x.hidden, h)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	x.begin(http.StatusSwitchingProtocols)
	near, err := r.hijack()
	if err != nil {
		return err
	}
	ctx := x.r.Context()
	done := make(chan struct{})
	defer close(done)
	go func() { // ends with the exchange
		select {
		case <-ctx.Done():
		case <-done:
		}
		far.Close()
	}()
	up := make(chan struct{})
	go func() { // ends once both sides are closed
		defer close(up)
		x.pump(far, near, &x.in)
		if half, ok := far.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		} else {
			far.Close()
		}
	}()
	x.pump(r.c.conn, far, &x.out)
	r.c.conn.Close()
	<-up
	return nil
}

// pump copies and counts.
func (x *exchange) pump(dst io.Writer, src io.Reader, count *counter) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			count.n.Add(int64(n))
			if _, werr := dst.Write((*buf)[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// A counter counts bytes of one direction. Of a body that is answered early they
// may come after it is looked at.
type counter struct{ n atomic.Int64 }

// limited is a body of which no more than limit bytes may come; 0: any number.
type limited struct {
	r     io.ReadCloser
	count *counter
	limit int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.count.n.Add(int64(n))
	if l.limit > 0 && l.count.n.Load() > l.limit {
		return 0, tooLarge(l.limit)
	}
	return n, err
}

func (l *limited) Close() error { return l.r.Close() }

// A tap keeps the beginning of what is sent, for the recording.
type tap struct{ kept []byte }

func (t *tap) add(p []byte) {
	t.kept = append(t.kept, p[:min(len(p), maxKept-len(t.kept))]...)
}
