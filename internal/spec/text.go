package spec

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"isle"
	"isle/internal/image/registry"
)

// Patterns that the parser and the JSON Schema share. They are written in what
// RE2 and ECMA-262 have in common.
const (
	namePattern     = `^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`
	suitePattern    = `^[a-z][a-z0-9-]{0,63}$`
	packagePattern  = `^[a-z0-9][a-z0-9+.-]+(=[0-9][A-Za-z0-9.+:~-]*)?$`
	userPattern     = `^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,5}(:[0-9]{1,5})?)$`
	envPattern      = `^[A-Za-z_][A-Za-z0-9_]{0,255}$`
	sizePattern     = `^[0-9]+(\.[0-9]+)? ?([KMGT]i?B|B)?$`
	durationPattern = `^([0-9]+(\.[0-9]+)?(d|h|m|s|ms))+$`
	absolutePattern = `^/`
	egressPattern   = `^[A-Za-z0-9.-]+:[0-9]{1,5}$`
)

var (
	suiteRegexp    = pattern{text: suitePattern}
	packageRegexp  = pattern{text: packagePattern}
	userRegexp     = pattern{text: userPattern}
	envRegexp      = pattern{text: envPattern}
	valueRegexp    = pattern{text: valuePattern}
	sizeRegexp     = pattern{text: `^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$`}
	durationRegexp = pattern{text: `([0-9]+(?:\.[0-9]+)?)(ms|d|h|m|s)`}
	durationWhole  = pattern{text: durationPattern}
	labelRegexp    = pattern{text: `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`}
)

// maxUID is the highest uid and gid there is inside: an environment has 65,536.
const maxUID = 65535

func parseName(s string) (string, error) {
	if !isle.ValidName(s) {
		return "", fmt.Errorf("%q is no name; want lower-case letters, digits and dashes, at most 40, beginning with a letter%s", clip(s), suggestName(s))
	}
	return s, nil
}

func suggestName(s string) string {
	if slug := isle.Slug(s); isle.ValidName(slug) && slug != "env" {
		return fmt.Sprintf(", for example %q", slug)
	}
	return ""
}

func nameError(s string) error {
	_, err := parseName(s)
	return err
}

func parseSuite(s string) (string, error) {
	if !suiteRegexp.matches(s) {
		return "", fmt.Errorf("%q is no suite; want a Debian release's name such as bookworm", clip(s))
	}
	return s, nil
}

func parsePackage(s string) (string, error) {
	if !packageRegexp.matches(s) || len(s) > 200 {
		return "", fmt.Errorf("%q is no Debian package; want its name, such as python3, or name=version", clip(s))
	}
	return s, nil
}

// parseUser accepts a name, or a uid with or without a gid.
func parseUser(s string) (string, error) {
	ok := userRegexp.matches(s)
	for _, id := range strings.Split(s, ":") {
		if n, err := strconv.Atoi(id); err == nil && n > maxUID {
			ok = false
		}
	}
	if !ok {
		return "", fmt.Errorf("%q is no user; want a name, uid or uid:gid, numbers up to %d", clip(s), maxUID)
	}
	return s, nil
}

func envError(s string) error {
	if !envRegexp.matches(s) {
		return fmt.Errorf("%q cannot name a variable; want letters, digits and _, beginning with no digit", clip(s))
	}
	return nil
}

// parseText accepts any text that can be an argument or variable.
func parseText(s string) (string, error) {
	switch {
	case len(s) > 64<<10:
		return "", errors.New("is longer than 64 KiB; put it into a file and copy that")
	case strings.ContainsRune(s, 0):
		return "", errors.New("holds a NUL character, which no argument or variable can")
	case !utf8.ValidString(s):
		return "", errors.New("is not UTF-8")
	}
	return s, nil
}

func parseCommandText(s string) (string, error) {
	if strings.TrimSpace(s) == "" {
		return "", errors.New("is empty; want a command")
	}
	return parseText(s)
}

var sizeUnits = []struct {
	name   string
	factor float64
}{
	{"", 1}, {"B", 1}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
}

// parseSize reads bytes, with a unit or without, within bounds.
func parseSize(least, most int64) func(string) (int64, error) {
	return func(s string) (int64, error) {
		m := sizeRegexp.regexp().FindStringSubmatch(s)
		if m == nil {
			return 0, fmt.Errorf("%q is no size; want bytes or a number with a unit, such as 512MiB or 2GiB", clip(s))
		}
		for _, u := range sizeUnits {
			if m[2] != u.name {
				continue
			}
			v, err := strconv.ParseFloat(m[1], 64)
			n := v * u.factor
			if err != nil || n < float64(least) || n > float64(most) {
				return 0, fmt.Errorf("%q is out of bounds; want %s to %s", clip(s), FormatSize(least), FormatSize(most))
			}
			return int64(n), nil
		}
		hint := "KiB, MiB, GiB or TiB"
		if len(m[2]) > 0 {
			if i := strings.IndexByte("KMGT", byte(unicode.ToUpper(rune(m[2][0])))); i >= 0 {
				hint = m[1] + string("KMGT"[i]) + "iB"
			}
		}
		return 0, fmt.Errorf("%q has no unit that is understood; did you mean %s?", clip(s), hint)
	}
}

// ParseSize reads bytes as isle.yaml writes them, with a unit or without.
func ParseSize(s string) (int64, error) { return parseSize(1, 1<<60)(s) }

// FormatSize writes bytes as isle.yaml does, in the largest unit that keeps
// them whole: 2GiB.
func FormatSize(n int64) string {
	for i := len(sizeUnits) - 1; i >= 6; i-- {
		if f := int64(sizeUnits[i].factor); n >= f && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + sizeUnits[i].name
		}
	}
	return strconv.FormatInt(n, 10)
}

// ParseDuration reads a duration as isle.yaml writes it: numbers with the units
// d, h, m, s and ms, largest first or not, as in 7d, 1h30m or 500ms.
func ParseDuration(s string) (time.Duration, error) {
	if !durationWhole.matches(s) || len(s) > 40 {
		if _, err := strconv.ParseFloat(s, 64); err == nil && len(s) < 20 {
			return 0, fmt.Errorf("%q has no unit; did you mean %ss or %sm?", s, s, s)
		}
		return 0, fmt.Errorf("%q is no duration; want numbers with units, such as 30s, 8h or 7d", clip(s))
	}
	var sum float64
	for _, m := range durationRegexp.regexp().FindAllStringSubmatch(s, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration", clip(s))
		}
		unit := map[string]time.Duration{"d": 24 * time.Hour, "h": time.Hour, "m": time.Minute, "s": time.Second, "ms": time.Millisecond}[m[2]]
		sum += v * float64(unit)
	}
	if sum > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is too long", clip(s))
	}
	return time.Duration(math.Round(sum)), nil
}

// FormatDuration writes a duration as isle.yaml does: 7d, 1h30m, 500ms.
func FormatDuration(d time.Duration) string {
	if d <= 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	if b.Len() == 0 {
		return "1ms"
	}
	return b.String()
}

func parseDuration(least, most time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := ParseDuration(s)
		if err == nil && (d < least || d > most) {
			return 0, fmt.Errorf("%q is out of bounds; want %s to %s", clip(s), FormatDuration(least), FormatDuration(most))
		}
		return d, err
	}
}

func parseInt(words string, least, most int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("%q is no %s; want a whole number from %d to %d", clip(s), words, least, most)
		}
		return n, nil
	}
}

func parseCPUs(s string) (float64, error) {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= minCPUs && n <= maxCPUs) {
		return 0, fmt.Errorf("%q is no number of CPUs; want %v to %v, as in 1 or 0.5", clip(s), minCPUs, maxCPUs)
	}
	return n, nil
}

// reserved are the folders inside that belong to the kernel and to Isle.
var reserved = []string{"/proc", "/dev", "/sys", "/isle", "/run/isle"}

// parsePath accepts an absolute, clean path inside.
func parsePath(s string) (string, error) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return "", fmt.Errorf("%q is not absolute; want a path inside that begins with /", clip(s))
	case len(s) > 1024:
		return "", errors.New("the path is longer than 1,024 bytes")
	case !cleanText(s):
		return "", fmt.Errorf("%q holds characters that no path here may: control characters or what is not UTF-8", clip(s))
	case path.Clean(s) != s:
		return "", fmt.Errorf("%q is not clean; write %q", clip(s), clip(path.Clean(s)))
	}
	for part := range strings.SplitSeq(s, "/") {
		if len(part) > 255 {
			return "", errors.New("one part of the path is longer than 255 bytes")
		}
	}
	return s, nil
}

// parseOpenPath is parsePath outside the reserved folders.
func parseOpenPath(s string) (string, error) {
	s, err := parsePath(s)
	if err != nil {
		return "", err
	}
	for _, p := range reserved {
		if within(s, p) {
			return "", fmt.Errorf("%q is in %s, which belongs to the system; choose another path", clip(s), p)
		}
	}
	return s, nil
}

// parseMountPath is a path that a volume or tmpfs can be mounted at.
func parseMountPath(s string) (string, error) {
	s, err := parseOpenPath(s)
	switch {
	case err != nil:
		return "", err
	case s == "/":
		return "", errors.New("the root itself cannot be written; name a folder below it")
	case s == "/tmp" || s == "/run":
		return "", fmt.Errorf("%s is there already, as a tmpfs; name a folder below it, or leave it out", s)
	}
	return s, nil
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func cleanText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// parseFrom accepts a path of the project folder and returns it clean, with its
// trailing slash if it has one.
func parseFrom(s string) (string, error) {
	clean := path.Clean(s)
	switch {
	case s == "":
		return "", errors.New("is empty; want a file or folder beside isle.yaml, or . for all of it")
	case strings.HasPrefix(s, "/"):
		return "", fmt.Errorf("%q is absolute; want a path relative to isle.yaml's folder", clip(s))
	case len(s) > 1024 || !cleanText(s):
		return "", fmt.Errorf("%q is too long or holds control characters", clip(s))
	case slices.Contains(strings.Split(s, "/"), ".."):
		return "", fmt.Errorf("%q leads out with ..; only what is in isle.yaml's folder can be copied", clip(s))
	case clean == ".":
		return ".", nil
	case strings.HasSuffix(s, "/"):
		return clean + "/", nil
	}
	return clean, nil
}

// ImagePath is the path of the archive that an `image:` names, relative to the
// project folder.
func (s Service) ImagePath() (path string, ok bool) {
	return strings.CutPrefix(s.Image, "./")
}

// parseImage accepts a reference, or the path of an archive.
func parseImage(s string) (string, error) {
	if from, ok := strings.CutPrefix(s, "./"); ok {
		clean, err := parseFrom(from)
		if err != nil {
			return "", err
		}
		return "./" + strings.TrimSuffix(clean, "/"), nil
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "../") {
		return "", fmt.Errorf("%q is not in isle.yaml's folder; want ./FILE, or a reference to an image", clip(s))
	}
	if !cleanText(s) {
		return "", fmt.Errorf("%q holds control characters", clip(s))
	}
	if _, err := registry.Parse(s); err != nil {
		return "", err
	}
	return s, nil
}

// parseHTTP accepts a URL that can be asked from inside.
func parseHTTP(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Fragment != "" || !cleanText(s) || len(s) > 2048 {
		return "", fmt.Errorf("%q is no URL that can be asked; want http://localhost:PORT/PATH", clip(s))
	}
	if h := u.Hostname(); h != "localhost" && h != "127.0.0.1" {
		return "", fmt.Errorf("%q asks %q; health is asked inside the environment, so want http://localhost:PORT/PATH", clip(s), clip(h))
	}
	if p := u.Port(); p != "" {
		if _, err := parseInt("port", 1, 65535)(p); err != nil {
			return "", err
		}
	}
	return s, nil
}

// parseUse reads the name of a connection.
func parseUse(s string) (string, error) {
	if s == "localhost" {
		return "", fmt.Errorf("%q is the environment itself; want the name of a connection of the policy", s)
	}
	return parseName(s)
}

// parseEgress reads host:port.
func parseEgress(s string) (Egress, error) {
	if strings.Contains(s, "://") {
		return Egress{}, fmt.Errorf("%q is a URL; want host:port, as in api.example.com:443", clip(s))
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Egress{}, fmt.Errorf("%q has no port; want host:port, as in %s:443", clip(s), clip(s))
	}
	host, err := parseHost(s[:i])
	if err != nil {
		return Egress{}, err
	}
	port, err := parseInt("port", 1, 65535)(s[i+1:])
	if err != nil {
		return Egress{}, err
	}
	return Egress{Host: host, Port: port}, nil
}

// synthetic is where the addresses lie that stand for names inside an airlock
// (RFC 2544, benchmarking).
var synthetic = netip.MustParsePrefix("198.18.0.0/15")

// parseHost accepts a DNS name (RFC 1123) or an IPv4 address.
func parseHost(s string) (string, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		switch {
		case !a.Is4():
			return "", fmt.Errorf("%q is an IPv6 address, and there is no IPv6 inside; want a name or an IPv4 address", clip(s))
		case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || synthetic.Contains(a):
			return "", fmt.Errorf("%s is no address of a single machine outside", a)
		}
		return a.String(), nil
	}
	host := strings.ToLower(s)
	switch {
	case strings.Contains(host, "*"):
		return "", fmt.Errorf("%q is a wildcard; name each host that is needed", clip(s))
	case host == "localhost" || strings.HasSuffix(host, ".localhost"):
		return "", fmt.Errorf("%q is the environment itself, which needs no egress", clip(s))
	}
	labels := strings.Split(host, ".")
	ok := len(host) <= 253 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
	for _, l := range labels {
		ok = ok && labelRegexp.matches(l)
	}
	if !ok {
		return "", fmt.Errorf("%q is no host; want a DNS name or an IPv4 address", clip(s))
	}
	return host, nil
}

// parseNetwork accepts an address or CIDR and returns it as CIDR.
func parseNetwork(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()).String(), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return "", fmt.Errorf("%q is no network; want an address or CIDR, as in 10.0.0.0/8", clip(s))
	}
	if p != p.Masked() {
		return "", fmt.Errorf("%q has bits beyond its length; did you mean %s?", clip(s), p.Masked())
	}
	return p.String(), nil
}

// capabilities are those of capabilities(7), without CAP_, that a service may
// keep: they concern its own files, users, processes and ports.
var capabilities = strings.Fields(`AUDIT_WRITE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE
	NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT SYS_NICE`)

// withheld are the others. Some would open a way to isle-init, whose memory
// holds the launch's secret (SYS_PTRACE), or to the kernel's largest attack
// surface (SYS_ADMIN, BPF); the rest would do nothing, because what they are
// about belongs to the machine: its network namespaces, clock, modules, log.
var withheld = strings.Fields(`AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE
	MKNOD NET_ADMIN NET_BROADCAST NET_RAW PERFMON SYSLOG SYS_ADMIN SYS_BOOT SYS_MODULE SYS_PACCT SYS_PTRACE SYS_RAWIO
	SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)

// parseCap accepts a capability with or without CAP_, in either case, and
// returns it with.
func parseCap(s string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
	if slices.Contains(withheld, name) {
		return "", fmt.Errorf("no service may keep %s: a sealed environment has no use for it, or it would unseal it", name)
	}
	if !slices.Contains(capabilities, name) {
		best, _ := nearest(name, capabilities)
		return "", fmt.Errorf("%q is no capability; the nearest is %s", clip(s), best)
	}
	return "CAP_" + name, nil
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", clip(s))
}
