package airlock

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/bpf"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

// packet builds an IPv4 packet to destination.
func packet(protocol byte, destination netip.AddrPort, rest ...byte) []byte {
	p := make([]byte, 40)
	p[0], p[9] = 0x45, protocol
	a := destination.Addr().As4()
	copy(p[16:], a[:])
	p[22], p[23] = byte(destination.Port()>>8), byte(destination.Port())
	copy(p[33:], rest) // TCP flags first
	return p
}

func TestTheFilterKeepsWhatHasNoListener(t *testing.T) {
	api := netip.MustParseAddrPort("198.18.7.7:443")
	vm, err := bpf.NewVM(filter([]netip.AddrPort{homeAddress, dnsAddress, api}))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := netip.MustParseAddrPort("203.0.113.9:443")
	otherPort := netip.AddrPortFrom(api.Addr(), 80)
	unreachable := packet(1, elsewhere)
	unreachable[20] = 3
	fragment := packet(17, elsewhere)
	fragment[7] = 1
	for _, c := range []struct {
		what string
		p    []byte
		keep bool
	}{
		{"SYN to a grant", packet(6, api, 0x02), false},
		{"SYN to home", packet(6, homeAddress, 0x02), false},
		{"SYN to DNS", packet(6, dnsAddress, 0x02), false},
		{"SYN with ECN to a grant", packet(6, api, 0xc2), false},
		{"SYN elsewhere", packet(6, elsewhere, 0x02), true},
		{"SYN with ECN elsewhere", packet(6, elsewhere, 0xc2), true},
		{"SYN to another port of a grant", packet(6, otherPort, 0x02), true},
		{"ACK elsewhere", packet(6, elsewhere, 0x10), false},
		{"DNS question", packet(17, dnsAddress), false},
		{"datagram elsewhere", packet(17, elsewhere), true},
		{"datagram to a grant", packet(17, api), true},
		{"later fragment", fragment, false},
		{"ICMP echo", packet(1, elsewhere), true},
		{"ICMP unreachable", unreachable, false},
		{"SCTP", packet(132, elsewhere), true},
	} {
		n, err := vm.Run(c.p)
		if err != nil {
			t.Fatal(err)
		}
		if (n > 0) != c.keep {
			t.Errorf("%s: kept %d bytes, want kept: %v", c.what, n, c.keep)
		}
	}
}

func TestTheFilterOfAsManyGrantsAsThereMayBeFits(t *testing.T) {
	var all []netip.AddrPort
	for i := range MaxGrants + 2 {
		all = append(all, netip.AddrPortFrom(homeAddress.Addr(), uint16(i)))
	}
	raw, err := bpf.Assemble(filter(all))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 {
		t.Errorf("%d instructions, the kernel takes 4096", len(raw))
	}
}

func FuzzParseAttempt(f *testing.F) {
	f.Add(packet(6, homeAddress, 2))
	f.Add(packet(132, homeAddress))
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		at, ok := parseAttempt(b)
		if ok && (!at.destination.IsValid() || at.protocol == "" || len(at.protocol) > 6) {
			t.Errorf("%x: %+v", b, at)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"api.example.com.", "a.b.c.", ".", `\000\255.x.`} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	granted := map[string]netip.Addr{"api.example.com": netip.MustParseAddr("198.18.1.0")}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := answer(b, (&plan{names: granted}).find, func(string) {})
		if len(r) > len(b)+512 {
			t.Errorf("%d bytes are answered with %d", len(b), len(r))
		}
		if r != nil {
			var m dns.Msg
			if err := m.Unpack(r); err != nil || !m.Response {
				t.Errorf("the answer can't be read: %v", err)
			}
		}
	})
}

func TestANameKeepsItsAddress(t *testing.T) {
	one, err := newPlan(environment.Grants{Egress: []spec.Egress{{Host: "api.example.com", Port: 443}}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := newPlan(environment.Grants{Egress: []spec.Egress{{Host: "z.example", Port: 1}, {Host: "API.example.com.", Port: 80}, {Host: "a.example", Port: 1}, {Host: "api.example.com", Port: 443}}})
	if err != nil {
		t.Fatal(err)
	}
	a := one.names["api.example.com"]
	if !a.IsValid() || other.names["api.example.com"] != a {
		t.Errorf("%v and %v", a, other.names["api.example.com"])
	}
	if a.Less(netip.MustParseAddr("198.18.1.0")) || netip.MustParseAddr("198.18.255.254").Less(a) {
		t.Errorf("%v is outside of the range", a)
	}
}

func TestWhatCanNotBeGrantedIsSaid(t *testing.T) {
	for _, e := range []spec.Egress{
		{Host: "", Port: 1}, {Host: "a b", Port: 1}, {Host: "a", Port: 0}, {Host: "a", Port: 65536}, {Host: "localhost", Port: 1},
		{Host: "127.0.0.1", Port: 1}, {Host: "198.18.0.1", Port: 1}, {Host: "224.0.0.1", Port: 1}, {Host: "0.0.0.0", Port: 1},
		{Host: "2001:db8::1", Port: 1}, {Host: "a", Port: 1, Addresses: []string{"x"}}, {Host: strings.Repeat("a", 64), Port: 1},
	} {
		if _, err := newPlan(environment.Grants{Egress: []spec.Egress{e}}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%+v: %v, want an Invalid error", e, err)
		}
	}
}

func TestRefusalsAreToldAtOnceAndThenTogether(t *testing.T) {
	now := time.Unix(1000, 0)
	var told []Refusal
	d := &doors{now: func() time.Time { return now }, report: func(r Refusal) { told = append(told, r) }, every: time.Hour, tried: make(map[door]*tally)}
	for range 5 {
		d.refused("203.0.113.9:80", "tcp", notGranted, 1)
		now = now.Add(time.Second)
	}
	if len(told) != 1 || told[0].Count != 1 {
		t.Fatalf("told %+v, want the first one", told)
	}
	d.stop()
	if len(told) != 2 || told[1].Count != 4 || told[1].First != time.Unix(1001, 0) || told[1].Last != time.Unix(1004, 0) {
		t.Errorf("told %+v, want the other four together", told)
	}
}

func TestAFloodThatNeverEndsIsToldOfEverMoreSeldom(t *testing.T) {
	now := time.Unix(1000, 0)
	var told []Refusal
	d := &doors{now: func() time.Time { return now }, report: func(r Refusal) { told = append(told, r) }, every: 10 * time.Second, tried: make(map[door]*tally)}
	const day = 24 * 60 * 60
	for range day {
		d.refused("203.0.113.9:80", "tcp", notGranted, 1)
		now = now.Add(time.Second)
	}
	if len(told) > 40 { // 10 s, 20 s, 40 s, …, and then once an hour
		t.Errorf("told %d times in a day", len(told))
	}
	// After a rest it is told at once again.
	now = now.Add(3 * time.Hour)
	before := len(told)
	d.refused("203.0.113.9:80", "tcp", notGranted, 1)
	now = now.Add(11 * time.Second)
	d.refused("203.0.113.9:80", "tcp", notGranted, 1)
	if len(told) != before+2 {
		t.Errorf("after a rest told %d times, want twice", len(told)-before)
	}
	d.stop()
	sum := 0
	for _, r := range told {
		sum += r.Count
	}
	if sum != day+2 {
		t.Errorf("told of %d attempts, want %d", sum, day+2)
	}
}
