package crash

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	islev1 "isle/internal/api/isle/v1"
)

const identified = `name: identified
services:
  watch:
    copy: [{from: inside, to: /inside}]
    command: [/inside, watch]
  fetch:
    copy: [{from: inside, to: /inside}]
    command: [/inside, fetch]
`

// upIdentified brings up services that follow and fetch their identity.
func (f *far) upIdentified(t *testing.T) {
	t.Helper()
	dir := filepath.Join(f.dir, "identified")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "inside"), "../identity/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(identified), 0o644); err != nil {
		t.Fatal(err)
	}
	f.must(t, "up", dir)
}

// said are the lines of a service that begin with a word, without it.
func (f *far) said(service, word string) (lines []string, err error) {
	out, err := f.isle("logs", "identified", "-s", service)
	for line := range strings.Lines(out) {
		if _, rest, ok := strings.Cut(line, word+"\t"); ok {
			lines = append(lines, strings.TrimSpace(rest))
		}
	}
	return lines, err
}

// Under a load of identities, tokens, secrets and policies the server becomes
// the program that is installed, again and again: whoever calls from elsewhere
// over TLS is refused nothing, and each identity goes on.
func TestAReloadRefusesNoCallFromElsewhereAndBreaksNoIdentity(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	f.upIdentified(t)
	s := newSigner(t, "signer")
	f.mustMachine(t, s.name, s.jwk)
	m := f.mustMachine(t, "ci", nil, "developer")
	d := &told{lines: map[string]int{}, secrets: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	load := d.load(ctx, f, 0, m.GetSecret(), s)
	kept, web := f.as(t, m.GetSecret()), f.asks()
	callers := []*caller{
		{what: "a new connection", do: func() error {
			c := f.as(t, m.GetSecret())
			defer c.Close()
			_, err := c.Identities.WhoAmI(t.Context(), connect.NewRequest(&islev1.WhoAmIRequest{}))
			return err
		}},
		{what: "a kept connection", do: func() error {
			_, err := kept.Environments.Get(t.Context(), connect.NewRequest(&islev1.GetRequest{Environment: "identified"}))
			return err
		}},
		{what: "the token endpoint", do: func() error {
			_, _, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {m.GetSecret()}})
			return err
		}},
		// As curl does. Over HTTP/1.1 whoever keeps a connection finds out that it is
		// closed only when they use it (RFC 9112, 9.5), and asks again.
		{what: "the token endpoint over HTTP/1.1", do: func() error {
			web := f.asks()
			transport := web.Transport.(*http.Transport)
			transport.ForceAttemptHTTP2, transport.DisableKeepAlives = false, true
			_, _, err := f.token(web, url.Values{"client_id": {"ci"}, "client_secret": {m.GetSecret()}})
			return err
		}},
		{what: "the socket", do: func() error {
			_, err := f.root.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: "ci"}))
			return err
		}},
	}
	pid := f.server()
	stop := make(chan struct{})
	calls := call(callers, stop)
	for range 3 {
		before, err := f.said("watch", "update")
		if err != nil {
			t.Fatal(err)
		}
		f.must(t, "server", "reload")
		if now := f.server(); now != pid {
			t.Errorf("the server was process %d and is %d", pid, now)
		}
		eventually(t, "its stream brings it its identity again", func() error {
			after, err := f.said("watch", "update")
			if err == nil && len(after) <= len(before) {
				err = fmt.Errorf("%d updates", len(after))
			}
			return err
		})
		time.Sleep(200 * time.Millisecond)
	}
	close(stop)
	calls.Wait()
	cancel()
	load.Wait()
	for _, c := range callers {
		t.Logf("%s: %d calls", c.what, c.times)
		if len(c.errors) > 0 || c.times == 0 {
			t.Errorf("%s: %d of %d failed: %v", c.what, len(c.errors), c.times, c.errors[:min(3, len(c.errors))])
		}
	}
	fetched, err := f.said("fetch", "fetch")
	if err != nil || len(fetched) == 0 {
		t.Fatal(fetched, err)
	}
	// A call that is under way as the line home changes hands may get Unavailable,
	// which has SPIFFE's clients ask again. It is never told that it has no
	// identity, and the next call gets it.
	cut := 0
	for i, line := range fetched {
		switch {
		case strings.HasPrefix(line, "Unavailable ") && i+1 < len(fetched) && strings.HasPrefix(fetched[i+1], "OK "):
			cut++
		case !strings.HasPrefix(line, "OK "):
			t.Errorf("a service was refused its identity: %s", line)
		}
	}
	if cut > 6 {
		t.Errorf("%d calls were cut off by 3 reloads", cut)
	}
	t.Logf("a service fetched its SVID: %s; %d calls were cut off", fetched[len(fetched)-1], cut)
	d.agree(t, f)
	f.verified(t)
	f.must(t, "down", "--all", "--volumes")
	f.must(t, "server", "stop")
}
