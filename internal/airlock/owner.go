package airlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of sock_diag(7): the lengths of a request (struct inet_diag_req_v2) and of an
// answer (struct inet_diag_msg), and where in both the two ends are.
const (
	diagRequest = 56
	diagAnswer  = 72
	diagOwner   = 64 // in an answer: the user, and behind that the inode
)

// tcpListen is the state of a socket that listens (enum in linux/tcp_states.h).
const tcpListen = 10

// Owner is the user whose program has the other end of a TCP connection within
// this machine, by the addresses of that end and of ours. It is false where the
// other end is not on this machine, or closed: a socket that no program has open
// any more counts as root's with the kernel.
func Owner(client, server net.Addr) (uid uint32, ok bool, err error) {
	c, ok1 := client.(*net.TCPAddr)
	s, ok2 := server.(*net.TCPAddr)
	if !ok1 || !ok2 {
		return 0, false, nil
	}
	ends, family := diagEnds(c.AddrPort(), s.AddrPort(), false)
	request := make(diag, diagRequest)
	request[0], request[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0)) // in whatever state
	copy(request[8:], ends)
	binary.NativeEndian.PutUint64(request[48:], ^uint64(0)) // no cookie
	// One is asked for, not a list: of a list only the ports would be compared.
	r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	r.AddData(request)
	answers, err := r.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask the kernel for a socket: %w", err)
	}
	if len(answers) != 1 || len(answers[0]) < diagAnswer {
		return 0, false, errors.New("ask the kernel for a socket: an answer that is none")
	}
	a := answers[0]
	// Where there is no such connection the kernel looks for who would take it.
	if a[0] == unix.AF_INET6 { // a socket of that family can have the end of a connection over IPv4
		ends, _ = diagEnds(c.AddrPort(), s.AddrPort(), true)
	}
	if a[1] == tcpListen || string(a[4:4+len(ends)]) != string(ends) || binary.NativeEndian.Uint32(a[diagOwner+4:]) == 0 {
		return 0, false, nil
	}
	return binary.NativeEndian.Uint32(a[diagOwner:]), true, nil
}

// diagEnds are the two ends as the kernel's structures have them: ports, and then
// addresses, in network order; those of IPv4 as IPv6 has them, where that is wanted.
func diagEnds(from, to netip.AddrPort, as6 bool) (ends []byte, family byte) {
	ends, family = make([]byte, 36), unix.AF_INET
	binary.BigEndian.PutUint16(ends[0:], from.Port())
	binary.BigEndian.PutUint16(ends[2:], to.Port())
	a, b := from.Addr().Unmap(), to.Addr().Unmap()
	if as6 || a.Is6() || b.Is6() {
		family = unix.AF_INET6
		x, y := from.Addr().As16(), to.Addr().As16()
		copy(ends[4:], x[:])
		copy(ends[20:], y[:])
		return ends, family
	}
	copy(ends[4:], a.AsSlice())
	copy(ends[20:], b.AsSlice())
	return ends, family
}

// A diag is a request of sock_diag(7).
type diag []byte

func (d diag) Len() int          { return len(d) }
func (d diag) Serialize() []byte { return d }
