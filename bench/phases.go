package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A phase is what lies between the point before it and its own, in the order
// of a launch. Points are those of the server's fault injection.
var phases = []struct{ point, does string }{
	{"request", ""},
	{"up.begin", "read the request, look up the lock and the layers"},
	{"up.recorded", "make the intent durable (one transaction, one fsync)"},
	{"airlock.pinned", "airlock: take the spare pair or make one, listen, pin"},
	{"up.prepared", "control groups with their limits, as far as they took longer"},
	{"up.launching", "verify the layers' stamps, make the boot message"},
	{"launch.group", "the launch's folder, configuration and group"},
	{"launch.mounts", "private mounts: layers, overlay, isle-init"},
	{"launch.runtime", "start the runtime"},
	{"launch.running", "the runtime: namespaces, mounts, seccomp, exec"},
	{"output", "isle-init starts, dials home, starts the command; its first line arrives"},
}

// where says where the time of a launch goes: the server notes when it reaches
// each point.
func (b *bench) where(ctx context.Context, runs int) error {
	trace := filepath.Join(b.peers, "trace")
	s, err := startServer(b.bin, "ISLE_FAULT=+"+trace)
	if err != nil {
		return err
	}
	defer s.stop()
	t, err := newBench(ctx, s.state, b.bin)
	if err != nil {
		return err
	}
	defer t.close()
	times := make([][]time.Duration, len(phases))
	var totals []time.Duration
	for i := -1; i < runs; i++ {
		// The spare airlock of the launch before is on its shelf by then, as it
		// is for whoever launches by hand.
		time.Sleep(400 * time.Millisecond)
		if err := os.RemoveAll(trace); err != nil {
			return err
		}
		name := fmt.Sprintf("where-%d", i+1)
		begin := time.Now()
		if _, err := t.up(ctx, name, true); err != nil {
			return err
		}
		if err := t.firstOutput(ctx, name); err != nil {
			return err
		}
		end := time.Now()
		at, err := readTrace(trace)
		if err != nil {
			return err
		}
		at["request"], at["output"] = begin, end
		if err := t.down(ctx, name); err != nil {
			return err
		}
		if i < 0 {
			continue
		}
		last := begin
		for p, ph := range phases {
			when, ok := at[ph.point]
			if !ok {
				return fmt.Errorf("the server did not reach %s", ph.point)
			}
			times[p] = append(times[p], max(0, when.Sub(last)))
			last = when
		}
		totals = append(totals, end.Sub(begin))
	}
	fmt.Printf("\n### Where the time of a launch goes\n\nMedians of %d launches, one after the other; what is written down takes its own share.\n\n| until | time | what happens |\n|---|---|---|\n", runs)
	for p, ph := range phases[1:] {
		slices.Sort(times[p+1])
		fmt.Printf("| `%s` | %s | %s |\n", ph.point, ms(median(times[p+1])), ph.does)
	}
	slices.Sort(totals)
	fmt.Printf("| all | %s | |\n", ms(median(totals)))
	return nil
}

// readTrace reads when the server reached each point first.
func readTrace(path string) (map[string]time.Time, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := map[string]time.Time{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		nanos, point, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.ParseInt(nanos, 10, 64)
		if _, seen := at[point]; err == nil && !seen {
			at[point] = time.Unix(0, n)
		}
	}
	return at, lines.Err()
}
