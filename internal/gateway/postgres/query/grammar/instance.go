package grammar

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero/api"
)

// An instance is the library in memory of its own, for one text.
type instance struct {
	ctx context.Context
	mod api.Module
}

// call calls a function of the library.
func (i *instance) call(name string, args ...uint64) (uint64, error) {
	stack := make([]uint64, max(1, len(args)))
	copy(stack, args)
	if err := i.mod.ExportedFunction(name).CallWithStack(i.ctx, stack); err != nil {
		return 0, fmt.Errorf("%w: %s: %v", ErrExhausted, name, err)
	}
	return stack[0], nil
}

// parse gives the tree of a text as the library encodes it. What the library
// allocates goes with the instance.
func (i *instance) parse(text string) ([]byte, error) {
	in, err := i.call("malloc", uint64(len(text)+1))
	if err != nil {
		return nil, err
	}
	// PgQueryProtobufParseResult: length, data, stderr, error; 32 bits each.
	out, err := i.call("malloc", 16)
	if err != nil {
		return nil, err
	}
	mem := i.mod.Memory()
	if in == 0 || out == 0 || !mem.WriteString(uint32(in), text) || !mem.WriteByte(uint32(in)+uint32(len(text)), 0) {
		return nil, ErrExhausted
	}
	if _, err := i.call("pg_query_parse_protobuf", out, in); err != nil {
		return nil, err
	}
	result, ok := mem.Read(uint32(out), 16)
	if !ok {
		return nil, ErrExhausted
	}
	if e := binary.LittleEndian.Uint32(result[12:]); e != 0 {
		return nil, i.failure(e)
	}
	b, ok := mem.Read(binary.LittleEndian.Uint32(result[4:]), binary.LittleEndian.Uint32(result))
	if !ok {
		return nil, ErrExhausted
	}
	return bytes.Clone(b), nil
}

// failure reads a PgQueryError: message, function, file, line, cursor, context.
func (i *instance) failure(at uint32) error {
	mem := i.mod.Memory()
	message, file := i.text(at), i.text(at+8)
	cursor, ok := mem.ReadUint32Le(at + 16)
	if !ok || message == "" {
		return ErrExhausted
	}
	switch file {
	case "scan.l", "gram.y", "parser.c", "scansup.c", "numutils.c":
		if strings.HasPrefix(message, "memory exhausted") { // the parser's own stack
			return fmt.Errorf("%w: %s", ErrExhausted, message)
		}
		return &SyntaxError{Message: message, At: int(cursor)}
	}
	return fmt.Errorf("%w: %s", ErrExhausted, message) // out of memory, stack depth
}

// text reads the C string, of at most 4 KiB, that the pointer at a place means.
func (i *instance) text(pointer uint32) string {
	mem := i.mod.Memory()
	at, ok := mem.ReadUint32Le(pointer)
	if !ok || at == 0 || at >= mem.Size() {
		return ""
	}
	b, ok := mem.Read(at, min(4<<10, mem.Size()-at))
	if !ok {
		return ""
	}
	n := bytes.IndexByte(b, 0)
	if n < 0 {
		return ""
	}
	return string(b[:n])
}
