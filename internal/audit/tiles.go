package audit

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// TileWidth is how many hashes or entries a full tile has, and tileHeight how
// many levels of the tree one spans (c2sp.org/tlog-tiles).
const (
	TileWidth  = 256
	tileHeight = 8
)

// CheckpointPath is where a log has its checkpoint, below its prefix.
const CheckpointPath = "checkpoint"

// Entries is the Level of an entry bundle.
const Entries = -1

// A Tile names a tile of hashes or, where its Level is Entries, a bundle of
// entries.
type Tile struct {
	Level int    // 0 to 63, or Entries
	Index uint64 // in its level
	Width int    // 256, or less for a partial tile
}

// Path is the tile's below the log's prefix: tile/<L>/<N>[.p/<W>].
func (t Tile) Path() string {
	n := fmt.Sprintf("%03d", t.Index%1000)
	for i := t.Index / 1000; i > 0; i /= 1000 {
		n = fmt.Sprintf("x%03d/%s", i%1000, n)
	}
	level := "entries"
	if t.Level >= 0 {
		level = strconv.Itoa(t.Level)
	}
	if t.Width < TileWidth {
		return fmt.Sprintf("tile/%s/%s.p/%d", level, n, t.Width)
	}
	return fmt.Sprintf("tile/%s/%s", level, n)
}

// ParseTile reads a path. There is one path for each tile: what Path would not
// give is Invalid.
func ParseTile(path string) (Tile, error) {
	bad := isle.Errorf(isle.Invalid, "%q is no tile's path", clip(path, 100))
	rest, ok := strings.CutPrefix(path, "tile/")
	level, rest, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 || len(path) > 100 {
		return Tile{}, bad
	}
	t := Tile{Level: Entries, Width: TileWidth}
	if level != "entries" {
		l, err := strconv.Atoi(level)
		if err != nil || l < 0 || l > 63 {
			return Tile{}, bad
		}
		t.Level = l
	}
	if n, w, partial := strings.Cut(rest, ".p/"); partial {
		width, err := strconv.Atoi(w)
		if err != nil || width < 1 || width >= TileWidth {
			return Tile{}, bad
		}
		rest, t.Width = n, width
	}
	for _, part := range strings.Split(rest, "/") {
		n, err := strconv.ParseUint(strings.TrimPrefix(part, "x"), 10, 16)
		if err != nil || n > 999 || t.Index > 1<<52 {
			return Tile{}, bad
		}
		t.Index = t.Index*1000 + n
	}
	if t.Path() != path {
		return Tile{}, bad
	}
	return t, nil
}

// In says whether the tile is of the tree of the size or of an earlier one of
// the same log: all that it holds is there.
func (t Tile) In(size uint64) bool {
	shift := uint(max(t.Level, 0) * tileHeight)
	if shift > 63 {
		return false
	}
	return t.Index <= 1<<53 && t.Index*TileWidth+uint64(t.Width) <= size>>shift
}

// Data returns a tile's hashes, joined.
func (t Tile) Data(r tlog.HashReader) ([]byte, error) {
	indexes := make([]int64, t.Width)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(t.Level*tileHeight, int64(t.Index)*TileWidth+int64(i))
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out, nil
}

// Bundle joins entries to an entry bundle: each behind its length, 16 bits, big
// endian.
func Bundle(entries [][]byte) ([]byte, error) {
	var out []byte
	for _, e := range entries {
		if len(e) > MaxSize {
			return nil, isle.Errorf(isle.Internal, "an audit entry of %d bytes, at most %d", len(e), MaxSize)
		}
		out = binary.BigEndian.AppendUint16(out, uint16(len(e)))
		out = append(out, e...)
	}
	return out, nil
}

// ParseBundle takes a bundle of so many entries apart.
func ParseBundle(b []byte, entries int) ([][]byte, error) {
	if entries < 0 || entries > TileWidth {
		return nil, isle.Errorf(isle.Invalid, "an entry bundle of %d entries, at most %d", entries, TileWidth)
	}
	out := make([][]byte, 0, entries)
	for range entries {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, isle.Errorf(isle.Invalid, "the entry bundle ends before its %d entries do", entries)
		}
		n := int(binary.BigEndian.Uint16(b))
		out = append(out, b[2:2+n])
		b = b[2+n:]
	}
	if len(b) > 0 {
		return nil, isle.Errorf(isle.Invalid, "the entry bundle has more than its %d entries", entries)
	}
	return out, nil
}
