package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"isle/internal/initproto"
)

// ask says something to the Workload API, ends its half, and prints the answer.
const ask = `perl -MIO::Socket::UNIX -e '
	my $c = IO::Socket::UNIX->new(Peer => substr($ENV{SPIFFE_ENDPOINT_SOCKET}, 7)) or die "connect: $!";
	$c->send($ARGV[0]); $c->shutdown(1); local $/; print scalar <$c>;' `

// echo answers what was said, once that has ended.
func echo(c net.Conn) {
	b, err := io.ReadAll(c)
	fmt.Fprintf(c, "heard %s, %v", b, err)
	c.(interface{ CloseWrite() error }).CloseWrite()
	io.Copy(io.Discard, c)
}

func TestTheWorkloadAPIIsThereForEveryUserBeforeAnythingRuns(t *testing.T) {
	s := launchServing(t, newEvents(), echo, func(b *initproto.Boot) {
		b.Setup = sh(ask + "setup; exit 0")
		b.Command = sh(ask + "command; stat -c ' %a %U %F' /run/isle /run/isle/workload.sock; sleep 1000")
		b.User = "nobody"
	})
	s.events.waitFor("started")
	s.events.wait(func(_ []string, out string) bool {
		return strings.Contains(out, "heard setup, <nil>") && strings.Contains(out, "heard command, <nil>") &&
			strings.Contains(out, "755 root directory") && strings.Contains(out, "666 root socket")
	})
	for _, user := range []string{"nobody", "root", "4711:4712"} {
		r := s.exec(initproto.Exec{Command: sh(ask + "exec"), User: user}, "")
		if r.stdout != "heard exec, <nil>" {
			t.Errorf("as %s: %+v", user, r)
		}
	}
	if r := s.exec(initproto.Exec{Command: sh("echo $SPIFFE_ENDPOINT_SOCKET"), Env: map[string]string{"SPIFFE_ENDPOINT_SOCKET": "unix:///mine"}}, ""); r.stdout != "unix:///mine\n" {
		t.Errorf("the variable that was asked for is %q", r.stdout)
	}
	if r := s.exec(initproto.Exec{Command: sh("rm /run/isle/workload.sock || touch /run/isle/x"), User: "nobody"}, ""); r.exit.Code == 0 {
		t.Error("an ordinary user could replace the socket")
	}
}

func TestTheWorkloadAPIIsThereAgainAfterTheServerWasAway(t *testing.T) {
	s := launchServing(t, newEvents(), echo, nil)
	if r := s.sh(ask + "one"); r.stdout != "heard one, <nil>" {
		t.Fatalf("%+v", r)
	}
	s.stopServer()
	s.listenAt(s.address)
	if r := s.sh(ask + "three"); r.stdout != "heard three, <nil>" {
		t.Errorf("%+v", r)
	}
}

// A server that hands over ends what it has not answered yet.
func TestAConnectionToTheWorkloadAPIOutlivesAHomeThatDidNotAnswer(t *testing.T) {
	var calls atomic.Int32
	s := launchServing(t, newEvents(), func(c net.Conn) {
		if calls.Add(1) < 3 {
			c.Read(make([]byte, 1))
			c.Close()
			return
		}
		io.WriteString(c, "SETTINGS ") // which a server of HTTP/2 says first
		echo(c)
	}, nil)
	if r := s.sh(ask + `"$(printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nhere I am')"`); !strings.HasPrefix(r.stdout, "SETTINGS heard PRI ") || !strings.Contains(r.stdout, "here I am, <nil>") || calls.Load() != 3 {
		t.Errorf("%+v after %d calls", r, calls.Load())
	}
	// What says something else may wait for more than one word.
	calls.Store(0)
	if r := s.sh(ask + "one"); r.stdout != "" || calls.Load() != 1 {
		t.Errorf("%+v after %d calls", r, calls.Load())
	}
}

// Whatever opens a thousand connections keeps its own service waiting, and the
// server busy with no more than the bound.
func TestAThousandConnectionsToTheWorkloadAPIAreAFewAtHome(t *testing.T) {
	var now, most atomic.Int32
	s := launchServing(t, newEvents(), func(c net.Conn) {
		for n := now.Add(1); ; {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		io.Copy(io.Discard, c)
		now.Add(-1)
	}, nil)
	r := s.sh(`perl -MIO::Socket::UNIX -e '
		my @c; for (1..1000) { my $c = IO::Socket::UNIX->new(Peer => "/run/isle/workload.sock") or last; $c->send("x"); push @c, $c } print scalar(@c), "\n"; sleep 1;'`)
	if n := most.Load(); n == 0 || n > initproto.MaxWorkload {
		t.Errorf("%d connections at once at home; inside: %+v", n, r)
	}
	t.Logf("%d at once at home, inside: %q", most.Load(), r.stdout)
	eventually(t.Context(), func() bool { return now.Load() == 0 })
	if r := s.sh("cat /proc/self/status >/dev/null; echo fine"); r.stdout != "fine\n" {
		t.Errorf("afterwards: %+v", r)
	}
}
