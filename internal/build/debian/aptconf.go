package debian

import (
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// An aptConfig is the part of apt.conf(5) that concerns us: values by their
// full name in lower case, "acquire::http::proxy".
type aptConfig map[string]string

// readAptConfig reads apt.conf and apt.conf.d under root. What cannot be read
// or understood is passed over, as the machine's apt is not ours to mend.
func readAptConfig(root string) aptConfig {
	c := aptConfig{}
	files, _ := filepath.Glob(filepath.Join(root, "etc/apt/apt.conf.d/*"))
	sort.Strings(files)
	for _, f := range append(files, filepath.Join(root, "etc/apt/apt.conf")) {
		if ext := filepath.Ext(f); ext != "" && ext != ".conf" {
			continue // as apt does: .disabled, .dpkg-dist and the like
		}
		if b, err := os.ReadFile(f); err == nil && len(b) < 1<<20 {
			parseAptConfig(string(b), c)
		}
	}
	return c
}

// parseAptConfig adds the values of one file: `A::B "v";` and `A { B "v"; };`,
// with //, # and /* */ comments. Directives (#include, #clear) are ignored.
func parseAptConfig(s string, into aptConfig) {
	var scopes []string
	var words []string
	for len(s) > 0 && len(scopes) < 64 {
		var word string
		switch {
		case strings.HasPrefix(s, "//") || s[0] == '#':
			if _, s, _ = strings.Cut(s, "\n"); s == "" {
				return
			}
			continue
		case strings.HasPrefix(s, "/*"):
			_, s, _ = strings.Cut(s, "*/")
			continue
		case strings.ContainsRune(" \t\r\n", rune(s[0])):
			s = s[1:]
			continue
		case s[0] == '"':
			word, s, _ = strings.Cut(s[1:], `"`)
			words = append(words, word)
			continue
		case s[0] == '{':
			name := ""
			if len(words) > 0 {
				name = words[0]
			}
			scopes, words, s = append(scopes, name), nil, s[1:]
			continue
		case s[0] == '}' || s[0] == ';':
			if len(words) >= 2 {
				into[strings.ToLower(strings.Join(append(append([]string{}, scopes...), words[0]), "::"))] = words[1]
			}
			if s[0] == '}' && len(scopes) > 0 {
				scopes = scopes[:len(scopes)-1]
			}
			words, s = nil, s[1:]
			continue
		}
		end := strings.IndexAny(s, " \t\r\n\"{};")
		if end < 0 {
			end = len(s)
		}
		words, s = append(words, s[:end]), s[end:]
	}
}

// off reports whether the option is set to one of apt's words for no.
func (c aptConfig) off(name string) bool {
	switch strings.ToLower(c[name]) {
	case "false", "no", "off", "0", "without", "disable":
		return true
	}
	return false
}

// proxy is apt's choice for a request, then the environment's. "DIRECT" is none.
func (c aptConfig) proxy(r *http.Request) (*url.URL, error) {
	base := "acquire::" + r.URL.Scheme + "::proxy"
	for _, name := range []string{base + "::" + strings.ToLower(r.URL.Hostname()), base} {
		v, ok := c[name]
		switch {
		case !ok || v == "" || v == "false":
			continue
		case strings.EqualFold(v, "DIRECT"):
			return nil, nil
		default:
			return url.Parse(v)
		}
	}
	return http.ProxyFromEnvironment(r)
}

// client is an HTTP client with bounds on everything but a body, whose reader
// has its own.
func (c aptConfig) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 c.proxy,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   8,
		DisableCompression:    true, // hashes are of the bytes as stored
	}}
}
