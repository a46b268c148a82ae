package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "isle/internal/api/isle/v1"
)

// A stage is the shop's page in testing, released, before its database in an
// environment of its own.
type stage struct {
	b        *bench
	dir      string
	one, two string // releases of the page, told apart by its heading
	port     int
}

// The headings of the two releases of the page.
const (
	headingOne = "<h1>Orders</h1>"
	headingTwo = "<h1>Orders, newest first</h1>"
)

// switches measures how long it takes from a command until another release serves
// the first request: a launch, a switch, and a rollback to the instance that was
// kept, in turn; then the pause in which a volume is handed over.
func (b *bench) switches(ctx context.Context, runs int) error {
	s, err := b.openStage(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	what := []string{"launch, `isle up --release`", "switch, `isle promote`", "rollback to what is frozen, `isle rollback`"}
	first, whole := make([][]time.Duration, len(what)), make([][]time.Duration, len(what))
	for i := -1; i < runs; i++ {
		for n, measure := range []func(context.Context) (served, ended time.Duration, err error){s.launch, s.change, s.back} {
			served, ended, err := measure(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", what[n], err)
			}
			if i >= 0 {
				first[n], whole[n] = append(first[n], served), append(whole[n], ended)
			}
		}
	}
	fmt.Printf("\n### A switch, and back\n\nThe shop's page before its database in an environment of its own, %d interleaved runs each, from the start of the command. %s\n\n", runs, loadNow())
	fmt.Println("| what | first request served, median | fastest | slowest | to a launch | the command ended, median |\n|---|---|---|---|---|---|")
	for n := range what {
		slices.Sort(first[n])
		slices.Sort(whole[n])
		t := first[n]
		fmt.Printf("| %s | %s | %s | %s | %.2f× | %s |\n", what[n], ms(median(t)), ms(t[0]), ms(t[len(t)-1]), float64(median(t))/float64(median(first[0])), ms(median(whole[n])))
	}
	return s.handOver(ctx, max(3, runs/3))
}

// openStage releases the database and two versions of the page, and runs the
// database.
func (b *bench) openStage(ctx context.Context) (s *stage, err error) {
	s = &stage{b: b, dir: filepath.Join(b.state, "bench-stage")}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.CopyFS(s.dir, os.DirFS("examples/shop")); err != nil && !errors.Is(err, fs.ErrExist) {
		return s, err
	}
	if _, err := s.isle(ctx, "apply", "-f", "stages.yaml", "--document", "shop"); err != nil {
		return s, err
	}
	orders, err := s.release(ctx, "orders.yaml")
	if err != nil {
		return s, err
	}
	for _, args := range [][]string{{"promote", "orders", "--to", "testing", "--release", orders}, {"up", "--release", "orders@testing"}} {
		if _, err := s.isle(ctx, args...); err != nil {
			return s, err
		}
	}
	if s.one, err = s.release(ctx, "storefront.yaml"); err != nil {
		return s, err
	}
	page := filepath.Join(s.dir, "app", "shop.py")
	text, err := os.ReadFile(page)
	if err != nil {
		return s, err
	}
	if err := os.WriteFile(page, []byte(strings.ReplaceAll(string(text), headingOne, headingTwo)), 0o644); err != nil {
		return s, err
	}
	s.two, err = s.release(ctx, "storefront.yaml")
	return s, err
}

func (s *stage) close() {
	for _, name := range []string{"storefront", "orders"} {
		_ = s.b.down(context.Background(), name)
	}
}

// isle runs the command line in the folder of the files.
func (s *stage) isle(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.b.isle, append([]string{"--state", s.b.state}, args...)...)
	cmd.Dir = s.dir
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("isle %v: %w\n%s", args, err, said.String())
	}
	return string(out), err
}

func (s *stage) release(ctx context.Context, file string) (string, error) {
	if _, err := s.isle(ctx, "lock", file); err != nil {
		return "", err
	}
	out, err := s.isle(ctx, "release", "create", file, "-o", "json")
	var made struct{ Release struct{ Digest string } }
	if err == nil {
		err = json.Unmarshal([]byte(out), &made)
	}
	return made.Release.Digest, err
}

// served runs a command, and says how long it took until the page said something,
// asked over a new connection each time, and until the command had ended.
func (s *stage) served(ctx context.Context, want string, args ...string) (first, ended time.Duration, err error) {
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := s.isle(ctx, args...)
		ended = time.Since(began)
		done <- err
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for first == 0 && time.Since(began) < 2*time.Minute {
		if s.says(client, want) {
			first = time.Since(began)
		} else {
			time.Sleep(5 * time.Millisecond) // who asks all the time takes the processor of who starts
		}
		select {
		case err := <-done:
			if err != nil {
				return 0, 0, err
			}
			done <- nil
		default:
		}
	}
	if err := <-done; err != nil {
		return 0, 0, err
	}
	if first == 0 {
		return 0, 0, fmt.Errorf("the page does not say %s", want)
	}
	return first, ended, nil
}

func (s *stage) says(client *http.Client, want string) bool {
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", s.port))
	if err != nil {
		return false
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return err == nil && res.StatusCode == http.StatusOK && strings.Contains(string(body), want)
}

// launch launches the second release where nothing runs.
func (s *stage) launch(ctx context.Context) (first, ended time.Duration, err error) {
	if _, err = s.isle(ctx, "promote", "storefront", "--to", "testing", "--release", s.two); err != nil {
		return 0, 0, err
	}
	if s.port == 0 { // it is known, and its own from then on, once it was up
		if _, err = s.isle(ctx, "up", "--release", "storefront@testing"); err == nil {
			err = s.findPort(ctx)
		}
		if err == nil {
			err = s.b.down(ctx, "storefront")
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return s.served(ctx, headingTwo, "up", "--release", "storefront@testing")
}

func (s *stage) findPort(ctx context.Context) error {
	e, err := s.b.client.Environments.Get(ctx, connect.NewRequest(&v1.GetRequest{Environment: "storefront"}))
	if err == nil {
		s.port, err = portOf(e.Msg.GetEnvironment())
	}
	return err
}

// change has the first release serve, and switches to the second one.
func (s *stage) change(ctx context.Context) (first, ended time.Duration, err error) {
	if err = s.b.down(ctx, "storefront"); err != nil {
		return 0, 0, err
	}
	for _, args := range [][]string{{"promote", "storefront", "--to", "testing", "--release", s.one}, {"up", "--release", "storefront@testing"}} {
		if _, err = s.isle(ctx, args...); err != nil {
			return 0, 0, err
		}
	}
	return s.served(ctx, headingTwo, "promote", "storefront", "--to", "testing", "--release", s.two)
}

// back goes back to the first one, which is frozen by then.
func (s *stage) back(ctx context.Context) (first, ended time.Duration, err error) {
	time.Sleep(time.Second)
	if first, ended, err = s.served(ctx, headingOne, "rollback", "storefront@testing"); err != nil {
		return 0, 0, err
	}
	if _, err = s.isle(ctx, "release", "clear", "storefront@testing", s.two); err == nil {
		err = s.b.down(ctx, "storefront")
	}
	return first, ended, err
}

// handOver has the database's volume handed over to another release of it, again
// and again.
func (s *stage) handOver(ctx context.Context, runs int) error {
	path := filepath.Join(s.dir, "orders.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var pauses, took []time.Duration
	for i := range runs {
		changed := strings.Replace(string(text), "pids: 256", fmt.Sprintf("pids: %d", 300+i), 1)
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			return err
		}
		digest, err := s.release(ctx, "orders.yaml")
		if err != nil {
			return err
		}
		out, err := s.isle(ctx, "promote", "orders", "--to", "testing", "--release", digest, "-o", "json")
		if err != nil {
			return err
		}
		var told struct{ Switch struct{ Took, Pause float64 } }
		if err := json.Unmarshal([]byte(out), &told); err != nil {
			return err
		}
		pauses = append(pauses, time.Duration(told.Switch.Pause*float64(time.Second)))
		took = append(took, time.Duration(told.Switch.Took*float64(time.Second)))
	}
	slices.Sort(pauses)
	slices.Sort(took)
	fmt.Printf("\nA volume of PostgreSQL is handed over, %d times: requests wait for %s (%s to %s) of the %s that it takes.\n", runs, ms(median(pauses)), ms(pauses[0]), ms(pauses[len(pauses)-1]), ms(median(took)))
	return nil
}
