// Package oci_test takes images in and out: with Debian's docker-registry as the
// registry and Debian's buildah as who else runs them.
package oci_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"isle/test/lab"
)

var (
	server *lab.Server
	inside []byte // the program of every image
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if server, err = lab.Bare("../../bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Close()
	program := filepath.Join(server.State, "inside")
	if err = lab.Program(program, "isle/test/oci/inside"); err == nil {
		inside, err = os.ReadFile(program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func isle(t *testing.T, args ...string) string {
	t.Helper()
	out, err := server.Isle(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fails runs a command that must fail, and returns why it did.
func fails(t *testing.T, args ...string) string {
	t.Helper()
	out, err := server.Isle(args...)
	if err == nil {
		t.Fatalf("isle %v went well: %s", args, out)
	}
	return err.Error()
}

// tarFile is a tar file of files by name.
func tarFile(t *testing.T, files map[string][]byte, order ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range order {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Uid, h.Gid = tar.TypeDir, 1000, 1000
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(files[name])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// saved writes what docker save would of an image with the program in it.
func saved(t *testing.T, name string) string {
	t.Helper()
	layer := tarFile(t, map[string][]byte{"bin/inside": inside, "etc/passwd": []byte("www:x:1000:1000::/srv:/bin/sh\n")}, "bin/inside", "etc/passwd", "srv/")
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"User": "www", "Env": []string{"GREETING=hello", "PATH=/bin"}, "Entrypoint": []string{"/bin/inside"}, "Cmd": []string{"stay"}, "WorkingDir": "/srv"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest := []byte(`[{"Config":"config.json","RepoTags":["` + name + `"],"Layers":["layer.tar"]}]`)
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, tarFile(t, map[string][]byte{"config.json": config, "layer.tar": layer, "manifest.json": manifest}, "config.json", "layer.tar", "manifest.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// registry starts Debian's docker-registry, which anna may use, and returns where
// it is and a folder of Docker's configuration with her login.
func registry(t *testing.T) (host, login string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("s3cret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\nauth: {htpasswd: {realm: shelf, path: %[1]s/htpasswd}}\n", dir, host)
	auth := base64.StdEncoding.EncodeToString([]byte("anna:s3cret"))
	for name, content := range map[string]string{"htpasswd": "anna:" + string(hash) + "\n", "config.yml": config, "config.json": `{"auths":{"` + host + `":{"auth":"` + auth + `"}}}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if res, err := http.Get("http://" + host + "/v2/"); err == nil {
			res.Body.Close()
			return host, dir
		} else if time.Now().After(end) {
			t.Fatalf("docker-registry does not answer: %v\n%s", err, said.String())
		}
	}
}

// up launches an environment of one service.
func up(t *testing.T, name, isolation, service string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "isle.yaml")
	if err := os.WriteFile(file, []byte("name: "+name+"\nisolation: "+isolation+"\nservices:\n  web: "+service+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	isle(t, "up", file)
	t.Cleanup(func() { isle(t, "down", name, "--volumes") })
}

func wantLine(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("it says %q, not %q", text, want)
	}
}

const asItSays = "uid=1000 gid=1000 dir=/srv GREETING=hello args=stay err=<nil>"

func TestAnImageFromElsewhereRunsAsItSaysInBothClasses(t *testing.T) {
	isle(t, "image", "import", saved(t, "theirs:1"))
	for _, isolation := range []string{"container", "gvisor"} {
		up(t, "theirs-"+isolation, isolation, "{image: localhost/theirs:1, restart: 'no'}")
		wantLine(t, isle(t, "logs", "theirs-"+isolation), asItSays)
		wantLine(t, isle(t, "exec", "theirs-"+isolation, "--", "inside", "x"), "uid=1000 gid=1000 dir=/srv GREETING=hello args=x")
	}
	up(t, "theirs-file", "container", "{image: localhost/theirs:1, user: 5:6, workdir: /etc, env: {GREETING: bye}, command: [inside, stay, on]}")
	wantLine(t, isle(t, "logs", "theirs-file"), "uid=5 gid=6 dir=/etc GREETING=bye args=stay,on")
}

func TestAnImageGoesThroughARealRegistry(t *testing.T) {
	host, login := registry(t)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	isle(t, "image", "import", saved(t, "pushed:1"))
	ref := host + "/team/pushed:1"
	wantLine(t, fails(t, "image", "push", "pushed:1", ref), "docker login "+host)
	t.Setenv("DOCKER_CONFIG", login)
	isle(t, "image", "push", "pushed:1", ref)
	digest := func(name string) string {
		t.Helper()
		var v struct{ Digest string }
		if err := json.Unmarshal([]byte(isle(t, "image", "inspect", name, "-o", "json")), &v); err != nil {
			t.Fatal(err)
		}
		return v.Digest
	}
	here := digest("pushed:1")
	isle(t, "image", "pull", ref)
	if there := digest(ref); there != here {
		t.Errorf("it went as %s and came back as %s", here, there)
	}
	wantLine(t, fails(t, "image", "pull", host+"/team/pushed:2"), "has no such thing")
	// Without anything of it here, the file alone brings it.
	isle(t, "image", "rm", ref, "pushed:1")
	isle(t, "gc")
	up(t, "pulled", "container", "{image: '"+ref+"'}")
	wantLine(t, isle(t, "logs", "pulled"), asItSays)
	log := isle(t, "audit", "export")
	if strings.Contains(log, "s3cret") || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte("anna:s3cret"))) {
		t.Error("the login is in the audit log")
	}
	wantLine(t, log, "image:pull")
}

func TestIslesImageRunsUnderBuildah(t *testing.T) {
	isle(t, "image", "import", saved(t, "ours:1"))
	dir := t.TempDir()
	up(t, "built", "container", "{image: localhost/ours:1, env: {GREETING: built}, command: [/bin/inside, stay]}")
	isle(t, "image", "export", "built/web", filepath.Join(dir, "web.tar"))
	isle(t, "image", "export", "built/web", filepath.Join(dir, "again.tar"))
	first, err1 := os.ReadFile(filepath.Join(dir, "web.tar"))
	again, err2 := os.ReadFile(filepath.Join(dir, "again.tar"))
	if err1 != nil || err2 != nil || !bytes.Equal(first, again) {
		t.Errorf("two exports differ (%v, %v)", err1, err2)
	}
	buildah := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("buildah", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("buildah %v: %v\n%s", args, err, said.String())
		}
		return strings.TrimSpace(out.String())
	}
	for _, kind := range []string{"oci-archive:", "docker-archive:"} {
		c := buildah("from", kind+dir+"/web.tar")
		wantLine(t, buildah("run", "--isolation", "chroot", c, "--", "/bin/inside", "x"), "uid=1000 gid=1000 dir=/srv GREETING=built args=x")
	}
}
