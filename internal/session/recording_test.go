package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
)

// events are what is recorded of a session.
func events(t testing.TB, s *Sessions, id isle.ID) (out []Event) {
	t.Helper()
	if err := s.Events(context.Background(), id, false, func(e Event) error { out = append(out, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func record(t testing.TB, l *Live, e Event) {
	t.Helper()
	if err := l.Record(e); err != nil {
		t.Fatal(err)
	}
}

// recordSome makes a session that has ended, of several chunks.
func recordSome(t testing.TB, s *Sessions, log *book) isle.ID {
	t.Helper()
	l := begin(t, s)
	for i := range 5 {
		before := len(log.of(t, isle.ActionRecordingKeep))
		record(t, l, Event{Kind: Statement, Text: fmt.Appendf(nil, "SELECT %d", i), Decision: isle.Allow, Rule: "role:reader"})
		record(t, l, Event{Kind: Result, Tag: "SELECT 1", Rows: 1})
		until(t, func() bool { return len(log.of(t, isle.ActionRecordingKeep)) > before })
	}
	l.End("done")
	until(t, func() bool { return s.find(l.ID()) == nil })
	return l.ID()
}

// until waits for what is about to be so.
func until(t testing.TB, so func() bool) {
	t.Helper()
	for range 10000 {
		if so() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it never came to be")
}

func verify(t testing.TB, cfg Config, log *book, ids ...isle.ID) []Report {
	t.Helper()
	v := NewVerifier(cfg.Dir, ids...)
	entries, err := log.Encoded(context.Background(), 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range entries {
		e, err := audit.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		v.Entry(e)
	}
	out, err := v.All()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWhatIsRecordedIsReadAgain(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	at := time.Date(2031, 2, 3, 4, 5, 6, 7000, time.UTC)
	want := []Event{
		{At: at, Kind: Statement, Text: []byte("UPDATE t SET a = $1\x00\xff"), Params: []string{"", "7", "ü"}, Shape: "UPDATE t SET a = $", Decision: isle.Allow, Rule: "role:writer"},
		{At: at, Kind: Holding, Text: []byte("DELETE FROM t"), Decision: isle.Hold, Rule: "orders-db:12:5", Approval: isle.NewID()},
		{At: at, Kind: Result, Tag: "UPDATE 3", Rows: 3, Bytes: 12, Took: 1500 * time.Microsecond},
		{At: at, Kind: Row, Data: []byte(`{"a":1}`)},
		{At: at, Kind: Failure, Error: "23505 duplicate key"},
	}
	for _, e := range want {
		record(t, l, e)
	}
	if got := events(t, s, l.ID()); !reflect.DeepEqual(got, want) {
		t.Errorf("while it goes on:\n%+v\nwant\n%+v", got, want)
	}
	l.End("bye")
	s.Close()
	got := events(t, s, l.ID())
	if len(got) != len(want)+1 || !reflect.DeepEqual(got[:len(want)], want) || got[len(want)].Kind != End || string(got[len(want)].Text) != "bye" {
		t.Errorf("afterwards:\n%+v", got)
	}
	if i, err := s.Get(l.ID()); err != nil || i.State != Ended || i.Why != "bye" || i.Statements != 1 || i.Held != 1 || i.Rows != 3 {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestWhatIsTooLongIsCutAndSaysSo(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	text := bytes.Repeat([]byte("x"), MaxText+1)
	record(t, l, Event{Kind: Statement, Text: text, Params: make([]string, 5000), Error: strings.Repeat("e", 10000)})
	record(t, l, Event{Kind: Statement, Text: []byte("next"), Params: []string{strings.Repeat("p", MaxText), "q"}})
	got := events(t, s, l.ID())
	if len(got) != 2 || len(got[0].Text) != MaxText || got[0].Cut != MaxText+1 || got[0].Digest != isle.DigestOf(text) || len(got[0].Params) != maxParams || len(got[0].Error) != maxShort {
		t.Fatalf("%d events", len(got))
	}
	if string(got[1].Text) != "next" || len(got[1].Params[0]) != MaxText || got[1].Params[1] != "" {
		t.Error("the one after it was spoiled")
	}
}

func TestNothingThatIsRecordedCanBeReadInTheFile(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	for range 100 {
		record(t, l, Event{Kind: Statement, Text: []byte("SELECT card FROM customers"), Params: []string{"4111-1111"}})
	}
	l.End("bye")
	s.Close()
	b, err := os.ReadFile(pathOf(cfg.Dir, l.ID()))
	if err != nil || len(b) == 0 {
		t.Fatal(err)
	}
	for _, needle := range []string{"customers", "4111"} {
		if bytes.Contains(b, []byte(needle)) {
			t.Errorf("the file has %q", needle)
		}
	}
	other, _ := testConfig(t)
	other.Dir, other.Log = cfg.Dir, log
	stranger := open(t, other)
	if err := stranger.Events(context.Background(), l.ID(), false, func(Event) error { return nil }); err == nil {
		t.Error("another key opened it")
	}
}

func TestEveryChangedByteOfARecordingIsFound(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	id := recordSome(t, s, log)
	s.Close()
	if r := verify(t, cfg, log, id); r[0].State != Whole || r[0].Chunks < 5 {
		t.Fatalf("untouched: %+v", r)
	}
	path := pathOf(cfg.Dir, id)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		spoiled := bytes.Clone(b)
		spoiled[i] ^= 1
		write(t, path, spoiled)
		if r := verify(t, cfg, log, id); r[0].State != Wrong {
			t.Fatalf("byte %d was changed: %+v", i, r)
		}
		if i%7 != 0 {
			continue
		}
		write(t, path, b[:i])
		if r := verify(t, cfg, log, id); r[0].State != Wrong {
			t.Fatalf("cut to %d bytes: %+v", i, r)
		}
	}
	write(t, path, append(bytes.Clone(b), b[len(b)-10:]...))
	if r := verify(t, cfg, log, id); r[0].State != Wrong {
		t.Errorf("longer: %+v", r)
	}
	os.Remove(path)
	if r := verify(t, cfg, log, id); r[0].State != Wrong || !strings.Contains(r[0].Wrong[0], "missing") {
		t.Errorf("removed: %+v", r)
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// chunks are the blocks of a file, each chunk's together.
func chunksIn(t testing.TB, cfg Config, id isle.ID) (header []byte, chunks [][]byte) {
	t.Helper()
	f, err := openFile(cfg.Dir, id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	all, _ := os.ReadFile(f.path)
	start := f.at
	header = all[:start]
	for {
		b, err := f.next()
		if err != nil {
			break
		}
		if b.kind == blockSeal || b.kind == blockEnd {
			end := b.at + int64(blockHead+len(b.content))
			chunks = append(chunks, all[start:end])
			start = end
		}
	}
	return header, chunks
}

func TestADroppedRepeatedOrExchangedChunkIsFound(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	id, other := recordSome(t, s, log), recordSome(t, s, log)
	s.Close()
	header, chunks := chunksIn(t, cfg, id)
	if len(chunks) < 5 {
		t.Fatalf("%d chunks", len(chunks))
	}
	_, others := chunksIn(t, cfg, other)
	path := pathOf(cfg.Dir, id)
	for name, list := range map[string][][]byte{
		"the first dropped":      chunks[1:],
		"the last dropped":       chunks[:len(chunks)-1],
		"the second dropped":     append([][]byte{chunks[0]}, chunks[2:]...),
		"two exchanged":          append([][]byte{chunks[1], chunks[0]}, chunks[2:]...),
		"one repeated":           append([][]byte{chunks[0]}, chunks...),
		"another session's":      append([][]byte{others[0]}, chunks[1:]...),
		"another session's, all": others,
	} {
		write(t, path, append(bytes.Clone(header), bytes.Join(list, nil)...))
		if r := verify(t, cfg, log, id); r[0].State != Wrong {
			t.Errorf("%s: %+v", name, r)
		}
	}
	whole, _ := os.ReadFile(pathOf(cfg.Dir, other))
	write(t, path, whole)
	if r := verify(t, cfg, log); len(r) != 2 || r[0].State != Wrong || r[1].State != Whole {
		t.Errorf("another session's file: %+v", r)
	}
	stray := isle.NewID()
	write(t, filepath.Join(filepath.Dir(path), string(stray)+suffix), bytes.ReplaceAll(whole, []byte(other), []byte(stray)))
	if r := verify(t, cfg, log); len(r) != 3 || r[2].State != Wrong || r[2].ID != stray {
		t.Errorf("a file of no session: %+v", r)
	}
}

// Wherever the server dies while it writes, the next one closes the session with
// all that was whole.
func TestARecordingThatEndsAnywhereIsClosedByTheNextStart(t *testing.T) {
	cfg, log := testConfig(t)
	cfg.sealEvery = time.Hour
	s := open(t, cfg)
	l := begin(t, s)
	path := pathOf(cfg.Dir, l.ID())
	var ends []int // of the file after each block of one event
	for i := range 4 {
		record(t, l, Event{Kind: Statement, Text: fmt.Appendf(nil, "SELECT %d", i)})
		events(t, s, l.ID()) // writes it
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, int(st.Size()))
		if i == 1 { // a chunk ends in the middle
			l.out.Lock()
			c, err := l.w.seal(time.Now())
			l.out.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if err := log.Append(context.Background(), sealed([]chunk{c})...); err != nil {
				t.Fatal(err)
			}
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	vouched := ends[1] + blockHead + 32
	var cuts []int // every third one, and each around the end of a block
	for n := range len(b) + 1 {
		if n%3 == 0 || n == len(b) || slices.ContainsFunc(append(ends, vouched), func(e int) bool { return n-e < 7 && e-n < 7 }) {
			cuts = append(cuts, n)
		}
	}
	for _, n := range cuts {
		write(t, path, b[:n])
		again := &book{entries: log.entries[:len(log.entries):len(log.entries)]}
		next := cfg
		next.Log = again
		r, err := Open(context.Background(), next)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Recover(context.Background()); err != nil {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		closed := again.of(t, isle.ActionSessionClose)
		if len(closed) != 1 || closed[0].Link != l.ID() {
			t.Fatalf("cut to %d bytes: entries %+v", n, closed)
		}
		if n < vouched {
			if closed[0].Result != string(isle.Untrusted) {
				t.Fatalf("cut to %d bytes, of %d that the log vouches for: %+v", n, vouched, closed[0])
			}
			if got, _ := os.ReadFile(path); !bytes.Equal(got, b[:n]) {
				t.Fatalf("cut to %d bytes: what is wrong was written to", n)
			}
			r.Close()
			continue
		}
		if closed[0].Result != audit.Unknown || !strings.HasPrefix(closed[0].Summary, died) || !closed[0].Recording.Valid() {
			t.Fatalf("cut to %d bytes: %+v", n, closed[0])
		}
		want := 0
		for _, e := range ends {
			if n >= e {
				want++
			}
		}
		if got := events(t, r, l.ID()); len(got) != want || closed[0].Details["statements"] != fmt.Sprint(want) {
			t.Fatalf("cut to %d bytes: %d events, want %d", n, len(got), want)
		}
		if v := verify(t, next, again, l.ID()); v[0].State != Whole {
			t.Fatalf("cut to %d bytes: %+v", n, v)
		}
		if err := r.Recover(context.Background()); err != nil || len(again.of(t, isle.ActionSessionClose)) != 1 {
			t.Fatalf("closed again: %v", err)
		}
		r.Close()
	}
	write(t, path, b)
}

func TestAFullDiskEndsTheSessionAndSaysSo(t *testing.T) {
	for name, reserve := range map[string]uint64{"what is kept for the log": 0, "all of it": 1} {
		t.Run(name, func(t *testing.T) { fillDisk(t, reserve) })
	}
}

func fillDisk(t *testing.T, reserve uint64) {
	cfg, log := testConfig(t)
	cfg.Dir, cfg.reserve = t.TempDir(), reserve
	if err := unix.Mount("tmpfs", cfg.Dir, "tmpfs", 0, "size=6m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(cfg.Dir, 0) })
	s := open(t, cfg)
	l := begin(t, s)
	var err error
	data := make([]byte, 100<<10)
	for i := 0; err == nil; i++ {
		if i > 1000 {
			t.Fatal("a disk that is full takes more")
		}
		err = l.Record(Event{Kind: Row, Data: noise(data, i)})
	}
	<-l.Done()
	if isle.CodeOf(err) != isle.Exhausted || !strings.Contains(err.Error(), "nothing more may pass") || !errors.Is(err, l.Cause()) {
		t.Errorf("%v", err)
	}
	if reserve != 1 {
		if _, err := s.Begin(context.Background(), someInfo()); isle.CodeOf(err) != isle.Exhausted {
			t.Errorf("another one begins: %v", err)
		}
	}
	l.End("gone")
	s.Close()
	e := log.of(t, isle.ActionSessionClose)
	if len(e) != 1 || e[0].Result != string(isle.Exhausted) || !strings.Contains(e[0].Details["recording"], "not whole") {
		t.Fatalf("entries: %+v", e)
	}
	if r := verify(t, cfg, log, l.ID()); r[0].State != Whole || !strings.Contains(r[0].Note, "not whole") {
		t.Errorf("%+v", r)
	}
	events(t, s, l.ID())
}

// noise is what does not compress.
func noise(b []byte, seed int) []byte {
	x := uint64(seed)*2862933555777941757 + 3037000493
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

func TestALogThatStaysAwayEndsSessions(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	log.leave(isle.Errorf(isle.Unavailable, "the log is away"))
	if _, err := s.Begin(context.Background(), someInfo()); isle.CodeOf(err) != isle.Unavailable || len(s.List()) != 1 {
		t.Errorf("a session began without its entry: %v", err)
	}
	// As if it had been away for as long as it may.
	s.breakAll(isle.Errorf(isle.Unavailable, "cannot be vouched for"))
	<-l.Done()
	if err := l.Record(Event{Kind: Statement}); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("recorded: %v", err)
	}
	l.End("")
	log.leave(nil)
	until(t, func() bool { return len(log.of(t, isle.ActionSessionClose)) == 1 })
}

func TestManySessionsAtOnceAreEachRecordedWhole(t *testing.T) {
	cfg, log := testConfig(t)
	cfg.sealEvery, cfg.tick = 20*time.Millisecond, 20*time.Millisecond
	s := open(t, cfg)
	const sessions, each = 60, 200
	var group sync.WaitGroup
	var mu sync.Mutex // guards ids
	var ids []isle.ID
	for range sessions {
		group.Go(func() {
			l, err := s.Begin(context.Background(), someInfo())
			if err != nil {
				t.Error(err)
				return
			}
			for i := range each {
				if err := l.Record(Event{Kind: Statement, Text: fmt.Appendf(nil, "SELECT %d", i)}); err != nil {
					t.Error(err)
				}
				if i%20 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			l.End("done")
			mu.Lock()
			ids = append(ids, l.ID())
			mu.Unlock()
		})
	}
	group.Wait()
	s.Close()
	for _, r := range verify(t, cfg, log) {
		if r.State != Whole {
			t.Errorf("%+v", r)
		}
	}
	for _, id := range ids {
		if n := len(events(t, s, id)); n != each+1 {
			t.Errorf("%s has %d events", id, n)
		}
	}
}

func TestChunksOfManySessionsAreInOneEntry(t *testing.T) {
	cfg, log := testConfig(t)
	cfg.tick = 50 * time.Millisecond
	s := open(t, cfg)
	var list []*Live
	for range 100 {
		l := begin(t, s)
		record(t, l, Event{Kind: Statement, Text: []byte("SELECT 1")})
		list = append(list, l)
	}
	until(t, func() bool { return idle(list) })
	until(t, func() bool { return len(log.of(t, isle.ActionRecordingKeep)) > 0 })
	if n := len(log.of(t, isle.ActionRecordingKeep)); n > 20 {
		t.Errorf("%d entries for the chunks of %d sessions", n, len(list))
	}
}

func TestAnEntryHoldsEveryChunkThatItIsGiven(t *testing.T) {
	var list []chunk
	for i := range 500 {
		list = append(list, chunk{id: isle.NewID(), number: 1000000 + i, end: 1<<40 + int64(i), hash: hash{byte(i), byte(i >> 8)}})
	}
	var got []chunk
	for _, e := range sealed(list) {
		b, err := func() ([]byte, error) { e.Time = time.Now(); return e.Encode() }()
		if err != nil {
			t.Fatal(err)
		}
		again, err := audit.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, chunksOf(again)...)
	}
	if !reflect.DeepEqual(got, list) {
		t.Errorf("%d of %d", len(got), len(list))
	}
}

func TestALiveSessionIsFollowedToItsEnd(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	got := make(chan Event)
	done := make(chan error, 1)
	go func() { // ends with the session
		done <- s.Events(context.Background(), l.ID(), true, func(e Event) error { got <- e; return nil })
	}()
	for i := range 5 {
		record(t, l, Event{Kind: Statement, Text: fmt.Appendf(nil, "SELECT %d", i)})
		if e := <-got; string(e.Text) != fmt.Sprintf("SELECT %d", i) {
			t.Fatalf("%+v", e)
		}
	}
	l.End("bye")
	if e := <-got; e.Kind != End {
		t.Errorf("%+v", e)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Where the disk is slow whoever records waits, and memory is bounded.
func TestWhoRecordsWaitsForTheWriter(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	l.out.Lock() // as while it is synced
	done := make(chan int)
	const count = 100
	go func() { // ends once there is room
		for range count {
			l.Record(Event{Kind: Row, Data: make([]byte, 16<<10)})
		}
		close(done)
	}()
	until(t, func() bool { return l.waiting() >= maxPending })
	select {
	case <-done:
		t.Error("nobody waited")
	case <-time.After(20 * time.Millisecond):
	}
	if n := l.waiting(); n > maxPending+20<<10 {
		t.Errorf("%d bytes wait", n)
	}
	l.out.Unlock()
	<-done
	if n := len(events(t, s, l.ID())); n != count {
		t.Errorf("%d events", n)
	}
	if n := s.unwritten.Load(); n != 0 {
		t.Errorf("%d bytes are unwritten", n)
	}
}

// A session that waits does not outlast its end.
func TestWhoWaitsForTheWriterIsLetGoByTheEnd(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	l.out.Lock()
	done := make(chan error)
	go func() { // ends with the session
		for {
			if err := l.Record(Event{Kind: Row, Data: make([]byte, 16<<10)}); err != nil {
				done <- err
				return
			}
		}
	}()
	until(t, func() bool { return l.waiting() >= maxPending })
	l.End("gone")
	if err := <-done; err == nil {
		t.Error("recorded after the end")
	}
	l.out.Unlock()
}
