package escape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
)

func TestNoSocketLeavesTheProtocolsOfTheAirlock(t *testing.T) {
	both(t, "sockets", 36, map[string]string{"option: bpf": "EINVAL EPERM"}) // a bpf program can't be had
}

func TestTheNetworkCannotBeChangedFromInside(t *testing.T) {
	both(t, "netlink", 15, map[string]string{"links beside lo": "eth0"})
}

// unreachable is what a connection to nowhere ends with, at once.
const unreachable = "ECONNREFUSED ENETUNREACH EHOSTUNREACH EADDRNOTAVAIL EACCES EPERM EPROTONOSUPPORT"

func TestNothingIsReachedButWhatIsGranted(t *testing.T) {
	unharmed(t)
	// Something of the machine listens at every address that it has.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var reached atomic.Int32
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	args := []string{"reach", "tcp:169.254.169.254:80", "tcp:192.0.2.1:443", "tcp:198.51.100.1:22", "tcp:203.0.113.1:80", "tcp:198.18.0.1:2",
		"tcp:198.19.255.254:80", "tcp:0.0.0.0:1", "tcp6:[2001:db8::1]:80", "tcp6:[fe80::1%eth0]:80", "tcp6:[ff02::1%eth0]:80",
		"udp:192.0.2.1:53", "udp:198.51.100.1:123", "udp:203.0.113.1:443", "udp:169.254.169.254:53", "udp6:[2001:db8::1]:53", "udp6:[ff02::fb%eth0]:5353",
		"udp:224.0.0.251:5353", "udp:239.255.255.250:1900", "udp:255.255.255.255:67", fmt.Sprintf("tcp:127.0.0.1:%d", port), fmt.Sprintf("tcp6:[::1]:%d", port)}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() {
			args = append(args, fmt.Sprintf("tcp:%s:%d", ip, port))
		}
	}
	e, err := server.Status("neighbour")
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "tcp:127.0.0.1:8080", fmt.Sprintf("tcp:127.0.0.1:%d", e.Port("web"))) // the neighbour's, inside and published
	want := map[string]string{}
	for _, a := range args[1:] {
		want[a] = unreachable
		if strings.HasPrefix(a, "udp") { // nobody says that nobody listens to a multicast address
			want[a] += " SILENCE"
		}
	}
	for _, service := range []string{"plain", "armed"} {
		refused(t, service, attack(t, service, args...), len(args)-1, want)
	}
	if n := reached.Load(); n > 0 {
		t.Errorf("%d connections reached the machine", n)
	}
	eventually(t, "doors", func() error {
		tried := doors(t, "target")
		for _, want := range []string{"169.254.169.254:80/tcp", "192.0.2.1:443/tcp", "192.0.2.1:53/udp", "255.255.255.255:67/udp"} {
			if tried[want].State != "refused" {
				return fmt.Errorf("%s is not recorded: %v", want, tried)
			}
		}
		return nil
	})
	out, err := server.Isle("audit", "-o", "json")
	if err != nil || !strings.Contains(out, "169.254.169.254:80") {
		t.Errorf("the audit log does not say what was refused: %v", err)
	}
}

type door struct {
	Destination, Protocol, State string
	Count                        int
}

func doors(t *testing.T, environment string) map[string]door {
	t.Helper()
	out, err := server.Isle("doors", environment, "-o", "json")
	var list []door
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]door{}
	for _, d := range list {
		all[d.Destination+"/"+d.Protocol] = d
	}
	return all
}

func TestNothingIsTunnelledThroughDNS(t *testing.T) {
	unharmed(t)
	token := strings.ToLower(string(isle.NewID()))
	leaked := overhear(t, token)
	got := attack(t, "plain", "tunnel", token, "400")
	if got["answers"] != "0" {
		t.Errorf("%s answers came back", got["answers"])
	}
	for what, how := range got {
		if strings.HasPrefix(what, "asked ") && how != "nothing" {
			t.Errorf("%s: %s", what, how)
		}
	}
	if n := leaked(); n > 0 {
		t.Errorf("%d packets of the machine carried what was asked", n)
	}
	tried, names, sum := doors(t, "target"), 0, 0
	for _, d := range tried {
		if d.Protocol == "dns" {
			names++
			sum += d.Count
		}
	}
	if names > 200 || sum < 400 {
		t.Errorf("%d names are kept of %d questions: want all counted and few kept", names, sum)
	}
	// What is granted still resolves, to an address of the airlock.
	out, err := server.Isle("exec", "target", "--", "getent", "hosts", "granted.example.com")
	if err != nil || !strings.HasPrefix(out, "198.18.") {
		t.Errorf("the granted name: %q, %v", out, err)
	}
}

// overhear counts packets with the token on all links of the machine, until
// what it returns is called.
func overhear(t *testing.T, token string) func() int {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<20)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() int {
		found := 0
		for buffer := make([]byte, 1<<16); ; {
			n, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
			if err != nil {
				return found
			}
			if bytes.Contains(bytes.ToLower(buffer[:n]), []byte(token)) {
				found++
			}
		}
	}
}

func TestAbstractSocketsOfOthersAreNotSeen(t *testing.T) {
	unharmed(t)
	l, err := net.Listen("unix", "@isle-escape-host")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, service := range []string{"plain", "armed"} {
		got := attack(t, service, "abstract", "isle-escape-host", "isle-neighbour", "isle-plain", "/org/freedesktop/systemd1/notify")
		for name, want := range map[string]string{"isle-escape-host": "ECONNREFUSED", "isle-neighbour": "ECONNREFUSED",
			"/org/freedesktop/systemd1/notify": "ECONNREFUSED", "isle-plain": "DONE"} { // services of one environment share a network
			if how := got["dial @"+name]; how != want {
				t.Errorf("%s: %s: %s, want %s", service, name, how, want)
			}
		}
		if s := got["unix socket in sight"]; s != "@isle-plain" && s != "@isle-armed" && !(sandboxed && s == "/run/isle/workload.sock") {
			t.Errorf("%s: it sees %s", service, s)
		}
	}
}

func TestNobodyIsTakenForAnotherServicesInit(t *testing.T) {
	unharmed(t)
	e, err := server.Status("target")
	if err != nil {
		t.Fatal(err)
	}
	other, err := server.Status("neighbour")
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"plain", "armed"} {
		got := attack(t, service, "pose", e.Launch("plain"), e.Launch("armed"), other.Launch("web"), string(isle.NewID()))
		if len(got) < 20 {
			t.Errorf("%s: only %d attempts: %v", service, len(got), got)
		}
		for what, how := range got {
			if how != "REFUSED" && how != "EOF" && how != "ECONNRESET" {
				t.Errorf("%s: %s: %s", service, what, how)
			}
		}
	}
	after, err := server.Status("target")
	if err != nil || fmt.Sprint(after.Services) != fmt.Sprint(e.Services) {
		t.Errorf("the services are %v and were %v (%v)", after.Services, e.Services, err)
	}
	eventually(t, "audit", func() error {
		out, err := server.Isle("audit", "search", "--since", "1h", "-o", "json")
		if err != nil || !strings.Contains(out, "no such launch is expected") && !strings.Contains(out, "the secret is wrong") {
			return fmt.Errorf("no entry says that somebody posed as an isle-init (%v)", err)
		}
		return nil
	})
}

func TestAFloodOfConnectionsHurtsNobodyElse(t *testing.T) {
	unharmed(t)
	for _, address := range []string{"198.18.0.1:1", "198.18.0.1:53", "192.0.2.1:443"} {
		got := attack(t, "plain", "flood", address, "2000")
		if address == "192.0.2.1:443" && got["connections opened"] != "0" {
			t.Errorf("%s: %v", address, got)
		}
	}
	if n := len(doors(t, "target")); n > 512 {
		t.Errorf("%d doors are kept", n)
	}
	if out, err := server.Isle("exec", "target", "--", "echo", "reached"); err != nil || out != "reached\n" {
		t.Errorf("the environment itself can't be entered any more: %v", err)
	}
}
