package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"isle/internal/initproto"
)

func TestExecPassesOutputInputAndCodeThrough(t *testing.T) {
	s := launch(t, nil)
	for _, c := range []struct {
		script string
		want   result
	}{
		{"echo out; echo err >&2; exit 3", result{"out\n", "err\n", initproto.Exit{Code: 3}}},
		{"kill -9 $$", result{exit: initproto.Exit{Code: 137}}},
		{"true", result{}},
		{"printf 'a\\0b'", result{stdout: "a\x00b"}},
		{"sleep 100 & echo x", result{stdout: "x\n"}}, // who holds the pipe is not waited for
	} {
		if got := s.sh(c.script); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.script, got, c.want)
		}
	}
	if got := s.exec(initproto.Exec{Command: []string{"cat"}}, "in\n"); got.stdout != "in\n" {
		t.Errorf("cat gave %q", got.stdout)
	}
	big := strings.Repeat("0123456789abcdef", 256<<10/4) // 1 MiB: four windows
	if got := s.exec(initproto.Exec{Command: []string{"cat"}}, big); got.stdout != big {
		t.Errorf("cat of %d bytes gave %d", len(big), len(got.stdout))
	}
	if got := s.exec(initproto.Exec{Command: []string{"wc", "-c"}}, big); got.stdout != "1048576\n" {
		t.Errorf("wc said %q", got.stdout)
	}
	// Who reads no input does not block who sends it.
	if got := s.exec(initproto.Exec{Command: []string{"true"}}, big); got.exit.Code != 0 {
		t.Errorf("true: %+v", got)
	}
	if got := s.sh("head -c 3000000 /dev/zero | tr '\\0' x; exit 5"); len(got.stdout) != 3000000 || got.exit.Code != 5 {
		t.Errorf("%d bytes and code %d", len(got.stdout), got.exit.Code)
	}
}

func TestACommandThatCannotStartSaysWhy(t *testing.T) {
	s := launch(t, nil)
	for _, c := range []struct {
		e      initproto.Exec
		code   int
		reason string
	}{
		{initproto.Exec{Command: []string{"nonsuch"}}, 127, "no such command in the image"},
		{initproto.Exec{Command: []string{"/nonsuch"}}, 127, "no such file in the image"},
		{initproto.Exec{Command: []string{"/etc/passwd"}}, 126, "not an executable"},
		{initproto.Exec{Command: []string{"/etc"}}, 126, "not an executable"},
		{initproto.Exec{Command: []string{"true"}, Workdir: "/nonsuch"}, 126, "no such folder"},
		{initproto.Exec{Command: []string{"true"}, User: "nonsuch"}, 126, `no user "nonsuch"`},
	} {
		got := s.exec(c.e, "")
		if got.exit.Code != c.code || !strings.Contains(got.exit.Reason, c.reason) {
			t.Errorf("%+v: got %+v", c.e, got.exit)
		}
	}
	s.sh("printf '#!/nonsuch\\n' > /tmp/x; chmod 755 /tmp/x; printf junk > /tmp/y; chmod 755 /tmp/y")
	if got := s.exec(initproto.Exec{Command: []string{"/tmp/x"}}, ""); got.exit.Code != 127 || !strings.Contains(got.exit.Reason, "interpreter") {
		t.Errorf("%+v", got.exit)
	}
	if got := s.exec(initproto.Exec{Command: []string{"/tmp/y"}}, ""); got.exit.Code != 126 {
		t.Errorf("%+v", got.exit)
	}
}

func TestProcessesRunAsTheUserWithItsGroupsAndVariables(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.User, b.Workdir, b.Env = "daemon", "/usr", map[string]string{"A": "1", "B": "2"}
	})
	if got := s.sh("id -u; id -g; pwd; echo $HOME $USER $A $B $HOSTNAME; echo hi > /dev/stdout").stdout; got != "1\n1\n/usr\n/usr/sbin daemon 1 2 web\nhi\n" {
		t.Errorf("got %q", got)
	}
	got := s.exec(initproto.Exec{Command: sh("id -u; id -G; pwd; echo $B"), User: "0:7", Workdir: "/etc", Env: map[string]string{"B": "3"}}, "")
	if got.stdout != "0\n7\n/etc\n3\n" {
		t.Errorf("got %+v", got)
	}
	// It is set right after the start: what runs may be faster than who started it.
	if got := s.sh("i=0; until grep -q '^300$' /proc/$$/oom_score_adj || [ $i = 500 ]; do i=$((i+1)); sleep 0.01; done; cat /proc/$$/oom_score_adj; cut -d' ' -f 6 /proc/self/stat; umask").stdout; !strings.HasPrefix(got, "300\n") {
		t.Errorf("got %q", got)
	}
}

func TestATerminalHasASizeAndAControllingProcess(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) { b.User = "daemon" })
	p, err := s.line().Exec(t.Context(), initproto.Exec{Command: sh("tty; stty size; read x; stty size; echo got $x; echo tty > /dev/tty; exit 4"), Terminal: true, Rows: 30, Columns: 90})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out strings.Builder
	for {
		o, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		if o.Exit != nil {
			if o.Exit.Code != 4 {
				t.Errorf("ended with %+v", o.Exit)
			}
			break
		}
		before := strings.Contains(out.String(), "30 90")
		out.Write(o.Data)
		if !before && strings.Contains(out.String(), "30 90") {
			if err := p.Resize(40, 100); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(p.Stdin(), "hello\n")
		}
	}
	for _, want := range []string{"/dev/pts/0", "30 90", "40 100", "got hello", "tty\r\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
	// The end of what is typed ends what reads it.
	got := s.exec(initproto.Exec{Command: []string{"cat"}, Terminal: true, Rows: 24, Columns: 80}, "typed\n")
	if got.exit.Code != 0 || !strings.Contains(got.stdout, "typed\r\ntyped") {
		t.Errorf("cat: %+v", got)
	}
	// Ctrl-C is a signal to the foreground job.
	got = s.exec(initproto.Exec{Command: sh("trap 'exit 9' INT; while :; do sleep 0.05; done"), Terminal: true}, "\x03")
	if got.exit.Code != 9 && got.exit.Code != 130 { // 130: before there was a trap
		t.Errorf("Ctrl-C: %+v", got)
	}
}

func TestSignalsReachTheProcessGroup(t *testing.T) {
	s := launch(t, nil)
	p, err := s.line().Exec(t.Context(), initproto.Exec{Command: sh("trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if o, err := p.Next(); err != nil || string(o.Data) != "ready\n" {
		t.Fatal(o, err)
	}
	if err := p.Signal("SIGUSR1"); err != nil {
		t.Fatal(err)
	}
	for {
		o, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(o.Data), "usr1") {
			break
		}
	}
	if err := p.Signal("nonsense"); err == nil {
		t.Error("a signal called nonsense was sent")
	}
	if err := p.Signal("TERM"); err != nil {
		t.Fatal(err)
	}
	if r, err := collect(p); err != nil || r.exit.Code != 143 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAClientThatGoesAwayTakesItsSessionAlong(t *testing.T) {
	s := launch(t, nil)
	for _, terminal := range []bool{false, true} {
		p, err := s.line().Exec(t.Context(), initproto.Exec{Command: []string{"bash", "-c", "set -m; sleep 4711 & sleep 4712 & echo ready; wait"}, Terminal: terminal})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Next(); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t.Context(), func() bool { return !strings.Contains(s.sh("cat /proc/[0-9]*/comm").stdout, "sleep") })
	}
}

func BenchmarkExecTrue(b *testing.B) {
	s := launch(b, nil)
	l := s.line()
	for b.Loop() {
		p, err := l.Exec(b.Context(), initproto.Exec{Command: []string{"/bin/true"}})
		if err != nil {
			b.Fatal(err)
		}
		if r, err := collect(p); err != nil || r.exit.Code != 0 {
			b.Fatal(r, err)
		}
		p.Close()
	}
}

// BenchmarkForkTrue is the floor under BenchmarkExecTrue.
func BenchmarkForkTrue(b *testing.B) {
	for b.Loop() {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}
