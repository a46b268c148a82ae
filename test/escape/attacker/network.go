package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds what may never be answered.
const patience = 3 * time.Second

// sockets tries every family of socket, and the options that forge packets.
func sockets([]string) {
	for _, s := range []struct {
		what                   string
		family, kind, protocol int
	}{
		{"raw IPv4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{"raw ICMP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"raw TCP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP},
		{"raw IPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{"ping", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
		{"SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
		{"DCCP", unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP},
		{"L2TP", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP},
		{"UDP-Lite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
		{"SMC", 43, unix.SOCK_STREAM, 0},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0x300},
		{"packet, cooked", unix.AF_PACKET, unix.SOCK_DGRAM, 0x300},
		{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"crypto", unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
		{"XDP", unix.AF_XDP, unix.SOCK_RAW, 0},
		{"key", unix.AF_KEY, unix.SOCK_RAW, 2},
		{"bluetooth", unix.AF_BLUETOOTH, unix.SOCK_RAW, 1},
		{"CAN", unix.AF_CAN, unix.SOCK_RAW, 1},
		{"TIPC", unix.AF_TIPC, unix.SOCK_STREAM, 0},
		{"RDS", unix.AF_RDS, unix.SOCK_SEQPACKET, 0},
		{"NFC", unix.AF_NFC, unix.SOCK_SEQPACKET, 0},
		{"AppleTalk", unix.AF_APPLETALK, unix.SOCK_DGRAM, 0},
		{"X.25", unix.AF_X25, unix.SOCK_SEQPACKET, 0},
		{"netlink audit", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
		{"netlink netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
		{"netlink generic", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC},
		{"netlink uevents", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT},
		{"netlink diagnosis", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
		{"netlink transformation", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM},
		{"netlink connector", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_CONNECTOR},
	} {
		fd, err := unix.Socket(s.family, s.kind, s.protocol)
		if err == nil {
			unix.Close(fd)
		}
		try("socket: "+s.what, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		try("socket", err)
		return
	}
	defer unix.Close(fd)
	try("option: transparent", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	try("option: mark", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1))
	try("option: priority", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 7))
	try("option: force the receive buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<30))
	try("option: debug", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DEBUG, 1))
	try("option: bpf", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, 0))
	try("filter rules", func() error {
		_, err := unix.GetsockoptInt(fd, unix.SOL_IP, 64) // IPT_SO_GET_INFO
		return err
	}())
}

// netlinkChanges tries to change the network.
func netlinkChanges([]string) {
	links, err := netlink.LinkList()
	if err != nil {
		try("list links", err)
		return
	}
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" {
			names = append(names, name)
		}
	}
	say("links beside lo", strings.Join(names, " "))
	link := links[len(links)-1]
	_, every, _ := net.ParseCIDR("0.0.0.0/0")
	_, other, _ := net.ParseCIDR("203.0.113.0/24")
	try("take the link down", netlink.LinkSetDown(link))
	try("rename the link", netlink.LinkSetName(link, "x"))
	try("set the hardware address", netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 1}))
	try("move the link to PID 1's namespace", netlink.LinkSetNsPid(link, 1))
	try("add an address", netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 18, 0, 1), Mask: net.CIDRMask(32, 32)}}))
	try("add a local route", netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: other, Type: unix.RTN_LOCAL, Table: 255}))
	try("replace the default route", netlink.RouteReplace(&netlink.Route{LinkIndex: 1, Dst: every}))
	try("add a neighbour", netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.IPv4(203, 0, 113, 1), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}))
	try("add a rule", func() error {
		r := netlink.NewRule()
		r.Table, r.Priority = 100, 1
		return netlink.RuleAdd(r)
	}())
	try("make a veth", netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}))
	try("make a bridge", netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "c"}}))
	try("make a VXLAN", netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "d"}, VxlanId: 1}))
	try("make a WireGuard", netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "e"}}))
	try("make a network namespace ID", netlink.SetNetNsIdByPid(1, 7))
	try("add a queueing discipline", netlink.QdiscAdd(&netlink.Fq{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT}}))
}

// reach tries to reach addresses: kind:ADDRESS:PORT each.
func reach(args []string) {
	var all sync.WaitGroup
	var mu sync.Mutex
	for _, a := range args {
		kind, address, _ := strings.Cut(a, ":")
		all.Go(func() {
			err := reachOne(kind, address)
			mu.Lock()
			defer mu.Unlock()
			try(a, err)
		})
	}
	all.Wait()
}

func reachOne(kind, address string) error {
	if strings.HasPrefix(kind, "tcp") {
		c, err := net.DialTimeout(kind, address, patience)
		if err == nil {
			c.Close()
		}
		return err
	}
	c, err := net.Dial(kind, address)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
	}
	c.SetDeadline(time.Now().Add(patience / 3))
	if _, err := c.Write([]byte("isle")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 64))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("SILENCE")
	}
	return err
}

// tunnel asks the DNS for as many names as it is told, each of which carries
// the token, in questions of several types.
func tunnel(args []string) {
	token := args[0]
	n := 0
	fmt.Sscan(args[1], &n)
	r := net.Resolver{PreferGo: true}
	answers := 0
	for i := range n {
		var b [16]byte
		rand.Read(b[:])
		name := fmt.Sprintf("%s.%s.%d.example.com", hex.EncodeToString(b[:]), token, i)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var got []string
		switch i % 4 {
		case 0:
			got, _ = r.LookupTXT(ctx, name)
		case 1:
			mx, _ := r.LookupMX(ctx, name)
			for range mx {
				got = append(got, "mx")
			}
		case 2:
			if name, err := r.LookupCNAME(ctx, name); err == nil {
				got = append(got, name)
			}
		default:
			got, _ = r.LookupHost(ctx, name)
		}
		cancel()
		answers += len(got)
	}
	say("answers", fmt.Sprint(answers))
	for _, server := range []string{"192.0.2.53:53", "203.0.113.53:53", "198.18.0.1:53", "127.0.0.53:53"} {
		other := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		got, err := other.LookupHost(ctx, token+".example.com")
		cancel()
		if err == nil {
			say("asked "+server, "DONE "+strings.Join(got, " "))
		} else {
			say("asked "+server, "nothing")
		}
	}
}

// abstract tries to reach the unix sockets that others have without a file.
func abstract(args []string) {
	for _, name := range args {
		c, err := net.DialTimeout("unix", "@"+name, patience)
		if err == nil {
			c.Close()
		}
		try("dial @"+name, err)
	}
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		try("read /proc/net/unix", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 7 {
			say("unix socket in sight", f[7])
		}
	}
}

// whisper asks the DNS for a name that is a control sequence.
func whisper([]string) {
	c, err := net.Dial("udp", "198.18.0.1:53")
	if err != nil {
		try("ask", err)
		return
	}
	defer c.Close()
	question := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range []string{"\x1b]0;owned\x07", "\x9b31m", "\r\nrefused", "example"} {
		question = append(append(question, byte(len(label))), label...)
	}
	question = append(question, 0, 0, 1, 0, 1)
	c.SetDeadline(time.Now().Add(patience))
	if _, err = c.Write(question); err == nil {
		_, err = c.Read(make([]byte, 512))
	}
	try("ask", err)
}
