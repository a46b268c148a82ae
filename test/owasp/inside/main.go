// Command inside runs in a service: it gives away the documents of its identity,
// as a program that was broken into would, and goes where it should not. What it
// sees it says, one line each: what was tried, a tab, and what came of it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: inside COMMAND")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch args := os.Args[2:]; os.Args[1] {
	case "steal":
		steal(ctx, args[0])
	case "ask":
		ask(ctx, args)
	case "reach":
		for _, address := range args {
			reach(address)
		}
	case "via":
		via(args[0], args[1])
	case "answer": // to be a service that says who it is
		answer(args[0], args[1])
	case "wait": // to be a service
		for {
			time.Sleep(time.Hour)
		}
	}
}

func say(what string, format string, args ...any) {
	fmt.Println(what + "\t" + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// steal says its documents in full: a JWT-SVID for an audience, an X.509-SVID.
func steal(ctx context.Context, audience string) {
	jwt, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		say("error", "%v", err)
		return
	}
	say("id", "%s", jwt.ID)
	say("jwt", "%s", jwt.Marshal())
	say("jwt lives", "%d", int(time.Until(jwt.Expiry).Seconds()))
	x, err := workloadapi.FetchX509SVID(ctx)
	if err != nil {
		say("error", "%v", err)
		return
	}
	chain, key, err := x.Marshal()
	if err != nil {
		say("error", "%v", err)
		return
	}
	say("x509", "%q", chain)
	say("x509 key", "%q", key)
	say("x509 lives", "%d", int(time.Until(x.Certificates[0].NotAfter).Seconds()))
}

// ask wants JWT-SVIDs of identities.
func ask(ctx context.Context, ids []string) {
	for _, id := range ids {
		_, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", Subject: spiffeid.RequireFromString(id)})
		say(id, "%s", status.Code(err))
	}
}

// reach dials an address, and says whether somebody answers with a line.
func reach(address string) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		say(address, "%v", err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	line := make([]byte, 64)
	n, err := conn.Read(line)
	say(address, "connected %q %v", line[:n], err)
}

// via dials a name that the airlock answers for, whatever /etc/hosts says of it.
func via(name, port string) {
	address, err := lookup(name)
	if err != nil {
		say("via", "%v", err)
		return
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address.String(), port), 10*time.Second)
	if err != nil {
		say("via", "%v", err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	line := make([]byte, 64)
	n, err := conn.Read(line)
	say("via", "connected %q %v", line[:n], err)
}

// lookup asks the airlock for a name's address (RFC 1035, 4.1).
func lookup(name string) (net.IP, error) {
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	_, server, _ := strings.Cut(string(conf), "nameserver ")
	conn, err := net.Dial("udp", net.JoinHostPort(strings.Fields(server)[0], "53"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	question := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		question = append(append(question, byte(len(label))), label...)
	}
	if _, err := conn.Write(append(question, 0, 0, 1, 0, 1)); err != nil { // A, IN
		return nil, err
	}
	said := make([]byte, 1500)
	n, err := conn.Read(said)
	if err != nil {
		return nil, err
	}
	if n < 16 || said[7] == 0 {
		return nil, fmt.Errorf("no answer, code %d", said[3]&15)
	}
	return net.IP(said[n-4 : n]), nil
}

// answer says a line to everybody who connects.
func answer(port, line string) {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Println(err)
		return
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(conn, line)
		conn.Close()
	}
}
