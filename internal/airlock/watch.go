package airlock

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// An attempt is one packet that asked for something that no listener has.
type attempt struct {
	destination netip.AddrPort // port 0 where the protocol has none
	protocol    string         // "tcp", "udp", "icmp", "ip-132", …
}

const (
	snapLength   = 64 + 20   // bytes kept of an attempt: the longest IPv4 header and a TCP header
	watchBuffer  = 256 << 10 // bytes of attempts the kernel keeps; what is beyond it counts
	watchRate    = 500       // attempts a second that are told apart
	watchBurst   = 1000
	watchMessage = "more attempts than can be told apart"
)

// openWatch opens, in the calling thread's namespace, a packet socket that
// sees the attempts on the airlock's link and nothing else. It only looks: the
// kernel refuses each by itself, because nothing listens. The filter runs in
// the kernel, and what does not fit in the buffer is dropped and counted
// there, so that a flood costs the server nothing but a number.
func openWatch(granted []netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // protocol 0: sees nothing until bound
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "watch")
	index, err := linkIndex()
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	if err == nil {
		err = setFilter(fd, granted)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(unix.ETH_P_IP), Ifindex: index})
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch the airlock's link: %w", err)
	}
	return file, nil
}

// linkIndex is the index of the airlock's link in the calling thread's
// namespace.
func linkIndex() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(airlockLink)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}

func setFilter(fd int, granted []netip.AddrPort) error {
	program, err := bpf.Assemble(filter(granted))
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(program))
	for i, p := range program {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]})
}

// filter is a program that keeps, of IPv4 packets, what asks for something
// new and has no listener: connection requests to destinations that are not
// granted, datagrams to anything but DNS, other protocols. Later fragments and
// ICMP errors, which the sandbox's kernel sends by itself, ask for nothing. It
// is at most 5 instructions per grant and some 30 more, of the kernel's 4,096.
func filter(granted []netip.AddrPort) []bpf.Instruction {
	const keep, drop = snapLength, 0
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 2}, // flags and fragment offset
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.LoadMemShift{Off: 0},          // X = header length
		bpf.LoadAbsolute{Off: 9, Size: 1}, // protocol
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 13},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMP, SkipTrue: 4},
		bpf.LoadIndirect{Off: 0, Size: 1}, // ICMP type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 3, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 11, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: keep},
		// UDP:
		bpf.LoadAbsolute{Off: 16, Size: 4}, // destination
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number(dnsAddress.Addr()), SkipTrue: 3},
		bpf.LoadIndirect{Off: 2, Size: 2}, // port
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(dnsAddress.Port()), SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: keep},
		// TCP:
		bpf.LoadIndirect{Off: 13, Size: 1}, // flags
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x17},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x02, SkipTrue: 1}, // SYN alone
		bpf.RetConstant{Val: drop},
	}
	for _, g := range granted {
		program = append(program,
			bpf.LoadAbsolute{Off: 16, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number(g.Addr()), SkipTrue: 3},
			bpf.LoadIndirect{Off: 2, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(g.Port()), SkipTrue: 1},
			bpf.RetConstant{Val: drop})
	}
	return append(program, bpf.RetConstant{Val: keep})
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// parseAttempt reads what the filter keeps: an IPv4 packet (RFC 791) cut off
// anywhere, written by whoever is inside.
func parseAttempt(packet []byte) (attempt, bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return attempt{}, false
	}
	header := int(packet[0]&0xf) * 4
	if header < 20 {
		return attempt{}, false
	}
	address := netip.AddrFrom4([4]byte(packet[16:20]))
	var port uint16
	ports := func() {
		if len(packet) >= header+4 {
			port = binary.BigEndian.Uint16(packet[header+2:])
		}
	}
	var protocol string
	switch packet[9] {
	case unix.IPPROTO_TCP:
		protocol = "tcp"
		ports()
	case unix.IPPROTO_UDP:
		protocol = "udp"
		ports()
	case unix.IPPROTO_ICMP:
		protocol = "icmp"
	case unix.IPPROTO_IGMP:
		protocol = "igmp"
	default:
		protocol = fmt.Sprintf("ip-%d", packet[9])
	}
	return attempt{netip.AddrPortFrom(address, port), protocol}, true
}

// watch records attempts until the airlock stops, at no more than
// watchRate: then the kernel's buffer fills and the kernel counts.
func (a *airlock) watch(socket *os.File) {
	pace := newPace(watchRate, watchBurst)
	packet := make([]byte, snapLength)
	for {
		n, err := socket.Read(packet)
		if a.ctx.Err() != nil {
			return
		}
		if err != nil {
			a.rest(err)
			continue
		}
		if at, ok := parseAttempt(packet[:n]); ok {
			destination := at.destination.String()
			if at.destination.Port() == 0 {
				destination = at.destination.Addr().String()
			}
			a.refused(destination, at.protocol, notGranted, 1)
		}
		if pace.wait() {
			a.countOverflow(socket)
		}
	}
}

// countOverflow adds what the kernel dropped since it was last asked.
func (a *airlock) countOverflow(socket *os.File) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	var dropped uint32
	raw.Control(func(fd uintptr) {
		if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			dropped = stats.Drops
		}
	})
	if dropped > 0 {
		a.refused(others, "any", watchMessage, int(dropped))
	}
}

// A pace holds one goroutine to a rate.
type pace struct {
	interval, burst time.Duration
	next            time.Time
}

func newPace(perSecond, burst int) *pace {
	interval := time.Second / time.Duration(perSecond)
	return &pace{interval: interval, burst: time.Duration(burst) * interval}
}

// wait takes one turn and says whether it had to be waited for.
func (p *pace) wait() bool {
	now := time.Now()
	if earliest := now.Add(-p.burst); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(p.interval)
	ahead := p.next.Sub(now)
	if ahead <= 0 {
		return false
	}
	time.Sleep(ahead)
	return true
}
