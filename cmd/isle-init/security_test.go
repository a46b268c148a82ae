package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/initproto"
	"isle/internal/spec"
)

func TestChildrenHaveTheNamedCapabilitiesAndNoOthers(t *testing.T) {
	const none, bind = "0000000000000000", "0000000000000400"
	for _, c := range []struct {
		user string
		caps []string
		want string // Inh Prm Eff Bnd Amb
	}{
		{"", nil, strings.Join([]string{none, none, none, none, none}, " ")},
		{"daemon", nil, strings.Join([]string{none, none, none, none, none}, " ")},
		{"", []string{"CAP_NET_BIND_SERVICE"}, strings.Join([]string{none, bind, bind, bind, none}, " ")},
		{"daemon", []string{"CAP_NET_BIND_SERVICE"}, strings.Join([]string{bind, bind, bind, bind, bind}, " ")},
	} {
		const ask = "grep ^Cap /proc/self/status | cut -f 2 | tr '\\n' ' '; grep NoNewPrivs /proc/self/status"
		s := launch(t, func(b *initproto.Boot) {
			b.User, b.Caps = c.user, c.caps
			b.Command = sh(ask + "; sleep 1000")
		})
		want := c.want + " NoNewPrivs:\t1\n"
		s.events.wait(func(_ []string, out string) bool { return strings.HasSuffix(out, "\n") })
		if _, out := s.events.snapshot(); out != want {
			t.Errorf("command as %q with %v: %s", c.user, c.caps, out)
		}
		for range 3 { // whatever thread it comes from
			if got := s.sh(ask).stdout; got != want {
				t.Errorf("exec as %q with %v: %s", c.user, c.caps, got)
			}
		}
	}
}

func TestRootInsideCannotReadTheSecret(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.Command = sh("sleep 1000") })
	s.events.waitFor("started")
	secret := string(s.boot.Secret)
	for _, script := range []string{
		"cat /proc/1/environ", "cat /proc/1/maps", "readlink /proc/1/fd/*", "cat /proc/1/fd/3", "readlink /proc/1/exe",
		"dd if=/proc/1/mem bs=4096 count=1 skip=1024", "cat /proc/1/auxv", "cat /proc/1/task/*/environ", "ls /proc/1/map_files",
		"cat /proc/1/syscall", "cat /proc/1/stack", "nsenter -t 1 -m true", "cat /proc/1/root/etc/passwd",
	} {
		if got := s.sh(script); got.exit.Code == 0 && got.stdout != "" {
			t.Errorf("%s gave %q", script, got.stdout)
		}
	}
	for _, where := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ", "/proc/[0-9]*/fd/*", "/tmp/*", "/run/*"} {
		got := s.sh("cat /proc/1/cmdline; timeout 1 cat " + where + " 2>/dev/null </dev/null")
		if strings.Contains(got.stdout, secret) || strings.Contains(got.stdout, base64.StdEncoding.EncodeToString([]byte(secret))) {
			t.Errorf("the secret is in %s", where)
		}
	}
	if got := s.sh("ls -l /proc/self/fd | grep -v -e ' [012] -> ' -e '/proc/' | grep -e '->'").stdout; got != "" {
		t.Errorf("children have more than three files open: %s", got)
	}
	// Neither does the server's own way in lead there.
	for _, p := range []string{"/proc/1/environ", "/proc/self/mem", "/proc/1/fd/3", "/proc/1"} {
		if err := s.line().CopyOut(t.Context(), p, io.Discard); isle.CodeOf(err) != isle.Invalid && isle.CodeOf(err) != isle.NotFound {
			t.Errorf("copy of %s: %v", p, err)
		}
	}
}

func TestNoSignalFromInsideEndsPID1(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("trap '' TERM INT HUP QUIT USR1 USR2; while :; do sleep 1; done")
	})
	s.events.waitFor("started")
	for n := 1; n <= 64; n++ {
		s.sh(fmt.Sprintf("kill -%d 1", n))
	}
	if got := s.sh("echo alive").stdout; got != "alive\n" {
		t.Errorf("got %q", got)
	}
}

func TestAnImposterIsRefusedAndReported(t *testing.T) {
	for _, c := range []struct {
		reason string
		claim  func(s *sandbox) (launch isle.ID, secret string)
	}{
		{"the secret is wrong", func(s *sandbox) (isle.ID, string) { return s.boot.Launch, strings.Repeat("x", 32) }},
		{"no such launch", func(s *sandbox) (isle.ID, string) { return isle.NewID(), string(s.boot.Secret) }},
		{"another instance", func(s *sandbox) (isle.ID, string) {
			other := isle.NewID()
			s.home.Expect(isle.NewID(), other, isle.DigestOf(s.boot.Secret), newEvents())
			return other, string(s.boot.Secret)
		}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			s := launch(t, nil) // one each: what an instance repeats is told ever more seldom
			s.line()
			id, secret := c.claim(s)
			conn, err := net.Dial("tcp", s.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := initproto.NewConn(conn).Greet(initproto.KindWork, id, []byte(secret)); err == nil {
				t.Error("was let in")
			}
			select {
			case r := <-s.refused:
				if r.Instance != s.instance || r.Launch != id || !strings.Contains(r.Reason, c.reason) || r.Count != 1 {
					t.Errorf("%+v", r)
				}
			case <-time.After(30 * time.Second):
				t.Error("nobody was told")
			}
		})
	}
}

func TestAFalseServerIsNotObeyed(t *testing.T) {
	served := make(chan []byte, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f := initproto.NewConn(c)
				switch n % 4 {
				case 0: // any bytes
					_, _ = c.Write(bytes.Repeat([]byte{0xff}, 100000))
				case 1: // a frame too long
					_, _ = c.Write([]byte{1, 0xff, 0xff, 0xff, 0xff})
				default: // right, but for knowing the launch; then an order
					_ = f.WriteFrame(initproto.FrameChallenge, initproto.NewChallenge().Encode())
					b, err := f.Expect(initproto.FrameHello)
					if err != nil {
						return
					}
					served <- b
					_ = f.WriteFrame(initproto.FrameWelcome, make([]byte, 32))
					_ = f.WriteJSON(initproto.FrameRequest, initproto.Request{Kind: initproto.RequestExec, Command: sh("touch /tmp/obeyed")})
				}
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	s := launch(t, func(b *initproto.Boot) { b.Home = l.Addr().String() })
	for range 6 {
		if b := <-served; bytes.Contains(b, s.boot.Secret) {
			t.Error("a false server was told the secret")
		}
	}
	s.home.Close()
	l.Close()
	s.listenAt(l.Addr().String())
	if got := s.sh("ls /tmp").stdout; got != "" {
		t.Errorf("a false server was obeyed: %s", got)
	}
}

// stream makes a tar stream; a name that ends in a slash is a folder.
func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			h.Size = 4
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("evil")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestCopyInWritesNothingOutsideItsFolder(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.User = "daemon" })
	const prepare = "cd /tmp; rm -rf in out; mkdir in out; echo good > out/file; ln -s ../out in/link; ln -s /tmp/out in/absolute; ln -s /tmp/out/file in/filelink; mkfifo in/pipe"
	for name, headers := range map[string][]tar.Header{
		"dot dot":             {{Name: "../out/file"}},
		"dot dot inside":      {{Name: "a/../../out/file"}},
		"absolute":            {{Name: "/tmp/out/file"}},
		"through a link":      {{Name: "link/file"}},
		"absolute link":       {{Name: "absolute/file"}},
		"onto a link":         {{Name: "filelink"}},
		"own link":            {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp/out"}, {Name: "l/file"}},
		"own relative link":   {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../out"}, {Name: "l/file"}},
		"folder onto a link":  {{Name: "link/", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "link/file"}},
		"hard link":           {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../out/file"}, {Name: "h"}},
		"hard link absolute":  {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/tmp/out/file"}},
		"hard link over link": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "absolute/file"}},
		"device":              {{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 7}},
		"char device":         {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}},
		"pipe":                {{Name: "p", Typeflag: tar.TypeFifo}},
		"onto a pipe":         {{Name: "pipe"}},
	} {
		s.sh(prepare)
		err := s.line().CopyIn(t.Context(), "/tmp/in", stream(t, headers...), "")
		got := s.sh("cat /tmp/out/file; ls /tmp/out; stat -c '%U %h' /tmp/out/file; ls -A /tmp/in | grep .isle-; find /tmp/in -type b -o -type c").stdout
		if got != "good\nfile\ndaemon 1\n" {
			t.Errorf("%s: outside now: %q (%v)", name, got, err)
		}
	}
}

func TestCopyInGivesFilesToTheirOwner(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.User = "daemon" })
	headers := []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o750},
		{Name: "dir/script", Mode: 0o4755},
		{Name: "deep/er/file"},
		{Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "script"},
		{Name: "dir/hard", Typeflag: tar.TypeLink, Linkname: "dir/script"},
	}
	for range 2 { // the second time over the first
		if err := s.line().CopyIn(t.Context(), "/tmp/new/place", stream(t, headers...), ""); err != nil {
			t.Fatal(err)
		}
	}
	const want = "daemon daemon 755 .\ndaemon daemon 755 ./deep\ndaemon daemon 755 ./deep/er\ndaemon daemon 644 ./deep/er/file\n" +
		"daemon daemon 750 ./dir\ndaemon daemon 755 ./dir/hard\ndaemon daemon 777 ./dir/link\ndaemon daemon 755 ./dir/script\n"
	if got := s.sh("cd /tmp/new/place; find . | sort | xargs stat -c '%U %G %a %n'").stdout; got != want {
		t.Errorf("got\n%s", got)
	}
	if err := s.line().CopyIn(t.Context(), "/tmp/other", stream(t, tar.Header{Name: "x"}), "games"); err != nil {
		t.Fatal(err)
	}
	if got := s.sh("stat -c %U /tmp/other/x").stdout; got != "games\n" {
		t.Errorf("owner: %s", got)
	}
	for _, c := range []struct {
		dir, owner string
		stream     io.Reader
		want       isle.Code
	}{
		{"/tmp", "nonsuch", stream(t, tar.Header{Name: "x"}), isle.Invalid},
		{"/proc/1", "", stream(t, tar.Header{Name: "x"}), isle.Invalid},
		{"/proc/self/fd", "", stream(t, tar.Header{Name: "x"}), isle.Invalid},
		{"/tmp/other/x", "", stream(t, tar.Header{Name: "x"}), isle.Invalid},
		{"/tmp", "", strings.NewReader(strings.Repeat("junk", 1000)), isle.Invalid},
		{"/tmp", "", io.LimitReader(stream(t, tar.Header{Name: "half"}), 514), isle.Invalid},
		{"/tmp", "", io.MultiReader(strings.NewReader(strings.Repeat("junk", 1000)), endless{}), isle.Invalid},
	} {
		if err := s.line().CopyIn(t.Context(), c.dir, c.stream, c.owner); err == nil || isle.CodeOf(err) != c.want {
			t.Errorf("%s: %v", c.dir, err)
		}
	}
	if got := s.sh("ls -A /tmp").stdout; got != "new\nother\n" {
		t.Errorf("left behind: %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.line().CopyIn(ctx, "/tmp", endless{}, ""); err == nil {
		t.Error("a copy outlived its context")
	}
}

// endless is a stream that a client never ends.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestCopyOutAndListLeaveOutWhatIsNoFile(t *testing.T) {
	s := launch(t, nil)
	s.sh(`mkdir -p /tmp/d/sub; cd /tmp/d; printf hello > file; chmod 755 file; echo x > sub/f; echo y > sub.txt; ln -s /etc/shadow link; mkfifo pipe; printf z > "$(printf 'bad\377name')"
		python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/tmp/d/socket")' || mkfifo socket; mkdir out; ln -s / out/root`)
	var b bytes.Buffer
	if err := s.line().CopyOut(t.Context(), "/tmp/d", &b); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if !strings.Contains(h.PAXRecords["comment"], "d/pipe, d/socket") {
				t.Errorf("note: %v", h.PAXRecords)
			}
			continue
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "d/ d/bad\xffname d/file d/link d/out/ d/out/root d/sub/ d/sub/f d/sub.txt" {
		t.Errorf("names: %q", got)
	}
	tree, err := s.line().List(t.Context(), "/tmp/d")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range tree.Entries {
		list = append(list, e.Path+":"+e.Type)
	}
	if got := strings.Join(list, " "); got != `:dir bad\xffname:file file:file link:link out:dir out/root:link sub:dir sub.txt:file sub/f:file` {
		t.Errorf("list: %s", got)
	}
	want := spec.TreeEntry{Path: "file", Type: "file", Exec: true, Size: 5, Digest: isle.DigestOf([]byte("hello"))}
	if tree.Entries[2] != want {
		t.Errorf("got %+v, want %+v", tree.Entries[2], want)
	}
	tree, err = s.line().List(t.Context(), "/tmp/d/file")
	want.Path = ""
	if err != nil || len(tree.Entries) != 1 || tree.Entries[0] != want {
		t.Errorf("of a file: %+v, %v", tree, err)
	}
	files, err := s.line().Folder(t.Context(), "/tmp/d")
	if err != nil {
		t.Fatal(err)
	}
	list = nil
	for _, f := range files {
		list = append(list, fmt.Sprintf("%s:%s:%d:%s", f.Name, f.Type, f.Size, f.Target))
	}
	if got := strings.Join(list, " "); got != `bad\xffname:file:1: file:file:5: link:link:0:/etc/shadow out:dir:0: pipe:other:0: socket:other:0: sub:dir:0: sub.txt:file:2:` {
		t.Errorf("folder: %s", got)
	}
	if files[1].Mode != 0o755 || time.Since(files[1].Time) > time.Hour {
		t.Errorf("file: %+v", files[1])
	}
	if files, err = s.line().Folder(t.Context(), "/tmp/d/link"); err != nil || len(files) != 1 || files[0].Type != "link" {
		t.Errorf("of a link: %+v, %v", files, err)
	}
	s.sh(`mkdir /tmp/many && cd /tmp/many && seq 10001 | xargs touch`)
	if _, err = s.line().Folder(t.Context(), "/tmp/many"); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("of too many: %v", err)
	}
	for _, p := range []string{"/nonsuch", "/proc/1", "/tmp/d/out/root/proc/1"} {
		if _, err := s.line().Folder(t.Context(), p); isle.CodeOf(err) != isle.Invalid && isle.CodeOf(err) != isle.NotFound {
			t.Errorf("folder of %s: %v", p, err)
		}
	}
	for _, p := range []string{"/nonsuch", "/proc/1/environ", "/tmp/d/out/root/proc/1"} {
		if _, err := s.line().List(t.Context(), p); isle.CodeOf(err) != isle.NotFound && isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// pidsGroup makes a control group that holds few processes.
func pidsGroup(t *testing.T, most int) string {
	t.Helper()
	base := "/sys/fs/cgroup/pids" // version 1
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		base = "/sys/fs/cgroup"
		if err := os.WriteFile(base+"/cgroup.subtree_control", []byte("+pids"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(base, "isle-init-test-"+string(isle.NewID()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(context.Background(), func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(dir+"/pids.max", strconv.AppendInt(nil, int64(most), 10), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAForkBombDoesNotEndPID1(t *testing.T) {
	dir := pidsGroup(t, 40)
	s := launch(t, nil)
	s.line()
	if err := os.WriteFile(dir+"/cgroup.procs", strconv.AppendInt(nil, int64(s.cmd.Process.Pid), 10), 0o644); err != nil {
		t.Fatal(err)
	}
	// A shell gives up after some forks that failed.
	const script = `$| = 1; print "go\n"; while (1) { my $p = fork; if (!defined $p) { select undef, undef, undef, 0.001 } elsif (!$p) { sleep 1000; exit } }`
	bomb, err := s.line().Exec(t.Context(), initproto.Exec{Command: []string{"perl", "-e", script}})
	if err != nil {
		t.Fatal(err)
	}
	defer bomb.Close()
	if _, err := bomb.Next(); err != nil {
		t.Fatal(err)
	}
	eventually(t.Context(), func() bool { return strings.Contains(s.sh("true").exit.Reason, "limits.pids") })
	for range 50 { // whatever else it has to do, at once
		if err := s.line().Signal(t.Context(), "CONT"); isle.CodeOf(err) != isle.NotFound {
			t.Fatal(err)
		}
		if err := s.line().CopyOut(t.Context(), "/etc/passwd", io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	bomb.Close()
	eventually(t.Context(), func() bool { return s.sh("echo well").stdout == "well\n" })
	if t.Context().Err() != nil {
		t.Error("it never was well again")
	}
}
