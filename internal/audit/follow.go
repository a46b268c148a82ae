package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// A Fetch gets what a log serves at a path below its prefix.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// A Remote is a log as its checkpoint says it is, read through Fetch. What it
// returns is proven against the checkpoint's root; what is not as the
// checkpoint says is refused.
type Remote struct {
	Checkpoint
	fetch Fetch
}

// Follow reads the present checkpoint of a log, which must be signed by the
// key, or by any where that is "".
func Follow(ctx context.Context, fetch Fetch, key string) (*Remote, error) {
	msg, err := fetch(ctx, CheckpointPath)
	if err != nil {
		return nil, err
	}
	c, err := ParseCheckpoint(msg, key)
	return &Remote{c, fetch}, err
}

// Hashes reads the tree's hashes from tiles.
func (r *Remote) Hashes(ctx context.Context) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(r.Size), Hash: r.Root}, &tileReader{ctx: ctx, r: r, have: map[Tile][]byte{}})
}

// A tileReader is a tlog.TileReader of one use.
type tileReader struct {
	ctx  context.Context // of the use
	r    *Remote
	have map[Tile][]byte // proven ones
}

// Height implements tlog.TileReader.
func (t *tileReader) Height() int { return tileHeight }

// ReadTiles implements tlog.TileReader.
func (t *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, 0, len(tiles))
	for _, k := range tiles {
		tile := Tile{k.L, uint64(k.N), k.W}
		b := t.have[tile]
		if b == nil {
			var err error
			if b, err = t.r.fetch(t.ctx, tile.Path()); err != nil {
				return nil, err
			}
		}
		if len(b) != k.W*tlog.HashSize {
			return nil, isle.Errorf(isle.Invalid, "%s has %d bytes, not %d", tile.Path(), len(b), k.W*tlog.HashSize)
		}
		out = append(out, b)
	}
	return out, nil
}

// maxTiles bounds what a tileReader keeps, in tiles of 8 KiB.
const maxTiles = 256

// SaveTiles implements tlog.TileReader: these are proven.
func (t *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	if len(t.have) > maxTiles { // a walk over the log comes to each but once
		maps.DeleteFunc(t.have, func(k Tile, _ []byte) bool { return k.Level == 0 })
	}
	for i, k := range tiles {
		t.have[Tile{k.L, uint64(k.N), k.W}] = data[i]
	}
}

// bundle returns the entries of a bundle with their leaf hashes, proven.
func (r *Remote) bundle(ctx context.Context, index uint64, hashes tlog.HashReader) (entries [][]byte, leaves []tlog.Hash, err error) {
	first := index * TileWidth
	tile := Tile{Entries, index, int(min(TileWidth, r.Size-first))}
	b, err := r.fetch(ctx, tile.Path())
	if err != nil {
		return nil, nil, err
	}
	if entries, err = ParseBundle(b, tile.Width); err != nil {
		return nil, nil, err
	}
	indexes := make([]int64, tile.Width)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(first)+int64(i))
	}
	if leaves, err = hashes.ReadHashes(indexes); err != nil {
		return nil, nil, err
	}
	for i, e := range entries {
		if tlog.RecordHash(e) != leaves[i] {
			return nil, nil, isle.Errorf(isle.Invalid, "entry %d is not the one that the log's tree has", first+uint64(i)).
				WithHint("somebody changed the log: keep a copy of the state folder, and see `isle audit verify`")
		}
	}
	return entries, leaves, nil
}

// Prove returns the proof that an entry is in the log.
func (r *Remote) Prove(ctx context.Context, sequence uint64) (Proof, error) {
	if sequence >= r.Size {
		return Proof{}, isle.Errorf(isle.NotFound, "the log has no entry %d: its checkpoint covers %d", sequence, r.Size)
	}
	hashes := r.Hashes(ctx)
	entries, _, err := r.bundle(ctx, sequence/TileWidth, hashes)
	if err != nil {
		return Proof{}, err
	}
	path, err := tlog.ProveRecord(int64(r.Size), int64(sequence), hashes)
	if err != nil {
		return Proof{}, err
	}
	return Proof{Checkpoint: string(r.Note), Sequence: sequence, Entry: string(entries[sequence%TileWidth]), Path: toBytes(path)}, nil
}

func toBytes(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i, h := range hashes {
		out[i] = bytes.Clone(h[:])
	}
	return out
}

func toHashes(list [][]byte) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(list))
	for i, b := range list {
		if len(b) != tlog.HashSize {
			return nil, isle.Errorf(isle.Invalid, "a hash of %d bytes, not %d", len(b), tlog.HashSize)
		}
		out[i] = tlog.Hash(b)
	}
	return out, nil
}

// A Proof shows, to whoever has the log's key and nothing else, that an entry
// is in it.
type Proof struct {
	Checkpoint string   `json:"checkpoint"`
	Sequence   uint64   `json:"seq"`   // the leaf's index
	Entry      string   `json:"entry"` // the leaf: the canonical encoding
	Path       [][]byte `json:"path"`  // RFC 6962, section 2.1.1: from the leaf up
}

// maxProof bounds a proof in bytes.
const maxProof = 1 << 20

// ParseProof reads a proof. It proves nothing yet: see Verify.
func ParseProof(b []byte) (Proof, error) {
	var p Proof
	if len(b) > maxProof {
		return p, isle.Errorf(isle.Invalid, "proof: %d bytes, at most %d", len(b), maxProof)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, isle.Errorf(isle.Invalid, "proof: %w", err)
	}
	return p, nil
}

// Verify checks the proof against its checkpoint, and that against the log's
// key ("" leaves the signature unchecked).
func (p Proof) Verify(key string) (Entry, Checkpoint, error) {
	c, err := ParseCheckpoint([]byte(p.Checkpoint), key)
	if err != nil {
		return Entry{}, c, err
	}
	path, err := toHashes(p.Path)
	if err != nil {
		return Entry{}, c, err
	}
	if p.Sequence >= c.Size {
		return Entry{}, c, isle.Errorf(isle.Invalid, "entry %d is not covered by the checkpoint, which is of %d entries", p.Sequence, c.Size)
	}
	if err := tlog.CheckRecord(path, int64(c.Size), c.Root, int64(p.Sequence), tlog.RecordHash([]byte(p.Entry))); err != nil {
		return Entry{}, c, isle.Errorf(isle.Invalid, "entry %d is not in the log that the checkpoint is of: %w", p.Sequence, err)
	}
	e, err := Decode([]byte(p.Entry))
	if err == nil && e.Sequence != p.Sequence {
		err = isle.Errorf(isle.Invalid, "the entry says that it is entry %d, its place in the tree is %d", e.Sequence, p.Sequence)
	}
	return e, c, err
}

// ProveExtends returns the proof that the log of size now begins with the one
// of size old (RFC 6962, section 2.1.2).
func ProveExtends(old, now uint64, r tlog.HashReader) ([]tlog.Hash, error) {
	if old == 0 || old >= now {
		return nil, nil
	}
	return tlog.ProveTree(int64(now), int64(old), r)
}

// Extends checks that the log that now is of begins with the one that old is
// of. The error says, where it does not, in which way.
func Extends(old, now Head, proof []tlog.Hash) error {
	switch {
	case now.Size < old.Size:
		return isle.Errorf(isle.Untrusted, "its log has %d entries, and had %d: the last %d are gone", now.Size, old.Size, old.Size-now.Size)
	case now.Size == old.Size && now.Root != old.Root:
		return isle.Errorf(isle.Untrusted, "its log of %d entries is not the one that it was: an entry in it was changed", now.Size)
	case now.Size == old.Size || old.Size == 0:
		return nil
	}
	if err := tlog.CheckTree(proof, int64(now.Size), now.Root, int64(old.Size), old.Root); err != nil {
		return isle.Errorf(isle.Untrusted, "its log of %d entries does not begin with the %d that were there: an entry before was changed", now.Size, old.Size)
	}
	return nil
}
