package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// What an agent may send. A line that is longer than maxLine cannot be answered,
// for nobody has read whose it is; of others it is said what is wrong with them.
const (
	maxLine  = 32 << 20 // bytes that are read of a line
	maxCall  = 4 << 20  // bytes of a call
	maxCalls = 64       // that have no answer yet
)

// codeBusy is JSON-RPC's first code for a server's own errors.
const codeBusy = -32000

// lines is a transport: a message a line (the transport "stdio" of MCP). Unlike
// the SDK's it survives what is no message, and bounds the calls that go on:
// what it does not take it answers itself, before it reads on, so that an agent
// that sends and does not read waits, and nothing piles up.
type lines struct {
	in       *bufio.Reader
	messages chan jsonrpc.Message // from the reader, which closes it
	ended    error                // why; set before messages is closed

	closing sync.Once
	closed  chan struct{}

	mu   sync.Mutex // guards what follows; held while a line is written
	out  io.Writer
	open map[jsonrpc.ID]struct{} // calls that have no answer yet
}

// newLines makes a transport. The goroutine that reads in ends when in does, or
// with the first message that nobody wants any more.
func newLines(in io.Reader, out io.Writer) *lines {
	return &lines{
		in: bufio.NewReaderSize(in, 64<<10), out: out, open: map[jsonrpc.ID]struct{}{},
		messages: make(chan jsonrpc.Message), closed: make(chan struct{}),
	}
}

// closeWire ends a transport's connection.
func closeWire(t mcp.Transport) {
	if c, ok := t.(io.Closer); ok {
		c.Close()
	}
}

// Connect implements mcp.Transport.
func (l *lines) Connect(context.Context) (mcp.Connection, error) {
	go l.read()
	return l, nil
}

// SessionID implements mcp.Connection.
func (l *lines) SessionID() string { return "" }

// Close implements mcp.Connection.
func (l *lines) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

// Read implements mcp.Connection.
func (l *lines) Read(ctx context.Context) (jsonrpc.Message, error) {
	select {
	case m, ok := <-l.messages:
		if !ok {
			return nil, l.ended
		}
		return m, nil
	case <-l.closed:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Write implements mcp.Connection.
func (l *lines) Write(_ context.Context, m jsonrpc.Message) error {
	b, err := jsonrpc.EncodeMessage(m)
	if err != nil {
		return fmt.Errorf("a message cannot be encoded: %w", err)
	}
	select {
	case <-l.closed:
		return io.ErrClosedPipe
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := m.(*jsonrpc.Response); ok {
		delete(l.open, r.ID)
	}
	_, err = l.out.Write(append(b, '\n'))
	return err
}

// read passes messages on until the input ends, or nobody wants them.
func (l *lines) read() {
	defer close(l.messages)
	for {
		line, long, err := l.line()
		if len(line) > 0 || long {
			if l.ended = l.take(line, long); l.ended != nil {
				return
			}
		}
		if err != nil {
			l.ended = err
			return
		}
	}
}

// line reads a line. Of one that is too long it reads to the end, and says so.
func (l *lines) line() (line []byte, long bool, err error) {
	for {
		part, err := l.in.ReadSlice('\n')
		if !long && len(line)+len(part) > maxLine {
			line, long = nil, true
		}
		if !long {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSpace(line), long, err
		}
	}
}

// take passes one line's messages on, or answers them.
func (l *lines) take(line []byte, long bool) error {
	switch {
	case long:
		return l.refuse(nil, jsonrpc.CodeInvalidRequest, fmt.Sprintf("a message has at most %d bytes", maxCall))
	case !json.Valid(line): // bounds how deep it is, too
		return l.refuse(nil, jsonrpc.CodeParseError, "a line is one JSON value, and that was none")
	case line[0] != '[':
		return l.message(line)
	}
	var batch []json.RawMessage // of MCP 2025-03-26
	if err := json.Unmarshal(line, &batch); err != nil || len(batch) == 0 {
		return l.refuse(nil, jsonrpc.CodeInvalidRequest, "an empty batch")
	}
	for _, b := range batch {
		if err := l.message(b); err != nil {
			return err
		}
	}
	return nil
}

// message passes one message on, or answers it.
func (l *lines) message(b []byte) error {
	m, err := jsonrpc.DecodeMessage(b)
	if err != nil {
		return l.refuse(idOf(b), jsonrpc.CodeInvalidRequest, "that is no JSON-RPC 2.0 message")
	}
	call, ok := m.(*jsonrpc.Request)
	if len(b) > maxCall {
		return l.refuse(idOf(b), jsonrpc.CodeInvalidRequest, fmt.Sprintf("a message has at most %d bytes, not %d", maxCall, len(b)))
	}
	if ok && call.IsCall() {
		l.mu.Lock()
		_, twice := l.open[call.ID]
		busy := len(l.open) >= maxCalls
		if !twice && !busy {
			l.open[call.ID] = struct{}{}
		}
		l.mu.Unlock()
		switch {
		case twice:
			return l.refuse(nil, jsonrpc.CodeInvalidRequest, "a call with this ID has no answer yet")
		case busy:
			return l.refuse(idOf(b), codeBusy, fmt.Sprintf("exhausted: %d calls go on already; wait for one of them to end", maxCalls))
		}
	}
	select {
	case l.messages <- m:
		return nil
	case <-l.closed:
		return io.EOF
	}
}

// idOf is the ID of a message, nil if it has none that an answer can bear.
func idOf(b []byte) json.RawMessage {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method *string         `json:"method"`
	}
	if json.Unmarshal(b, &m) != nil || len(m.ID) == 0 || len(m.ID) > 256 {
		return nil
	}
	if c := m.ID[0]; c != '"' && c != '-' && (c < '0' || c > '9') {
		return nil
	}
	return m.ID
}

// refuse answers a line that is not passed on.
func (l *lines) refuse(id json.RawMessage, code int, message string) error {
	if id == nil {
		id = json.RawMessage("null")
	}
	b, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id, "error": map[string]any{"code": code, "message": message}})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.out.Write(append(b, '\n'))
	return err
}
