package httpdoor

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// connectionOnly are fields that are about one connection, and so go no further
// (RFC 9110, section 7.6.1).
func connectionOnly() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Http2-Settings"}
}

// stripConnection takes out what is about the connection, and what the
// Connection field names.
func stripConnection(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.Trim(name, " \t")); name != "" && !framing(name) {
				delete(h, name)
			}
		}
	}
	for _, name := range connectionOnly() {
		delete(h, name)
	}
}

// framing reports whether a field says where a message ends: it is not taken out
// because a Connection field names it.
func framing(name string) bool { return name == "Content-Length" || name == "Transfer-Encoding" }

// claims reports whether a field says where a request came from or what it
// really asks for, which only a proxy in front may say to whoever believes it.
func claims(name string) bool {
	name = variable(name)
	if strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Original-") {
		return true
	}
	switch name {
	case "Forwarded", "X-Real-Ip", "X-Rewrite-Url", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip":
		return true
	}
	return false
}

// overrides reports whether a field says another method than the request's.
func overrides(name string) bool {
	switch variable(name) {
	case "X-Http-Method-Override", "X-Http-Method", "X-Method-Override":
		return true
	}
	return false
}

// variable is a field's name in its canonical form, as servers see it that make
// variables of fields (CGI): dashes and underscores are the same to them.
func variable(name string) string {
	if strings.IndexByte(name, '_') < 0 {
		return name
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// alike reports whether servers may take both names for the same.
func alike(a, b string) bool { return len(a) == len(b) && variable(a) == variable(b) }

// outgoing is the header of the request to the real thing: what the client sent,
// without what is about its connection, claims something, or stands where the
// credential goes. Of egress, where the client speaks for itself (own), its
// claims are left.
func outgoing(in http.Header, credential string, own bool) http.Header {
	out := make(http.Header, len(in)+2)
	for name, values := range in {
		if claims(name) && !own || credential != "" && alike(name, credential) {
			continue
		}
		out[name] = values
	}
	stripConnection(out)
	if listed(in, "Te", "trailers") {
		out["Te"] = []string{"trailers"} // gRPC asks for it
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = []string{""} // none, rather than net/http's
	}
	return out
}

// wantsWebSocket reports whether a request asks to go on as WebSocket (RFC 6455).
// Other upgrades, to HTTP/2 among them, are not followed, which is how a server
// declines them.
func wantsWebSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method == http.MethodGet && listed(r.Header, "Connection", "upgrade") &&
		len(r.Header["Upgrade"]) == 1 && strings.EqualFold(r.Header["Upgrade"][0], "websocket")
}

// incoming is the header of the response to the client. Where it leads back to
// the real thing it leads to the connection's name instead.
func (s *serving) incoming(in http.Header, out http.Header) {
	for name, values := range in {
		out[name] = values
	}
	stripConnection(out)
	// Another way to the same service would lead past the gateway.
	delete(out, "Alt-Svc")
	if s.inside == "" {
		return
	}
	delete(out, "Strict-Transport-Security")
	for _, name := range []string{"Location", "Content-Location", "Refresh"} {
		if values := out[name]; len(values) > 0 {
			out[name] = []string{s.back(values[0])}
		}
	}
	if cookies := out["Set-Cookie"]; len(cookies) > 0 {
		out["Set-Cookie"] = slices.Clone(cookies)
		for i, c := range cookies {
			out["Set-Cookie"][i] = s.cookie(c)
		}
	}
}

// back makes a URL of the real thing one of the connection.
func (s *serving) back(location string) string {
	before, target := "", location
	if i := strings.Index(strings.ToLower(location), "url="); i >= 0 { // of Refresh
		before, target = location[:i+4], location[i+4:]
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || !s.same(u) {
		return location
	}
	u.Scheme, u.Host, u.User = "http", s.inside, nil
	return before + u.String()
}

// same reports whether a URL leads to the real thing.
func (s *serving) same(u *url.URL) bool {
	if u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		return false
	}
	if strings.EqualFold(u.Host, s.host) {
		return true
	}
	return strings.EqualFold(u.Hostname(), (&url.URL{Host: s.host}).Hostname()) && u.Port() == ""
}

// cookie makes a cookie of the real thing one that a client keeps for the
// connection: not for another domain, nor for TLS only, which is not spoken
// inside.
func (s *serving) cookie(c string) string {
	parts := strings.Split(c, ";")
	kept := parts[:1]
	for _, p := range parts[1:] {
		name, _, _ := strings.Cut(p, "=")
		if name = strings.TrimSpace(name); !strings.EqualFold(name, "domain") && !strings.EqualFold(name, "secure") {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ";")
}
