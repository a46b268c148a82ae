package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"isle/test/lab"
)

// The ways to one PostgreSQL that are compared. Each but the first is a process
// of its own; none of them uses TLS, so that its cost hides nothing.
const (
	wayDirect  = "direct"
	wayBouncer = "pgbouncer"
	wayBlind   = "blind copy"
	wayGateway = "gateway"
)

var (
	ways    = []string{wayDirect, wayBouncer, wayBlind, wayGateway}
	rateOf  = regexp.MustCompile(`tps = ([0-9.]+) \(without initial`)
	failed  = regexp.MustCompile(`number of failed transactions: ([0-9]+)`)
	pgBench = "pgbench"
)

// databases measures PostgreSQL through the gateway, with policy, log and
// recording on, beside the same directly, through pgbouncer, and through a
// process that copies bytes and looks at none.
func databases(rounds int) error {
	pg, err := lab.StartPostgres("max_connections=1300", "shared_buffers=512MB")
	if err != nil {
		return err
	}
	defer pg.Close()
	bin, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bin) == 0 {
		return errors.New("PostgreSQL is not installed")
	}
	os.Setenv("PATH", os.Getenv("PATH")+":"+bin[len(bin)-1])
	if out, err := exec.Command(pgBench, "-i", "-q", "-s", "10", "-h", pg.Dir, "-p", strconv.Itoa(pg.Port), "-U", "postgres", "postgres").CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %w\n%s", err, out)
	}
	if _, err := pg.Exec("postgres", `create role bench login password 'bench';
		grant select, insert, update on all tables in schema public to bench;
		create table people (id int primary key, name text, email text, city text);
		insert into people select i, 'name ' || i, 'person' || i || '@mail.example', 'city ' || i % 100 from generate_series(1, 500000) i;
		grant select on people to bench; vacuum analyze`); err != nil {
		return err
	}
	at, stop, err := startWays(pg)
	if err != nil {
		return err
	}
	defer stop()
	for _, part := range []func(map[string]way, int) error{throughput, latency, bulk, setUp, idle} {
		if err := part(at, rounds); err != nil {
			return err
		}
	}
	return nil
}

// pgbench runs one pgbench through a way and returns transactions a second.
func pgbench(address string, args ...string) (float64, error) {
	host, port, _ := net.SplitHostPort(address)
	cmd := exec.Command(pgBench, append([]string{"-n", "-S", "-h", host, "-p", port, "-U", "bench"}, append(args, "postgres")...)...)
	cmd.Env = append(os.Environ(), "PGPASSWORD=bench", "PGSSLMODE=disable")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	if m := failed.FindSubmatch(out); m == nil || string(m[1]) != "0" {
		return 0, fmt.Errorf("pgbench: transactions failed\n%s", out)
	}
	m := rateOf.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench said no rate\n%s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

func throughput(at map[string]way, rounds int) error {
	fmt.Printf("\n### PostgreSQL: pgbench -S, transactions a second\n\nMedians of %d interleaved runs of 2 s. Ratios are of the same round. %s\n\n", rounds, loadNow())
	fmt.Print("| protocol, clients | direct | pgbouncer | blind copy | gateway | of the blind copy | of pgbouncer |\n|---|---|---|---|---|---|---|\n")
	for _, mode := range []string{"simple", "prepared"} {
		for _, clients := range []int{1, 8, 64} {
			rates := map[string][]float64{}
			var ofBlind, ofBouncer []float64
			for range rounds {
				for _, way := range ways {
					r, err := pgbench(at[way].address, "-T", "2", "-M", mode, "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)))
					if err != nil {
						return fmt.Errorf("%s: %w", way, err)
					}
					rates[way] = append(rates[way], r)
				}
				n := len(rates[wayGateway]) - 1
				ofBlind = append(ofBlind, rates[wayGateway][n]/rates[wayBlind][n])
				ofBouncer = append(ofBouncer, rates[wayGateway][n]/rates[wayBouncer][n])
			}
			fmt.Printf("| %s, %d | %.0f | %.0f | %.0f | %.0f | %.2f× | %.2f× |\n", mode, clients, mid(rates[wayDirect]), mid(rates[wayBouncer]), mid(rates[wayBlind]), mid(rates[wayGateway]), mid(ofBlind), mid(ofBouncer))
		}
	}
	return nil
}

func mid(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2]
}

// latency is what each way adds to the median of one statement, with one client.
func latency(at map[string]way, rounds int) error {
	all := map[string][]float64{}
	for range rounds {
		for _, way := range ways {
			dir, err := os.MkdirTemp("", "isle-bench-log-")
			if err != nil {
				return err
			}
			_, err = pgbench(at[way].address, "-T", "1", "-c", "1", "--log", "--log-prefix", filepath.Join(dir, "log"))
			if err != nil {
				os.RemoveAll(dir)
				return err
			}
			took, err := logged(dir)
			os.RemoveAll(dir)
			if err != nil {
				return err
			}
			all[way] = append(all[way], took)
		}
	}
	direct := mid(all[wayDirect])
	fmt.Printf("\n### PostgreSQL: the median of one statement\n\nOne client, medians over %d interleaved runs of 1 s, in microseconds.\n\n| direct | pgbouncer adds | blind copy adds | gateway adds |\n|---|---|---|---|\n", rounds)
	fmt.Printf("| %.0f | %.0f | %.0f | %.0f |\n", direct, mid(all[wayBouncer])-direct, mid(all[wayBlind])-direct, mid(all[wayGateway])-direct)
	return nil
}

// logged is the median of pgbench's log of transactions, in microseconds.
func logged(dir string) (float64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "log.*"))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("pgbench wrote no log: %v", err)
	}
	var all []float64
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 3 {
				continue
			}
			v, err := strconv.ParseFloat(f[2], 64)
			if err != nil {
				return 0, err
			}
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return 0, errors.New("pgbench logged nothing")
	}
	return mid(all), nil
}

// bulk reads 500,000 rows.
func bulk(at map[string]way, rounds int) error {
	took := map[string][]float64{}
	const plain, masked = "select id, name, city from people", "select id, email, city from people"
	read := func(way, sql string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c, err := connectTo(ctx, at[way].address)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		begin := time.Now()
		rows, bare := 0, 0
		results := c.Exec(ctx, sql)
		for results.NextResult() {
			for r := results.ResultReader(); r.NextRow(); {
				rows++
				if bytes.HasPrefix(r.Values()[1], []byte("person")) {
					bare++
				}
			}
		}
		if err := results.Close(); err != nil || rows != 500_000 {
			return fmt.Errorf("%s: %d rows, %v", way, rows, err)
		}
		key, want := way, 0
		if sql == masked {
			if key += ", masked"; way != wayGateway {
				want = rows
			}
		}
		if bare != want {
			return fmt.Errorf("%s: %d of %d addresses came as they are, want %d", way, bare, rows, want)
		}
		took[key] = append(took[key], time.Since(begin).Seconds()*1000)
		return nil
	}
	for range rounds {
		for _, way := range ways {
			for _, sql := range []string{plain, masked} {
				if err := read(way, sql); err != nil {
					return err
				}
			}
		}
	}
	fmt.Printf("\n### PostgreSQL: 500,000 rows\n\nMedians of %d interleaved runs, in milliseconds; the client reads and drops them.\n\n| rows | direct | pgbouncer | blind copy | gateway | gateway of direct |\n|---|---|---|---|---|---|\n", rounds)
	for _, suffix := range []string{"", ", masked"} {
		name := "id, name, city"
		if suffix != "" {
			name = "id, email, city; the gateway masks email"
		}
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %.0f | %.2f× |\n", name, mid(took[wayDirect+suffix]), mid(took[wayBouncer+suffix]), mid(took[wayBlind+suffix]), mid(took[wayGateway+suffix]), mid(took[wayGateway+suffix])/mid(took[wayDirect+suffix]))
	}
	return nil
}

func connectTo(ctx context.Context, address string) (*pgconn.PgConn, error) {
	host, port, _ := net.SplitHostPort(address)
	return pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%s user=bench password=bench dbname=postgres sslmode=disable", host, port))
}

// setUp connects, asks one thing and leaves.
func setUp(at map[string]way, rounds int) error {
	took := map[string][]float64{}
	for range 10 * rounds {
		for _, way := range ways {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			begin := time.Now()
			c, err := connectTo(ctx, at[way].address)
			if err == nil {
				_, err = c.Exec(ctx, "select 1").ReadAll()
				took[way] = append(took[way], time.Since(begin).Seconds()*1000)
				c.Close(ctx)
			}
			cancel()
			if err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
		}
	}
	fmt.Printf("\n### PostgreSQL: to connect and ask one thing\n\nMedians of %d interleaved runs, in milliseconds. pgbouncer has its connection to the server already; the gateway makes one, checks the role, and has its entry durable.\n\n| direct | pgbouncer | blind copy | gateway |\n|---|---|---|---|\n| %.1f | %.1f | %.1f | %.1f |\n",
		10*rounds, mid(took[wayDirect]), mid(took[wayBouncer]), mid(took[wayBlind]), mid(took[wayGateway]))
	return nil
}

// idle holds 200 sessions that have done something and says what each takes.
func idle(at map[string]way, _ int) error {
	const sessions = 200
	fmt.Printf("\n### PostgreSQL: memory of an idle session\n\n%d sessions that have read something, resident memory of the process, in KiB for each.\n\n| pgbouncer | blind copy | gateway |\n|---|---|---|\n", sessions)
	var cells []string
	for _, way := range ways[1:] {
		before, err := resident(at[way].pid)
		if err != nil {
			return err
		}
		var open []*pgconn.PgConn
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		for range sessions {
			c, err := connectTo(ctx, at[way].address)
			if err == nil {
				_, err = c.Exec(ctx, "select * from people where id = 7").ReadAll()
			}
			if err != nil {
				cancel()
				return fmt.Errorf("%s: %w", way, err)
			}
			open = append(open, c)
		}
		time.Sleep(3 * time.Second)
		after, err := resident(at[way].pid)
		for _, c := range open {
			c.Close(ctx)
		}
		cancel()
		if err != nil {
			return err
		}
		cells = append(cells, fmt.Sprintf("%.0f", float64(after-before)/sessions))
	}
	fmt.Printf("| %s |\n", strings.Join(cells, " | "))
	return nil
}

// startWays starts what stands between the client and the server.
func startWays(pg *lab.PG) (at map[string]way, stop func(), err error) {
	var stops []func()
	at = map[string]way{wayDirect: {address: pg.Addr()}}
	for name, start := range map[string]func() (way, func(), error){
		wayBlind:   func() (way, func(), error) { return beside("-inner-copy", pg.Addr()) },
		wayGateway: func() (way, func(), error) { return beside("-inner-gateway", "postgres://"+pg.Addr()) },
		wayBouncer: func() (way, func(), error) { return startBouncer(pg) },
	} {
		w, end, err := start()
		if err != nil {
			all(stops)
			return nil, nil, err
		}
		at[name], stops = w, append(stops, end)
	}
	return at, func() { all(stops) }, nil
}

// startBouncer starts a pgbouncer that gives each client a connection of the
// server for as long as it stays.
func startBouncer(pg *lab.PG) (w way, stop func(), err error) {
	dir, err := os.MkdirTemp("", "isle-bench-bouncer-")
	if err != nil {
		return w, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	u, err := user.Lookup("postgres")
	if err != nil {
		return w, nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	port, err := freePort()
	if err != nil {
		return w, nil, err
	}
	config := filepath.Join(dir, "pgbouncer.ini")
	users := filepath.Join(dir, "users")
	if err := errors.Join(os.WriteFile(config, fmt.Appendf(nil, `[databases]
postgres = host=127.0.0.1 port=%d dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = plain
auth_file = %s
pool_mode = session
max_client_conn = 2000
default_pool_size = 500
server_tls_sslmode = disable
ignore_startup_parameters = extra_float_digits
`, pg.Port, port, users), 0o644), os.WriteFile(users, []byte("\"bench\" \"bench\"\n"), 0o644), os.Chmod(dir, 0o755), os.Chown(dir, uid, gid)); err != nil {
		return w, nil, err
	}
	cmd := exec.Command("pgbouncer", "-q", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
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
