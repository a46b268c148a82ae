package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// jsonValue compares values of the last command's standard output:
// json PATH=WANT…, where PATH is of keys and indices, and len is a length. WANT
// may be * for anything that is there.
func jsonValue(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	out := ts.ReadFile("stdout")
	dec := json.NewDecoder(strings.NewReader(out))
	dec.UseNumber() // sizes are not to be read as 6.7e+07
	if err := dec.Decode(&v); err != nil {
		ts.Fatalf("not JSON: %v\n%s", err, out)
	}
	for _, a := range args {
		path, want, _ := strings.Cut(a, "=")
		got, ok := lookUp(v, path)
		if same := ok && (want == "*" || fmt.Sprint(got) == want); same == neg {
			ts.Fatalf("%s is %v, want %s in:\n%s", path, got, want, out)
		}
	}
}

func lookUp(v any, path string) (any, bool) {
	for _, key := range strings.Split(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			inner, ok := x[key]
			if !ok {
				return nil, false
			}
			v = inner
		case []any:
			if key == "len" {
				v = len(x)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(x) {
				return nil, false
			}
			v = x[i]
		default:
			return nil, path == "."
		}
	}
	return v, true
}

// page fetches a URL whose host is this machine, whatever it is called, and
// compares: page URL WANT [FORM], where FORM is posted.
func page(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: page URL WANT [FORM]")
	}
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}}
	var res *http.Response
	var err error
	if len(args) > 2 {
		res, err = client.Post(args[0], "application/x-www-form-urlencoded", strings.NewReader(args[2]))
	} else {
		res, err = client.Get(args[0])
	}
	ts.Check(err)
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	ts.Check(err)
	if strings.Contains(string(body), args[1]) == neg {
		ts.Fatalf("%s: %s, want %q in:\n%s", args[0], res.Status, args[1], body)
	}
}

// flip changes a bit in the middle of the largest file that a pattern matches.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip PATTERN")
	}
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(names) == 0 {
		ts.Fatalf("nothing is called %s", args[0])
	}
	slices.SortFunc(names, func(a, b string) int { return int(size(b) - size(a)) })
	name := names[0]
	info, err := os.Stat(name)
	ts.Check(err)
	ts.Check(os.Chmod(name, 0o600))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.Size()/2)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, info.Size()/2)
	ts.Check(err)
	ts.Check(f.Chmod(info.Mode().Perm()))
}

func size(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return info.Size()
}

// terminal runs a command in a terminal of 80 columns and 24 rows:
// tty SCRIPT COMMAND…. Each line of SCRIPT is "want TEXT" (wait until it is on
// the screen), "type TEXT" (and press Enter), "key HEX" or "size COLUMNS ROWS".
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: tty SCRIPT COMMAND…")
	}
	script := ts.ReadFile(args[0])
	path := args[1]
	if !strings.Contains(path, "/") {
		path = filepath.Join(bin, path)
	}
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "TERM=xterm", "PATH="+ts.Getenv("PATH"), "ISLE_STATE="+ts.Getenv("ISLE_STATE"), "HOME="+ts.Getenv("HOME"))
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 24})
	ts.Check(err)
	defer f.Close()
	seen := make(chan []byte, 1000)
	go func() { // ends with the terminal
		defer close(seen)
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if n > 0 {
				seen <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	var screen, all bytes.Buffer
	defer func() { ts.Logf("%s", all.Bytes()) }()
	read := func(within time.Duration) bool {
		select {
		case b, ok := <-seen:
			screen.Write(b)
			all.Write(b)
			return ok
		case <-time.After(within):
			return false
		}
	}
	for line := range strings.Lines(script) {
		verb, rest, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		switch verb {
		case "want":
			for !bytes.Contains(screen.Bytes(), []byte(rest)) {
				if !read(2 * time.Minute) {
					cmd.Process.Kill()
					cmd.Wait()
					ts.Fatalf("the terminal never showed %q", rest)
				}
			}
			screen.Reset()
		case "type":
			io.WriteString(f, rest+"\r")
		case "key":
			n, err := strconv.ParseUint(rest, 16, 8)
			ts.Check(err)
			f.Write([]byte{byte(n)})
		case "size":
			var columns, rows uint16
			_, err := fmt.Sscan(rest, &columns, &rows)
			ts.Check(err)
			ts.Check(pty.Setsize(f, &pty.Winsize{Cols: columns, Rows: rows}))
		}
	}
	for read(2 * time.Minute) {
	}
	if err := cmd.Wait(); (err != nil) != neg {
		ts.Fatalf("%v: %v", args[1:], err)
	}
}

// post calls the server's API as any program could, with JSON over HTTP:
// post PROCEDURE BODY WANT.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: post PROCEDURE BODY WANT")
	}
	err := ts.Exec("curl", "-sS", "--unix-socket", filepath.Join(ts.Getenv("ISLE_STATE"), "isle.sock"),
		"-H", "Content-Type: application/json", "--data", args[1], "http://isle/"+args[0])
	ts.Check(err)
	if out := ts.ReadFile("stdout"); strings.Contains(out, args[2]) == neg {
		ts.Fatalf("want %q in:\n%s", args[2], out)
	}
}

// smallState is own with a disk of a size: small MIB.
func smallState(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: small MIB")
	}
	mib, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	base, err := os.MkdirTemp("", "isle-e2e-small-")
	ts.Check(err)
	image, dir := filepath.Join(base, "disk"), filepath.Join(base, "state")
	ts.Check(os.Mkdir(dir, 0o700))
	ts.Check(os.WriteFile(image, nil, 0o600))
	ts.Check(os.Truncate(image, mib<<20))
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			ts.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("mkfs.ext4", "-q", "-m", "0", image)
	run("mount", "-o", "loop", image, dir)
	ts.Defer(func() {
		run("umount", dir)
		os.RemoveAll(base)
	})
	ts.Setenv("ISLE_STATE", dir)
	ts.Defer(func() {
		full, _ := filepath.Glob(filepath.Join(dir, "ballast*")) // a server whose log can't grow takes nothing down
		for _, f := range full {
			os.RemoveAll(f)
		}
		endServer(dir)
	})
}

// endServer tears down what runs in a state folder and ends its server.
func endServer(dir string) {
	for _, args := range [][]string{{"down", "--all", "--volumes"}, {"server", "stop"}} {
		cmd := exec.Command(filepath.Join(bin, "isle"), args...)
		cmd.Env = append(os.Environ(), "ISLE_STATE="+dir)
		cmd.Run()
	}
}
