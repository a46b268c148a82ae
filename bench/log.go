package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/store/sqlite"
)

// logRound is how long one round of appending lasts.
const logRound = 150 * time.Millisecond

func logEntry() audit.Entry {
	return audit.NewIntent(isle.Actor{Kind: isle.Human, Name: "root"}, isle.ActionEnvironmentExec,
		isle.Resource{Kind: "service", Name: "shop/web", Stage: "testing"}, "psql -U postgres -c 'select count(*) from orders'").
		In(isle.Ref{Name: "shop", Stage: "testing"}, isle.NewID())
}

// benchLog measures the audit log, which needs no server.
func benchLog(runs, entries int) error {
	dir, err := os.MkdirTemp("", "isle-bench-log-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := auditLog(context.Background(), dir, runs); err != nil {
		return err
	}
	return verifyLog(context.Background(), dir, entries)
}

// auditLog measures durable entries per second against one fdatasync for each
// entry, in turn, in a folder of its own beside the state.
func auditLog(ctx context.Context, dir string, rounds int) error {
	dir, err := os.MkdirTemp(dir, "bench-log-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, closeStore, err := openLog(dir)
	if err != nil {
		return err
	}
	defer closeStore()
	plain, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		return err
	}
	defer plain.Close()
	line, err := logEntry().Encode()
	if err != nil {
		return err
	}
	alone := func() error {
		if _, err := plain.Write(append(line, '\n')); err != nil {
			return err
		}
		return unix.Fdatasync(int(plain.Fd()))
	}
	fmt.Printf("\n### Audit log: durable entries per second\n\n%d interleaved rounds of %s each; the tree, its signed checkpoint and its copy outside included.\n\n", rounds, logRound)
	fmt.Println("| writers | entries per second | one fdatasync per entry | ratio |\n|---|---|---|---|")
	for _, writers := range []int{1, 8, 64} {
		var ours, theirs, ratios []float64
		for range rounds {
			base, err := perSecond(1, func() func() error { return alone })
			if err != nil {
				return err
			}
			rate, err := perSecond(writers, func() func() error {
				var open audit.Entry // each writer's intents and outcomes take turns
				return func() error {
					e := open.Outcome(nil)
					if open.ID == "" {
						open = logEntry()
						e = open
					} else {
						open = audit.Entry{}
					}
					return store.Append(ctx, e)
				}
			})
			if err != nil {
				return err
			}
			ours, theirs, ratios = append(ours, rate), append(theirs, base), append(ratios, rate/base)
		}
		for _, list := range [][]float64{ours, theirs, ratios} {
			slices.Sort(list)
		}
		// The disk is faster in one round than in the next: the ratio is the median
		// of the rounds' own.
		half := rounds / 2
		fmt.Printf("| %d | %.0f | %.0f | %.2f× |\n", writers, ours[half], theirs[half], ratios[half])
	}
	return nil
}

// perSecond says how often writers at once do something; each has a writer's
// own state.
func perSecond(writers int, writer func() func() error) (float64, error) {
	var n atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	begin := time.Now()
	for range writers {
		wg.Go(func() {
			do := writer()
			for time.Since(begin) < logRound {
				if err := do(); err != nil {
					errs <- err
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	close(errs)
	return float64(n.Load()) / time.Since(begin).Seconds(), <-errs
}

// verifyLog measures the verification of a log of n entries.
func verifyLog(ctx context.Context, dir string, n int) error {
	dir, err := os.MkdirTemp(dir, "bench-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "isle.db")
	store, err := sqlite.Open(path, sqlite.Config{})
	if err != nil {
		return err
	}
	defer store.Close()
	const batch = 1000
	begin := time.Now()
	for range n / batch {
		list := make([]audit.Entry, 0, batch)
		for range batch / 2 {
			i := logEntry()
			list = append(list, i, i.Outcome(nil))
		}
		if err := store.Append(ctx, list...); err != nil {
			return err
		}
	}
	written := time.Since(begin)
	r, err := sqlite.OpenReader(path)
	if err != nil {
		return err
	}
	defer r.Close()
	refs := []audit.Reference{{Source: "the head", Checkpoint: audit.Checkpoint{Head: store.Head()}}}
	begin = time.Now()
	report, err := audit.VerifyRows(r.Rows(ctx, 0, 1<<62), refs)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	if !report.OK() || len(report.Proven) != 1 {
		return fmt.Errorf("the log is not whole: %+v", report.Findings)
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	fmt.Printf("\n### Audit log: a log of %d entries\n\n| what | figure |\n|---|---|\n", n)
	fmt.Printf("| verified, every entry read, hashed, linked and compared with its checkpoint | %.1f s, %.0f entries per second |\n", took.Seconds(), float64(n)/took.Seconds())
	fmt.Printf("| written, a thousand at a time | %.1f s |\n", written.Seconds())
	fmt.Printf("| size on disk, of one entry | %.0f bytes |\n", float64(st.Size())/float64(n))
	return nil
}
