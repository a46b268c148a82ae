package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle/internal/initproto"
	"isle/internal/spec"
)

// While the service starts it is asked often, and ever less so.
const (
	firstProbe, lastProbe = 20 * time.Millisecond, 250 * time.Millisecond
)

// tellEvery is how often at most it is told why a service is not up yet.
const tellEvery = 500 * time.Millisecond

// checkHealth begins to ask how the service is, until end is closed, and tells
// when the answer changes.
func (s *service) checkHealth(end <-chan struct{}) {
	h := s.boot.Healthcheck
	if h == nil {
		return
	}
	go func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-end:
				cancel()
			case <-ctx.Done():
			}
		}()
		s.watchHealth(ctx, *h)
	}()
}

// watchHealth returns when ctx ends.
func (s *service) watchHealth(ctx context.Context, h spec.Healthcheck) {
	began := time.Now()
	pause := firstProbe
	known, healthy, failures := false, false, 0
	told, toldAt := "", began // why it is not up yet, as it was last told
	for {
		err := s.probe(ctx, h)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
			if !known || !healthy {
				s.outbox.tell(initproto.Event{Kind: initproto.EventHealth, Healthy: true})
			}
			known, healthy = true, true
		} else {
			failures++
			late := !known && time.Since(began) >= h.Start
			if late || known && healthy && failures >= max(h.Retries, 1) {
				s.outbox.tell(initproto.Event{Kind: initproto.EventHealth, Detail: err.Error()})
				known, healthy = true, false
			} else if now := time.Now(); !known && err.Error() != told && now.Sub(toldAt) >= tellEvery {
				// Whoever waits for it is shown why it takes long.
				told, toldAt = err.Error(), now
				s.outbox.tell(initproto.Event{Kind: initproto.EventHealth, Detail: told})
			}
		}
		wait := max(h.Interval, firstProbe)
		if !known {
			wait = pause
			pause = min(pause*3/2, lastProbe)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// probe asks once.
func (s *service) probe(ctx context.Context, h spec.Healthcheck) error {
	timeout := h.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case h.TCP > 0:
		c, err := dialLocal(h.TCP, timeout)
		if err != nil {
			return err
		}
		return c.Close()
	case h.HTTP != "":
		return probeHTTP(ctx, h.HTTP, timeout)
	case len(h.Command) > 0:
		return s.probeCommand(ctx, h.Command)
	}
	return nil
}

// probeCommand runs a command that has to end with 0.
func (s *service) probeCommand(ctx context.Context, argv []string) error {
	c, failure := s.resolve(argv, nil, s.user, "", false)
	if failure != nil {
		return fmt.Errorf("%s", failure.Reason)
	}
	p, failure := s.startPiped(c, false, nil)
	if failure != nil {
		return fmt.Errorf("%s", failure.Reason)
	}
	said := &tail{max: initproto.MaxDetail / 2}
	var outputs sync.WaitGroup
	for _, f := range p.outputs {
		outputs.Go(func() {
			pump(f, 0, func(b []byte) error { said.add(b); return nil })
		})
	}
	late := false
	select {
	case <-p.child.exited:
	case <-ctx.Done():
		late = true
		s.kill(p)
	}
	p.drain()
	outputs.Wait()
	p.close()
	if late {
		return fmt.Errorf("%s did not end in time: %s", argv[0], strings.TrimSpace(said.String()))
	}
	if code := p.child.code(); code != 0 {
		return fmt.Errorf("%s ended with %d: %s", argv[0], code, strings.TrimSpace(said.String()))
	}
	return nil
}

// probeHTTP sends a GET and reads the status line (RFC 9112, section 4), which
// has to say 2xx or 3xx.
func probeHTTP(ctx context.Context, address string, timeout time.Duration) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return fmt.Errorf("cannot ask %q: want an http:// address; for others use a command", address)
	}
	c, err := dialHTTP(ctx, u, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	path := u.RequestURI()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: isle-init\r\nAccept: */*\r\nConnection: close\r\n\r\n", path, u.Host); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(c, 4<<10)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("GET %s: no answer: %w", address, err)
	}
	status, err := parseStatus(line)
	if err != nil {
		return fmt.Errorf("GET %s: %w", address, err)
	}
	if status < 200 || status > 399 {
		return fmt.Errorf("GET %s: %s", address, strings.TrimSpace(line))
	}
	return nil
}

// parseStatus returns the code in a status line.
func parseStatus(line string) (int, error) {
	version, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	code, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/1.") || err != nil || len(code) != 3 || n < 100 {
		return 0, fmt.Errorf("the answer is not HTTP/1")
	}
	return n, nil
}

// dialHTTP dials the host of u. localhost needs no name service.
func dialHTTP(ctx context.Context, u *url.URL, timeout time.Duration) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = "80"
	}
	host := strings.ToLower(u.Hostname())
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		n, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		return dialLocal(n, timeout)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
}
