package policy

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle/internal/problem"
)

// The words of connections and approvals.
var (
	kindsOfConnection = []string{"postgres", "http", "tcp"}
	waysToShow        = []string{"full", "partial", "hash", "null", "type"}
)

func (r *reader) readConnection(name string, n *yaml.Node) Connection {
	c := Connection{Name: name, At: r.at(n)}
	r.mapping(n, "a connection",
		key{name: "kind", required: true, read: into(r, &c.Kind, "a kind", oneOf("kind of connection", kindsOfConnection...))},
		key{name: "address", read: into(r, &c.Address, "an address", func(s string) (string, error) {
			if !validDestination(s) {
				return "", fmt.Errorf("%q is no address; want host:port", problem.Clip(s))
			}
			return s, nil
		})},
		key{name: "environment", read: into(r, &c.Environment, "an environment", nameOf("environment"))},
		key{name: "service", read: into(r, &c.Service, "a service", nameOf("service"))},
		key{name: "port", read: into(r, &c.Port, "a port", number(1, 65535))},
		key{name: "database", read: into(r, &c.Database, "a database", plain)},
		key{name: "stage", required: true, read: func(n *yaml.Node) { r.stage(n, func(s string) { c.Stage = s }) }},
		key{name: "tls", read: func(n *yaml.Node) { c.TLS = r.readTLS(n) }},
		key{name: "credential", read: func(n *yaml.Node) { c.Credential = r.readCredential(n) }},
		key{name: "read_only", read: into(r, &c.ReadOnly, "true or false", strconv.ParseBool)},
		key{name: "statement_timeout", read: into(r, &c.StatementTimeout, "a duration", parseSpan)},
		key{name: "rules", read: func(n *yaml.Node) {
			r.list(n, "a list of rules", func(n *yaml.Node) { c.Rules = append(c.Rules, r.readRule(n)) })
		}},
		key{name: "functions", read: r.words(&c.Functions, "a function", plain)},
		key{name: "mask", read: func(n *yaml.Node) {
			r.list(n, "a list of masked columns", func(n *yaml.Node) { c.Mask = append(c.Mask, r.readMask(n)) })
		}},
		key{name: "detect", read: r.words(&c.Detect, "what to look for", oneOf("detector", "card", "iban", "token"))},
		key{name: "results", read: into(r, &c.Results, "true or false", strconv.ParseBool)},
		key{name: "limits", read: func(n *yaml.Node) { c.Limits = r.readLimits(n) }},
	)
	r.checkConnection(n, &c)
	return c
}

// checkConnection says what does not go together.
func (r *reader) checkConnection(n *yaml.Node, c *Connection) {
	say := func(wrong bool, format string, args ...any) {
		if wrong {
			r.Problem(n, format, args...)
		}
	}
	kind := c.Credential.Kind
	if kind == "" && c.Credential.Secret != "" {
		kind = map[string]string{"postgres": "password", "http": "bearer"}[c.Kind]
		c.Credential.Kind = kind
	}
	say((c.Address == "") == (c.Environment == ""), "want either address (host:port) or environment and service")
	say((c.Environment == "") != (c.Service == ""), "environment and service go together")
	say(c.Environment == "*" || c.Service == "*", "an environment and a service are named")
	say(c.Port != 0 && c.Environment == "", "port is that of an environment's service; an address has its own")
	say(c.Kind == "tcp" && c.Environment != "" && c.Port == 0, "a connection of kind tcp to a service needs its port")
	say(c.Kind == "tcp" && c.Credential.Secret != "", "a connection of kind tcp is passed on as it is: it can't have a credential")
	say(c.Kind == "tcp" && (len(c.Rules)+len(c.Mask)+len(c.Detect) > 0 || c.ReadOnly || c.Results), "nothing is read of a connection of kind tcp: it has no rules, masks or results, and can't be read-only")
	say(c.Kind != "postgres" && (c.Database != "" || len(c.Functions) > 0), "database and functions are of kind postgres")
	say(c.Kind == "tcp" && c.StatementTimeout != 0, "statement_timeout is of kinds postgres and http")
	say(c.Kind != "http" && c.Limits != (HTTPLimits{}), "limits are of kind http")
	say(c.Kind == "postgres" && kind != "" && kind != "password" && kind != "certificate", "a credential of a postgres connection is a password or a certificate")
	say(c.Kind == "http" && kind == "password", "a credential of an http connection is one of header, bearer, basic, oauth, certificate")
	if c.Kind == "postgres" && kind != "" && c.Credential.User == "" {
		c.Credential.User = c.Name
	}
	say((kind == "basic") && c.Credential.User == "", "a basic credential needs a user")
	say((kind == "header") != (c.Credential.Header != ""), "header names the header of a credential of kind header")
	say((kind == "oauth") != (c.Credential.TokenURL != ""), "token_url, client_id and scopes are of a credential of kind oauth, which needs them")
	say(kind == "certificate" && c.TLS.Off, "a certificate can't be shown with tls: off")
	for _, m := range c.Mask {
		json := strings.HasPrefix(m.Column, "$")
		if json && c.Kind == "http" {
			_, err := ParseJSONPath(m.Column)
			say(err != nil, "mask %s: %v; write a path as $.customer.email, $.customers[*].email or $..email", problem.Clip(m.Column), err)
		}
		say(json != (c.Kind == "http"), "mask %s: want $.path.to.field for http, table.column for postgres", problem.Clip(m.Column))
		say(!json && strings.Count(m.Column, ".") == 0, "mask %s: want table.column", problem.Clip(m.Column))
	}
}

func (r *reader) readTLS(n *yaml.Node) (t TLS) {
	if n.Kind == yaml.ScalarNode {
		switch n.Value {
		case "off", "false":
			t.Off = true
		case "on", "true", "verify":
		default:
			r.Problem(n, "is %q; want off, or a mapping with ca and name. Certificates are verified unless it is off", problem.Clip(n.Value))
		}
		return t
	}
	r.mapping(n, "tls",
		key{name: "ca", read: func(n *yaml.Node) {
			rest, some := []byte(n.Value), false
			for n.Kind == yaml.ScalarNode && len(n.Value) < 64<<10 {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil {
					break
				}
				if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
					some = false
					break
				}
				some = true
			}
			if !some || strings.TrimSpace(string(rest)) != "" {
				r.Problem(n, "is no certificates; want PEM, each from -----BEGIN CERTIFICATE----- on, at most 64 KiB")
				return
			}
			t.CA = n.Value
		}},
		key{name: "name", read: into(r, &t.Name, "a name", plain)})
	return t
}

func (r *reader) readCredential(n *yaml.Node) (c Credential) {
	r.mapping(n, "a credential",
		key{name: "secret", required: true, read: into(r, &c.Secret, "the name of a secret", nameOf("secret"))},
		key{name: "kind", read: into(r, &c.Kind, "a kind", oneOf("kind of credential", "password", "certificate", "header", "bearer", "basic", "oauth"))},
		key{name: "user", read: into(r, &c.User, "a user", plain)},
		key{name: "header", read: into(r, &c.Header, "the name of a header", func(s string) (string, error) {
			if !headerName().MatchString(s) || slices.Contains(ownHeaders, strings.ToLower(s)) {
				return "", fmt.Errorf("%q is no header that a credential can be in", problem.Clip(s))
			}
			return s, nil
		})},
		key{name: "token_url", read: into(r, &c.TokenURL, "an address", webAddress)},
		key{name: "client_id", read: into(r, &c.ClientID, "a client", plain)},
		key{name: "scopes", read: r.words(&c.Scopes, "a scope", plain)})
	if c.Kind == "oauth" && c.ClientID == "" {
		r.Problem(n, "a credential of kind oauth needs a client_id")
	}
	return c
}

var headerName = pattern(`^[A-Za-z0-9!#$%&'*+.^_|~-]{1,100}$`)

// ownHeaders say where a request goes and where it ends.
var ownHeaders = []string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "proxy-connection"}

// webAddress is where something of HTTP is: https, or http on this machine.
func webAddress(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("%q is no address; want https://host/path, without user or fragment", problem.Clip(s))
	}
	if a, aerr := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (aerr != nil || !a.IsLoopback()) {
		return "", fmt.Errorf("%q: what is said there is secret; want https", problem.Clip(s))
	}
	return s, nil
}

func (r *reader) readRule(n *yaml.Node) Rule {
	rule := Rule{At: r.at(n)}
	r.mapping(n, "a rule", append(r.matchKeys(&rule.Match),
		key{name: "effect", required: true, read: into(r, &rule.Effect, "an effect", oneOf("effect", "deny", "allow"))},
		key{name: "reason", read: into(r, &rule.Reason, "a reason", plain)})...)
	if rule.Match.empty() {
		r.Problem(n, "says nothing of what it is about: name statements, tables, columns, functions, where, methods, paths, hosts or headers")
	}
	return rule
}

// statements are the words for what statements do.
var statements = []string{"select", "insert", "update", "delete", "merge", "truncate", "copy-in", "copy-out", "ddl", "set", "show", "transaction",
	"explain", "call", "do", "listen", "notify", "lock", "prepare", "execute", "cursor", "maintenance", "role", "large-object", "function-call", "other"}

func (r *reader) matchKeys(m *Match) []key {
	return []key{
		{name: "statements", read: r.words(&m.Statements, "a statement", oneOf("statement", statements...))},
		{name: "tables", read: r.words(&m.Tables, "a table", plain)},
		{name: "columns", read: r.words(&m.Columns, "a column", plain)},
		{name: "functions", read: r.words(&m.Functions, "a function", plain)},
		{name: "where", read: func(n *yaml.Node) {
			var v bool
			into(r, &v, "true or false", strconv.ParseBool)(n)
			m.Where = &v
		}},
		{name: "methods", read: r.words(&m.Methods, "a method", func(s string) (string, error) {
			if !headerName().MatchString(s) {
				return "", fmt.Errorf("%q is no method", problem.Clip(s))
			}
			return strings.ToUpper(s), nil
		})},
		{name: "paths", read: r.words(&m.Paths, "a path", func(s string) (string, error) {
			if !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "*") {
				return "", fmt.Errorf("%q is no path; want /orders/*", problem.Clip(s))
			}
			return s, nil
		})},
		{name: "hosts", read: r.words(&m.Hosts, "a host", plain)},
		{name: "headers", read: func(n *yaml.Node) {
			m.Headers = map[string]string{}
			r.entries(n, "headers", func(name string, k, v *yaml.Node) {
				var value string
				into(r, &value, "a value", plain)(v)
				if !headerName().MatchString(name) {
					r.Problem(k, "%q is no header", problem.Clip(name))
				}
				m.Headers[strings.ToLower(name)] = value
			})
		}},
	}
}

func (r *reader) readMask(n *yaml.Node) Mask {
	m := Mask{At: r.at(n)}
	r.mapping(n, "a masked column",
		key{name: "column", required: true, read: into(r, &m.Column, "a column", plain)},
		key{name: "show", required: true, read: into(r, &m.Show, "how it is shown", oneOf("way to show", waysToShow...))},
		key{name: "allow", read: r.words(&m.Allow, "a use", oneOf("use", "filter", "order", "group", "aggregate"))})
	return m
}

func (r *reader) readLimits(n *yaml.Node) (l HTTPLimits) {
	r.mapping(n, "limits",
		key{name: "per_second", read: into(r, &l.PerSecond, "a number", func(s string) (float64, error) {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || !(v > 0 && v <= 1e6) {
				return 0, fmt.Errorf("%q: want a number of requests, up to 1000000", problem.Clip(s))
			}
			return v, nil
		})},
		key{name: "burst", read: into(r, &l.Burst, "a number", number(1, 1e6))},
		key{name: "body", read: into(r, &l.Body, "a size", size)},
		key{name: "response", read: into(r, &l.Response, "a size", size)})
	return l
}

// size reads 512, 64KiB, 10MiB or 2GiB as bytes.
func size(s string) (int64, error) {
	text, factor := s, int64(1)
	for suffix, f := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if short, ok := strings.CutSuffix(s, suffix); ok {
			text, factor = short, f
		}
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 1 || v > 1<<40/factor {
		return 0, fmt.Errorf("%q is no size; want 64KiB, 10MiB or 2GiB", problem.Clip(s))
	}
	return v * factor, nil
}

func number(low, high int) func(string) (int, error) {
	return func(s string) (int, error) {
		v, err := strconv.Atoi(s)
		if err != nil || v < low || v > high {
			return 0, fmt.Errorf("%q: want a number from %d to %d", problem.Clip(s), low, high)
		}
		return v, nil
	}
}

// words reads a list of scalars.
func (r *reader) words(to *[]string, what string, parse func(string) (string, error)) func(n *yaml.Node) {
	return func(n *yaml.Node) {
		r.list(n, "a list", func(n *yaml.Node) {
			var s string
			before := len(r.Problems())
			if into(r, &s, what, parse)(n); len(r.Problems()) == before {
				*to = append(*to, s)
			}
		})
	}
}

func (r *reader) readApproval(n *yaml.Node) Approval {
	a := Approval{At: r.at(n), Timeout: 15 * time.Minute, ValidFor: 10 * time.Minute, Uses: 1, Quorum: 1}
	wild := "" // what waits is not what is granted: a wildcard is no danger here
	hold := ""
	r.mapping(n, "an approval",
		key{name: "actions", required: true, read: func(n *yaml.Node) { a.Actions, _ = r.readActions(n, &wild) }},
		key{name: "resources", required: true, read: func(n *yaml.Node) { a.Resources = r.readPatterns(n, &wild) }},
		key{name: "when", read: func(n *yaml.Node) { r.mapping(n, "when", r.matchKeys(&a.When)...) }},
		key{name: "approvers", required: true, read: func(n *yaml.Node) { a.Approvers = r.approvers(n, "role", "human", "group") }},
		key{name: "timeout", read: into(r, &a.Timeout, "a duration", parseSpan)},
		key{name: "valid_for", read: into(r, &a.ValidFor, "a duration", parseSpan)},
		key{name: "uses", read: into(r, &a.Uses, "a number", number(1, 1000))},
		key{name: "quorum", read: into(r, &a.Quorum, "a number", number(1, 20))},
		key{name: "separate", read: into(r, &a.Separate, "true or false", strconv.ParseBool)},
		key{name: "hold", read: into(r, &hold, "how it is held", oneOf("way to hold", "wait", "error"))},
		key{name: "notify", read: r.words(&a.Notify, "a webhook", nameOf("webhook"))})
	a.NoWait = hold == "error"
	return a
}

func (r *reader) approvers(n *yaml.Node, kinds ...string) (out []string) {
	r.list(n, "a list of approvers", func(n *yaml.Node) {
		s, ok := r.text(n, "an approver")
		kind, name, _ := strings.Cut(s, ":")
		if ok && !slices.Contains(kinds, kind) {
			r.unknown(n, "kind of approver", kind, kinds)
		} else if ok && !subjectName().MatchString(name) {
			r.Problem(n, "%q names nobody; want %s:NAME", problem.Clip(s), kind)
		} else if ok {
			out = append(out, s)
		}
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.Problem(n, "is empty: nobody could approve")
	}
	return out
}

func (r *reader) readWebhook(name string, n *yaml.Node) Webhook {
	w := Webhook{Name: name, Format: "isle", At: r.at(n)}
	r.mapping(n, "a webhook",
		key{name: "url", required: true, read: into(r, &w.URL, "an address", webAddress)},
		key{name: "secret", required: true, read: into(r, &w.Secret, "the name of a secret", nameOf("secret"))},
		key{name: "format", read: into(r, &w.Format, "a format", oneOf("format", "isle", "slack"))},
		key{name: "approvers", read: func(n *yaml.Node) { w.Approvers = r.approvers(n, "human") }},
		key{name: "addresses", read: r.words(&w.Addresses, "a network", func(s string) (string, error) {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return "", errors.New("want a network, as 10.1.0.0/16")
			}
			return p.Masked().String(), nil
		})})
	return w
}
