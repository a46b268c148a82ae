package grammar

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheModuleIsThatOfTheGoModuleInGoMod(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/wasilibs/go-pgquery").Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "internal/wasm/libpg_query.so"))
	if err != nil {
		t.Fatal(err)
	}
	if len(module) == 0 || !bytes.Equal(theirs, module) {
		t.Fatalf("the module has %d bytes, want the %d of libpg_query.so", len(module), len(theirs))
	}
}
