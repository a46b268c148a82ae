package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const path = "/run/isle/workload.sock"

// foreign asks for identities of others.
func foreign(args []string) {
	ctx, cancel := background()
	defer cancel()
	for _, id := range args {
		_, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", Subject: spiffeid.RequireFromString(id)})
		say(id, "%s", code(err))
	}
	c, conn := client()
	defer conn.Close()
	_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
	say("without the header", "%s", code(err))
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	for name, value := range map[string]string{"authorization": "Bearer x", "x-isle-launch": "x", "host": "db", "x-forwarded-client-cert": "URI=spiffe://x/db"} {
		got, err := c.FetchJWTSVID(metadata.AppendToOutgoingContext(ctx, name, value), &workload.JWTSVIDRequest{Audience: []string{"a"}})
		if err != nil {
			say("with "+name, "%v", err)
			continue
		}
		say("with "+name, "%s", got.Svids[0].SpiffeId)
	}
}

func client() (workload.SpiffeWorkloadAPIClient, *grpc.ClientConn) {
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		say("client", "%v", err)
		os.Exit(1)
	}
	return workload.NewSpiffeWorkloadAPIClient(conn), conn
}

// garbage says what makes no sense, and how long the answers are.
func garbage([]string) {
	for name, said := range map[string]string{
		"HTTP/1":         "POST /SpiffeWorkloadAPI/FetchX509SVID HTTP/1.1\r\nHost: x\r\nworkload.spiffe.io: true\r\nContent-Type: application/grpc\r\n\r\n",
		"TLS":            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("x", 500),
		"an Isle hello":  "\x02\x00\x00\x00\x4c\x01\x03" + strings.Repeat("x", 74),
		"zeros":          strings.Repeat("\x00", 1<<20),
		"broken frames":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 1<<16),
		"half a preface": "PRI * HTTP/2.0\r\n",
		"nothing":        "",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			say(name, "%v", err)
			continue
		}
		c.SetDeadline(time.Now().Add(patience))
		go func() {
			io.WriteString(c, said)
			c.(*net.UnixConn).CloseWrite()
		}()
		b, err := io.ReadAll(c)
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout():
			say(name, "HELD")
		case strings.Contains(string(b), "spiffe://"):
			say(name, "DONE")
		default:
			say(name, "HUNG UP")
		}
		c.Close()
	}
}

// crowd opens a thousand connections, and then one that is meant.
func crowd([]string) {
	var all []net.Conn
	for range 1000 {
		c, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			break // the queue is full
		}
		all = append(all, c)
	}
	say("connections", "%d", len(all))
	for _, c := range all {
		c.Close()
	}
	ctx, cancel := background()
	defer cancel()
	_, err := workloadapi.FetchX509SVID(ctx)
	say("afterwards", "%v", err)
}

// slow opens as many streams as it may, and reads none.
func slow([]string) {
	ctx, cancel := background()
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	streams := 0
	for range 10 {
		c, conn := client()
		defer conn.Close()
		for range 60 {
			if _, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{}); err == nil {
				streams++
			}
		}
	}
	say("streams", "%d", streams)
	_, err := workloadapi.FetchX509SVID(ctx)
	say("another", "%v", err)
}

// replace puts a socket of its own in place of the one that was there, which
// misleads its own service alone.
func replace([]string) {
	if err := os.Remove(path); err != nil {
		say("remove", "%v", err)
		return
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		say("listen", "%v", err)
		return
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = workloadapi.FetchX509SVID(ctx)
	say("through it", "%s", code(err))
	err = syscall.Mount("/tmp", "/run/isle", "", syscall.MS_BIND, "")
	say("mount over it", "%v", err)
}
