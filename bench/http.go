package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const wayNginx = "nginx"

var (
	requestsOf = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	medianOf   = regexp.MustCompile(`50%\s+([0-9.]+)(us|ms|s)`)
	wentWrong  = regexp.MustCompile(`Socket errors:|Non-2xx or 3xx responses:`)
)

// requests measures HTTP through the gateway, with policy, log, credential and
// recording on, beside the same server directly and through nginx, which keeps
// its connections to the server too.
func requests(rounds int) error {
	server, stop, err := startNginx("server")
	if err != nil {
		return err
	}
	defer stop()
	proxy, stop, err := startNginx(server.address)
	if err != nil {
		return err
	}
	defer stop()
	gateway, stop, err := beside("-inner-gateway", "http://"+server.address)
	if err != nil {
		return err
	}
	defer stop()
	at := map[string]way{wayDirect: server, wayNginx: proxy, wayGateway: gateway}
	order := []string{wayDirect, wayNginx, wayGateway}
	fmt.Printf("\n### HTTP: wrk, requests a second\n\nMedians of %d interleaved runs of 2 s; medians of one request, and the processor's time that one takes in nginx and in the gateway, in microseconds. The ratio is of the same round. %s\n\n", rounds, loadNow())
	fmt.Print("| connections | direct | nginx | gateway | of nginx | direct takes | nginx takes | gateway takes | nginx works | gateway works |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, connections := range []int{1, 16, 64} {
		rates, took, works := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		var ofNginx []float64
		for range rounds {
			for _, name := range order {
				before, err := worked(at[name].pid)
				if err != nil {
					return err
				}
				rate, median, err := wrk(at[name].address, connections)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				after, err := worked(at[name].pid)
				if err != nil {
					return err
				}
				works[name] = append(works[name], float64((after-before).Microseconds())/(rate*wrkTime.Seconds()))
				rates[name], took[name] = append(rates[name], rate), append(took[name], median)
			}
			n := len(rates[wayNginx]) - 1
			ofNginx = append(ofNginx, rates[wayGateway][n]/rates[wayNginx][n])
		}
		fmt.Printf("| %d | %.0f | %.0f | %.0f | %.2f× | %.0f | %.0f | %.0f | %.0f | %.0f |\n", connections, mid(rates[wayDirect]), mid(rates[wayNginx]), mid(rates[wayGateway]), mid(ofNginx),
			mid(took[wayDirect]), mid(took[wayNginx]), mid(took[wayGateway]), mid(works[wayNginx]), mid(works[wayGateway]))
	}
	return nil
}

// wrkTime is how long one wrk runs.
const wrkTime = 2 * time.Second

// worked is the processor's time that a process and its children have had. Its
// unit is a hundredth of a second.
func worked(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat has another shape")
	}
	var sum time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for f := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		more, err := worked(child)
		if err != nil {
			return 0, err
		}
		sum += more
	}
	return sum, nil
}

// wrk runs one wrk and returns requests a second and the median of one, in
// microseconds.
func wrk(address string, connections int) (rate, median float64, err error) {
	out, err := exec.Command("wrk", "-d", wrkTime.String(), "-c", strconv.Itoa(connections), "-t", strconv.Itoa(min(connections, 2)), "--latency", "http://"+address+"/customers/17").CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	r, m := requestsOf.FindSubmatch(out), medianOf.FindSubmatch(out)
	if r == nil || m == nil || wentWrong.Match(out) {
		return 0, 0, fmt.Errorf("wrk: requests failed\n%s", out)
	}
	rate, err = strconv.ParseFloat(string(r[1]), 64)
	if err != nil {
		return 0, 0, err
	}
	median, err = strconv.ParseFloat(string(m[1]), 64)
	switch string(m[2]) {
	case "ms":
		median *= 1000
	case "s":
		median *= 1e6
	}
	return rate, median, err
}

// startNginx starts an nginx that answers by itself ("server"), or passes
// requests on to the server at an address.
func startNginx(to string) (w way, stop func(), err error) {
	dir, err := os.MkdirTemp("", "isle-bench-nginx-")
	if err != nil {
		return w, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	port, err := freePort()
	if err != nil {
		return w, nil, err
	}
	upstream, location := "", `default_type application/json; return 200 '{"id": 17, "name": "Ann", "city": "Oslo", "orders": [1, 2, 3, 5, 8]}';`
	if to != "server" {
		upstream = "upstream server { server " + to + "; keepalive 64; }"
		location = `proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection "";`
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 1024; }
http {
	access_log off; keepalive_requests 100000000;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	%[2]s
	server { listen 127.0.0.1:%[3]d; location / { %[4]s } }
}
`, dir, upstream, port, location), 0o644); err != nil {
		return w, nil, err
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", config)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return w, nil, err
	}
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		os.RemoveAll(dir)
	}
	w = way{fmt.Sprintf("127.0.0.1:%d", port), cmd.Process.Pid}
	if err := answers(w.address); err != nil {
		stop()
		return w, nil, err
	}
	return w, stop, nil
}

// freePort is a port of 127.0.0.1 that nobody has, for a program that can't
// choose one.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// answers waits until somebody listens.
func answers(address string) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			return c.Close()
		}
	}
	return errors.New("nobody listens at " + address)
}

// loadNow says what else the machine does.
func loadNow() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	load, _, _ := strings.Cut(string(b), " ")
	return "Load " + load + " before."
}
