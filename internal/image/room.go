package image

import (
	"io"

	"golang.org/x/sys/unix"

	"isle"
)

// The store shares its disk with the server's log, which must still be written
// when a copy, an archive or an upload is larger than what is free.
const (
	reserve  = 256 << 20 // bytes that a large file leaves free; a quarter of it is no large one
	askEvery = 16        // looks at the disk while as much is written as is kept free
)

// room is what is left for one file on its way into the store.
type room struct {
	dir     string
	reserve int64
	taken   int64 // bytes
	asked   int64 // bytes that were taken when the disk was looked at last
}

// take says that n bytes are written next. It is Exhausted where they are too many.
func (r *room) take(n int64) error {
	r.taken += n
	if r.taken <= r.reserve/4 || r.taken-r.asked < r.reserve/askEvery {
		return nil
	}
	r.asked = r.taken
	return r.left(n)
}

// A roomReader reads what is written next, as long as there is room for it.
type roomReader struct {
	room *room
	r    io.Reader
}

func (r roomReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if full := r.room.take(int64(n)); full != nil {
		return 0, full
	}
	return n, err
}

// left looks whether there is room for n bytes.
func (r *room) left(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.dir, &st); err != nil {
		return storeError("look how much is free", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free-n < r.reserve {
		return isle.Errorf(isle.Exhausted, "no space left: %d MiB are free for the state folder, of which %d stay so", free>>20, r.reserve>>20).
			WithHint("`isle gc` frees what nothing uses; nothing half-written is left")
	}
	return nil
}

// Room is Exhausted where the store's disk is nearly full. What is made of many
// small files asks before each.
func (s *Store) Room() error {
	r := s.room()
	return r.left(0)
}

func (s *Store) room() room { return room{dir: s.dir, reserve: s.reserve} }
