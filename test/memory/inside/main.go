// Command inside is what runs in the environments of these tests: two services
// with a connection between them, and state that has to survive.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	var err error
	switch os.Args[1] {
	case "db":
		err = db()
	case "web":
		err = web()
	case "end":
		err = end()
	case "ask":
		err = ask(os.Args[2], strings.Join(os.Args[3:], " "))
	default:
		err = errors.New("no such part")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers lines with lines.
func serve(address string, answer func(string) string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			in := bufio.NewScanner(c)
			for in.Scan() {
				if _, err := fmt.Fprintln(c, answer(in.Text())); err != nil {
					return
				}
			}
		}()
	}
}

// ask prints the answer to one line.
func ask(port, what string) error {
	c, err := net.Dial("tcp", "localhost:"+port)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, what); err != nil {
		return err
	}
	said, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(said)
	if err == nil && said == "what?\n" {
		err = errors.New("it does not understand")
	}
	return err
}

// end ends the service: whoever listens is killed.
func end() error {
	folders, err := os.ReadDir("/proc")
	for _, f := range folders {
		pid, nerr := strconv.Atoi(f.Name())
		args, rerr := os.ReadFile("/proc/" + f.Name() + "/cmdline")
		if nerr == nil && rerr == nil && string(args) == "/inside\x00db\x00" {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return err
}

// db numbers what it is asked for and writes each number down. It has the same
// bytes in memory and in a file, and changes both alike.
func db() error {
	log, err := os.OpenFile("/data/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	file, err := os.OpenFile("/data/bytes", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	bytes := make([]byte, 4<<20)
	if _, err := file.WriteAt(bytes, 0); err != nil {
		return err
	}
	var mu sync.Mutex
	n := 0
	return serve("127.0.0.1:5432", func(what string) string {
		mu.Lock()
		defer mu.Unlock()
		switch what {
		case "number":
			n++
			if _, err := fmt.Fprintln(log, n); err != nil {
				return err.Error()
			}
			return fmt.Sprint(n)
		case "change":
			for range 256 {
				at := rand.IntN(len(bytes) - 64)
				piece := bytes[at : at+64]
				for i := range piece {
					piece[i] = byte(rand.Uint32())
				}
				if _, err := file.WriteAt(piece, int64(at)); err != nil {
					return err.Error()
				}
			}
		case "sum":
		case "log":
			return gapless(n)
		default:
			return "what?"
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(file, 0, int64(len(bytes)))); err != nil {
			return err.Error()
		}
		sum := sha256.Sum256(bytes)
		return hex.EncodeToString(sum[:]) + " " + hex.EncodeToString(h.Sum(nil))
	})
}

// gapless says whether every number was written down once, to the last.
func gapless(last int) string {
	b, err := os.ReadFile("/data/log")
	if err != nil {
		return err.Error()
	}
	lines := strings.Fields(string(b))
	for i, line := range lines {
		if line != fmt.Sprint(i+1) {
			return fmt.Sprintf("line %d is %q", i+1, line)
		}
	}
	if len(lines) != last {
		return fmt.Sprintf("%d lines, and the last number is %d", len(lines), last)
	}
	return "gapless"
}

// A seen is what web answers to "state".
type seen struct {
	Number      int64  // the last that db gave
	Connections int64  // that it has had to db
	Hostname    string // now
	Environment string // by its identity
}

// web asks for numbers all the time, over one connection, and has the documents
// of its identity in memory.
func web() error {
	var number, connections atomic.Int64
	go func() {
		for ; ; time.Sleep(20 * time.Millisecond) {
			c, err := net.Dial("tcp", "127.0.0.1:5432")
			if err != nil {
				continue
			}
			connections.Add(1)
			in := bufio.NewReader(c)
			for {
				if _, err = fmt.Fprintln(c, "number"); err != nil {
					break
				}
				var n int64
				if _, err = fmt.Fscanln(in, &n); err != nil {
					break
				}
				number.Store(n)
				time.Sleep(5 * time.Millisecond)
			}
			c.Close()
		}
	}()
	held := &identity{}
	return serve("127.0.0.1:8080", func(what string) string {
		switch verb, rest, _ := strings.Cut(what, " "); verb {
		case "state":
			host, _ := os.Hostname()
			b, _ := json.Marshal(seen{number.Load(), connections.Load(), host, who()})
			return string(b)
		case "hold":
			return held.hold(rest)
		case "show":
			return held.show(rest)
		case "hang":
			select {}
		}
		return "what?"
	})
}

// who is the SPIFFE ID that the Workload API gives now.
func who() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	x, err := workloadapi.FetchX509SVID(ctx)
	if err != nil {
		return err.Error()
	}
	return x.ID.String()
}

// An identity is a token that web has in memory, and where it got in with it.
type identity struct {
	token   string
	address string
}

// hold gets a token and finds out where a connection is.
func (h *identity) hold(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "orders"})
	if err != nil {
		return err.Error()
	}
	h.token = t.Marshal()
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	addresses, err := net.LookupHost(host)
	if err != nil {
		return err.Error()
	}
	h.address = net.JoinHostPort(addresses[0], "80")
	return h.show(url)
}

// show shows the token at the address that it was good at, by name and without.
func (h *identity) show(url string) string {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, h.address)
	}}
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+h.token)
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return "refused: " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	return res.Status + " " + strings.TrimSpace(string(b))
}
