package checkout

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

const (
	maxObject     = 64 << 20 // bytes of a commit or a tree
	maxAlternates = 32       // folders of objects
)

// The types of objects, as a pack numbers them.
const (
	typeCommit   = 1
	typeTree     = 2
	typeBlob     = 3
	typeTag      = 4
	typeOfsDelta = 6
	typeRefDelta = 7
)

// An object is a commit or a tree.
type object struct {
	kind int
	data []byte
}

// objects reads commits and trees. It holds packs open until close.
type objects struct {
	hashLen int
	dirs    []string // of objects: the repository's, and those that it borrows from
	packs   []*pack
	opened  bool // packs are listed
}

func (c *Checkout) newObjects() *objects {
	o := &objects{hashLen: c.hashLen}
	o.addDir(filepath.Join(c.common, "objects"))
	return o
}

// addDir adds a folder of objects and those that it borrows from.
func (o *objects) addDir(dir string) {
	o.dirs = append(o.dirs, dir)
	b, err := readFile(filepath.Join(dir, "info", "alternates"), maxSmall)
	if err != nil {
		return // it borrows nothing, or what it borrows is found missing
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && len(o.dirs) < maxAlternates {
			o.addDir(resolve(dir, line))
		}
	}
}

func (o *objects) close() {
	for _, p := range o.packs {
		p.close()
	}
}

// newHash is the hash of this repository's objects.
func newHash(length int) hash.Hash {
	if length == sha256.Size {
		return sha256.New()
	}
	return sha1.New()
}

// hashObject is the name of an object.
func hashObject(length int, kind string, data []byte) string {
	h := newHash(length)
	fmt.Fprintf(h, "%s %d\x00", kind, len(data))
	h.Write(data)
	return string(h.Sum(nil))
}

// read returns an object of the kind by its hash (binary), checked against it.
func (o *objects) read(id string, kind int) ([]byte, error) {
	for _, dir := range o.dirs {
		obj, err := readLoose(dir, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return o.checked(id, kind, obj, err)
	}
	if err := o.openPacks(); err != nil {
		return nil, err
	}
	for _, p := range o.packs {
		offset, ok, err := p.find(id)
		if err != nil {
			return nil, err
		}
		if ok {
			obj, err := p.read(offset)
			return o.checked(id, kind, obj, err)
		}
	}
	return nil, fmt.Errorf("object %x is missing", id)
}

func (o *objects) checked(id string, kind int, obj object, err error) ([]byte, error) {
	name := map[int]string{typeCommit: "commit", typeTree: "tree"}[kind]
	switch {
	case err != nil:
		return nil, fmt.Errorf("object %x cannot be read: %w", id, err)
	case obj.kind != kind || hashObject(o.hashLen, name, obj.data) != id:
		return nil, fmt.Errorf("object %x is no %s, or damaged", id, name)
	}
	return obj.data, nil
}

// readLoose reads an object that is a file of its own.
func readLoose(dir, id string) (object, error) {
	name := hex.EncodeToString([]byte(id))
	f, err := openFile(filepath.Join(dir, name[:2], name[2:]))
	if err != nil {
		return object{}, err
	}
	defer f.Close()
	z, err := zlib.NewReader(f)
	if err != nil {
		return object{}, err
	}
	b, err := io.ReadAll(io.LimitReader(z, maxObject+64))
	if err != nil {
		return object{}, err
	}
	head, data, ok := bytes.Cut(b, []byte{0})
	word, _, _ := strings.Cut(string(head[:min(len(head), 16)]), " ")
	kind := map[string]int{"commit": typeCommit, "tree": typeTree, "blob": typeBlob, "tag": typeTag}[word]
	if !ok || kind == 0 || len(data) > maxObject {
		return object{}, errors.New("it is damaged or too large")
	}
	return object{kind, data}, nil
}

// treeOf is the hash (binary) of a commit's tree.
func (o *objects) treeOf(commit string) (string, error) {
	id, err := hex.DecodeString(commit)
	if err != nil {
		return "", err
	}
	data, err := o.read(string(id), typeCommit)
	if err != nil {
		return "", err
	}
	line, _, _ := bytes.Cut(data, []byte{'\n'})
	text, ok := bytes.CutPrefix(line, []byte("tree "))
	tree, err := hex.DecodeString(string(text))
	if !ok || err != nil || len(tree) != o.hashLen {
		return "", fmt.Errorf("commit %s has no tree", commit)
	}
	return string(tree), nil
}

// A node is one name in a tree.
type node struct {
	mode uint32
	name string
	id   string // binary
}

// readTree returns what a tree holds.
func (o *objects) readTree(id string) ([]node, error) {
	data, err := o.read(id, typeTree)
	if err != nil {
		return nil, err
	}
	return parseTree(data, o.hashLen)
}

func parseTree(data []byte, hashLen int) ([]node, error) {
	var out []node
	for len(data) > 0 {
		head, rest, ok := bytes.Cut(data, []byte{0})
		digits, name, named := bytes.Cut(head, []byte{' '})
		if !ok || !named || len(name) == 0 || len(digits) == 0 || len(digits) > 6 || len(rest) < hashLen {
			return nil, errors.New("a tree is damaged")
		}
		n := node{name: string(name), id: string(rest[:hashLen])}
		for _, d := range digits {
			if d < '0' || d > '7' {
				return nil, errors.New("a tree is damaged")
			}
			n.mode = n.mode<<3 | uint32(d-'0')
		}
		out = append(out, n)
		data = rest[hashLen:]
	}
	return out, nil
}

// subtree is the hash of the tree at a path below a tree; ok is false where
// there is none.
func (o *objects) subtree(tree, path string) (id string, ok bool, err error) {
	if path == "" {
		return tree, true, nil
	}
	for part := range strings.SplitSeq(path, "/") {
		nodes, err := o.readTree(tree)
		if err != nil {
			return "", false, err
		}
		tree = ""
		for _, n := range nodes {
			if n.name == part && n.mode&modeType == modeDir {
				tree = n.id
			}
		}
		if tree == "" {
			return "", false, nil
		}
	}
	return tree, true, nil
}
