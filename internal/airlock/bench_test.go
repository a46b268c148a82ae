package airlock

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"isle"
)

func BenchmarkOpenClose(b *testing.B) {
	h := newHouse(b)
	ctx := context.Background()
	grants := granting(h.granted("api.example.com"))
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			id := isle.NewID()
			if _, err := h.Open(ctx, id, grants); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			h.Close(ctx, id)
			b.StartTimer()
		}
	})
	b.Run("close", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			id := isle.NewID()
			if _, err := h.Open(ctx, id, grants); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			h.Close(ctx, id)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				id := isle.NewID()
				if _, err := h.Open(ctx, id, grants); err != nil {
					b.Error(err)
				}
				h.Close(ctx, id)
			}
		})
	})
}

// connect connects to the echo server outside, through the airlock, or
// directly.
func connect(b *testing.B, h *house, airlocked bool) net.Conn {
	b.Helper()
	var c net.Conn
	if !airlocked {
		var err error
		if c, err = net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", h.port)); err != nil {
			b.Fatal(err)
		}
		return c
	}
	_, ns := h.enter(h.granted("api.example.com"))
	inside(b, ns, func() error {
		a, err := addressOf("api.example.com")
		if err == nil {
			c, err = dialer.Dial("tcp4", hostPort(a, h.port))
		}
		return err
	})
	return c
}

func BenchmarkRelay(b *testing.B) {
	h := newHouse(b)
	for name, airlocked := range map[string]bool{"airlock": true, "loopback": false} {
		b.Run(name+"/roundtrip", func(b *testing.B) {
			c := connect(b, h, airlocked)
			defer c.Close()
			buffer := make([]byte, 64)
			for b.Loop() {
				c.Write(buffer)
				if _, err := io.ReadFull(c, buffer); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/throughput", func(b *testing.B) { // one way
			echoes := h.port
			h.port = sink(b)
			defer func() { h.port = echoes }()
			c := connect(b, h, airlocked)
			defer c.Close()
			buffer := make([]byte, 256<<10)
			b.SetBytes(int64(len(buffer)))
			b.ResetTimer()
			for range b.N {
				if _, err := c.Write(buffer); err != nil {
					b.Fatal(err)
				}
			}
			c.(*net.TCPConn).CloseWrite()
			if _, err := c.Read(buffer); err != io.EOF {
				b.Fatal(err)
			}
		})
	}
	b.Run("connect", func(b *testing.B) {
		_, ns := h.enter(h.granted("api.example.com"))
		inside(b, ns, func() error {
			a, err := addressOf("api.example.com")
			if err != nil {
				return err
			}
			address := hostPort(a, h.port)
			for b.Loop() {
				if err := echo(address); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// sink takes one connection, reads to its end, and closes it.
func sink(b *testing.B) int {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	b.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buffer := make([]byte, 256<<10)
		for err == nil {
			_, err = c.Read(buffer)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
