package spec

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"
	"unicode/utf8"

	"isle"
)

// Bounds of a Tree. A folder beyond them is refused by name.
const (
	MaxTreeEntries = 200_000
	MaxTreeSize    = 128 << 20 // bytes of its encoding
	maxTreePath    = 4096      // bytes of a path or a link's target
	maxTreeFile    = 64 << 30  // bytes of one file
)

// The types of a TreeEntry.
const (
	TypeFile = "file"
	TypeDir  = "dir"
	TypeLink = "link"
)

// Encode is the tree's canonical JSON, without white space and with a line
// break at the end. The same files give the same bytes, on any machine.
func (t Tree) Encode() []byte {
	if t.Entries == nil {
		t.Entries = []TreeEntry{}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(t); err != nil {
		panic(err) // strings, numbers and booleans only
	}
	return b.Bytes()
}

// Digest is the digest of the tree's encoding.
func (t Tree) Digest() isle.Digest { return isle.DigestOf(t.Encode()) }

// Size is the sum of the files' sizes in bytes.
func (t Tree) Size() (n int64) {
	for _, e := range t.Entries {
		n += e.Size
	}
	return n
}

// DecodeTree reads what Encode wrote. The bytes come over the wire and are
// hostile: it accepts canonical bytes only, and of the tree only what can be
// laid out without leaving a folder: sorted, unique, clean relative paths, each
// below a folder of the tree. A link's target may be any text, so whoever
// follows links in the result does it inside a root of its own.
func DecodeTree(b []byte) (Tree, error) {
	bad := func(format string, args ...any) (Tree, error) {
		e := isle.Errorf(isle.Invalid, "file list: "+format, args...)
		return Tree{}, e.WithHint("it was not written by this version of isle, or damaged on the way; run the command again")
	}
	if len(b) > MaxTreeSize {
		return bad("%d bytes long; at most %d are possible", len(b), MaxTreeSize)
	}
	var t Tree
	if err := json.Unmarshal(b, &t); err != nil {
		return bad("not JSON: %w", err)
	}
	if len(t.Entries) == 0 || len(t.Entries) > MaxTreeEntries {
		return bad("%d entries; want 1 to %d", len(t.Entries), MaxTreeEntries)
	}
	dirs := map[string]bool{}
	for i, e := range t.Entries {
		switch {
		case i == 0 && e.Path != "":
			return bad("it begins with %q and not with the copied thing itself", clip(e.Path))
		case i > 0 && e.Path <= t.Entries[i-1].Path:
			return bad("%q is out of order or there twice", clip(e.Path))
		case i > 0 && !treePath(e.Path):
			return bad("%q is no clean relative path", clip(e.Path))
		case i > 0 && !dirs[parent(e.Path)]:
			return bad("%q lies in no folder of the list", clip(e.Path))
		}
		ok := false
		switch e.Type {
		case TypeDir:
			ok = e == TreeEntry{Path: e.Path, Type: TypeDir}
			dirs[e.Path] = true
		case TypeLink:
			ok = e == TreeEntry{Path: e.Path, Type: TypeLink, Target: e.Target} && e.Target != "" && treeText(e.Target)
		case TypeFile:
			ok = e.Digest.Valid() && e.Target == "" && e.Size >= 0 && e.Size <= maxTreeFile
		}
		if !ok {
			return bad("%q is no well-formed file, folder or link", clip(e.Path))
		}
	}
	if !bytes.Equal(t.Encode(), b) {
		return bad("the bytes are not canonical")
	}
	return t, nil
}

// parent is the path of the folder that holds p; "" is the root.
func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// treePath reports whether p is relative and clean, and no way out.
func treePath(p string) bool {
	if !treeText(p) || path.Clean(p) != p || strings.HasPrefix(p, "/") || p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return false
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > 255 {
			return false
		}
	}
	return true
}

// treeText reports whether s can be a path or target: JSON keeps UTF-8 only,
// and no system takes a NUL.
func treeText(s string) bool {
	return len(s) <= maxTreePath && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}
