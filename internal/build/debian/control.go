package debian

import (
	"bufio"
	"io"
	"iter"
	"strings"
)

// A paragraph is one stanza of a control file (deb-control(5)): fields in the
// order they stand in.
type paragraph []field

type field struct{ name, value string }

// get returns the value of the field, continuation lines joined by "\n" with
// their first blank removed; "" if there is none.
func (p paragraph) get(name string) string {
	for _, f := range p {
		if strings.EqualFold(f.name, name) {
			return f.value
		}
	}
	return ""
}

// maxParagraph bounds one paragraph, in bytes. Debian's longest are some
// hundred kilobytes (Provides of the kernel and of Haskell libraries).
const maxParagraph = 8 << 20

// paragraphs reads control data. It ends at the end of the input, at a read
// error, or at a paragraph beyond maxParagraph; who must tell these apart
// checks the input's hash. Lines that are no field are passed over.
func paragraphs(r io.Reader) iter.Seq[paragraph] {
	return func(yield func(paragraph) bool) {
		in := bufio.NewReaderSize(r, 256<<10)
		var p paragraph
		size := 0
		for {
			line, err := readLine(in, maxParagraph)
			if size += len(line); size > maxParagraph {
				return
			}
			text := strings.TrimRight(line, " \t\r\n")
			switch {
			case text == "":
				if len(p) > 0 && !yield(p) {
					return
				}
				p, size = nil, 0
			case text[0] == '#':
			case text[0] == ' ' || text[0] == '\t':
				if len(p) > 0 {
					p[len(p)-1].value += "\n" + text[1:]
				}
			default:
				if name, value, ok := strings.Cut(text, ":"); ok {
					p = append(p, field{name, strings.TrimLeft(value, " \t")})
				}
			}
			if err != nil {
				if len(p) > 0 {
					yield(p)
				}
				return
			}
		}
	}
}

// readLine reads to the next newline, at most limit bytes.
func readLine(in *bufio.Reader, limit int) (string, error) {
	chunk, err := in.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return string(chunk), err
	}
	var b strings.Builder
	for {
		b.Write(chunk)
		if err != bufio.ErrBufferFull {
			return b.String(), err
		}
		if b.Len() > limit {
			return b.String(), io.ErrShortBuffer
		}
		chunk, err = in.ReadSlice('\n')
	}
}
