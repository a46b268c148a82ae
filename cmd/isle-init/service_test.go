package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
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

func TestSetupIsAcknowledgedBeforeTheCommandStarts(t *testing.T) {
	hold := make(chan struct{})
	e := newEvents()
	e.hold = hold
	s := launchTo(t, e, func(b *initproto.Boot) {
		b.User = "daemon"
		b.Own = []string{"/tmp"}
		b.Setup = sh("echo setting up; stat -c %U /tmp; touch /tmp/set-up")
		b.Command = sh("ls /tmp; echo started > /tmp/started; exit 7")
	})
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "setting up") })
	if got := s.sh("test -e /tmp/started").exit.Code; got != 1 {
		t.Error("the command started before setup was acknowledged")
	}
	close(hold)
	s.events.waitFor("exited")
	<-s.ended
	list, out := s.events.snapshot()
	if got := strings.Join(list, "; "); got != "setup 0 setting up\ndaemon; started; exited 7 " {
		t.Errorf("events: %s", got)
	}
	if !strings.HasSuffix(out, "set-up\n") {
		t.Errorf("output: %q", out)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("isle-init ended with %d", code)
	}
}

func TestAFailedSetupEndsTheLaunch(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Setup = sh("echo no >&2; exit 3")
		b.Command = sh("echo never")
	})
	<-s.ended
	list, _ := s.events.snapshot()
	if got := strings.Join(list, "; "); got != "setup 3 no" {
		t.Errorf("events: %s", got)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("isle-init ended with %d", code)
	}
}

func TestACommandThatIsNotThereIsReported(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.Command = []string{"nonsuch"} })
	<-s.ended
	if list, _ := s.events.snapshot(); len(list) != 1 || !strings.HasPrefix(list[0], "exited 127 nonsuch: there is no such command") {
		t.Errorf("events: %q", list)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	s := launch(t, nil)
	for range 20 {
		s.sh("(sleep 0.01 &) ; (true &)")
	}
	eventually(t.Context(), func() bool {
		return !strings.Contains(s.sh("cat /proc/[0-9]*/stat 2>/dev/null | cut -d ' ' -f 3").stdout, "Z")
	})
}

func TestStopAsksThenKills(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
	})
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "up") })
	if err := s.line().Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if list, out := s.events.snapshot(); list[len(list)-1] != "exited 5 " || !strings.Contains(out, "bye") {
		t.Errorf("%q, %q", list, out)
	}
	s = launch(t, func(b *initproto.Boot) {
		b.Command = sh("trap '' TERM; (trap '' TERM; sleep 1000) & echo up; while :; do sleep 0.05; done")
	})
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "up") })
	if err := s.line().Stop(t.Context(), 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if list, _ := s.events.snapshot(); list[len(list)-1] != "exited 137 " {
		t.Errorf("%q", list)
	}
	s = launch(t, nil) // idle
	if err := s.line().Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if list, _ := s.events.snapshot(); strings.Join(list, "; ") != "started; exited 0 " {
		t.Errorf("%q", list)
	}
}

func TestSignalReachesTheCommand(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.Command = sh("trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done") })
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "up") })
	if err := s.line().Signal(t.Context(), "HUP"); err != nil {
		t.Fatal(err)
	}
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "hup") })
}

func TestNothingIsLostWhileTheServerIsAwayExceptWhatIsSaid(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("echo one; while ! test -e /tmp/go; do sleep 0.02; done; echo two; seq 1 20000; echo three; exit 4")
	})
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "one") })
	s.sh("(sleep 0.3; touch /tmp/go) >/dev/null 2>&1 &")
	before := s.events
	s.stopServer()
	time.Sleep(600 * time.Millisecond) // the command ends meanwhile; if it does not, the test shows less
	s.events = newEvents()
	s.listen(s.address)
	s.expect()
	s.events.waitFor("exited")
	<-s.ended
	_, out := s.events.snapshot()
	var want strings.Builder
	want.WriteString("two\n")
	for i := range 20000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("three\n")
	if got := strings.TrimPrefix(out, "one\n"); got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	if list, _ := s.events.snapshot(); list[len(list)-1] != "exited 4 " {
		t.Errorf("%q", list)
	}
	if list, _ := before.snapshot(); strings.Join(list, ";") != "started" {
		t.Errorf("before: %q", list)
	}
}

func TestAFloodWhileTheServerIsAwayIsBoundedAndSaidToBe(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("while ! test -e /tmp/go; do sleep 0.02; done; head -c 8000000 /dev/zero | tr '\\0' x; echo; echo last; touch /tmp/done; sleep 1000")
	})
	s.events.waitFor("started")
	s.line()
	p, err := s.line().Exec(t.Context(), initproto.Exec{Command: sh("(sleep 0.2; touch /tmp/go) >/dev/null 2>&1 &")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := collect(p); err != nil {
		t.Fatal(err)
	}
	s.stopServer()
	time.Sleep(800 * time.Millisecond)
	s.events = newEvents()
	s.listen(s.address)
	s.expect()
	s.events.wait(func(_ []string, out string) bool { return strings.HasSuffix(out, "last\n") })
	_, out := s.events.snapshot()
	if strings.Contains(out, "bytes of output were dropped while the server was away") == (len(out) > 7000000) {
		t.Errorf("%d bytes of output, which begins %q", len(out), out[:80])
	}
	if rss := s.sh("grep VmHWM /proc/1/status").stdout; rss != "" {
		t.Log(rss)
	}
}

func TestHealthIsToldWhenItChanges(t *testing.T) {
	check := spec.Healthcheck{Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, Start: time.Minute, Retries: 2}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" || r.Host != "localhost:"+strconv.Itoa(port) {
			http.NotFound(w, r)
		}
	})}
	go server.Serve(l)
	defer server.Close()
	for name, set := range map[string]func(*spec.Healthcheck){
		"tcp":     func(h *spec.Healthcheck) { h.TCP = port },
		"http":    func(h *spec.Healthcheck) { h.HTTP = fmt.Sprintf("http://localhost:%d/health", port) },
		"command": func(h *spec.Healthcheck) { h.Command = sh("test -e /tmp/up") },
	} {
		t.Run(name, func(t *testing.T) {
			h := check
			set(&h)
			s := launch(t, func(b *initproto.Boot) {
				b.Command = sh("touch /tmp/up; sleep 1000")
				b.Healthcheck = &h
			})
			s.events.waitFor("health true")
			if name == "command" {
				s.sh("rm /tmp/up")
				s.events.waitFor("health false sh ended with 1")
				s.sh("touch /tmp/up")
				s.events.wait(func(list []string, _ string) bool { return len(list) == 4 })
			}
		})
	}
	t.Run("never", func(t *testing.T) {
		h := check
		h.HTTP, h.Start = fmt.Sprintf("http://127.0.0.1:%d/nonsuch", port), 50*time.Millisecond
		s := launch(t, func(b *initproto.Boot) { b.Healthcheck = &h })
		s.events.waitFor("health false GET http://127.0.0.1")
	})
}

func TestForwardReachesAPortInside(t *testing.T) {
	s := launch(t, nil)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			b, _ := io.ReadAll(c) // until the half-close
			fmt.Fprintf(c, "got %s", b)
		}()
		c, err := s.line().Forward(t.Context(), l.Addr().(*net.TCPAddr).Port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "hello")
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "got hello" {
			t.Errorf("%q, %v", b, err)
		}
	}
	if _, err := s.line().Forward(t.Context(), 1); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "port 1 inside") {
		t.Errorf("a port where nobody listens: %v", err)
	}
}

func TestUsersAreFoundInTheImagesOwnFiles(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := lookUser(root, ""); err != nil || u.uid != 0 || u.home != "/root" {
		t.Errorf("an image without users: %+v, %v", u, err)
	}
	write("passwd", "root:x:0:0::/root:/bin/bash\nbad line\nweb:x:1000:1001:W:/home/web:/bin/zsh\nbig:x:4294967295:0::/:\n")
	write("group", "web:x:1001:\nextra:x:50:other,web\n")
	for in, want := range map[string]string{
		"web":     "web 1000 1001 [50 1001] /home/web /bin/zsh",
		"1000":    "web 1000 1001 [50 1001] /home/web /bin/zsh",
		"web:50":  "web 1000 50 [50] /home/web /bin/zsh",
		"web:web": "web 1000 1001 [1001] /home/web /bin/zsh",
		"77:88":   "77 77 88 [88] / /bin/sh",
		"77":      "77 77 77 [77] / /bin/sh",
		"":        "root 0 0 [0] /root /bin/bash",
	} {
		u, err := lookUser(root, in)
		if got := fmt.Sprintf("%s %d %d %d %s %s", u.name, u.uid, u.gid, u.groups, u.home, u.shell); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"nonsuch", "web:nonsuch", "big", "4294967295", "-1"} {
		if u, err := lookUser(root, in); err == nil {
			t.Errorf("%q is %+v", in, u)
		}
	}
}
