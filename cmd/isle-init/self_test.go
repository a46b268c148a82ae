package main

import (
	"bytes"
	"strings"
	"testing"

	"isle"
	"isle/internal/initproto"
)

// fork does to a running isle-init what a fork of its memory does: its
// connections are gone, and in the airlock that it dials is a home that takes it
// for another. It returns the events of that.
func (s *sandbox) fork(hostname string, generation int64) *events {
	s.t.Helper()
	captured, hash := s.boot.Launch, isle.DigestOf(s.boot.Secret)
	s.stopServer()
	s.instance, s.boot.Launch, s.boot.Secret = isle.NewID(), isle.NewID(), bytes.Repeat([]byte{byte(generation)}, initproto.SecretSize)
	s.events = newEvents()
	s.listen(s.address, func() {
		b := initproto.Become{Launch: s.boot.Launch, Secret: s.boot.Secret, Hostname: hostname, Generation: generation}
		if err := s.home.ExpectFork(s.instance, captured, hash, b, s.events); err != nil {
			s.t.Error(err)
		}
	})
	return s.events
}

func TestAForkIsSomebodyElse(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("echo of the parent; trap 'echo of the fork' HUP; while :; do sleep 0.01; done")
		b.Caps = nil
	})
	s.events.wait(func(_ []string, out string) bool { return strings.Contains(out, "of the parent") })
	s.events.waitFor("started")
	p, err := s.line().Exec(t.Context(), initproto.Exec{Command: sh("echo here; sleep 1000")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Next(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	for generation := int64(1); generation <= 3; generation++ { // a fork of a fork of a fork
		e := s.fork("web-shop-f1", generation)
		e.waitFor("started")
		if got := strings.TrimSpace(s.sh("echo $HOSTNAME").stdout); got != "web-shop-f1" {
			t.Errorf("a command of the fork has the host name %q", got)
		}
		if err := s.line().Signal(t.Context(), "HUP"); err != nil {
			t.Fatal(err)
		}
		e.wait(func(_ []string, out string) bool { return strings.Contains(out, "of the fork") })
		list, out := e.snapshot()
		if len(list) != 1 || strings.Contains(out, "of the parent") {
			t.Errorf("the fork told %v, %q", list, out)
		}
	}
	eventually(t.Context(), func() bool { return s.sh("grep -l 'sleep.100[0]' /proc/[0-9]*/cmdline").stdout == "" }) // the parent's session
	for len(s.refused) > 0 {
		if r := <-s.refused; r.Launch != "" { // and not one that was cut off as the server stopped
			t.Errorf("refused %+v", r)
		}
	}
}

func TestAForkTellsThatItsCommandHadEnded(t *testing.T) {
	s := launch(t, func(b *initproto.Boot) {
		b.Command = sh("until [ -s /tmp/session ]; do sleep 0.01; done; while kill -0 $(cat /tmp/session); do sleep 0.01; done; exit 5")
	})
	s.events.waitFor("started")
	p, err := s.line().Exec(t.Context(), initproto.Exec{Command: sh("echo $$ >/tmp/session; echo here; exec sleep 1000")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Next(); err != nil {
		t.Fatal(err)
	}
	s.stopServer()
	p.Close() // by which the session ends, and then the command, and nobody listens
	e := s.fork("web", 1)
	e.waitFor("exited 5")
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("isle-init ended with %d", code)
	}
}

func TestNoGenerationComesTwice(t *testing.T) {
	i := self{secret: make([]byte, initproto.SecretSize)}
	b := func(g int64) initproto.Become {
		return initproto.Become{Launch: isle.NewID(), Secret: bytes.Repeat([]byte{1}, initproto.SecretSize), Hostname: "a", Generation: g}
	}
	for _, c := range []struct {
		generation int64
		ok         bool
	}{{5, true}, {5, false}, {4, false}, {6, true}} {
		new := b(c.generation)
		if err := i.become(new); (err == nil) != c.ok {
			t.Errorf("generation %d: %v", c.generation, err)
		}
		if !bytes.Equal(new.Secret, make([]byte, initproto.SecretSize)) {
			t.Error("the message's secret is not wiped")
		}
	}
}
