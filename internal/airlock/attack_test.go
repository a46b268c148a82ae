package airlock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attackVariable is set for the process that attacks. It is given the airlock's
// own namespace as file descriptor 3, which no service is.
const attackVariable = "ISLE_TEST_ATTACK"

func TestMain(m *testing.M) {
	if os.Getenv(attackVariable) != "" {
		if err := attack(os.NewFile(3, "airlock")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRootInsideCanNeitherChangeNorLeaveItsNetwork(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	inside(t, ns, func() error { // the child is in the namespace of the thread that starts it
		c := exec.Command("/proc/self/exe")
		pin, err := os.Open(filepath.Join(filepath.Dir(ns), airlockPin))
		if err != nil {
			return err
		}
		defer pin.Close()
		c.ExtraFiles = []*os.File{pin}
		c.Env = append(os.Environ(), attackVariable+"=yes")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 3_000_000, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 3_000_000, Size: 1}},
			Credential:  &syscall.Credential{NoSetGroups: true}}
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	h.door(id, "255.255.255.255:67", "udp", "refused")
	for _, d := range h.Doors(id) {
		if d.State == "open" && d.Count > 0 {
			t.Errorf("a door was used: %+v", d)
		}
	}
}

// attack runs as root of a user namespace of its own, as a service does. It
// returns what it could do and should not.
func attack(ns *os.File) error {
	var found []error
	must := func(what string, err error, want ...error) {
		for _, w := range want {
			if errors.Is(err, w) {
				return
			}
		}
		found = append(found, fmt.Errorf("%s: got %v, want one of %v", what, err, want))
	}
	socket := func(family, kind, protocol int) error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	must("raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW), unix.EPERM)
	must("raw ICMP socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), unix.EPERM)
	must("packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), unix.EPERM)
	must("ping socket", socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP), unix.EACCES)

	must("enter the airlock", unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), unix.EPERM)

	link, err := netlink.LinkByName(sandboxLink)
	if err != nil {
		return err
	}
	must("take the link down", netlink.LinkSetDown(link), unix.EPERM)
	must("add an address", netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(everything)}), unix.EPERM)
	must("add a route", netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(multicast)}), unix.EPERM)
	must("make a link", netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}), unix.EPERM)
	for _, name := range []string{"ipv6/conf/eth0/disable_ipv6", "ipv4/ip_forward", "ipv4/ping_group_range"} {
		f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("0")
			f.Close()
		}
		must("write "+name, err, unix.EPERM, unix.EACCES)
	}

	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(udp)
	must("transparent socket", unix.SetsockoptInt(udp, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.EPERM)
	unix.SetsockoptInt(udp, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	unix.Sendto(udp, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{255, 255, 255, 255}, Port: 67})
	unix.SetsockoptIPMreqn(udp, unix.SOL_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Attrs().Index)})
	unix.Sendto(udp, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{224, 0, 0, 251}, Port: 5353})

	found = append(found, spoof())
	return errors.Join(found...)
}

// spoof asks the airlock's DNS from an address that is not the sandbox's.
func spoof() error {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	}}
	socket, err := c.ListenPacket(context.Background(), "udp4", "203.0.113.5:5353")
	if err != nil {
		return nil // can't even bind
	}
	defer socket.Close()
	question, err := new(dns.Msg).SetQuestion("api.example.com.", dns.TypeA).Pack()
	if err != nil {
		return err
	}
	socket.WriteTo(question, net.UDPAddrFromAddrPort(dnsAddress))
	socket.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, _, err := socket.ReadFrom(make([]byte, 512)); err == nil {
		return errors.New("a made-up source address was answered")
	}
	return nil
}
