package release

import (
	"archive/tar"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"isle"
	"isle/internal/image"
	"isle/internal/seal"
	"isle/internal/spec"
)

// A File is what stands in the file of a release before its layers.
type File struct {
	Digest       isle.Digest
	Manifest     Manifest
	Signer       string
	Attestations []Attestation
	Layers       int   // that are in the file too, by their digests
	Bytes        int64 // of those

	manifest, signature, lock []byte
	statements                [][]byte
}

// VerifyFile reads the file of a release and checks all of it, with the keys given
// (NAME+HASH+BASE64) and nothing else: no server is asked. It fails with Untrusted
// where none of them has signed, or anything is not what it is said to be.
func VerifyFile(r io.Reader, keys []string) (File, error) {
	var verifiers []note.Verifier
	var publics []ed25519.PublicKey
	for _, k := range keys {
		v, err := seal.ParseVerifier(k)
		if err != nil {
			return File{}, err
		}
		p, err := seal.PublicOf(k)
		if err != nil {
			return File{}, err
		}
		verifiers, publics = append(verifiers, v), append(publics, p)
	}
	in := &reader{tar: tar.NewReader(r)}
	f, err := in.file(verifiers, publics, func(string) error { return nil })
	if err != nil {
		return f, err
	}
	return f, in.layers(&f, func(d isle.Digest, r io.Reader) error {
		sum, err := digestOf(r)
		if err == nil && sum != d {
			err = isle.Errorf(isle.Untrusted, "layer %s in the file has other bytes, %s", d.Short(), sum.Short())
		}
		return err
	})
}

// A reader reads the file of a release. Everything in it is taken for hostile: it
// is read within bounds, in its order, and no name is taken from it.
type reader struct {
	tar  *tar.Reader
	next *tar.Header // read ahead; nil if nothing is
}

// errFile says what is wrong with a file.
func errFile(format string, args ...any) error {
	return isle.Errorf(isle.Invalid, "this is no release as isle release export writes it, or it was cut: "+format, args...)
}

// header is the next entry's, nil at the end.
func (in *reader) header() (*tar.Header, error) {
	if h := in.next; h != nil {
		return h, nil
	}
	h, err := in.tar.Next()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, errFile("%w", err)
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > maxSize || len(h.PAXRecords) > 8 {
		return nil, errFile("entry %q does not belong in it", clip(h.Name))
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return nil, errFile("entry %q is not all there", clip(h.Name))
		}
	}
	in.next = h
	return h, nil
}

// small reads the next entry, which must have the name and at most limit bytes.
func (in *reader) small(name string, limit int64) ([]byte, error) {
	h, err := in.header()
	switch {
	case err != nil:
		return nil, err
	case h == nil:
		return nil, errFile("it ends before %s", name)
	case h.Name != name || h.Size > limit:
		return nil, errFile("entry %q of %d bytes stands where %s belongs", clip(h.Name), h.Size, name)
	}
	in.next = nil
	b, err := io.ReadAll(io.LimitReader(in.tar, limit+1))
	if err != nil {
		return nil, errFile("%w", err)
	}
	return b, nil
}

// file reads all but the layers, and checks it. allow is asked about the project
// once that is known to be what was signed, and before more of the file is kept.
func (in *reader) file(verifiers []note.Verifier, keys []ed25519.PublicKey, allow func(project string) error) (f File, err error) {
	if f.manifest, err = in.small(entryManifest, MaxManifest); err != nil {
		return f, err
	}
	if f.Manifest, err = Decode(f.manifest); err != nil {
		return f, err
	}
	f.Digest = isle.DigestOf(f.manifest)
	if f.signature, err = in.small(entrySignature, seal.MaxNote); err != nil {
		return f, err
	}
	var trusted bool
	if f.Signer, trusted, err = seal.OpenNote(f.signature, "release "+f.Digest.Short(), seal.NoteText(shelfKind, f.Digest), verifiers); err != nil {
		return f, err
	}
	if !trusted {
		return f, isle.Errorf(isle.Untrusted, "release %s is signed by %s, whose key is not among those that are trusted", f.Digest.Short(), clip(f.Signer)).
			WithHint("`isle release trust` on the server that made it shows its key")
	}
	if err := allow(f.Manifest.Project); err != nil {
		return f, err
	}
	if f.lock, err = in.small(entryLock, spec.MaxLockSize); err != nil {
		return f, err
	}
	if _, err := spec.ParseLock(fileLock, f.lock); err != nil {
		return f, err
	}
	return f, in.attestations(&f, keys)
}

// attestations reads those of a file. The first provenance among them says which lock
// it is that lies with the release: nothing else that is signed does.
func (in *reader) attestations(f *File, keys []ed25519.PublicKey) error {
	size := 0
	for {
		h, err := in.header()
		if err != nil {
			return err
		}
		if h == nil || !strings.HasPrefix(h.Name, entryAttestation) {
			if !slices.ContainsFunc(f.Attestations, func(a Attestation) bool { return a.Kind == Provenance }) {
				return isle.Errorf(isle.Untrusted, "release %s comes without its provenance, and nothing says that the lock in the file is its own", f.Digest.Short())
			}
			return nil
		}
		if len(f.Attestations) >= maxAttestations {
			return errFile("it has more than %d attestations", maxAttestations)
		}
		b, err := in.small(h.Name, maxAttestation)
		if err != nil {
			return err
		}
		a, err := f.read(b, keys)
		if err != nil {
			return err
		}
		if h.Name != entryAttestation+a.Digest.Hex() {
			return errFile("an attestation has another digest than its name, %s", a.Digest)
		}
		if slices.ContainsFunc(f.Attestations, func(o Attestation) bool { return o.Digest == a.Digest }) {
			return errFile("attestation %s is in it twice", a.Digest)
		}
		if size += len(b); size > maxAttested {
			return errFile("its attestations have more than %d bytes", maxAttested)
		}
		f.Attestations, f.statements = append(f.Attestations, a), append(f.statements, b)
	}
}

// read checks a statement of the release in the file, and says what it is. What a
// provenance says of the lock must be the lock in the file.
func (f *File) read(b []byte, keys []ed25519.PublicKey) (a Attestation, err error) {
	_, s, err := decodeEnvelope(b)
	if err != nil {
		return a, isle.Errorf(isle.Untrusted, "an attestation of release %s cannot be read: %w", f.Digest.Short(), err)
	}
	a = Attestation{Kind: Provenance, Digest: isle.DigestOf(b)}
	if s.PredicateType == predicateType(Materials) {
		a.Kind = Materials
	}
	if err := verifyStatement(b, a.Kind, f.Digest, f.Manifest.Project, keys); err != nil {
		return a, err
	}
	if a.Kind == Materials {
		return a, nil
	}
	var p provenance
	raw := *s.Predicate.(*json.RawMessage)
	if err := json.Unmarshal(raw, &p); err != nil {
		return a, isle.Errorf(isle.Untrusted, "the provenance of release %s cannot be read: %w", f.Digest.Short(), err)
	}
	a.Added, a.Source = p.Details.Metadata.Finished, p.source()
	if !a.Source.valid() {
		return a, isle.Errorf(isle.Untrusted, "the provenance of release %s names a source that git knows none like", f.Digest.Short())
	}
	first := !slices.ContainsFunc(f.Attestations, func(o Attestation) bool { return o.Kind == Provenance })
	if first && !p.names(isle.DigestOf(f.lock)) {
		return a, isle.Errorf(isle.Untrusted, "the lock in the file is not the one that release %s was built from", f.Digest.Short())
	}
	return a, nil
}

// names reports whether a lock is the one that was built from.
func (p provenance) names(lock isle.Digest) bool {
	i := slices.IndexFunc(p.Definition.Dependencies, func(d descriptor) bool { return d.Name == fileLock })
	return i >= 0 && p.Definition.Dependencies[i].Digest["sha256"] == lock.Hex()
}

// source is what a provenance says of where the files are from.
func (p provenance) source() (s Source) {
	said, ok := p.Definition.External["source"].(map[string]any)
	if !ok {
		return s
	}
	of := func(key string) string {
		v, _ := said[key].(string)
		return clip(v)
	}
	isClean, _ := said["clean"].(bool)
	return Source{Branch: of("branch"), Commit: of("commit"), Repository: of("repository"), Dirty: !isClean}
}

// valid says whether a source is what git knows: it is shown in lines of text.
func (s Source) valid() bool {
	hexadecimal := func(s string, lengths ...int) bool {
		return s == "" || slices.Contains(lengths, len(s)) && strings.Trim(s, "0123456789abcdef") == ""
	}
	return hexadecimal(s.Commit, 40, 64) && hexadecimal(s.Repository, 32) && !strings.ContainsFunc(s.Branch, unicode.IsControl)
}

// layers reads what is left: layers of the release, each at most once, in its
// order.
func (in *reader) layers(f *File, use func(d isle.Digest, r io.Reader) error) error {
	want := f.Manifest.layers()
	for {
		h, err := in.header()
		if err != nil || h == nil {
			return err
		}
		in.next = nil
		for len(want) > 0 && h.Name != entryLayer+want[0].Digest.Hex() {
			want = want[1:]
		}
		if len(want) == 0 || h.Size != want[0].Size {
			return errFile("entry %q of %d bytes is no layer of the release, or not in its place", clip(h.Name), h.Size)
		}
		if err := use(want[0].Digest, in.tar); err != nil {
			return err
		}
		f.Layers, f.Bytes = f.Layers+1, f.Bytes+h.Size
		want = want[1:]
	}
}

// layers are those of all images, each once.
func (m Manifest) layers() (out []image.Layer) {
	seen := map[isle.Digest]bool{}
	for _, s := range m.Services {
		for _, l := range s.Image.Layers {
			if !seen[l.Digest] {
				seen[l.Digest] = true
				out = append(out, l)
			}
		}
	}
	return out
}

// String is a source for people.
func (s Source) String() string {
	switch {
	case s.Commit == "":
		return "no commit"
	case s.Dirty:
		return fmt.Sprintf("commit %s and changes that were not committed", s.Commit)
	}
	return "commit " + s.Commit
}

// added is when an attestation came about, as it says, for a record.
func (a Attestation) added(now time.Time) time.Time {
	if a.Added.IsZero() || a.Added.After(now) {
		return now
	}
	return a.Added
}
