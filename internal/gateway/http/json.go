package httpdoor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// Bounds of documents that are rewritten.
const (
	maxDepth  = 256      // arrays and objects in each other
	maxKey    = 16 << 10 // bytes of a member's name
	maxNumber = 1 << 10
	maxString = 1 << 20 // bytes of a string that has to be looked at whole
)

// errNotJSON is why a document can't be masked.
var errNotJSON = errors.New("it is no JSON")

// A masking is how documents of one connection are rewritten. It does not
// change, and is safe for concurrent use.
type masking struct {
	paths []jsonPath
	// value shows a string or number in the way of the kind.
	value func(kind, value string) string
	// detect masks what it finds in a text; false if it finds nothing. It may be
	// nil.
	detect func(text string) (string, bool)
}

// A rewriter reads JSON (RFC 8259), and writes it with some values masked and
// all else as it came, byte for byte. It holds no more of a document than the
// string that it is at, and writes what it has before it waits for more.
type rewriter struct {
	*masking
	src   io.Reader
	sink  func(p []byte) error // p is the rewriter's own again when it returns
	in    []byte               // read, from at on not looked at
	at    int
	buf   []byte
	out   []byte
	muted int // while above 0 nothing is written
	depth int
	arena []place // places of the values that it is in
	end   error   // of src
}

func newRewriter(m *masking, src io.Reader, sink func(p []byte) error) *rewriter {
	return &rewriter{masking: m, src: src, sink: sink, buf: make([]byte, 16<<10), arena: make([]place, 0, 64)}
}

// document rewrites a document, or, if many, documents one after the other. An
// error that is errNotJSON says that it can't be read; the rest is of src or
// sink.
func (x *rewriter) document(many bool) error {
	if b, err := x.peek(); err == nil && b == 0xef { // a byte order mark is no part of it
		for _, want := range []byte{0xef, 0xbb, 0xbf} {
			if c, err := x.take(); err != nil || c != want {
				return errNotJSON
			}
		}
	}
	for n := 0; ; n++ {
		_, err := x.space()
		switch {
		case errors.Is(err, io.EOF) && (many || n == 1):
			return x.flush()
		case errors.Is(err, io.EOF):
			return errNotJSON
		case err != nil:
			return err
		case n == 1 && !many:
			return errNotJSON
		}
		mark := len(x.arena)
		x.arena = append(x.arena, start(x.paths)...)
		if err := x.valueAt(x.arena[mark:]); err != nil {
			if errors.Is(err, io.EOF) {
				return errNotJSON // it is cut off
			}
			return err
		}
		x.arena = x.arena[:mark]
	}
}

// fill reads more, once what there is is sent.
func (x *rewriter) fill() error {
	if x.end != nil {
		return x.end
	}
	if err := x.flush(); err != nil {
		return err
	}
	n, err := x.src.Read(x.buf)
	for tries := 0; n == 0 && err == nil; tries++ {
		if tries == 100 {
			return io.ErrNoProgress
		}
		n, err = x.src.Read(x.buf)
	}
	x.in, x.at, x.end = x.buf[:n], 0, err
	if n == 0 {
		return err
	}
	return nil
}

func (x *rewriter) flush() error {
	if len(x.out) == 0 {
		return nil
	}
	err := x.sink(x.out)
	x.out = x.out[:0]
	return err
}

func (x *rewriter) peek() (byte, error) {
	for x.at == len(x.in) {
		if err := x.fill(); err != nil {
			return 0, err
		}
	}
	return x.in[x.at], nil
}

func (x *rewriter) take() (byte, error) {
	c, err := x.peek()
	if err == nil {
		x.at++
	}
	return c, err
}

func (x *rewriter) emit(p ...byte) {
	if x.muted == 0 {
		x.out = append(x.out, p...)
	}
}

// space passes white space on and returns the byte behind, which it leaves.
func (x *rewriter) space() (byte, error) {
	for {
		c, err := x.peek()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c, nil
		}
		x.emit(c)
		x.at++
	}
}

// valueAt rewrites the value that comes next, at these places.
func (x *rewriter) valueAt(places []place) error {
	if kind := show(places); kind != "" && x.muted == 0 {
		return x.masked(kind)
	}
	c, err := x.space()
	if err != nil {
		return err
	}
	switch c {
	case '{':
		return x.object(places)
	case '[':
		return x.array(func(i int) error {
			mark := len(x.arena)
			x.arena = element(x.arena, places, i)
			err := x.valueAt(x.arena[mark:])
			x.arena = x.arena[:mark]
			return err
		})
	case '"':
		if x.detect != nil && x.muted == 0 {
			return x.searched()
		}
		return x.text(nil, 0)
	}
	b, err := x.bare(c)
	if err != nil {
		return err
	}
	if x.detect != nil && c <= '9' && x.muted == 0 {
		if _, found := x.detect(string(b)); found {
			b = []byte("0")
		}
	}
	x.emit(b...)
	return nil
}

// object rewrites the object that begins here.
func (x *rewriter) object(places []place) error {
	if err := x.enter(); err != nil {
		return err
	}
	c, err := x.space()
	if err != nil {
		return err
	}
	for first := true; c != '}' || !first; first = false {
		if c != '"' {
			return errNotJSON
		}
		name, err := x.name()
		if err != nil {
			return err
		}
		if c, err = x.space(); err != nil || c != ':' {
			return either(err)
		}
		x.emit(c)
		x.at++
		mark := len(x.arena)
		x.arena = member(x.arena, places, name)
		err = x.valueAt(x.arena[mark:])
		x.arena = x.arena[:mark]
		if err != nil {
			return err
		}
		if c, err = x.space(); err != nil {
			return err
		}
		if c == '}' {
			break
		}
		if c != ',' {
			return errNotJSON
		}
		x.emit(c)
		x.at++
		if c, err = x.space(); err != nil {
			return err
		}
	}
	x.leave('}')
	return nil
}

// array rewrites the array that begins here: its elements by each.
func (x *rewriter) array(each func(i int) error) error {
	if err := x.enter(); err != nil {
		return err
	}
	c, err := x.space()
	if err != nil {
		return err
	}
	for i := 0; c != ']' || i > 0; i++ {
		if err := each(i); err != nil {
			return err
		}
		if c, err = x.space(); err != nil {
			return err
		}
		if c == ']' {
			break
		}
		if c != ',' {
			return errNotJSON
		}
		x.emit(c)
		x.at++
	}
	x.leave(']')
	return nil
}

func (x *rewriter) enter() error {
	if x.depth++; x.depth > maxDepth {
		return errNotJSON
	}
	x.emit(x.in[x.at])
	x.at++
	return nil
}

func (x *rewriter) leave(c byte) {
	x.depth--
	x.emit(c)
	x.at++
}

func either(err error) error {
	if err != nil {
		return err
	}
	return errNotJSON
}

// name passes a member's name on and returns it decoded.
func (x *rewriter) name() ([]byte, error) {
	var raw []byte
	if err := x.text(&raw, maxKey); err != nil {
		return nil, err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	s, err := decode(raw)
	return []byte(s), err
}

// text passes a string on. What it reads, quotes included, it adds to keep, if
// that is not nil, and at most up to bound bytes.
func (x *rewriter) text(keep *[]byte, bound int) error {
	var in quoted
	for {
		if _, err := x.peek(); err != nil {
			return err
		}
		n := in.scan(x.in[x.at:])
		if n < 0 {
			return errNotJSON
		}
		piece := x.in[x.at : x.at+n]
		if x.muted == 0 {
			x.out = append(x.out, piece...)
		}
		if keep != nil {
			if len(*keep)+n > bound {
				return errNotJSON
			}
			*keep = append(*keep, piece...)
		}
		x.at += n
		if in == done {
			return nil
		}
	}
}

// quoted is where in a string a scan is.
type quoted int

const (
	before  quoted = iota // its first quote
	plain                 // between its quotes
	escaped               // behind a backslash
	hex4                  // of \uXXXX, and so on
	hex3
	hex2
	hex1
	done // behind its last quote
)

// scan goes on over what belongs to the string; -1 where it is no string.
func (q *quoted) scan(b []byte) int {
	for n, c := range b {
		switch *q {
		case plain:
			switch {
			case c == '"':
				*q = done
				return n + 1
			case c == '\\':
				*q = escaped
			case c < ' ':
				return -1
			}
		case before:
			*q = plain // the caller saw the quote
		case escaped:
			switch c {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				*q = plain
			case 'u':
				*q = hex4
			default:
				return -1
			}
		default:
			if hexDigit(c) < 0 {
				return -1
			}
			if *q++; *q == done {
				*q = plain
			}
		}
	}
	return len(b)
}

// searched passes a string on in which the detectors looked.
func (x *rewriter) searched() error {
	raw, err := x.hidden(func(raw *[]byte) error { return x.text(raw, maxString) })
	if err != nil {
		return err
	}
	s, err := decode(raw)
	if err != nil {
		return err
	}
	if masked, found := x.detect(s); found {
		raw = quote(masked)
	}
	x.emit(raw...)
	return nil
}

// hidden reads without writing.
func (x *rewriter) hidden(read func(raw *[]byte) error) ([]byte, error) {
	x.muted++
	defer func() { x.muted-- }()
	var raw []byte
	err := read(&raw)
	return raw, err
}

// bare reads a number, true, false or null.
func (x *rewriter) bare(c byte) ([]byte, error) {
	var b []byte
	for {
		c, err := x.peek()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '-' || c == '+' || c == '.' || c == 'E') {
			break
		}
		if len(b) == maxNumber {
			return nil, errNotJSON
		}
		b = append(b, c)
		x.at++
	}
	if len(b) == 0 || !json.Valid(b) {
		return nil, errNotJSON
	}
	return b, nil
}

// masked writes the value that comes next as the kind of mask shows it. An
// object is not shown at all, since its members' names may say what is masked.
func (x *rewriter) masked(kind string) error {
	c, err := x.space()
	if err != nil {
		return err
	}
	switch c {
	case '[':
		if kind != "null" {
			return x.array(func(int) error { return x.masked(kind) })
		}
		fallthrough
	case '{':
		_, err := x.hidden(func(*[]byte) error { return x.valueAt(nil) })
		x.emit([]byte("null")...)
		return err
	case '"':
		return x.maskedText(kind)
	}
	b, err := x.bare(c)
	if err != nil {
		return err
	}
	switch {
	case kind == "null" || b[0] == 'n':
		b = []byte("null")
	case b[0] == 't' || b[0] == 'f':
		b = []byte("false")
	case kind == "hash":
		b = digits(x.value(kind, string(b)))
	default:
		b = []byte("0")
	}
	x.emit(b...)
	return nil
}

func (x *rewriter) maskedText(kind string) error {
	raw, err := x.hidden(func(raw *[]byte) error { return x.text(raw, maxString) })
	if err != nil {
		return err
	}
	if kind == "null" {
		x.emit([]byte("null")...)
		return nil
	}
	s, err := decode(raw)
	if err != nil {
		return err
	}
	x.emit(quote(x.value(kind, s))...)
	return nil
}

// decode reads a string with its quotes.
func decode(raw []byte) (string, error) {
	if bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", errNotJSON
	}
	return s, nil
}

// quote writes a string with its quotes.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s)
	return bytes.TrimRight(b.Bytes(), "\n")
}

// digits makes a number out of a text, always the same.
func digits(s string) []byte {
	var n uint64 = 14695981039346656037 // FNV-1a
	for i := range len(s) {
		n = (n ^ uint64(s[i])) * 1099511628211
	}
	b, _ := json.Marshal(n % 1e15)
	return b
}
