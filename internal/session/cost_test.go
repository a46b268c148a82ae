package session

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/secret"
)

// What a pgbench -S makes of one statement: two events.
func BenchmarkRecord(b *testing.B) {
	cfg, _ := testConfig(b)
	cfg.flushEvery, cfg.sealEvery, cfg.tick = 0, 0, 0
	s := open(b, cfg)
	l := begin(b, s)
	statement := Event{Kind: Statement, Text: []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 42;"), Decision: isle.Allow, Rule: "role:reader", Shape: "SELECT abalance FROM pgbench_accounts WHERE aid = ;"}
	result := Event{Kind: Result, Tag: "SELECT 1", Rows: 1, Bytes: 60, Took: time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		statement.At = time.Now()
		result.At = statement.At
		if err := l.Record(statement); err != nil {
			b.Fatal(err)
		}
		if err := l.Record(result); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	l.End("")
	s.Close()
	if st, err := os.Stat(pathOf(cfg.Dir, l.ID())); err == nil {
		b.ReportMetric(float64(st.Size())/float64(b.N), "B/statement")
	}
}

func BenchmarkBeginAndEnd(b *testing.B) {
	cfg, _ := testConfig(b)
	cfg.flushEvery, cfg.sealEvery, cfg.tick = 0, 0, 0
	s := open(b, cfg)
	for b.Loop() {
		begin(b, s).End("")
	}
	s.Close() // counts: all of them are durable
}

// 1,000 idle sessions and 200 that do 250 statements a second each: what that
// costs of a processor, and how much waits in memory.
func BenchmarkBusySessions(b *testing.B) {
	cfg, log := testConfig(b)
	cfg.flushEvery, cfg.sealEvery, cfg.tick = 0, 0, 0
	s := open(b, cfg)
	for range 1000 {
		record(b, begin(b, s), Event{Kind: Statement, Text: []byte("SELECT 1")})
	}
	var busy []*Live
	for range 200 {
		busy = append(busy, begin(b, s))
	}
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	started, n := time.Now(), 0
	for b.Loop() { // one is 4 ms of them all
		for i, l := range busy {
			text := append([]byte("UPDATE pgbench_accounts SET abalance = abalance + 17 WHERE aid = "), isle.NewID()...)
			if err := l.Record(Event{Kind: Statement, Text: text, Decision: isle.Allow, Rule: "role writer", Shape: "UPDATE pgbench_accounts SET abalance = abalance + WHERE aid = "}); err != nil {
				b.Fatal(err)
			}
			record(b, l, Event{Kind: Result, Tag: "UPDATE 1", Rows: int64(i), Took: time.Millisecond})
			n++
		}
		time.Sleep(time.Until(started.Add(time.Duration(n/len(busy)) * 4 * time.Millisecond)))
	}
	b.StopTimer()
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	used := time.Duration(after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano())
	b.ReportMetric(100*float64(used)/float64(time.Since(started)), "%cpu")
	b.ReportMetric(float64(used)/float64(n), "ns/statement")
	b.ReportMetric(float64(len(log.of(b, isle.ActionRecordingKeep)))/time.Since(started).Seconds(), "entries/s")
}

func TestAnIdleSessionHoldsLittle(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	const sessions = 1000
	measure := func() uint64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	begin(t, s).End("") // what is made once
	before := measure()
	var list []*Live
	for range sessions {
		l := begin(t, s)
		record(t, l, Event{Kind: Statement, Text: []byte(strings.Repeat("SELECT 1;", 500))})
		list = append(list, l)
	}
	until(t, func() bool { return idle(list) })
	after := measure()
	t.Logf("%d bytes a session", (after-before)/sessions)
	if after > before && (after-before)/sessions > 6<<10 {
		t.Errorf("an idle session holds %d bytes", (after-before)/sessions)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(fds) > 100 {
		t.Errorf("%d files are open for %d idle sessions", len(fds), sessions)
	}
}

// idle says that all that was recorded is sealed.
func idle(list []*Live) bool {
	for _, l := range list {
		l.out.Lock()
		l.mu.Lock()
		done := l.buf == nil && l.w.tail == 0 && l.w.f == nil && l.w.head == nil
		l.mu.Unlock()
		l.out.Unlock()
		if !done {
			return false
		}
	}
	return true
}

// A writer that is killed is this test's own program, started again.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ISLE_TEST_RECORD"); dir != "" {
		recordUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// recordUntilKilled records numbered statements and says which are in the file
// for certain: those that were recorded half a second ago.
func recordUntilKilled(dir string) {
	ring, err := secret.OpenKeyring(filepath.Join(dir, "keys", "state"), true)
	if err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), Config{Dir: filepath.Join(dir, "recordings"), Log: &lines{path: filepath.Join(dir, "log")}, Sealer: ring, flushEvery: 10 * time.Millisecond, sealEvery: 50 * time.Millisecond, tick: 10 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	l, err := s.Begin(context.Background(), someInfo())
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		if err := l.Record(Event{Kind: Statement, Text: []byte(strings.Repeat("x", i%100))}); err != nil {
			panic(err)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// lines is a log in a file, a line for each entry.
type lines struct {
	book
	path string
}

func (l *lines) Append(ctx context.Context, entries ...audit.Entry) error {
	n := len(l.entries)
	if err := l.book.Append(ctx, entries...); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(bytes.Join(l.entries[n:], []byte("\n")), '\n'))
	return err
}

func TestAServerThatIsKilledLosesNoMoreThanAMoment(t *testing.T) {
	for range 3 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ISLE_TEST_RECORD="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		log := &book{}
		until(t, func() bool { // chunks are vouched for
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			return bytes.Count(b, []byte("recording:keep")) >= 3
		})
		cmd.Process.Kill()
		cmd.Wait()
		b, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			log.entries = append(log.entries, bytes.TrimSpace(line))
		}
		ring, err := secret.OpenKeyring(filepath.Join(dir, "keys", "state"), false)
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{Dir: filepath.Join(dir, "recordings"), Log: log, Sealer: ring}
		s := open(t, cfg)
		if err := s.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		closed := log.of(t, isle.ActionSessionClose)
		if len(closed) != 1 || closed[0].Result != audit.Unknown {
			t.Fatalf("%+v", closed)
		}
		if r := verify(t, cfg, log); len(r) != 1 || r[0].State != Whole || r[0].Chunks < 3 {
			t.Errorf("%+v", r)
		}
		got := events(t, s, closed[0].Link)
		for i, e := range got {
			if len(e.Text) != i%100 {
				t.Fatalf("event %d of %d is another one", i, len(got))
			}
		}
		t.Logf("%d events were kept", len(got))
	}
}

func FuzzEvent(f *testing.F) {
	f.Add(appendEvent(nil, &Event{At: time.Now(), Kind: Statement, Text: []byte("SELECT 1"), Params: []string{"a", ""}, Took: time.Second, Rows: 3}))
	f.Add([]byte{0x84, 0x80, 0x80, 0, 2, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, _, err := readEvent(b)
		if err != nil {
			return
		}
		e = e.cutTo()
		again, rest, err := readEvent(appendEvent(nil, &e))
		if err != nil || len(rest) != 0 {
			t.Fatalf("%+v: %v", e, err)
		}
		if !bytes.Equal(again.Text, e.Text) || again.Rows != e.Rows || e.At.UnixMicro() > 0 && !again.At.Equal(e.At) {
			t.Errorf("%+v became %+v", e, again)
		}
	})
}

func FuzzFile(f *testing.F) {
	cfg, log := testConfig(f)
	s := open(f, cfg)
	id := recordSome(f, s, log)
	s.Close()
	whole, err := os.ReadFile(pathOf(cfg.Dir, id))
	if err != nil {
		f.Fatal(err)
	}
	// Each process that fuzzes has another recording, so what is put in is a change.
	f.Add(uint(100), []byte{1}, uint(0))
	f.Add(uint(len(whole)-10), []byte("}\x00\x00\x00\x01"), uint(3))
	f.Add(uint(len(whole)), []byte("E\x00\x00\x00\x01x"), uint(0))
	f.Fuzz(func(t *testing.T, at uint, with []byte, less uint) {
		b := bytes.Clone(whole)
		at = min(at, uint(len(b)))
		b = append(b[:at], append(with, b[min(uint(len(b)), at+uint(len(with))):]...)...)
		b = b[:uint(len(b))-min(less, uint(len(b)))]
		write(t, pathOf(cfg.Dir, id), b)
		file, err := openFile(cfg.Dir, id)
		if err != nil {
			return
		}
		defer file.close()
		file.end()
		u, err := file.unpacker(cfg.Sealer)
		if err != nil {
			return
		}
		defer u.close()
		if _, err := file.events(context.Background(), u, false, func(Event) error { return nil }); err == nil && !bytes.Equal(whole, b) {
			if r := verify(t, cfg, log, id); r[0].State == Whole {
				t.Errorf("another file is taken for whole")
			}
		}
	})
}
