package memory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/test/lab"
)

// Who writes memory decides what runs in it: on another server it is gone on from
// only where somebody who is trusted there has signed it.
func TestMemoryComesAlongOnlyWithATrustedSignature(t *testing.T) {
	t.Parallel()
	here := on(t, server)
	here.up("sent", shop)
	here.goesOn("sent", 10)
	here.must("snapshot", "sent", "--tag", "sent")
	file := filepath.Join(t.TempDir(), "sent.isle")
	here.must("snapshot", "export", "sent", file)
	var keys []struct {
		Key string
		Own bool
	}
	here.decode(&keys, "snapshot", "trust", "-o", "json")

	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	there := on(t, s)
	there.up("other", strings.Replace(shop, "name: NAME", "name: sent", 1)) // builds the images
	there.must("down", "sent", "--volumes")
	if out := there.must("snapshot", "import", file); !strings.Contains(out, "its memory is left out") {
		t.Errorf("it says %q", out)
	}
	digest := there.snapshots("sent")[0]
	there.must("fork", digest, "--name", "sent-strange")
	if got := there.ask("sent-strange", "db", "log"); got == "gapless" {
		t.Error("memory of a stranger was gone on from")
	}
	there.must("down", "sent-strange", "--volumes")
	there.must("snapshot", "rm", "--force", digest)
	for _, k := range keys {
		if k.Own {
			there.must("snapshot", "trust", k.Key)
		}
	}
	there.must("snapshot", "import", file)
	there.must("fork", digest, "--name", "sent-known")
	there.goesOn("sent-known", 10)
	there.must("restore", "sent", "--at", digest)
	there.goesOn("sent", 10)
	there.must("down", "--all", "--volumes")
}

func TestMemoryThatWasChangedOnDiskIsRefused(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	w.up("tampered", shop)
	w.must("snapshot", "tampered", "--tag", "touched")
	digest := strings.TrimPrefix(w.snapshots("tampered")[0], "sha256:")
	pages := filepath.Join(w.State, "snapshots", digest, "memory", "pages.img")
	b, err := os.ReadFile(pages)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(pages, b, 0o400); err != nil {
		t.Fatal(err)
	}
	words := []string{"pages.img", digest[:12]}
	w.refused(words, "fork", "tampered", "--at", "touched")
	w.refused(words, "restore", "tampered", "--at", "touched")
	w.refused(words, "fork", "tampered", "--at", "touched", "--cold") // what was changed in one place is believed in none
	w.goesOn("tampered", 10)
}
