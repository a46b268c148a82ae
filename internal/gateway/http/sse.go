package httpdoor

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// maxEvent bounds a server-sent event in bytes.
const maxEvent = 1 << 20

// events rewrites a stream of server-sent events (WHATWG HTML, section 9.2)
// whose data are JSON, each when it is whole. Data that are not JSON fail with
// errNotJSON, but for "[DONE]", by which some services end a stream. Comments,
// and fields that clients ignore, are left out.
func (m *masking) events(src io.Reader, sink func(p []byte) error) error {
	r := bufio.NewReaderSize(src, 4<<10)
	var data, out []byte
	has := false
	size := 0
	for {
		line, err := eventLine(r, maxEvent-size)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		size += len(line)
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0 && err != nil:
			return nil // what is left is no event: it has no end
		case len(line) == 0:
			if has {
				if out, err = m.data(out, bytes.TrimSuffix(data, []byte("\n"))); err != nil {
					return err
				}
			}
			if err := sink(append(out, '\n')); err != nil {
				return err
			}
			data, out, has, size = data[:0], out[:0], false, 0
		case string(name) == "data":
			has = true
			data = append(append(data, value...), '\n')
		case string(name) == "event" || string(name) == "id" || string(name) == "retry":
			out = append(append(out, line...), '\n')
		case len(name) == 0: // a comment, which keeps the connection open
			if err := sink([]byte(":\n")); err != nil {
				return err
			}
		}
	}
}

// data appends the lines of an event's rewritten data.
func (m *masking) data(out, data []byte) ([]byte, error) {
	masked := data
	if text := bytes.TrimSpace(data); len(text) > 0 && string(text) != "[DONE]" {
		masked = nil
		x := newRewriter(m, bytes.NewReader(data), func(p []byte) error { masked = append(masked, p...); return nil })
		if err := x.document(false); err != nil {
			return nil, err
		}
	}
	for line := range bytes.SplitSeq(masked, []byte("\n")) {
		out = append(append(append(out, "data: "...), line...), '\n')
	}
	return out, nil
}

// eventLine reads a line, which ends in CR LF, LF or CR, and leaves its end out.
func eventLine(r *bufio.Reader, bound int) ([]byte, error) {
	var line []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			return line, err
		}
		if c == '\n' {
			return line, nil
		}
		if c == '\r' {
			// Whether LF follows is known once the next byte is there; to wait for
			// it could hold an event back. It then begins the next line.
			if r.Buffered() > 0 {
				if next, _ := r.Peek(1); next[0] == '\n' {
					r.Discard(1)
				}
			}
			return line, nil
		}
		if len(line) >= bound {
			return nil, errNotJSON
		}
		line = append(line, c)
	}
}
