package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isle"
)

// A Memory is a client's: the last checkpoint that it saw of each server. It is
// a folder with a file for each.
type Memory struct{ Dir string }

// Seen is what is remembered of a server's log.
type Seen struct {
	Server     string `json:"server"` // its address
	Key        string `json:"key"`    // as it was when it was first seen
	Checkpoint string `json:"checkpoint"`
}

// Path is the file of a server.
func (m Memory) Path(server string) string {
	sum := sha256.Sum256([]byte(server))
	return filepath.Join(m.Dir, hex.EncodeToString(sum[:12])+".json")
}

// Last returns what was seen last of a server, nil if it was never seen. What
// cannot be read is an error: it would otherwise be a way to be forgotten.
func (m Memory) Last(server string) (*Seen, error) {
	b, err := os.ReadFile(m.Path(server))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var s Seen
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil {
		_, err = ParseCheckpoint([]byte(s.Checkpoint), s.Key)
	}
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "what is remembered of the log of %s cannot be read: %s: %w", server, m.Path(server), err).
			WithHint("if the server is the right one, accept its log with `isle audit accept`")
	}
	return &s, nil
}

// Check compares what a server says now with what was seen of it: its key, its
// checkpoint, and the proof that the log goes on from the last one seen (nil if
// there is none). It returns the new checkpoint.
func (s *Seen) Check(key string, note []byte, proof [][]byte) (Checkpoint, error) {
	if s == nil {
		return ParseCheckpoint(note, key)
	}
	if key != s.Key {
		return Checkpoint{}, isle.Errorf(isle.Untrusted, "its log has another key than it had")
	}
	now, err := ParseCheckpoint(note, key)
	if err != nil {
		return now, err
	}
	old, err := ParseCheckpoint([]byte(s.Checkpoint), s.Key)
	if err != nil {
		return now, err
	}
	hashes, err := toHashes(proof)
	if err != nil {
		return now, err
	}
	return now, Extends(old.Head, now.Head, hashes)
}

// Size is how many entries the log had; 0 where it was never seen.
func (s *Seen) Size() uint64 {
	if s == nil {
		return 0
	}
	c, _ := ParseCheckpoint([]byte(s.Checkpoint), "")
	return c.Size
}

// Remember replaces what was seen of a server by what was checked against it.
// Of two clients that do so at once the one that saw more stays.
func (m Memory) Remember(seen Seen) error {
	return m.locked(func() error {
		if last, err := m.Last(seen.Server); err == nil && last.Size() >= seen.Size() && last.Size() > 0 {
			return nil
		}
		return m.write(seen)
	})
}

// Accept replaces what was seen of a server, whatever it was.
func (m Memory) Accept(seen Seen) error {
	return m.locked(func() error { return m.write(seen) })
}

// Forget drops what was seen of a server, and reports whether there was
// something.
func (m Memory) Forget(server string) (forgot bool, err error) {
	err = m.locked(func() error {
		err := os.Remove(m.Path(server))
		forgot = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return forgot, err
}

func (m Memory) write(seen Seen) error {
	b, err := json.MarshalIndent(seen, "", "  ")
	if err != nil {
		return err
	}
	// Through a file of a name that nobody knows before: the folder may be below
	// another user's home, where a link would lead root's writing elsewhere. Not
	// synced: who loses power remembers a little less.
	f, err := os.CreateTemp(m.Dir, ".seen-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), m.Path(seen.Server))
}

func (m Memory) locked(do func() error) error {
	err := os.MkdirAll(m.Dir, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(filepath.Join(m.Dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	}
	if err == nil {
		defer f.Close()
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		err = do()
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot remember the server's log in %s: %w", m.Dir, err)
	}
	return nil
}
