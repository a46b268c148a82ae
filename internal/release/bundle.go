package release

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"isle"
	"isle/internal/audit"
)

// A bundle is a history that proves itself: a tar (POSIX pax) of a description,
// then the proof of each entry, as isle audit prove writes it, and then the file of
// each release, as isle release export writes it. All proofs are of one checkpoint.
const (
	entryHistory = "isle-history/history.json"
	entryProofs  = "isle-history/entries/"  // and the entry's number, ".json"
	entryFile    = "isle-history/releases/" // and the release's digest in hexadecimal, ".release"

	bundleVersion = 1
)

// Bounds of a bundle.
const (
	maxBundled     = 2 * MaxLines // entries, with the intents
	maxBundledFile = 256 << 20    // bytes of the file of one release
	maxBundleProof = 256 << 10    // bytes of one proof
	maxReleases    = 1000
)

// A BundleHead says what a bundle is of. Nothing in it is proven.
type BundleHead struct {
	Version int    `json:"isle_history"`
	Of      string `json:"of"`
	Key     string `json:"key"` // the log's, for convenience
}

// A Bundle is written entry by entry: the proofs first, and then the releases.
type Bundle struct{ tar *tar.Writer }

// NewBundle begins a bundle.
func NewBundle(w io.Writer, of, key string) (*Bundle, error) {
	b := &Bundle{tar.NewWriter(w)}
	head, err := encode(BundleHead{bundleVersion, of, key})
	if err == nil {
		err = entry(b.tar, entryHistory, int64(len(head)), bytes.NewReader(head))
	}
	return b, err
}

// Prove adds the proof of an entry.
func (b *Bundle) Prove(p audit.Proof) error {
	out, err := encode(p)
	if err != nil {
		return err
	}
	return entry(b.tar, entryProofs+decimal(p.Sequence)+".json", int64(len(out)), bytes.NewReader(out))
}

// Release adds the file of a release.
func (b *Bundle) Release(d isle.Digest, file []byte) error {
	return entry(b.tar, entryFile+d.Hex()+".release", int64(len(file)), bytes.NewReader(file))
}

// Close ends the bundle.
func (b *Bundle) Close() error { return b.tar.Close() }

// A Proved is what stands in a bundle, all of it checked.
type Proved struct {
	Of         string
	Checkpoint audit.Checkpoint
	Entries    []audit.Entry
	Releases   []File
	// Vouched are the attestations, of all releases in it, whose hash an entry in it
	// says.
	Vouched int
}

// IsBundle says whether a file that begins so is a bundle.
func IsBundle(begin []byte) bool { return bytes.HasPrefix(begin, []byte(entryHistory+"\x00")) }

// VerifyBundle reads a bundle and checks all of it, with the keys given and nothing
// else: the log's, which has signed the checkpoint that every entry is proven by,
// and those that must have signed the releases.
func VerifyBundle(r io.Reader, keys []string) (out Proved, err error) {
	var log string
	var signers []string
	for _, k := range keys {
		if name, _, _ := strings.Cut(k, "+"); strings.HasPrefix(name, "isle-log/") {
			if log != "" {
				return out, isle.Errorf(isle.Invalid, "two keys of logs are given: a bundle is of one log")
			}
			log = k
			continue
		}
		signers = append(signers, k)
	}
	if log == "" {
		return out, isle.Errorf(isle.Invalid, "the key of the log that the entries are in is not given").WithHint("`isle audit key` on the server shows it: --key isle-log/…")
	}
	in := &reader{tar: tar.NewReader(r)}
	head, err := in.small(entryHistory, 64<<10)
	if err != nil {
		return out, err
	}
	var h BundleHead
	if err := json.Unmarshal(head, &h); err != nil || h.Version != bundleVersion {
		return out, errBundle("it is of another version than %d", bundleVersion)
	}
	out.Of = clip(h.Of)
	if err := out.entries(in, log); err != nil {
		return out, err
	}
	return out, out.files(in, signers)
}

func errBundle(format string, args ...any) error {
	return isle.Errorf(isle.Invalid, "this is no history as isle history --prove writes it, or it was cut: "+format, args...)
}

// entries checks the proofs. The checkpoint's signature is checked with the first;
// the others must be of the same.
func (out *Proved) entries(in *reader, key string) error {
	note := ""
	seen := map[uint64]bool{}
	for {
		h, err := in.header()
		if err != nil || h == nil || !strings.HasPrefix(h.Name, entryProofs) {
			return err
		}
		if len(out.Entries) >= maxBundled {
			return errBundle("it has more than %d entries", maxBundled)
		}
		b, err := in.small(h.Name, maxBundleProof)
		if err != nil {
			return err
		}
		p, err := audit.ParseProof(b)
		if err != nil {
			return err
		}
		if h.Name != entryProofs+decimal(p.Sequence)+".json" {
			return errBundle("entry %d stands where another one belongs, %q", p.Sequence, clip(h.Name))
		}
		if len(out.Entries) > 0 && p.Checkpoint != note {
			return isle.Errorf(isle.Untrusted, "entry %d is proven by another checkpoint than those before it", p.Sequence)
		}
		if seen[p.Sequence] {
			return errBundle("entry %d is in it twice", p.Sequence)
		}
		seen[p.Sequence] = true
		e, c, err := p.Verify(key)
		if err != nil {
			return isle.Errorf(isle.Untrusted, "entry %d: %w", p.Sequence, err)
		}
		note, out.Checkpoint = p.Checkpoint, c
		out.Entries = append(out.Entries, e)
	}
}

// files checks the releases.
func (out *Proved) files(in *reader, keys []string) error {
	said := map[string]bool{} // hashes that entries say of attestations
	for _, e := range out.Entries {
		if e.Action == isle.ActionReleaseCreate || e.Action == isle.ActionReleaseImport {
			for _, kind := range []string{Provenance, Materials} {
				said[string(e.Release)+e.Details[kind]] = true
			}
		}
	}
	for {
		h, err := in.header()
		if err != nil || h == nil {
			return err
		}
		d := isle.Digest("sha256:" + strings.TrimSuffix(path.Base(h.Name), ".release"))
		if h.Name != entryFile+d.Hex()+".release" || !d.Valid() || h.Size > maxBundledFile || len(out.Releases) >= maxReleases {
			return errBundle("entry %q of %d bytes does not belong in it", clip(h.Name), h.Size)
		}
		if len(keys) == 0 {
			return isle.Errorf(isle.Invalid, "the key that has signed the releases in it is not given").WithHint("`isle release trust` on the server shows it: --key isle-releases/…")
		}
		if slices.ContainsFunc(out.Releases, func(f File) bool { return f.Digest == d }) {
			return errBundle("release %s is in it twice", d.Short())
		}
		in.next = nil
		f, err := VerifyFile(in.tar, keys)
		if err != nil {
			return err
		}
		if f.Digest != d {
			return isle.Errorf(isle.Untrusted, "release %s stands where release %s belongs", f.Digest.Short(), d.Short())
		}
		for _, a := range f.Attestations {
			if said[string(d)+string(a.Digest)] {
				out.Vouched++
			}
		}
		f.manifest, f.signature, f.lock, f.statements = nil, nil, nil, nil
		out.Releases = append(out.Releases, f)
	}
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
