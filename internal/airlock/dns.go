package airlock

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	dnsTTL         = 60   // seconds
	dnsRate        = 2000 // questions a second over UDP that are answered
	dnsBurst       = 4000
	dnsStreamRate  = 200 // and over one TCP connection
	dnsConnections = 16
	dnsIdle        = 10 * time.Second // of a TCP connection
	dnsMessage     = 1232             // bytes of a question, the common limit of EDNS (RFC 6891) over UDP
)

// answer answers one DNS message with what the environment may know: the
// addresses of granted names, and localhost. Everything else does not exist,
// said at once so that clients don't search on, and asked is told of it.
// Nothing is ever forwarded, so no question leaves. It returns nil for what is
// not a question.
func answer(message []byte, find func(name string) (netip.Addr, bool), asked func(name string)) []byte {
	var q dns.Msg
	if len(message) > dnsMessage || q.Unpack(message) != nil || q.Response {
		return nil
	}
	var r dns.Msg
	r.SetReply(&q)
	r.RecursionAvailable = true
	r.Authoritative = false
	if q.IsEdns0() != nil {
		r.SetEdns0(dnsMessage, false)
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
		r.Question = nil
	case len(q.Question) != 1:
		r.Rcode = dns.RcodeFormatError
		r.Question = nil
	default:
		resolve(&r, q.Question[0], find, asked)
	}
	packed, err := r.Pack()
	if err != nil {
		return nil
	}
	return packed
}

func resolve(r *dns.Msg, q dns.Question, find func(name string) (netip.Addr, bool), asked func(name string)) {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: dnsTTL}
	address, known := find(name)
	if localName(name) {
		address, known = netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
		if q.Qtype == dns.TypeAAAA {
			r.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: net.IPv6loopback}}
			return
		}
	}
	switch {
	case q.Qclass != dns.ClassINET || !known:
		r.Rcode = dns.RcodeNameError
		asked(name)
	case q.Qtype == dns.TypeA:
		r.Answer = []dns.RR{&dns.A{Hdr: header, A: address.AsSlice()}}
	}
}

// Nameserver is the address of the DNS server in every airlock, for
// /etc/resolv.conf.
const Nameserver = "198.18.0.1"

// answer records questions for unknown names; the wire format bounds them to
// some 1,000 printable bytes, which are cut. A message that the parser can't
// bear is dropped, for what is inside must not end the server.
func (a *airlock) answer(message []byte) (reply []byte) {
	defer func() {
		if r := recover(); r != nil {
			a.config.Log.Error("airlock: a DNS message broke the parser", "instance", a.instance, "panic", r)
			reply = nil
		}
	}()
	return answer(message, a.current().find, func(name string) {
		if len(name) > 253 {
			name = name[:253] + "…"
		}
		if name == "" {
			name = "."
		}
		a.refused("dns:"+name, protocolDNS, notGranted, 1)
	})
}

// serveDatagrams answers DNS over UDP until the socket is closed: one question
// after the other, at a bounded rate.
func (a *airlock) serveDatagrams(socket *net.UDPConn) {
	pace := newPace(dnsRate, dnsBurst)
	buffer := make([]byte, dnsMessage+1)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if a.ctx.Err() != nil {
				return
			}
			a.rest(err)
			continue
		}
		if reply := a.answer(buffer[:n]); reply != nil {
			socket.WriteToUDPAddrPort(reply, from)
		}
		pace.wait()
	}
}

// serveStream answers DNS over one TCP connection (RFC 7766).
func (a *airlock) serveStream(c *connection) {
	defer c.Close()
	pace := newPace(dnsStreamRate, dnsStreamRate)
	buffer := make([]byte, 2+dnsMessage)
	for {
		c.SetDeadline(time.Now().Add(dnsIdle))
		if _, err := io.ReadFull(c, buffer[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buffer))
		if n > dnsMessage {
			return
		}
		if _, err := io.ReadFull(c, buffer[2:2+n]); err != nil {
			return
		}
		reply := a.answer(buffer[2 : 2+n])
		if reply == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
		pace.wait()
	}
}
