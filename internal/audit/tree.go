package audit

import (
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// A Head is what a checkpoint says of the log: how many entries it has, and the
// Merkle Tree Hash over them (RFC 6962, section 2.1, with SHA-256).
type Head struct {
	Size uint64
	Root tlog.Hash
}

// A Tree is the right edge of the Merkle tree over the first Size entries: the
// hashes of the perfect subtrees that the size's binary digits name, the
// largest first. It is all that appending needs. The zero Tree is empty.
type Tree struct {
	size  uint64
	nodes []tlog.Hash
}

// NewTree returns the right edge of the tree of the size, read from its hashes.
func NewTree(size uint64, r tlog.HashReader) (Tree, error) {
	var indexes []int64
	at := uint64(0)
	for level := 63; level >= 0; level-- {
		if size&(1<<level) != 0 {
			indexes = append(indexes, tlog.StoredHashIndex(level, int64(at>>level)))
			at += 1 << level
		}
	}
	if len(indexes) == 0 {
		return Tree{}, nil
	}
	nodes, err := r.ReadHashes(indexes)
	return Tree{size, nodes}, err
}

// Size is how many entries the tree is over.
func (t Tree) Size() uint64 { return t.size }

// Add returns the tree with one more entry, and the hashes that it completes:
// the entry's own and those of the perfect subtrees that end with it, upwards.
// t stays as it is.
func (t Tree) Add(leaf tlog.Hash) (next Tree, completed []tlog.Hash) {
	n := bits.TrailingZeros64(^t.size) // subtrees that the entry completes
	completed = make([]tlog.Hash, 1, n+1)
	completed[0] = leaf
	keep := len(t.nodes)
	for range n {
		keep--
		leaf = tlog.NodeHash(t.nodes[keep], leaf)
		completed = append(completed, leaf)
	}
	nodes := make([]tlog.Hash, keep+1)
	copy(nodes, t.nodes[:keep])
	nodes[keep] = leaf
	return Tree{t.size + 1, nodes}, completed
}

// Root is the Merkle Tree Hash. That of no entries is the hash of nothing.
func (t Tree) Root() tlog.Hash {
	if len(t.nodes) == 0 {
		return emptyRoot()
	}
	h := t.nodes[len(t.nodes)-1]
	for i := len(t.nodes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.nodes[i], h)
	}
	return h
}

// emptyRoot is SHA-256 of the empty string.
func emptyRoot() tlog.Hash {
	h, _ := tlog.TreeHash(0, nil)
	return h
}

// Head returns the tree's size and root.
func (t Tree) Head() Head { return Head{t.size, t.Root()} }

// ProveRange returns the range proof of the entries [from, to) in the tree of
// the size: all that is needed to compute the root from the hashes of these
// leaves alone, which is those of the subtrees beside them, in the order in
// which a walk of the tree from the left meets them. For one leaf they are the
// hashes of its RFC 6962 audit path in another order.
func ProveRange(size, from, to uint64, r tlog.HashReader) ([]tlog.Hash, error) {
	if from > to || to > size {
		return nil, isle.Errorf(isle.Invalid, "entries %d to %d of a log of %d", from, to, size)
	}
	var beside [][2]uint64 // the subtrees beside the range, as [lo, hi)
	walk(0, size, from, to, func(lo, hi uint64) { beside = append(beside, [2]uint64{lo, hi}) })
	var indexes []int64
	for _, s := range beside {
		indexes = append(indexes, perfect(s[0], s[1])...)
	}
	if len(indexes) == 0 {
		return nil, nil
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	out := make([]tlog.Hash, 0, len(beside))
	for _, s := range beside {
		n := len(perfect(s[0], s[1]))
		out = append(out, fold(hashes[:n]))
		hashes = hashes[n:]
	}
	return out, nil
}

// walk calls outside for each largest subtree of [lo, hi) that has no leaf of
// [from, to), from the left.
func walk(lo, hi, from, to uint64, outside func(lo, hi uint64)) {
	switch {
	case lo >= hi || lo >= from && hi <= to:
	case hi <= from || lo >= to:
		outside(lo, hi)
	default:
		k := split(hi - lo)
		walk(lo, lo+k, from, to, outside)
		walk(lo+k, hi, from, to, outside)
	}
}

// split is the largest power of two below n (RFC 6962, section 2.1); n > 1.
func split(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// perfect names the stored hashes that [lo, hi), a subtree, is made of.
func perfect(lo, hi uint64) (indexes []int64) {
	for lo < hi {
		level := bits.Len64(hi-lo) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, int64(lo>>level)))
		lo += 1 << level
	}
	return indexes
}

// fold joins perfect subtrees, the largest first, to one.
func fold(nodes []tlog.Hash) tlog.Hash {
	h := nodes[len(nodes)-1]
	for i := len(nodes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(nodes[i], h)
	}
	return h
}

// RangeRoot computes the root of a tree of the size from the leaves' hashes
// from one on, and their range proof. It fails with Invalid where the proof has
// not as many hashes as it must.
func RangeRoot(size, from uint64, leaves, proof []tlog.Hash) (tlog.Hash, error) {
	to := from + uint64(len(leaves))
	if to < from || to > size || size > 1<<62 {
		return tlog.Hash{}, isle.Errorf(isle.Invalid, "entries %d to %d of a log of %d", from, to, size)
	}
	if size == 0 && len(proof) == 0 {
		return emptyRoot(), nil
	}
	short := false
	var root func(lo, hi uint64) tlog.Hash
	root = func(lo, hi uint64) tlog.Hash {
		switch {
		case hi <= from || lo >= to:
			if len(proof) == 0 {
				short = true
				return tlog.Hash{}
			}
			h := proof[0]
			proof = proof[1:]
			return h
		case hi-lo == 1:
			return leaves[lo-from]
		}
		k := split(hi - lo)
		left := root(lo, lo+k)
		return tlog.NodeHash(left, root(lo+k, hi))
	}
	var h tlog.Hash
	if size > 0 {
		h = root(0, size)
	}
	if short || len(proof) > 0 {
		return tlog.Hash{}, isle.Errorf(isle.Invalid, "the proof of entries %d to %d has not the hashes that a log of %d needs", from, to, size)
	}
	return h, nil
}
