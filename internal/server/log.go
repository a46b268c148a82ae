package server

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"isle"
)

// maxLog is how large the log file grows, in bytes, before it is rotated.
const maxLog = 8 << 20

// A logFile is the server's log: one file, and the one before it at NAME.1. It
// is standard error as well, so that what the runtime writes when it crashes
// is in it.
type logFile struct {
	name string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(name string) (*logFile, error) {
	l := &logFile{name: name}
	if err := l.open(); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot write the log: %w", err).WithHint("name another file with --log")
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = unix.Dup3(int(f.Fd()), 2, 0)
	}
	if err != nil {
		f.Close()
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write implements io.Writer.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > maxLog {
		if os.Rename(l.name, l.name+".1") == nil {
			l.open() // on failure the old file, under its new name, goes on
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}
