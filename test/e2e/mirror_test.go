package e2e

import (
	"bytes"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/test/lab"
)

// A debianMirror serves what the machine's own mirror does, except for files
// that are gone and files that somebody has altered.
type debianMirror struct {
	gone, altered string // parts of paths; "" for none
	bases         map[string]string
	dir           string

	mu sync.Mutex // one download at a time
}

// mirror starts one until the script ends and puts its two addresses, main and
// security, into a variable: mirror VAR [gone:PART] [altered:PART].
func mirror(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mirror VAR [gone:PART] [altered:PART]")
	}
	m := &debianMirror{bases: map[string]string{}, dir: lab.Cache("mirror")}
	ts.Check(os.MkdirAll(m.dir, 0o755))
	for _, a := range args[1:] {
		if part, ok := strings.CutPrefix(a, "gone:"); ok {
			m.gone = part
		} else if part, ok := strings.CutPrefix(a, "altered:"); ok {
			m.altered = part
		}
	}
	// apt says which mirrors the machine has.
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").Output()
	ts.Check(err)
	for line := range strings.Lines(string(out)) {
		release, base, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind := "main"
		if strings.HasSuffix(release, "-security") {
			kind = "security"
		}
		m.bases[kind] = base
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := &http.Server{Handler: m}
	go server.Serve(l) // ends with the script
	ts.Defer(func() { server.Close() })
	address := "http://" + l.Addr().String()
	ts.Setenv(args[0], address+"/main,"+address+"/security")
}

// ServeHTTP implements http.Handler.
func (m *debianMirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean(r.URL.Path), "/"), "/")
	base, ok := m.bases[kind]
	if !ok || m.gone != "" && strings.Contains(rest, m.gone) {
		http.NotFound(w, r)
		return
	}
	name := filepath.Join(m.dir, url.PathEscape(kind+"/"+rest))
	if err := m.fetch(strings.TrimSuffix(base, "/")+"/"+(&url.URL{Path: rest}).EscapedPath(), name); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	b, err := os.ReadFile(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if m.altered != "" && strings.Contains(rest, m.altered) {
		b = bytes.Replace(b, []byte("Debian"), []byte("Nebian"), 1)
	}
	w.Write(b)
}

// fetch downloads with apt's own program, so through apt's configuration.
// Indices change from day to day and are fetched for each mirror anew.
func (m *debianMirror) fetch(address, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Stat(name); err == nil && strings.HasSuffix(name, ".deb") {
		return nil
	}
	return exec.Command("/usr/lib/apt/apt-helper", "download-file", address, name).Run()
}
