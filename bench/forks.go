package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "isle/internal/api/isle/v1"
)

const (
	orders   = 500_000 // that the shop has, in PostgreSQL
	shoppers = 8       // connected to the shop all the time, one connection each
	siblings = 10      // forked at once
)

// What is measured of copies, as the titles of tables.
const (
	standing = "How long the source stands still, as a client sees it"
	whole    = "From the request to the first answer of a copy"
	captured = "The same, of what was captured before"
)

// forks measures copies of a running shop of the class gvisor beside what plain
// runsc takes for its checkpoint and restore of the same sandbox, what a dump of
// the database takes, and what it takes to start the services anew.
func (b *bench) forks(ctx context.Context, runs int) error {
	s, err := b.openShop(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	p, err := newPlainRunsc(s)
	if err != nil {
		return err
	}
	defer p.close()
	turns := []func(context.Context, *table) error{s.forked, p.forked, s.fromSnapshot, s.cold, s.dumped}
	var t table
	for i := -1; i < runs; i++ {
		if i == 0 { // that was the warm-up
			t = table{}
		}
		// Who begins changes, so that nobody always comes after the same one.
		for j := range turns {
			if err := turns[(i+1+j)%len(turns)](ctx, &t); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n### Forks of a running shop\n\n%d orders, %d clients connected, memory of %d MiB. %d interleaved runs each. %s\n",
		orders, shoppers+1, s.memory>>20, runs, loadNow())
	t.print(standing, "runsc checkpoint", "isle fork", "runsc checkpoint", "isle fork, as it says itself")
	t.print(whole, "runsc checkpoint and restore", "isle fork", "runsc checkpoint and restore", "isle fork --cold", "pg_dump and psql")
	t.print(captured, "runsc restore", "isle fork --at", "runsc restore")
	return s.together(ctx)
}

// A table has what was measured, by its title and who was measured.
type table map[[2]string][]time.Duration

func (t *table) add(title, name string, d time.Duration) {
	if *t == nil {
		*t = table{}
	}
	(*t)[[2]string{title, name}] = append((*t)[[2]string{title, name}], d)
}

func (t table) sorted(title, name string) []time.Duration {
	return slices.Sorted(slices.Values(t[[2]string{title, name}]))
}

// print prints medians and their ratio to the yardstick's.
func (t table) print(title, yardstick string, names ...string) {
	base := median(t.sorted(title, yardstick))
	fmt.Printf("\n| %s | median | fastest | slowest | to %s |\n|---|---|---|---|---|\n", title, yardstick)
	for _, name := range names {
		d := t.sorted(title, name)
		fmt.Printf("| %s | %s | %s | %s | %.2f× |\n", name, ms(median(d)), ms(d[0]), ms(d[len(d)-1]), float64(median(d))/float64(base))
	}
}

// forked is one fork of what runs.
func (s *shop) forked(ctx context.Context, t *table) error {
	began := time.Now()
	f, err := s.fork(ctx, &v1.ForkRequest{From: s.name, Name: "forked"})
	if err != nil {
		return err
	}
	took, err := s.answered(began, f.port)
	if err != nil {
		return err
	}
	gap, err := s.client.longest(ctx, began, f.captured)
	if err != nil {
		return err
	}
	t.add(standing, "isle fork", gap)
	t.add(standing, "isle fork, as it says itself", f.paused)
	t.add(whole, "isle fork", took)
	if err := s.counts(ctx, "forked"); err != nil {
		return err
	}
	return s.down(ctx, "forked")
}

// fromSnapshot is one fork of a snapshot.
func (s *shop) fromSnapshot(ctx context.Context, t *table) error {
	if err := s.isleCommand(ctx, "snapshot", s.name, "--tag", "kept"); err != nil {
		return err
	}
	began := time.Now()
	f, err := s.fork(ctx, &v1.ForkRequest{From: "kept", Name: "from-kept"})
	if err != nil {
		return err
	}
	took, err := s.answered(began, f.port)
	if err != nil {
		return err
	}
	t.add(captured, "isle fork --at", took)
	if err := s.down(ctx, "from-kept"); err != nil {
		return err
	}
	return s.isleCommand(ctx, "snapshot", "rm", "--force", "kept")
}

// cold is one fork that starts the services.
func (s *shop) cold(ctx context.Context, t *table) error {
	began := time.Now()
	f, err := s.fork(ctx, &v1.ForkRequest{From: s.name, Name: "cold", Cold: true})
	if err != nil {
		return err
	}
	took, err := s.answered(began, f.port)
	if err != nil {
		return err
	}
	t.add(whole, "isle fork --cold", took)
	return s.down(ctx, "cold")
}

// dumped is the copy that databases have by themselves, into another one of the
// same server, in a fork: it writes, which is not for what is forked. The server
// that it needs for that runs already.
func (s *shop) dumped(ctx context.Context, t *table) error {
	const script = "set -e; createdb -h localhost -U postgres copy; pg_dump -h localhost -U postgres postgres | psql -qX -h localhost -U postgres -v ON_ERROR_STOP=1 copy >/dev/null; " +
		"psql -qXAt -h localhost -U postgres -c 'SELECT 1 FROM orders LIMIT 1' copy"
	began := time.Now()
	if _, err := s.inside(ctx, s.writable, "-s", "db", "--", "sh", "-c", script); err != nil {
		return err
	}
	t.add(whole, "pg_dump and psql", time.Since(began))
	_, err := s.inside(ctx, s.writable, "-s", "db", "--", "dropdb", "-h", "localhost", "-U", "postgres", "copy")
	return err
}

// together forks many at once, and says what each takes of memory and disk.
func (s *shop) together(ctx context.Context) error {
	memory, err := s.memoryNow(ctx)
	if err != nil {
		return err
	}
	disk, err := s.disk()
	if err != nil {
		return err
	}
	began := time.Now()
	f, err := s.fork(ctx, &v1.ForkRequest{From: s.name, Name: "sibling", Count: siblings})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, siblings)
	for i, port := range f.ports {
		all.Go(func() { _, errs[i] = s.answered(began, port) })
	}
	all.Wait()
	took := time.Since(began)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	then, err := s.memoryNow(ctx)
	if err != nil {
		return err
	}
	used, err := s.disk()
	if err != nil {
		return err
	}
	fmt.Printf("\n| %d forks at once | figure |\n|---|---|\n", siblings)
	fmt.Printf("| from the request until all have answered | %s |\n", ms(took))
	fmt.Printf("| until the first answer of each, on average | %s |\n", ms(took/siblings))
	fmt.Printf("| the source stood still, as it says itself | %s |\n", ms(f.paused))
	fmt.Printf("| memory of one (proportional set size, the server's growth included) | %.1f MiB |\n", float64(then-memory)/siblings/1024)
	fmt.Printf("| disk of one, when it has answered | %.1f MiB |\n", float64(used-disk)/siblings/(1<<20))
	for i := range siblings {
		name := fmt.Sprintf("sibling-%d", i+1)
		if err := s.counts(ctx, name); err != nil {
			return err
		}
		if err := s.down(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// disk is what the state folder takes of its file system, in bytes.
func (s *shop) disk() (int64, error) {
	syscall.Sync()
	return allocated(s.b.state)
}

// memoryNow is what all environments and the server take, in KiB.
func (s *shop) memoryNow(ctx context.Context) (int, error) {
	time.Sleep(2 * time.Second) // what only came and went is given back
	return s.b.memory(ctx)
}

// counts has a copy count its orders.
func (s *shop) counts(ctx context.Context, name string) error {
	out, err := s.inside(ctx, name, "-s", "db", "--", "psql", "-qXAt", "-h", "localhost", "-U", "postgres", "-c", "SELECT count(*) FROM orders")
	if err == nil && strings.TrimSpace(out) != fmt.Sprint(orders) {
		err = fmt.Errorf("%s has %s orders", name, out)
	}
	return err
}
