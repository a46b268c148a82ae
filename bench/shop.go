package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	v1 "isle/internal/api/isle/v1"
)

// A shop is the example of that name, in the class gvisor, with its orders and
// its clients.
type shop struct {
	b        *bench
	name     string
	instance string
	writable string // a fork of it that may be written to
	memory   int64  // of a capture, in bytes
	client   *caller
	stop     context.CancelFunc // of all clients
	gone     sync.WaitGroup
}

// openShop brings it up. The sandbox may use as many processors as there are,
// which plain runsc does.
func (b *bench) openShop(ctx context.Context) (s *shop, err error) {
	dir := filepath.Join(b.state, "bench-shop")
	if err := os.CopyFS(dir, os.DirFS("examples/shop")); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	path := filepath.Join(dir, "isle.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	changed := strings.NewReplacer("isolation: container", "isolation: gvisor", "limits: {cpus: 1, memory: 512MiB", "limits: {memory: 1GiB").Replace(string(text))
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
		return nil, err
	}
	s = &shop{b: b, name: "shop", writable: "shop-writable", stop: func() {}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.isleCommand(ctx, "up", dir); err != nil {
		return s, err
	}
	insert := fmt.Sprintf("INSERT INTO orders (customer, product, quantity, price) SELECT 'Ada', 'Oak stool', 1 + i %% 5, 128 FROM generate_series((SELECT count(*) FROM orders) + 1, %d) i", orders)
	if _, err := s.inside(ctx, s.name, "-s", "db", "--", "psql", "-qX", "-h", "localhost", "-U", "postgres", "-v", "ON_ERROR_STOP=1",
		"-c", insert, "-c", "VACUUM (FREEZE, ANALYZE) orders", "-c", "CHECKPOINT"); err != nil {
		return s, err
	}
	e, err := b.client.Environments.Get(ctx, connect.NewRequest(&v1.GetRequest{Environment: s.name}))
	if err != nil {
		return s, err
	}
	s.instance = e.Msg.GetEnvironment().GetInstance()
	port, err := portOf(e.Msg.GetEnvironment())
	if err != nil {
		return s, err
	}
	calling, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.client = newCaller(port, 0)
	s.gone.Go(func() { s.client.call(calling) })
	for range shoppers {
		c := newCaller(port, 250*time.Millisecond)
		s.gone.Go(func() { c.call(calling) })
	}
	f, err := s.fork(ctx, &v1.ForkRequest{From: s.name, Name: s.writable})
	s.memory = f.memory
	return s, err
}

func (s *shop) close() {
	s.stop()
	s.gone.Wait()
	for _, name := range []string{s.writable, s.name} {
		_ = s.down(context.Background(), name)
	}
}

func (s *shop) down(ctx context.Context, name string) error { return s.b.down(ctx, name) }

func (s *shop) isleCommand(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, s.b.isle, append([]string{"--state", s.b.state}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("isle %v: %w\n%s", args, err, out)
	}
	return nil
}

// inside runs a command of an environment, given as isle exec has it.
func (s *shop) inside(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.b.isle, append([]string{"--state", s.b.state, "exec", name}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %v: %w\n%s", name, args, err, said.String())
	}
	return string(out), err
}

// A forked is a copy, or several, and what was told while it was made.
type forked struct {
	port     int
	ports    []int
	paused   time.Duration // as the server says
	memory   int64         // bytes
	captured time.Time     // when it said so
}

func (s *shop) fork(ctx context.Context, r *v1.ForkRequest) (f forked, err error) {
	stream, err := s.b.client.Forks.Fork(ctx, connect.NewRequest(r))
	if err != nil {
		return f, err
	}
	defer stream.Close()
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p.GetStep() == "capture" && p.GetState() == "done" {
			f.captured = time.Now()
			f.read(p.GetMessage())
		}
		for _, e := range stream.Msg().GetResult().GetEnvironments() {
			port, err := portOf(e)
			if err != nil {
				return f, err
			}
			f.ports = append(f.ports, port)
		}
	}
	if err := stream.Err(); err != nil {
		return f, err
	}
	if len(f.ports) == 0 {
		return f, errors.New("the fork ended without a result")
	}
	f.port = f.ports[0]
	return f, nil
}

// read takes the figures out of "paused for 60.1ms, memory 89 MiB, reflink".
func (f *forked) read(message string) {
	for part := range strings.SplitSeq(message, ", ") {
		if d, ok := strings.CutPrefix(part, "paused for "); ok {
			f.paused, _ = time.ParseDuration(d)
		}
		if m, ok := strings.CutPrefix(part, "memory "); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(m, " MiB"), 10, 64)
			f.memory = n << 20
		}
	}
}

// portOf is where the shop's web service is published.
func portOf(e *v1.Environment) (int, error) {
	for _, svc := range e.GetServices() {
		for _, p := range svc.GetPorts() {
			return int(p.GetHost()), nil
		}
	}
	return 0, fmt.Errorf("%s has no port", e.GetName())
}

// answered waits for what the shop says after it has asked its database, over a
// connection to that which it had before it was copied, and says how long all of
// it took.
func (s *shop) answered(began time.Time, port int) (time.Duration, error) {
	return firstAnswer(began, port, http.DefaultTransport.(*http.Transport).Clone())
}

func firstAnswer(began time.Time, port int, way *http.Transport) (time.Duration, error) {
	way.DisableKeepAlives = true
	client := http.Client{Transport: way, Timeout: 10 * time.Second}
	var last error
	for time.Since(began) < 2*time.Minute {
		if last = ask(&client, port); last == nil {
			return time.Since(began), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("no answer: %w", last)
}

func ask(client *http.Client, port int) error {
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// A caller asks the shop again and again over one connection, and notes when it
// was answered.
type caller struct {
	port  int
	pause time.Duration

	mu      sync.Mutex
	answers []time.Time
	err     error
}

func newCaller(port int, pause time.Duration) *caller { return &caller{port: port, pause: pause} }

func (c *caller) call(ctx context.Context) {
	way := &http.Transport{MaxConnsPerHost: 1}
	defer way.CloseIdleConnections()
	client := http.Client{Transport: way, Timeout: time.Minute}
	for ctx.Err() == nil {
		err := ask(&client, c.port)
		c.mu.Lock()
		if err == nil {
			c.answers = append(c.answers, time.Now())
		} else if c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
		if c.pause > 0 {
			time.Sleep(c.pause)
		}
	}
}

// longest is the longest time between two answers of which one was after from or
// the other before to; it forgets those before.
func (c *caller) longest(ctx context.Context, from, to time.Time) (time.Duration, error) {
	for wait := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		err, answers := c.err, c.answers
		c.mu.Unlock()
		if err != nil {
			return 0, fmt.Errorf("a client of the source: %w", err)
		}
		if n := len(answers); n > 0 && answers[n-1].After(to) {
			var gap time.Duration
			for i := 1; i < n; i++ {
				if answers[i].After(from) && answers[i-1].Before(to) {
					gap = max(gap, answers[i].Sub(answers[i-1]))
				}
			}
			c.mu.Lock()
			c.answers = c.answers[n-1:]
			c.mu.Unlock()
			return gap, nil
		}
		if time.Now().After(wait) || ctx.Err() != nil {
			return 0, errors.New("the source does not answer any more")
		}
	}
}

// allocated sums what a folder's files have of their file system, in bytes. What
// is mounted in it counts by the file that it is in.
func allocated(dir string) (sum int64, err error) {
	var top syscall.Stat_t
	if err := syscall.Stat(dir, &top); err != nil {
		return 0, err
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err != nil || syscall.Lstat(path, &st) != nil {
			return nil // gone meanwhile
		}
		if st.Dev != top.Dev {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
