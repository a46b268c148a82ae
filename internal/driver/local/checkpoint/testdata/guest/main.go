// Command guest is what the tests of package checkpoint capture: a database that
// counts and keeps its number on a volume, and an application that asks it over
// one connection, for ever, and tells what it sees in the file /out/seen.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

func main() {
	switch os.Args[1] {
	case "hold":
		time.Sleep(time.Hour)
	case "db":
		db()
	case "app":
		size, err := strconv.Atoi(os.Args[2])
		check(err)
		app(size)
	}
}

func check(err error) {
	if err != nil {
		_ = os.WriteFile("/out/failed", []byte(err.Error()), 0o644)
		os.Exit(1)
	}
}

// db answers each line with the next number, which it has written down before.
func db() {
	l, err := net.Listen("tcp", "127.0.0.1:5432")
	check(err)
	f, err := os.OpenFile("/out/number", os.O_RDWR|os.O_CREATE, 0o644)
	check(err)
	n := 0
	c, err := l.Accept()
	check(err)
	for r := bufio.NewReader(c); ; n++ {
		_, err := r.ReadString('\n')
		check(err)
		_, err = f.WriteAt(fmt.Appendf(nil, "%012d", n+1), 0)
		check(err)
		_, err = fmt.Fprintf(c, "%d\n", n+1)
		check(err)
	}
}

type seen struct {
	Number   int           `json:"number"`
	Hostname string        `json:"hostname"`
	Marked   string        `json:"marked"` // the file /etc/mark
	Outside  string        `json:"outside"`
	Random   string        `json:"random"`
	Gap      time.Duration `json:"gap"` // the longest between two numbers
	Sum      int           `json:"sum"` // of the memory
}

// app has size MB of memory with something in it, and a connection outwards on
// which it only reads.
func app(size int) {
	memory := make([]byte, size<<20)
	_, err := rand.Read(memory)
	check(err)
	var outside atomic.Value
	outside.Store("open")
	away, err := net.Dial("tcp", "198.51.100.1:7")
	check(err)
	go func() {
		_, err := io.Copy(io.Discard, away)
		outside.Store(fmt.Sprint("closed: ", err))
	}()
	var c net.Conn
	for range 500 {
		if c, err = net.Dial("tcp", "127.0.0.1:5432"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	check(err)
	var s seen
	r, last := bufio.NewReader(c), time.Now()
	for {
		_, err := io.WriteString(c, "next\n")
		check(err)
		line, err := r.ReadString('\n')
		check(err)
		before := s.Number
		s.Number, err = strconv.Atoi(strings.TrimSpace(line))
		check(err)
		if s.Number != before+1 {
			check(fmt.Errorf("%d after %d", s.Number, before))
		}
		s.Gap, last = max(s.Gap, time.Since(last)), time.Now()
		if s.Number%20 == 0 {
			tell(&s, memory, outside.Load().(string))
			last = time.Now()
		}
		time.Sleep(time.Millisecond)
	}
}

func tell(s *seen, memory []byte, outside string) {
	s.Outside = outside
	s.Hostname, _ = os.Hostname()
	mark, err := os.ReadFile("/etc/mark")
	check(err)
	s.Marked = string(mark)
	var b [16]byte
	_, err = rand.Read(b[:])
	check(err)
	s.Random, s.Sum = hex.EncodeToString(b[:]), 0
	for i := 0; i < len(memory); i += 4096 {
		s.Sum += int(memory[i])
	}
	out, err := json.Marshal(s)
	check(err)
	check(os.WriteFile("/out/seen.new", out, 0o644))
	check(os.Rename("/out/seen.new", "/out/seen"))
	if _, err := os.Stat("/out/quiet"); err == nil { // a new beginning for Gap
		check(os.Remove("/out/quiet"))
		s.Gap = 0
	}
}
