package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// Codes in the place of a protocol version (PostgreSQL 18, 54.2.10 and 54.7).
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104

	// latestMinor is the newest minor version of protocol 3 that is spoken: 3.2,
	// whose cancel keys may be longer.
	latestMinor = 2
	// maxStartup bounds the first packet in bytes, as PostgreSQL does.
	maxStartup = 10000
	// maxCancelKey bounds a cancel key in bytes (protocol 3.2).
	maxCancelKey = 256
)

// A startup is a client's first packet.
type startup struct {
	Minor      int               // of protocol 3
	Parameters map[string]string // user, database, settings
	Options    []string          // protocol extensions ("_pq_.…"), none of which is known
	Cancel     *cancelKey        // it only asks to cancel what another connection does

	told bool // which version counts
}

// A cancelKey names a session for a CancelRequest.
type cancelKey struct {
	Process uint32
	Secret  string
}

// errStartup is a first packet that is none.
var errStartup = errors.New("not a first packet of PostgreSQL's protocol 3")

// answerTLS is what is done when a client asks for TLS (true) or for GSSAPI
// encryption (false): it answers, and returns what to go on with.
type answerTLS func(conn net.Conn, tls bool) (net.Conn, error)

// declineTLS answers N: the connection stays as it is.
func declineTLS(conn net.Conn, _ bool) (net.Conn, error) {
	_, err := conn.Write([]byte{'N'})
	return conn, err
}

// readStartup reads first packets until one asks for something. It reads no byte
// too many, so what a client sends ahead of TLS is never taken for what came
// through it. The caller sets the deadline.
func readStartup(conn net.Conn, answer answerTLS) (net.Conn, *startup, error) {
	var asked [2]bool
	for {
		packet, err := readPacket(conn)
		if err != nil {
			return conn, nil, err
		}
		code := binary.BigEndian.Uint32(packet)
		if code != codeTLS && code != codeGSS {
			s, err := parseStartup(packet)
			return conn, s, err
		}
		which := 0
		if code == codeTLS {
			which = 1
		}
		if asked[which] || len(packet) != 4 {
			return conn, nil, errStartup
		}
		asked[which] = true
		if conn, err = answer(conn, which == 1); err != nil {
			return conn, nil, err
		}
	}
}

// readPacket reads one packet that has no type: a length that counts itself,
// then at least four bytes.
func readPacket(conn net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 8 || n > maxStartup {
		return nil, errStartup
	}
	packet := make([]byte, n-4)
	if _, err := io.ReadFull(conn, packet); err != nil {
		return nil, unexpected(err)
	}
	return packet, nil
}

// parseStartup reads a packet from its version or code on.
func parseStartup(packet []byte) (*startup, error) {
	if len(packet) < 4 {
		return nil, errStartup
	}
	code, rest := binary.BigEndian.Uint32(packet), packet[4:]
	if code == codeCancel {
		if len(rest) < 4+4 || len(rest) > 4+maxCancelKey {
			return nil, errStartup
		}
		return &startup{Cancel: &cancelKey{binary.BigEndian.Uint32(rest), string(rest[4:])}}, nil
	}
	if code>>16 != 3 {
		return nil, &refusal{State: stateProtocol, Message: fmt.Sprintf("isle: unsupported frontend protocol %d.%d: 3.0 to 3.%d are spoken", code>>16, code&0xffff, latestMinor)}
	}
	s := &startup{Minor: int(code & 0xffff), Parameters: make(map[string]string)}
	for {
		name, after, ok := cutString(rest)
		if !ok {
			return nil, errStartup
		}
		if name == "" {
			if len(after) != 0 {
				return nil, errStartup
			}
			return s, nil
		}
		value, after, ok := cutString(after)
		if !ok {
			return nil, errStartup
		}
		if strings.HasPrefix(name, "_pq_.") {
			s.Options = append(s.Options, name)
		} else {
			s.Parameters[name] = value
		}
		rest = after
	}
}

// cutString takes a string that ends in a zero byte.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:], true
		}
	}
	return "", b, false
}

// negotiated appends NegotiateProtocolVersion where the client asked for more
// than is spoken, and returns the minor version that counts.
func (s *startup) negotiated(dst []byte) ([]byte, int) {
	minor := min(s.Minor, latestMinor)
	if s.Minor <= latestMinor && len(s.Options) == 0 {
		return dst, minor
	}
	size := 4 + 4 + 4
	for _, o := range s.Options {
		size += len(o) + 1
	}
	dst = append(dst, 'v')
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = binary.BigEndian.AppendUint32(dst, 3<<16|uint32(minor))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s.Options)))
	for _, o := range s.Options {
		dst = append(append(dst, o...), 0)
	}
	return dst, minor
}
