package tcp_test

import (
	"io"
	"net"
	"runtime"
	"testing"

	"isle/internal/gateway/gatewaytest"
)

// BenchmarkIdleSession says what a session over which nothing goes costs.
func BenchmarkIdleSession(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c) // ends with the session
		}
	}()
	w := worldOf(b, l.Addr().String(), ", tls: off", 0)
	const sessions = 500
	var all []net.Conn
	before := inUse()
	for b.Loop() {
		for i := range sessions {
			c, _ := w.Connect(gatewaytest.Workload("shop", "testing"), "queue")
			io.WriteString(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				b.Fatal(i, err)
			}
			all = append(all, c)
		}
		b.ReportMetric(float64(inUse()-before)/sessions, "B/session")
		for _, c := range all {
			c.Close()
		}
		all = nil
	}
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
