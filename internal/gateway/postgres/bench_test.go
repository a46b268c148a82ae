package postgres

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// blind listens and copies both ways without looking: what a proxy in Go costs
// at least.
func blind(t testing.TB, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				s, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer s.Close()
				// Wrapped, so that the kernel does not splice: a gateway reads.
				go func() { io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{c}); s.(*net.TCPConn).CloseWrite() }()
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{s})
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return l.Addr().String()
}

// BenchmarkPgbench is pgbench -S, directly, through a blind copy and through the
// gateway, without TLS behind in all three: go test -bench Pgbench -benchtime 1x.
func BenchmarkPgbench(b *testing.B) {
	server.Must(b, "postgres", "alter role orders_db set synchronous_commit = off")
	f := orders()
	f.connection.TLS.Off = true
	f.connection.StatementTimeout = 0
	if err := parser.Warm(); err != nil {
		b.Fatal(err)
	}
	env := append(os.Environ(), "PGPASSWORD=geheim", "PGSSLMODE=disable", "PGUSER=orders_db", "PGDATABASE=orders")
	run := func(addr string, args ...string) string {
		host, port, _ := net.SplitHostPort(addr)
		cmd := exec.Command("pgbench", append([]string{"-h", host, "-p", port}, args...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	run(server.Addr(), "-i", "-q", "-s", "5")
	addrs := map[string]string{"direct": server.Addr(), "blind": blind(b, server.Addr()), "gateway": listen(b, f)}
	tps := regexp.MustCompile(`tps = ([0-9.]+)`)
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, clients := range []int{1, 8, 64} {
			for _, way := range []string{"direct", "blind", "gateway", "blind", "gateway"} {
				b.Run(fmt.Sprintf("%s/%d/%s", mode, clients, way), func(b *testing.B) {
					for range b.N {
						out := run(addrs[way], "-n", "-S", "-M", mode, "-T", "3", "-c", strconv.Itoa(clients), "-j", "2")
						m := tps.FindStringSubmatch(out)
						if m == nil || strings.Contains(out, "aborted") {
							b.Fatal(out)
						}
						v, _ := strconv.ParseFloat(m[1], 64)
						b.ReportMetric(v, "tps")
					}
				})
			}
		}
	}
}
