package session

import (
	"encoding/json"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

const (
	// shareOf is the part of Max that the sessions of one actor may have recorded
	// within MinKeep, in which nothing is deleted to make room: a flood of one
	// stops nobody else's recordings.
	shareOf = 10
	// leastShare is what it is at least, in bytes.
	leastShare = 64 << 20
	// maxShares bounds how many actors are told apart. Those that recorded least
	// lately are forgotten first.
	maxShares = 10000
)

// A share is what an actor's sessions had recorded lately: it leaks, at the rate
// that empties a full one in MinKeep.
type share struct {
	bytes float64
	at    time.Time
}

// now is what is left of a share of most bytes.
func (h share) now(t time.Time, most int64) float64 {
	gone := t.Sub(h.at).Seconds() * float64(most) / MinKeep.Seconds()
	return max(0, h.bytes-max(0, gone))
}

// spend counts bytes that were recorded of an actor. The error says that it is
// more than their share.
func (s *Sessions) spend(who isle.Actor, bytes int64) error {
	most := s.cfg.share
	now := s.cfg.Now()
	s.shares.Lock()
	defer s.shares.Unlock()
	h := share{s.shares.of[who].now(now, most) + float64(bytes), now}
	if len(s.shares.of) >= maxShares {
		for other, o := range s.shares.of {
			if o.now(now, most) < float64(most)/100 {
				delete(s.shares.of, other)
			}
		}
	}
	s.shares.of[who] = h
	if h.bytes <= float64(most) {
		return nil
	}
	return isle.Errorf(isle.Exhausted, "what %s does cannot be recorded, so it may not pass: its sessions recorded more than the %d bytes that are one actor's share of %s", who, most, MinKeep).
		WithHint("it leaks away within a day; record no results, or give recordings more with isle server --recordings-max")
}

// remember takes shares over from the recordings of before a start.
func (s *Sessions) remember() {
	most, now := s.cfg.share, s.cfg.Now()
	read := 0
	for id, err := range recordings(s.cfg.Dir, now.Add(-2*MinKeep), time.Time{}) {
		if err != nil || read == maxShares {
			return // it counts from here on
		}
		read++
		who, bytes, written, err := recorded(pathOf(s.cfg.Dir, id))
		age := now.Sub(written)
		if err != nil || age >= MinKeep {
			continue
		}
		left := float64(bytes) * float64(MinKeep-max(0, age)) / float64(MinKeep)
		s.shares.of[who] = share{min(s.shares.of[who].bytes+left, float64(most)), now}
	}
}

// recorded is whose recording a file is, how many bytes it has, and when the
// last was written. That it says the truth is seen elsewhere.
func recorded(path string) (who isle.Actor, bytes int64, written time.Time, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return who, 0, written, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return who, 0, written, err
	}
	var h header
	if _, err = f.Seek(int64(len(magic)), io.SeekStart); err == nil {
		err = json.NewDecoder(io.LimitReader(f, maxHeader)).Decode(&h)
	}
	return h.Info.Actor, st.Size(), st.ModTime(), err
}
