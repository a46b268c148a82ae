package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "isle/internal/api/isle/v1"
)

// prepared measures launches that find something ready beside ordinary ones and
// the runtimes themselves, in both classes, and what it takes to keep it ready.
func (b *bench) prepared(ctx context.Context, runs int) error {
	s, err := startServer(b.bin, "ISLE_PREPARE=container=1,gvisor=1")
	if err != nil {
		return err
	}
	defer s.stop()
	ready, err := newBench(ctx, s.state, b.bin)
	if err != nil {
		return err
	}
	defer ready.close()
	records := filepath.Join(b.peers, "runsc")
	for _, class := range classes {
		peer := process("crun run", "crun", "run", "--bundle", b.bundle, "%ID")
		if class == "gvisor" {
			peer = process("runsc run", filepath.Join(b.bin, "isle-runsc"), "--root", records, "--network=none", "--gofer-network-namespace=new",
				"--ignore-cgroups", "--overlay2=none", "run", "--bundle", b.bundle, "%ID")
		}
		ordinary, err := b.launches(ctx, "isle", class)
		if err != nil {
			return err
		}
		kept, err := ready.launches(ctx, "isle, prepared", class)
		if err != nil {
			return err
		}
		launch := kept.run
		kept.run = func(ctx context.Context, i int) (time.Duration, error) {
			took, err := launch(ctx, i)
			if err != nil {
				return 0, err
			}
			// The next one is prepared now, and not while a peer has its turn.
			return took, ready.awaitPrepared(ctx)
		}
		if err := ready.awaitPrepared(ctx); err != nil {
			return err
		}
		if err := compare(ctx, "Launch of what is prepared, "+class, peer.name, runs, []contender{ordinary, kept, peer}); err != nil {
			return err
		}
	}
	return b.keeping(ctx)
}

// launches is a contender that launches a project of one service of a class,
// until its first output.
func (b *bench) launches(ctx context.Context, title, class string) (contender, error) {
	source, err := b.classed(ctx, class, "one", "busybox-static", "[busybox, sh, -c, \"echo ready; exec sleep 1000000\"]")
	if err != nil {
		return contender{}, err
	}
	return contender{title, func(ctx context.Context, i int) (time.Duration, error) {
		name := fmt.Sprintf("class-%s-%d", class, i)
		begin := time.Now()
		if _, err := b.upSource(ctx, source, name, true); err != nil {
			return 0, err
		}
		if err := b.firstOutput(ctx, name); err != nil {
			return 0, err
		}
		took := time.Since(begin)
		return took, b.down(ctx, name)
	}}, nil
}

// awaitPrepared waits until as much is ready as there is to be.
func (b *bench) awaitPrepared(ctx context.Context) error {
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		res, err := b.client.Server.Doctor(ctx, connect.NewRequest(&v1.DoctorRequest{}))
		if err != nil {
			return err
		}
		for _, c := range res.Msg.GetChecks() {
			if c.GetName() == "prepared" && strings.Contains(c.GetMessage(), "container 1 of 1; gvisor 1 of 1") {
				return nil
			}
		}
	}
	return fmt.Errorf("nothing was prepared in two minutes")
}

// keeping measures what memory it takes to keep things ready.
func (b *bench) keeping(ctx context.Context) error {
	const n = 8
	fmt.Print("\n### What is kept ready\n\n| class | memory of one (proportional set size, the server's growth included) |\n|---|---|\n")
	for _, class := range classes {
		memory := map[int]int{}
		for _, want := range []int{0, n} {
			s, err := startServer(b.bin, fmt.Sprintf("ISLE_PREPARE=%s=%d", class, want))
			if err != nil {
				return err
			}
			t := &bench{state: s.state, isle: s.isle, bin: b.bin, client: apiClient(s.state)}
			memory[want], err = t.settled(ctx, class, want)
			t.client.Close()
			s.stop()
			if err != nil {
				return err
			}
		}
		fmt.Printf("| %s | %.1f MiB |\n", class, float64(memory[n]-memory[0])/n/1024)
	}
	return nil
}

// settled waits until n are ready and returns what memory that takes, in KiB.
func (b *bench) settled(ctx context.Context, class string, n int) (int, error) {
	for deadline := time.Now().Add(5 * time.Minute); n > 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		res, err := b.client.Server.Doctor(ctx, connect.NewRequest(&v1.DoctorRequest{}))
		if err != nil {
			return 0, err
		}
		for _, c := range res.Msg.GetChecks() {
			if c.GetName() == "prepared" && strings.Contains(c.GetMessage(), fmt.Sprintf("%s %d of %d", class, n, n)) {
				n = 0
			}
		}
	}
	if n > 0 {
		return 0, fmt.Errorf("%d of class %s were not prepared in five minutes", n, class)
	}
	time.Sleep(3 * time.Second) // what starting up has used is given back
	return b.memory(ctx)
}
