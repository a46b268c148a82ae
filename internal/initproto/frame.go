package initproto

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A FrameType says what a frame's payload is.
type FrameType byte

// The frame types; the package comment has their directions.
const (
	FrameChallenge FrameType = 0x01
	FrameHello     FrameType = 0x02
	FrameWelcome   FrameType = 0x03

	FrameEvent  FrameType = 0x10
	FrameLog    FrameType = 0x11
	FrameAck    FrameType = 0x12
	FrameBecome FrameType = 0x13

	FrameRequest  FrameType = 0x20
	FrameResponse FrameType = 0x21

	FrameStdin  FrameType = 0x30
	FrameStdout FrameType = 0x31
	FrameStderr FrameType = 0x32
	FrameSignal FrameType = 0x33
	FrameResize FrameType = 0x34
	FrameWindow FrameType = 0x35
	FrameExit   FrameType = 0x36

	FrameData   FrameType = 0x40
	FrameEnd    FrameType = 0x41
	FrameResult FrameType = 0x42
)

// HeaderSize is the size in bytes of what precedes a frame's payload.
const HeaderSize = 5

// errFrame means that the other side does not speak the protocol.
var errFrame = errors.New("malformed frame")

// PutHeader writes the header of a frame with a payload of n bytes to the
// first HeaderSize bytes of b.
func PutHeader(b []byte, t FrameType, n int) {
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:HeaderSize], uint32(n))
}

// ReadFrame reads one frame. It reads no byte more, and allocates nothing
// before the length is known to be within MaxFrame.
func ReadFrame(r io.Reader) (FrameType, []byte, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes, over the %d that one may have", errFrame, n, MaxFrame)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return FrameType(h[0]), payload, nil
}

// A Conn is a connection that speaks frames. One goroutine may read while
// others write.
type Conn struct {
	net.Conn
	// Reader buffers what was received; unframed bytes are read from it too.
	Reader *bufio.Reader

	mu  sync.Mutex // serializes frames
	out []byte     // the frame being written
}

// NewConn returns a Conn on c.
func NewConn(c net.Conn) *Conn {
	return &Conn{Conn: c, Reader: bufio.NewReaderSize(c, 4<<10)}
}

// ReadFrame reads the next frame.
func (c *Conn) ReadFrame() (FrameType, []byte, error) { return ReadFrame(c.Reader) }

// Expect reads the next frame, which must be of the type.
func (c *Conn) Expect(want FrameType) ([]byte, error) {
	t, payload, err := c.ReadFrame()
	if err != nil {
		return nil, err
	}
	if t != want {
		return nil, fmt.Errorf("%w: type %#x where %#x belongs", errFrame, t, want)
	}
	return payload, nil
}

// WriteFrame writes one frame in one piece.
func (c *Conn) WriteFrame(t FrameType, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("%w: %d bytes to send", errFrame, len(payload))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var h [HeaderSize]byte
	PutHeader(h[:], t, len(payload))
	c.out = append(append(c.out[:0], h[:]...), payload...)
	_, err := c.Conn.Write(c.out)
	if cap(c.out) > 4<<10 {
		c.out = nil // idle connections are many: they keep no large buffer
	}
	return err
}

// WriteRaw writes b, which is a whole frame: header (PutHeader) and payload.
func (c *Conn) WriteRaw(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Conn.Write(b)
	return err
}

// WriteJSON writes v as the payload of one frame.
func (c *Conn) WriteJSON(t FrameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.WriteFrame(t, b)
}

// CloseWrite ends the sending half, where the connection has halves.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}
