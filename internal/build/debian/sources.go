package debian

import (
	"bufio"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"isle"
)

// A source is one entry of sources.list(5).
type source struct {
	bases      []string // URLs, most wanted first
	suites     []string
	components []string
	signedBy   []string // key files or fingerprints; inline keys in inlineKey
	inlineKey  string
}

// readSources reads sources.list and sources.list.d under root in apt's order.
func readSources(root, arch string) []source {
	var out []source
	add := func(name string, parse func(string, string) []source) {
		if b, err := os.ReadFile(name); err == nil && len(b) < 1<<20 {
			for _, s := range parse(string(b), arch) {
				if s.bases = expandBases(root, s.bases); len(s.bases) > 0 {
					out = append(out, s)
				}
			}
		}
	}
	add(filepath.Join(root, "etc/apt/sources.list"), parseListSources)
	files, _ := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d/*"))
	sort.Strings(files)
	for _, f := range files {
		switch filepath.Ext(f) {
		case ".list":
			add(f, parseListSources)
		case ".sources":
			add(f, parseDeb822Sources)
		}
	}
	return out
}

// parseListSources reads the one-line format: deb [options] URI suite components….
func parseListSources(text, arch string) []source {
	var out []source
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			rest = after
			skip := false
			for _, o := range strings.Fields(options) {
				key, value, _ := strings.Cut(o, "=")
				switch strings.ToLower(key) {
				case "signed-by":
					s.signedBy = strings.Split(value, ",")
				case "arch":
					skip = !contains(strings.Split(value, ","), arch)
				}
			}
			if skip {
				continue
			}
		}
		if f := strings.Fields(rest); len(f) >= 2 {
			s.bases, s.suites, s.components = f[:1], f[1:2], f[2:]
			out = append(out, s)
		}
	}
	return out
}

// parseDeb822Sources reads the format of *.sources files.
func parseDeb822Sources(text, arch string) []source {
	var out []source
	for p := range paragraphs(strings.NewReader(text)) {
		if a := strings.Fields(p.get("Architectures")); !contains(strings.Fields(p.get("Types")), "deb") ||
			strings.EqualFold(p.get("Enabled"), "no") || len(a) > 0 && !contains(a, arch) {
			continue
		}
		s := source{
			bases:      strings.Fields(p.get("URIs")),
			suites:     strings.Fields(p.get("Suites")),
			components: strings.Fields(p.get("Components")),
		}
		if by := p.get("Signed-By"); strings.Contains(by, "-----BEGIN PGP") {
			lines := strings.Split(by, "\n")
			for i, l := range lines {
				if l = strings.TrimSpace(l); l == "." {
					l = ""
				}
				lines[i] = l
			}
			s.inlineKey = strings.TrimSpace(strings.Join(lines, "\n"))
		} else {
			s.signedBy = strings.FieldsFunc(by, func(c rune) bool { return c == ',' || c == ' ' || c == '\n' || c == '\t' })
		}
		out = append(out, s)
	}
	return out
}

// expandBases keeps the URLs that can be fetched, without a slash at the end,
// and reads mirror lists (mirror+file:).
func expandBases(root string, bases []string) []string {
	var out []string
	for _, b := range bases {
		if file, ok := strings.CutPrefix(b, "mirror+file:"); ok {
			text, err := os.ReadFile(filepath.Join(root, path.Clean("/"+strings.TrimPrefix(file, "//"))))
			if err != nil || len(text) > 1<<20 {
				continue
			}
			for _, line := range strings.Split(string(text), "\n") {
				if f := strings.Fields(line); len(f) > 0 && f[0][0] != '#' {
					out = append(out, expandBases(root, keepHTTP(f[:1]))...)
				}
			}
			continue
		}
		out = append(out, keepHTTP([]string{b})...)
	}
	return out
}

func keepHTTP(urls []string) (out []string) {
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			out = append(out, strings.TrimRight(s, "/"))
		}
	}
	return out
}

// A repository is one suite at one archive: dists/SUITE/InRelease under a base.
type repository struct {
	name       string   // of the archive in a lock: "" or "security"
	suite      string   // "bookworm-updates"
	bases      []string // tried in order
	components []string
	keys       source // its signedBy and inlineKey
	optional   bool   // it may not exist
	guessed    bool   // nobody named its bases
}

// repositories lists where a suite's packages come from: the suite itself, its
// updates and its security archive.
func (a *Archive) repositories(suite, mirror string) ([]repository, error) {
	sources := readSources(a.cfg.Root, a.cfg.Architecture)
	main := repository{suite: suite}
	security := repository{name: "security", suite: suite + "-security"}
	main.take(sources)
	security.take(sources)
	if mirror != "" {
		urls := strings.Split(mirror, ",")
		if len(urls) > 2 || len(keepHTTP(urls)) != len(urls) {
			return nil, isle.Errorf(isle.Invalid, "mirror %q: want an http or https URL, or two with a comma between (main, security)", mirror)
		}
		urls = keepHTTP(urls)
		main.bases = urls[:1]
		if len(urls) == 2 {
			security.bases, security.optional = urls[1:], false // named, so it must be there
		} else {
			security.bases, security.optional, security.guessed = securityBeside(urls[0]), true, true
		}
	}
	if len(main.bases) == 0 {
		return nil, isle.Errorf(isle.Unavailable, "no Debian archive is known: %s names none", filepath.Join(a.cfg.Root, "etc/apt")).
			WithHint("name one with --mirror URL")
	}
	if len(security.bases) == 0 {
		for _, b := range main.bases {
			security.bases = append(security.bases, securityBeside(b)...)
		}
		security.optional, security.guessed = true, true
	}
	updates := main
	updates.suite, updates.optional = suite+"-updates", true
	return []repository{main, updates, security}, nil
}

// take finds the bases for r.suite: the sources that name it; where none does,
// those that have another Debian suite of the same kind, since one archive
// holds them all. Whether it really does, the signed release says.
func (r *repository) take(sources []source) {
	r.components = []string{"main"}
	for _, s := range sources {
		if contains(s.suites, r.suite) {
			if len(r.bases) == 0 {
				r.components, r.keys = s.components, s
			}
			r.bases = append(r.bases, s.bases...)
		}
	}
	if len(r.bases) > 0 {
		return
	}
	r.optional = r.name == "security"
	debian := map[string]bool{} // suites that have updates or a security archive: others' archives don't
	for _, s := range sources {
		for _, name := range s.suites {
			for _, sibling := range []string{"-updates", "-security"} {
				if base, ok := strings.CutSuffix(name, sibling); ok {
					debian[base], debian[name] = true, true
				}
			}
		}
	}
	for _, s := range sources {
		known := slices.ContainsFunc(s.suites, func(name string) bool { return debian[name] })
		if !contains(s.components, "main") || len(debian) > 0 && !known {
			continue
		}
		isSecurity := false
		for _, name := range s.suites {
			isSecurity = isSecurity || strings.HasSuffix(name, "-security")
		}
		if isSecurity == (r.name == "security") {
			r.bases = append(r.bases, s.bases...)
		}
	}
}

// securityBeside guesses where a mirror of the main archive has the security
// archive.
func securityBeside(base string) []string {
	u, err := url.Parse(base)
	if err != nil {
		return nil
	}
	parts := strings.Split(u.Path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i] == "debian" {
			parts[i] = "debian-security"
			u.Path, u.RawPath = strings.Join(parts, "/"), ""
			return []string{u.String()}
		}
	}
	if strings.Trim(u.Path, "/") == "" {
		return []string{strings.TrimSuffix(base, "/") + "/debian-security"}
	}
	return []string{base + "-security"}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
