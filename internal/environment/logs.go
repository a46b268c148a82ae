package environment

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"isle"
)

// maxLine bounds one line of a service's output in bytes; a longer one is cut
// into several.
const maxLine = 64 << 10

// Bounds of what one Logs call holds in memory for a tail.
const (
	maxTail      = 100_000
	maxTailBytes = 64 << 20
)

// LogOptions say which lines Logs returns.
type LogOptions struct {
	Services []string // none: all
	Follow   bool     // go on until ctx ends or the environment is gone
	Tail     int      // only the last so many lines; 0: all that is kept
}

// A LogLine is a line of what a service wrote, with its newline if it had one.
type LogLine struct {
	Service string
	Time    time.Time
	Stderr  bool
	Data    []byte
}

// A logRecord is a line of a log file: JSON, with the text as it is where it is
// UTF-8 and in base64 where not. A line that came in pieces is several records,
// of which only the last ends in a newline.
type logRecord struct {
	Time   time.Time `json:"t"`
	Stderr bool      `json:"e,omitempty"`
	Text   string    `json:"d,omitempty"`
	Binary []byte    `json:"b,omitempty"`
}

// A serviceLog is the log of one service: a file, and the one before it. It is
// written through to the kernel, so the server's death loses nothing, and not
// synced, so the machine's may.
type serviceLog struct {
	path string
	max  int64

	mu         sync.Mutex
	from       time.Time // what was written before is dropped; zero: nothing is
	f          *os.File  // nil until something is written
	size       int64
	generation int // grows when the file is moved away
	dropped    int // lines that could not be written
}

func (m *Manager) logDir(instance isle.ID) string { return filepath.Join(m.cfg.Logs, string(instance)) }

// log returns the log of a service.
func (l *live) log(service string) *serviceLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.logs[service]
	if s == nil {
		s = &serviceLog{path: filepath.Join(l.m.logDir(l.instance), service+".log"), max: l.m.cfg.LogSize}
		l.logs[service] = s
	}
	return s
}

func (l *live) closeLogs() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.logs {
		s.close()
	}
	l.logs = map[string]*serviceLog{}
}

// wakeLogs tells who follows that there may be more.
func (l *live) wakeLogs() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logged != nil {
		close(l.logged)
		l.logged = nil
	}
}

// logSignal returns a channel that closes at the next wakeLogs.
func (l *live) logSignal() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logged == nil {
		l.logged = make(chan struct{})
	}
	return l.logged
}

// write appends output, cut into lines. What cannot be written is dropped, and
// said to have been once there is space again.
func (s *serviceLog) write(now, at time.Time, stderr bool, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Before(s.from) {
		return
	}
	var b bytes.Buffer
	if s.dropped > 0 {
		encodeLog(&b, now, true, []byte("isle: output was dropped here: it could not be written\n"))
	}
	lines := 0
	for len(data) > 0 {
		n := bytes.IndexByte(data, '\n') + 1
		if n == 0 || n > maxLine {
			n = min(len(data), maxLine)
		}
		encodeLog(&b, at, stderr, data[:n])
		data = data[n:]
		lines++
	}
	if err := s.append(b.Bytes()); err != nil {
		s.dropped += lines
		return
	}
	s.dropped = 0
}

func encodeLog(b *bytes.Buffer, at time.Time, stderr bool, data []byte) {
	r := logRecord{Time: at.UTC(), Stderr: stderr}
	if utf8.Valid(data) {
		r.Text = string(data)
	} else {
		r.Binary = data
	}
	line, err := json.Marshal(r)
	if err != nil {
		return // a time out of range; the caller has clamped it
	}
	b.Write(line)
	b.WriteByte('\n')
}

// append writes records with one call; s.mu is held.
func (s *serviceLog) append(b []byte) error {
	if s.f == nil {
		if err := s.open(); err != nil {
			return err
		}
	}
	if s.size > 0 && s.size+int64(len(b)) > s.max {
		s.f.Close()
		s.f = nil
		if err := os.Rename(s.path, s.path+".1"); err != nil {
			return err
		}
		s.generation++
		if err := s.open(); err != nil {
			return err
		}
	}
	n, err := s.f.Write(b)
	s.size += int64(n)
	if err != nil && n > 0 { // half a record would spoil the next
		if s.f.Truncate(s.size-int64(n)) == nil {
			s.size -= int64(n)
		}
	}
	return err
}

func (s *serviceLog) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	s.f, s.size = f, info.Size()
	if s.size > 0 { // a server that died while writing left half a record
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, s.size-1); err == nil && last[0] != '\n' {
			n, _ := f.Write([]byte{'\n'})
			s.size += int64(n)
		}
	}
	return nil
}

func (s *serviceLog) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
}

// beginAnew removes what was written until now, and drops what comes of it yet.
func (s *serviceLog) beginAnew(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
	s.from, s.size, s.dropped = now, 0, 0
	s.generation++
	for _, name := range []string{s.path, s.path + ".1"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// A logReader reads one service's log from the oldest line on.
type logReader struct {
	service    string
	log        *serviceLog
	generation int
	files      []*os.File // the first is being read
	buffered   *bufio.Reader
	record     []byte            // a record whose end is not written yet
	pieces     map[bool]*LogLine // by stderr: a line whose end has not come yet
	queue      []LogLine
}

func newLogReader(service string, log *serviceLog) *logReader {
	r := &logReader{service: service, log: log, pieces: map[bool]*LogLine{}}
	log.mu.Lock()
	defer log.mu.Unlock()
	r.generation = log.generation - 1 // the present file is still to be opened
	if f, err := os.Open(log.path + ".1"); err == nil {
		r.files = append(r.files, f)
	}
	r.reopen()
	return r
}

// reopen opens the present file if it is not the one that was; log.mu is held.
func (r *logReader) reopen() {
	if r.generation == r.log.generation {
		return
	}
	if f, err := os.Open(r.log.path); err == nil {
		r.files = append(r.files, f)
		r.generation = r.log.generation
	}
}

func (r *logReader) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// peek returns the next line without taking it; nil if there is none now.
func (r *logReader) peek() *LogLine {
	for len(r.queue) == 0 {
		rec, ok := r.next()
		if !ok {
			for _, stderr := range []bool{false, true} { // no more for now: show what there is
				if p := r.pieces[stderr]; p != nil {
					r.queue = append(r.queue, *p)
					delete(r.pieces, stderr)
				}
			}
			if len(r.queue) == 0 {
				return nil
			}
			break
		}
		r.join(rec)
	}
	return &r.queue[0]
}

func (r *logReader) take() LogLine {
	line := r.queue[0]
	r.queue = r.queue[1:]
	return line
}

// join puts the pieces of a line together.
func (r *logReader) join(rec logRecord) {
	data := rec.Binary
	if data == nil {
		data = []byte(rec.Text)
	}
	p := r.pieces[rec.Stderr]
	if p == nil {
		p = &LogLine{Service: r.service, Time: rec.Time, Stderr: rec.Stderr}
	}
	p.Data = append(p.Data, data...)
	if bytes.HasSuffix(data, []byte{'\n'}) || len(p.Data) >= maxLine {
		r.queue = append(r.queue, *p)
		delete(r.pieces, rec.Stderr)
		return
	}
	r.pieces[rec.Stderr] = p
}

// next reads a record; false if there is none now.
func (r *logReader) next() (logRecord, bool) {
	for {
		if len(r.files) == 0 || r.buffered == nil && len(r.files) > 0 {
			if len(r.files) == 0 {
				r.log.mu.Lock()
				r.reopen()
				r.log.mu.Unlock()
				if len(r.files) == 0 {
					return logRecord{}, false
				}
			}
			r.buffered = bufio.NewReaderSize(r.files[0], 64<<10)
		}
		part, err := r.buffered.ReadSlice('\n')
		r.record = append(r.record, part...)
		switch {
		case err == nil:
			var rec logRecord
			line := r.record
			r.record = nil
			if json.Unmarshal(line, &rec) == nil {
				return rec, true
			}
			continue // half a record of a server that died
		case err == bufio.ErrBufferFull:
			if len(r.record) > 16*maxLine {
				r.record = r.record[:0] // nothing that was written here is so long
			}
			continue
		case err != io.EOF:
			return logRecord{}, false
		}
		if len(r.files) == 1 {
			r.log.mu.Lock()
			r.reopen()
			r.log.mu.Unlock()
		}
		if len(r.files) == 1 {
			return logRecord{}, false
		}
		r.files[0].Close()
		r.files, r.buffered, r.record = r.files[1:], nil, nil
	}
}

// Logs gives the lines that services wrote to emit: those kept, in the order
// of their times, and with Follow those that come. It ends with emit's error,
// with ctx, or when the environment is gone.
func (m *Manager) Logs(ctx context.Context, _ isle.Actor, ref isle.Ref, o LogOptions, emit func(LogLine) error) error {
	l, err := m.get(ref)
	if err != nil {
		return err
	}
	if err := l.keptFrom(); err != nil {
		return err
	}
	for _, s := range o.Services {
		if _, err := l.choose(s); err != nil {
			return err
		}
	}
	if o.Follow {
		defer l.session()()
	}
	readers := map[string]*logReader{}
	defer func() {
		for _, r := range readers {
			r.close()
		}
	}()
	l.addReaders(readers, o.Services)
	out := emit
	var tail []LogLine
	if o.Tail > 0 {
		keep, size := min(o.Tail, maxTail), 0
		out = func(line LogLine) error {
			tail, size = append(tail, line), size+len(line.Data)
			for len(tail) > keep || size > maxTailBytes && len(tail) > 1 {
				size -= len(tail[0].Data)
				tail = tail[1:]
			}
			return nil
		}
	}
	if err := mergeLogs(ctx, readers, out); err != nil {
		return err
	}
	for _, line := range tail {
		if err := emit(line); err != nil {
			return err
		}
	}
	for o.Follow {
		more := l.logSignal()
		l.addReaders(readers, o.Services)
		if err := mergeLogs(ctx, readers, emit); err != nil {
			return err
		}
		if m.find(ref) != l {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ctx.Done():
			return isle.Errorf(isle.Unavailable, "the server is ending; the environment runs on")
		}
	}
	return nil
}

// addReaders opens the logs of services that have none yet.
func (l *live) addReaders(readers map[string]*logReader, only []string) {
	rec := l.snapshot()
	names := only
	if len(names) == 0 {
		for _, s := range rec.Services {
			names = append(names, s.Name)
		}
	}
	if l.m.find(l.ref) != l {
		return
	}
	for _, name := range names {
		if readers[name] == nil {
			readers[name] = newLogReader(name, l.log(name))
		}
	}
}

// mergeLogs gives what the readers have now, oldest first.
func mergeLogs(ctx context.Context, readers map[string]*logReader, emit func(LogLine) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var first *logReader
		var line *LogLine
		for _, name := range sortedNames(readers) {
			if next := readers[name].peek(); next != nil && (line == nil || next.Time.Before(line.Time)) {
				first, line = readers[name], next
			}
		}
		if first == nil {
			return nil
		}
		if err := emit(first.take()); err != nil {
			return err
		}
	}
}

// lastLines returns the last lines a service wrote, for an error message.
func (l *live) lastLines(service string, n int) (out []string) {
	r := newLogReader(service, l.log(service))
	defer r.close()
	for line := r.peek(); line != nil; line = r.peek() {
		text := strings.TrimRight(strings.ToValidUTF8(string(r.take().Data), "\uFFFD"), "\r\n")
		if text = oneLine(text); text != "" {
			out = append(out, text)
		}
		if len(out) > n {
			out = out[1:]
		}
	}
	return out
}
