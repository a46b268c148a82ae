package debian

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
	"isle/test/lab"
)

// The tests in this file use the machine's own mirror.

// cacheDir is kept between runs, so that the mirror is asked only once for each
// package. Everything in it is checked by hash when it is used.
func cacheDir(t testing.TB) string {
	dir := lab.Cache("archive")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPostgresAndPythonRunFromUnpackedPackages(t *testing.T) {
	ctx := context.Background()
	dir := cacheDir(t)
	store, err := image.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Dir: filepath.Join(dir, "debian"), Blobs: store})
	if err != nil {
		t.Fatal(err)
	}
	pkgs, lock, err := a.Resolve(ctx, "bookworm", []string{"postgresql-15", "python3", "python3-psycopg2"}, ResolveOptions{}, func(m string) { t.Log(m) })
	if err != nil {
		t.Fatal(err)
	}
	if len(lock.Releases) != 3 {
		t.Errorf("releases: %v, want the suite, its updates and its security archive", lock.Releases)
	}
	for _, p := range pkgs {
		if p.Name == "usrmerge" {
			t.Error("usrmerge was chosen for a root that is merged")
		}
	}
	start := time.Now()
	if err := a.Fetch(ctx, pkgs, FetchOptions{Suite: "bookworm"}, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packages fetched in %v", len(pkgs), time.Since(start).Round(time.Millisecond))

	root := t.TempDir()
	first := unpackInto(t, store, pkgs, root)
	reversed := make([]spec.LockedPackage, len(pkgs))
	for i, p := range pkgs {
		reversed[len(pkgs)-1-i] = p
	}
	second := unpackInto(t, store, reversed, "")
	if first != second {
		t.Error("the same packages gave different entries")
	}

	for _, step := range []struct {
		command []string
		want    string
	}{
		{[]string{"/bin/sh", "-c", `python3 -c "import psycopg2; print(psycopg2.__version__)"`}, "2.9.5"},
		{[]string{"/usr/lib/postgresql/15/bin/postgres", "--version"}, "PostgreSQL) 15."},
		{[]string{"python3", "-c", "import ssl; c = ssl.create_default_context(); import glob; c.load_verify_locations('/etc/ssl/certs/ca-certificates.crt'); print(len(c.get_ca_certs()) > 100)"}, "True"},
		{[]string{"sh", "-c", "openssl verify -CApath /etc/ssl/certs /etc/ssl/certs/ISRG_Root_X1.pem"}, "OK"},
		{[]string{"sh", "-c", "n=0; for f in /etc/ssl/certs/*.[0-9]; do h=$(openssl x509 -noout -subject_hash -in $f); case $f in */$h.*) n=$((n+1));; *) echo bad $f $h; exit 1;; esac; done; [ $n -gt 100 ] && echo all agree"}, "all agree"},
		{[]string{"sh", "-c", "id postgres"}, "uid=101(postgres) gid=101(postgres)"},
		{[]string{"sh", "-c", "awk 'BEGIN {print 6*7}'; ls -ld /tmp /root; hostname >&2; ps --version; date +%Z; which sh"}, "42"},
		{[]string{"dpkg-query", "-W", "-f", "${Status} ${Version}\n", "python3"}, "install ok installed 3.11"},
		{[]string{"ldconfig", "-p"}, "libpq.so.5 (libc6,x86-64) => /lib/x86_64-linux-gnu/libpq.so.5"},
	} {
		out, err := chroot(root, step.command...)
		if err != nil || !strings.Contains(out, step.want) {
			t.Errorf("%q: %v\n%s\nwant %q", step.command, err, out, step.want)
		}
	}
	// The real tool agrees about the linker cache and the links.
	ours, _ := chroot(root, "ldconfig", "-p")
	if out, err := chroot(root, "ldconfig", "-v"); err != nil {
		t.Errorf("ldconfig: %v\n%s", err, out)
	}
	theirs, _ := chroot(root, "ldconfig", "-p")
	if d := cmp.Diff(names(theirs), names(ours)); d != "" {
		t.Errorf("the linker cache differs from ldconfig's (-theirs +ours):\n%s", d)
	}
}

// names returns the lines of ldconfig -p without the first and last, which
// count and name the tool.
func names(out string) (keep []string) {
	for _, l := range strings.Split(out, "\n") {
		if strings.HasPrefix(l, "\t") {
			keep = append(keep, l)
		}
	}
	return keep
}

func chroot(root string, command ...string) (string, error) {
	c := exec.Command("chroot", append([]string{root}, command...)...)
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := c.CombinedOutput()
	return string(out), err
}

// unpackInto writes both layers below root, if it is not "", and returns all
// entries with their contents' hashes.
func unpackInto(t *testing.T, store *image.Store, pkgs []spec.LockedPackage, root string) string {
	t.Helper()
	start := time.Now()
	tree, err := Unpack(context.Background(), pkgs, store.OpenBlob, UnpackOptions{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	t.Logf("unpacked in %v", time.Since(start).Round(time.Millisecond))
	var list strings.Builder
	size := int64(0)
	for _, layer := range []func(Add) error{tree.Packages, tree.System} {
		start := time.Now()
		err := layer(func(e Entry, content func() (io.ReadCloser, error)) error {
			var b []byte
			if content != nil {
				r, err := content()
				if err != nil {
					return err
				}
				if b, err = io.ReadAll(r); err != nil {
					return err
				}
				r.Close()
			}
			if int64(len(b)) != e.Size && e.Mode.IsRegular() {
				return fmt.Errorf("%s: %d bytes, not %d", e.Path, len(b), e.Size)
			}
			size += e.Size
			fmt.Fprintf(&list, "%s %v %d:%d %s %s\n", e.Path, e.Mode, e.UID, e.GID, e.Target, isle.DigestOf(b).Short())
			if root == "" {
				return nil
			}
			return write(root, e, b)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("layer: %v", time.Since(start).Round(time.Millisecond))
	}
	t.Logf("%d entries, %d MB", strings.Count(list.String(), "\n"), size>>20)
	return list.String()
}

// write makes one entry on disk, over what a lower layer has.
func write(root string, e Entry, content []byte) error {
	name := filepath.Join(root, e.Path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if !e.Mode.IsDir() {
		os.RemoveAll(name)
	}
	var err error
	switch {
	case e.Mode.IsDir():
		err = os.MkdirAll(name, 0o755)
	case e.Mode&fs.ModeSymlink != 0:
		err = os.Symlink(e.Target, name)
	default:
		err = os.WriteFile(name, content, 0o600)
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(name, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if e.Mode&fs.ModeSymlink != 0 {
		return nil
	}
	return os.Chmod(name, e.Mode)
}
