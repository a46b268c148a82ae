// Package follow shows that tools which know nothing of Isle can follow and
// verify its audit log: those of Tessera (transparency-dev), unchanged, over
// HTTP, against the real server. It is a module of its own, so that what they
// need is no dependency of Isle.
package follow

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

// A log is a server whose log is served over TCP.
type log struct {
	t       *testing.T
	state   string
	isle    string
	fetcher *client.HTTPFetcher
	key     note.Verifier
}

func serve(t *testing.T) *log {
	t.Helper()
	bin := os.Getenv("ISLE_BIN")
	if bin == "" {
		bin = "../../bin"
	}
	isle, err := filepath.Abs(filepath.Join(bin, "isle"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(isle); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	dir, err := os.MkdirTemp("", "isle-follow-") // a short path: a socket's address has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "client"))
	l := &log{t: t, state: filepath.Join(dir, "state"), isle: isle}
	cmd := exec.Command(isle, "server", "--state", l.state, "--checkpoints", filepath.Join(dir, "kept"), "--keys", filepath.Join(dir, "keys"), "--audit-listen", "127.0.0.1:0", "--names", "off")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	address := ""
	for lines.Scan() {
		if _, a, ok := strings.Cut(lines.Text(), " address="); ok && strings.Contains(lines.Text(), "audit log") {
			address = a
		}
		if strings.Contains(lines.Text(), "msg=serving ") {
			break
		}
	}
	if address == "" {
		t.Fatal("the server does not serve its log")
	}
	go func() { // ends with the server
		for lines.Scan() {
		}
	}()
	root, err := url.Parse("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	if l.fetcher, err = client.NewHTTPFetcher(root, nil); err != nil {
		t.Fatal(err)
	}
	if l.key, err = note.NewVerifier(strings.TrimSpace(l.run("audit", "key"))); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *log) run(args ...string) string {
	l.t.Helper()
	out, err := exec.Command(l.isle, append([]string{"--state", l.state}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("isle %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// grow makes the server write so many entries: each List is one.
func (l *log) grow(n int) {
	l.t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(l.state, "isle.sock"))
	}, MaxConnsPerHost: 8}}
	defer c.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := i; j < n; j += 8 {
				res, err := c.Post("http://isle/isle.v1.EnvironmentService/List", "application/json", strings.NewReader("{}"))
				if err != nil {
					l.t.Error(err)
					return
				}
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					l.t.Error(res.Status)
					return
				}
			}
		})
	}
	wg.Wait()
	l.run("server", "reload") // and over a change of programs
}

func TestAnUnchangedToolChecksEveryTileAndEntry(t *testing.T) {
	l := serve(t)
	for _, n := range []int{1, 300, 700} {
		l.grow(n)
		check := fsck.New(l.key.Name(), l.key, l.fetcher, func(bundle []byte) ([][]byte, error) {
			var b api.EntryBundle
			if err := b.UnmarshalText(bundle); err != nil {
				return nil, err
			}
			var leaves [][]byte
			for _, e := range b.Entries {
				h := sha256.Sum256(append([]byte{0}, e...))
				leaves = append(leaves, h[:])
			}
			return leaves, nil
		}, fsck.Opts{N: 2})
		if err := check.Check(t.Context()); err != nil {
			t.Fatalf("after %d more entries: %v", n, err)
		}
	}
}

func TestAnUnchangedClientFollowsAndProves(t *testing.T) {
	l := serve(t)
	l.grow(10)
	ctx := t.Context()
	tracker, err := client.NewLogStateTracker(ctx, l.fetcher.ReadTile, nil, l.key, l.key.Name(), client.UnilateralConsensus(l.fetcher.ReadCheckpoint))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 250, 600} {
		before := tracker.Latest().Size
		l.grow(n)
		if _, _, _, err := tracker.Update(ctx); err != nil { // checks consistency
			t.Fatal(err)
		}
		now := tracker.Latest()
		if now.Size < before+uint64(n) {
			t.Fatalf("%d entries after %d and %d more", now.Size, before, n)
		}
		builder, err := client.NewProofBuilder(ctx, now.Size, l.fetcher.ReadTile)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []uint64{0, now.Size / 2, now.Size - 1} {
			bundle, err := client.GetEntryBundle(ctx, l.fetcher.ReadEntryBundle, i/256, now.Size)
			if err != nil {
				t.Fatal(err)
			}
			entry := bundle.Entries[i%256]
			if !strings.HasPrefix(string(entry), fmt.Sprintf(`{"v":1,"seq":%d,`, i)) {
				t.Fatalf("entry %d is %s", i, entry)
			}
			path, err := builder.InclusionProof(ctx, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, now.Size, rfc6962.DefaultHasher.HashLeaf(entry), path, now.Hash); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
	}
}
