package mcp

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"isle"
)

// How much of an output is shown and kept, in bytes.
const (
	showUsual = 16 << 10
	showLeast = 256
	showMost  = 256 << 10
	showCall  = 1 << 20  // of all that one call shows
	keepOne   = 2 << 20  // of one output: its head and its tail
	keepAll   = 64 << 20 // of all; the oldest are forgotten first
	keepCount = 1000
)

// A capture takes in an output of any length and keeps its head and its tail.
type capture struct {
	half       int    // bytes that are kept of each
	head, tail []byte // tail is a ring once it is full
	next       int    // where the ring goes on
	total      int64
}

// newCapture makes a capture that is one of n of a call.
func newCapture(n int) *capture { return &capture{half: keepOne / 2 / n} }

// Write implements io.Writer. It never fails.
func (c *capture) Write(p []byte) (int, error) {
	n := len(p)
	c.total += int64(n)
	k := min(n, c.half-len(c.head))
	c.head, p = append(c.head, p[:k]...), p[k:]
	if len(p) > c.half {
		p = p[len(p)-c.half:]
	}
	k = min(len(p), c.half-len(c.tail))
	c.tail, p = append(c.tail, p[:k]...), p[k:]
	for len(p) > 0 {
		k := copy(c.tail[c.next:], p)
		c.next, p = (c.next+k)%len(c.tail), p[k:]
	}
	return n, nil
}

// output is what was taken in.
func (c *capture) output() *output {
	tail := append(append(make([]byte, 0, len(c.tail)), c.tail[c.next:]...), c.tail[:c.next]...)
	o := &output{head: c.head, tail: tail, total: c.total}
	if o.lost() == 0 {
		o.head, o.tail = append(o.head, tail...), nil
	}
	return o
}

// An output is what a command wrote to one stream: its head, its tail, and how
// long it was.
type output struct {
	head, tail []byte
	total      int64
}

// lost is how many bytes between head and tail are not kept.
func (o *output) lost() int64 { return o.total - int64(len(o.head)) - int64(len(o.tail)) }

// read returns at most n bytes from an offset on, and where they begin: what is
// lost is skipped.
func (o *output) read(from int64, n int) (at int64, b []byte) {
	if from >= int64(len(o.head)) {
		start := o.total - int64(len(o.tail))
		from = min(max(from, start), o.total)
		rest := o.tail[from-start:]
		return from, rest[:min(n, len(rest))]
	}
	rest := o.head[from:]
	return from, rest[:min(n, len(rest))]
}

// A shown is the part of an output that a result holds.
type shown struct {
	text   string // head, a line that says what is left out, tail
	left   int64  // bytes that are left out
	cursor string // where they begin; "" if nothing is left out
	binary bool
}

// show shows n bytes of an output at most, and keeps it if that is not all.
func (s *Server) show(o *output, n int) shown {
	if o.total <= int64(n) {
		text, valid := asText(o.head)
		return shown{text: text, binary: !valid}
	}
	at := runeEnd(o.head[:min(n/2, len(o.head))])
	last := o.tail
	if o.lost() == 0 {
		last = o.head[at:]
	}
	if k := n - at; k < len(last) {
		last = last[len(last)-k:]
	}
	last = last[runeStart(last):]
	v := shown{left: o.total - int64(at) - int64(len(last)), cursor: cursorOf(s.kept.put(o), int64(at))}
	head, ok := asText(o.head[:at])
	tail, also := asText(last)
	v.binary = !ok || !also
	v.text = fmt.Sprintf("%s\n[… %d bytes are left out; read_output with cursor %q gives them …]\n%s", head, v.left, v.cursor, tail)
	return v
}

// asText makes text of bytes.
func asText(b []byte) (text string, valid bool) {
	if utf8.Valid(b) && strings.IndexByte(string(b), 0) < 0 {
		return string(b), true
	}
	return strings.ReplaceAll(strings.ToValidUTF8(string(b), "\uFFFD"), "\x00", "\uFFFD"), false
}

// runeEnd is how much of b ends with a whole character.
func runeEnd(b []byte) int {
	for i := 1; i <= min(utf8.UTFMax, len(b)); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if utf8.FullRune(b[len(b)-i:]) {
				return len(b)
			}
			return len(b) - i
		}
	}
	return len(b)
}

// runeStart is where the first whole character of b begins.
func runeStart(b []byte) int {
	for i := 0; i < min(utf8.UTFMax, len(b)); i++ {
		if utf8.RuneStart(b[i]) {
			return i
		}
	}
	return 0
}

// kept are the outputs that were not shown whole, the oldest first.
type kept struct {
	mu     sync.Mutex // guards what follows
	last   int64
	order  []int64
	bytes  int
	byName map[int64]*output
}

func newKept() *kept { return &kept{byName: map[int64]*output{}} }

// put keeps an output and returns its name.
func (k *kept) put(o *output) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last++
	k.order = append(k.order, k.last)
	k.byName[k.last] = o
	k.bytes += len(o.head) + len(o.tail)
	for len(k.order) > 1 && (k.bytes > keepAll || len(k.order) > keepCount) {
		old := k.byName[k.order[0]]
		delete(k.byName, k.order[0])
		k.bytes -= len(old.head) + len(old.tail)
		k.order = k.order[1:]
	}
	return k.last
}

// get finds an output.
func (k *kept) get(name int64) (*output, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o, ok := k.byName[name]; ok {
		return o, nil
	}
	return nil, isle.Errorf(isle.NotFound, "the output of that cursor is not kept any more").WithHint("run the command again, and let it write to a file in a volume or in /tmp, which read_file reads in pieces")
}

// cursorOf names a place in an output.
func cursorOf(name, at int64) string { return fmt.Sprintf("%d.%d", name, at) }

// parseCursor reads what cursorOf wrote.
func parseCursor(s string) (name, at int64, err error) {
	a, b, ok := strings.Cut(s, ".")
	name, err1 := strconv.ParseInt(a, 10, 64)
	at, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || err1 != nil || err2 != nil || name < 1 || at < 0 {
		return 0, 0, isle.Errorf(isle.Invalid, "%q is no cursor", clip(s, 40)).WithHint("give one exactly as a result has it")
	}
	return name, at, nil
}

// limit reads how many bytes an agent wants to see of an output.
func limit(given int) (int, error) {
	switch {
	case given == 0:
		return showUsual, nil
	case given < showLeast || given > showMost:
		return 0, isle.Errorf(isle.Invalid, "max_output of %d bytes: want %d to %d", given, showLeast, showMost)
	}
	return given, nil
}

// clip cuts a text to n bytes at most, at a character's end.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:runeEnd([]byte(s[:n]))] + "…"
}

// oneLine makes one line of what may come from inside.
func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
