package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "isle/internal/api/isle/v1"
)

// begun is what is measured of warm starts, as the title of their table.
const begun = "From `isle up` to the first answer"

// warmStarts measures how long a shop that has nothing yet takes to answer: where it
// begins with the ready state of its release, and where it is started, setup of its
// database included, beside what plain runsc takes to restore the same state.
func (b *bench) warmStarts(ctx context.Context, runs int) error {
	s := &shop{b: b, name: "ready", stop: func() {}}
	defer s.close()
	dir := filepath.Join(b.state, "bench-warm")
	if err := os.CopyFS(dir, os.DirFS("examples/shop")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	path := filepath.Join(dir, "isle.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed := strings.NewReplacer("isolation: container", "warm: true\nisolation: gvisor", "limits: {cpus: 1, memory: 512MiB", "limits: {memory: 1GiB").Replace(string(text))
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
		return err
	}
	first, err := s.bringUp(ctx, dir, s.name)
	if err != nil {
		return err
	}
	s.instance = first.Environment.Instance
	if s.memory, err = s.awaitReady(ctx); err != nil {
		return err
	}
	p, err := newPlainRunsc(s)
	if err != nil {
		return err
	}
	defer p.close()
	image := filepath.Join(p.dir, "ready")
	if err := p.save(ctx, image); err != nil {
		return err
	}
	up := func(title string, warm bool, args ...string) func(context.Context, *table) error {
		return func(ctx context.Context, t *table) error {
			began := time.Now()
			said, err := s.bringUp(ctx, dir, "begun", args...)
			if err != nil {
				return err
			}
			if (said.Warm != nil) != warm {
				return fmt.Errorf("%s: a warm start is %v: %s", title, said.Warm, said.NotWarm)
			}
			took, err := s.answered(began, said.port())
			if err != nil {
				return err
			}
			t.add(begun, title, took)
			return s.down(ctx, "begun")
		}
	}
	restored := func(ctx context.Context, t *table) error {
		took, err := p.restored(ctx, image)
		p.remove()
		t.add(begun, "runsc restore", took)
		return err
	}
	turns := []func(context.Context, *table) error{up("isle up, warm", true), restored, up("isle up --cold", false, "--cold")}
	var t table
	for i := -1; i < runs; i++ {
		if i == 0 { // that was the warm-up
			t = table{}
		}
		for j := range turns { // who begins changes
			if err := turns[(i+1+j)%len(turns)](ctx, &t); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n### Warm starts of a shop\n\nMemory of %d MiB. %d interleaved runs each. %s\n", s.memory>>20, runs, loadNow())
	t.print(begun, "runsc restore", "isle up, warm", "runsc restore", "isle up --cold")
	return nil
}

// A broughtUp is what isle up says, as far as it is looked at.
type broughtUp struct {
	Environment struct {
		Instance string
		Services []struct{ Ports []struct{ Host int } }
	}
	Warm    *struct{ Snapshot string } `json:"warm_start"`
	NotWarm string                     `json:"not_warm"`
}

func (u broughtUp) port() int {
	for _, s := range u.Environment.Services {
		for _, p := range s.Ports {
			return p.Host
		}
	}
	return 0
}

func (s *shop) bringUp(ctx context.Context, dir, name string, args ...string) (u broughtUp, err error) {
	cmd := exec.CommandContext(ctx, s.b.isle, append([]string{"--state", s.b.state, "up", dir, "--name", name, "-o", "json"}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return u, fmt.Errorf("isle up: %w\n%s", err, said.String())
	}
	return u, json.Unmarshal(out, &u)
}

// awaitReady waits until the ready state is kept, and says how large its memory is.
func (s *shop) awaitReady(ctx context.Context) (int64, error) {
	for range 600 {
		res, err := s.b.client.Snapshots.ListSnapshots(ctx, connect.NewRequest(&v1.ListSnapshotsRequest{Environment: s.name}))
		if err != nil {
			return 0, err
		}
		for _, snap := range res.Msg.GetSnapshots() {
			if snap.GetWarm() != nil {
				return snap.GetMemoryBytes(), nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	e, err := s.b.client.Environments.Get(ctx, connect.NewRequest(&v1.GetRequest{Environment: s.name}))
	return 0, errors.Join(fmt.Errorf("no ready state is kept: %s", e.Msg.GetEnvironment().GetKept()), err)
}
