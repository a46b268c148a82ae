package ext4_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"isle"
	"isle/internal/snapshot/ext4"
)

// FuzzImage changes bytes of an image that is right: each change is an offset of
// three bytes, in units of four bytes of its metadata, and four bytes.
func FuzzImage(f *testing.F) {
	dir := f.TempDir()
	fill(f, dir, 30)
	good, err := os.ReadFile(make4(f, dir, 36<<20))
	if err != nil {
		f.Fatal(err)
	}
	var used []int // blocks of the image that are not zero
	zero := make([]byte, 1024)
	for n := 1; n < len(good)/1024; n++ {
		if !bytes.Equal(good[n*1024:(n+1)*1024], zero) && len(used) < 4000 {
			used = append(used, n)
		}
	}
	f.Add([]byte{})
	f.Add([]byte{0, 0, 14, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, patch []byte) {
		type change struct {
			at  int
			was []byte
		}
		b, changes := good, []change{}
		defer func() { // a copy of it all would take most of the time
			for _, c := range slices.Backward(changes) {
				copy(b[c.at:], c.was)
			}
		}()
		for ; len(patch) >= 7; patch = patch[7:] {
			n := int(binary.BigEndian.Uint32(append([]byte{0}, patch[:3]...)))
			at := used[n/256%len(used)]*1024 + 4*(n%256)
			changes = append(changes, change{at, slices.Clone(b[at : at+4])})
			copy(b[at:], patch[3:7])
		}
		m, err := ext4.New(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			var read int64
			err = m.Walk(t.Context(), "data", func(e ext4.Entry, data func(func(int64, []byte) error) error) error {
				if data == nil {
					return nil
				}
				end := int64(0)
				return data(func(at int64, piece []byte) error {
					if at < end || at+int64(len(piece)) > e.Size {
						t.Errorf("%s: %d bytes at %d, after %d, of %d", e.Path, len(piece), at, end, e.Size)
					}
					end = at + int64(len(piece))
					if read += int64(len(piece)); read > int64(len(b)) {
						t.Errorf("more was read than there is")
					}
					return nil
				})
			})
		}
		if err != nil && isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%v has the code %s", err, isle.CodeOf(err))
		}
	})
}
