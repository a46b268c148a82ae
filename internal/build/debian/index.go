package debian

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"isle"
)

// An index is a Packages file in a form that answers "which packages have this
// name" without being parsed: Debian's 64,000 packages are 50 MB of text, of
// which 20 matter here.
//
// Its bytes are: indexMagic; the number n of records and m of provisions
// (uint32, little endian, as all numbers); n+1 and m+1 offsets into the text;
// the text, records sorted by name and provisions sorted by virtual name; the
// CRC-32C of all before it. A record is lines of one letter, a blank and a
// value, beginning with P, the name. A provision is "VIRTUAL RECORD-NAME".
type index struct {
	records    []byte // offsets, 4 bytes each
	provisions []byte
	text       []byte
}

const indexMagic = "isle-index-1\n"

// A candidate is one version of a package that a repository has.
type candidate struct {
	name, version, arch string
	priority            string
	depends             []group // Pre-Depends and Depends
	conflicts           []group // Conflicts and Breaks, one relation each
	provides            []group
	path                string
	size                int64
	digest              isle.Digest
	repository          string
}

// keep lists the fields an index has, with their letters.
var keep = []struct {
	letter byte
	field  string
}{
	{'P', "Package"}, {'V', "Version"}, {'A', "Architecture"}, {'Y', "Priority"},
	{'D', "Depends"}, {'E', "Pre-Depends"}, {'C', "Conflicts"}, {'B', "Breaks"}, {'R', "Provides"},
	{'F', "Filename"}, {'S', "Size"}, {'H', "SHA256"},
}

// buildIndex reads a Packages file into an index's bytes.
func buildIndex(r io.Reader, arch string) []byte {
	var records, provisions []string
	for p := range paragraphs(r) {
		name, a := p.get("Package"), p.get("Architecture")
		if !validPackageName(name) || a != arch && a != "all" {
			continue
		}
		var b strings.Builder
		for _, k := range keep {
			if v := p.get(k.field); v != "" {
				b.WriteByte(k.letter)
				b.WriteByte(' ')
				b.WriteString(strings.ReplaceAll(v, "\n", " "))
				b.WriteByte('\n')
			}
		}
		records = append(records, b.String())
		for _, g := range parseRelations(p.get("Provides"), arch) {
			provisions = append(provisions, g[0].name+" "+name)
		}
	}
	slices.SortStableFunc(records, func(a, b string) int { return cmp.Compare(firstLine(a), firstLine(b)) })
	slices.Sort(provisions)
	provisions = slices.Compact(provisions)

	out := []byte(indexMagic)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(records)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(provisions)))
	offset := 0
	for _, list := range [][]string{records, provisions} {
		for _, s := range list {
			out = binary.LittleEndian.AppendUint32(out, uint32(offset))
			offset += len(s)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(offset))
	}
	for _, list := range [][]string{records, provisions} {
		for _, s := range list {
			out = append(out, s...)
		}
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, crc32.MakeTable(crc32.Castagnoli)))
}

func firstLine(s string) string { l, _, _ := strings.Cut(s, "\n"); return l }

// openIndex reads an index's bytes, and fails if they are damaged.
func openIndex(b []byte) (*index, error) {
	bad := errors.New("damaged index")
	if len(b) < len(indexMagic)+12 || string(b[:len(indexMagic)]) != indexMagic {
		return nil, bad
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, bad
	}
	rest := body[len(indexMagic):]
	n, m := uint64(binary.LittleEndian.Uint32(rest)), uint64(binary.LittleEndian.Uint32(rest[4:]))
	rest = rest[8:]
	if uint64(len(rest)) < 4*(n+1)+4*(m+1) {
		return nil, bad
	}
	return &index{records: rest[:4*(n+1)], provisions: rest[4*(n+1) : 4*(n+m+2)], text: rest[4*(n+m+2):]}, nil
}

// slice is the i-th piece of the text by a table of offsets.
func (x *index) slice(table []byte, i int) []byte {
	from, to := binary.LittleEndian.Uint32(table[4*i:]), binary.LittleEndian.Uint32(table[4*i+4:])
	if from > to || uint64(to) > uint64(len(x.text)) {
		return nil
	}
	return x.text[from:to]
}

func (x *index) nameAt(i int) []byte {
	r := x.slice(x.records, i)
	if len(r) < 2 {
		return nil
	}
	name, _, _ := bytes.Cut(r[2:], []byte("\n"))
	return name
}

// named returns the candidates of that name, in the index's order.
func (x *index) named(name, arch, repository string) (out []candidate) {
	n := len(x.records)/4 - 1
	i := sort.Search(n, func(i int) bool { return string(x.nameAt(i)) >= name })
	for ; i < n && string(x.nameAt(i)) == name; i++ {
		if c, ok := parseRecord(string(x.slice(x.records, i)), arch); ok {
			c.repository = repository
			out = append(out, c)
		}
	}
	return out
}

// providers returns the names of the packages that provide a virtual name.
func (x *index) providers(virtual string) (out []string) {
	n, prefix := len(x.provisions)/4-1, virtual+" "
	i := sort.Search(n, func(i int) bool { return string(x.slice(x.provisions, i)) >= prefix })
	for ; i < n; i++ {
		name, ok := strings.CutPrefix(string(x.slice(x.provisions, i)), prefix)
		if !ok {
			break
		}
		out = append(out, name)
	}
	return out
}

func parseRecord(s, arch string) (c candidate, ok bool) {
	for _, line := range strings.Split(s, "\n") {
		if len(line) < 3 {
			continue
		}
		v := line[2:]
		switch line[0] {
		case 'P':
			c.name = v
		case 'V':
			c.version = v
		case 'A':
			c.arch = v
		case 'Y':
			c.priority = v
		case 'D', 'E':
			c.depends = append(c.depends, parseRelations(v, arch)...)
		case 'C', 'B':
			c.conflicts = append(c.conflicts, parseRelations(v, arch)...)
		case 'R':
			c.provides = parseRelations(v, arch)
		case 'F':
			c.path = strings.TrimPrefix(v, "./")
		case 'S':
			c.size, _ = strconv.ParseInt(v, 10, 64)
		case 'H':
			c.digest = isle.Digest("sha256:" + v)
		}
	}
	_, known := compareVersions(c.version, "0")
	return c, known && c.digest.Valid() && c.size > 0 && safePath(c.path)
}

// maxPackages bounds a Packages file, unpacked: ten times Debian's largest.
const maxPackages = 1 << 30

// maxPacked bounds it as it is sent; Debian's largest is 13 MB.
const maxPacked = 256 << 20

// packagesFile chooses the form of the Packages index of a component to fetch.
// gzip comes first: half a second quicker to read than xz for Debian's, which
// is more than the download of its additional 3 MB takes on most networks.
func (rel *release) packagesFile(component, arch string) (name string, f indexFile, ok bool) {
	for _, ext := range []string{".gz", ".xz", ".zst", ""} {
		name = component + "/binary-" + arch + "/Packages" + ext
		if f, ok = rel.files[name]; ok && f.size > 0 {
			return name, f, true
		}
	}
	return "", indexFile{}, false
}

// index returns the index of one component, from the cache if it has the one
// that the release names.
func (a *Archive) index(ctx context.Context, rel *release, component, arch string, say func(string)) (*index, error) {
	name, f, ok := rel.packagesFile(component, arch)
	if !ok {
		return nil, nil // a component without packages for the architecture
	}
	cache := filepath.Join(a.cfg.Dir, "lists", f.digest.Hex()+"."+a.cfg.Architecture+".index")
	if b, err := os.ReadFile(cache); err == nil {
		if x, err := openIndex(b); err == nil {
			now := a.cfg.Now()
			os.Chtimes(cache, now, now) // in use: see forgetOld
			return x, nil
		}
	}
	say("reading the package index of " + rel.repo.suite)
	address := joinURL(rel.base, "dists/"+rel.repo.suite+"/"+name)
	addresses := []string{address}
	if rel.byHash {
		addresses = []string{joinURL(rel.base, "dists/"+rel.repo.suite+"/"+filepath.Dir(name)+"/by-hash/SHA256/"+f.digest.Hex()), address}
	}
	var err error
	var b []byte
	for _, address := range addresses {
		b, err = a.fetchIndex(ctx, address, name, f)
		if err == nil || isle.CodeOf(err) != isle.NotFound {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if err := writeAtomic(cache, b); err != nil {
		return nil, err
	}
	a.forgetOld()
	return openIndex(b)
}

// fetchIndex downloads a Packages file and reads it. Nothing is unpacked before
// its hash was found right: until then it is the network's, and a few megabytes
// of it could be made to fill all memory.
func (a *Archive) fetchIndex(ctx context.Context, address, name string, f indexFile) (out []byte, err error) {
	if f.size > maxPacked {
		return nil, isle.Errorf(isle.Invalid, "%s has %d bytes, at most %d are read", redact(address), f.size, maxPacked)
	}
	var packed bytes.Buffer
	err = a.retry(ctx, address, func() error {
		packed.Reset()
		return a.do(ctx, address, nil, func(_ *http.Response, body io.Reader) error {
			h := sha256.New()
			if _, err := io.Copy(io.MultiWriter(&packed, h), io.LimitReader(body, f.size+1)); err != nil {
				return isle.Errorf(isle.Unavailable, "%s: %w", redact(address), err)
			}
			if isle.DigestFromSum(h.Sum(nil)) != f.digest {
				return isle.Errorf(isle.Unavailable, "%s is not the file that the signed release names", redact(address)).
					WithHint("the mirror is being updated or is broken: try again, or name another with --mirror URL")
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	r, err := decompressor(name, &packed)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "%s cannot be unpacked: %w", redact(address), err)
	}
	defer r.Close()
	return buildIndex(io.LimitReader(r, maxPackages), a.cfg.Architecture), nil
}

// decompressor reads by the extension of name: .xz, .zst, .gz, or as it is.
func decompressor(name string, r io.Reader) (io.ReadCloser, error) {
	switch filepath.Ext(name) {
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		x, err := xz.NewReader(r, 128<<20)
		return io.NopCloser(x), err
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// forgetOld removes indexes that were not used for thirty days.
func (a *Archive) forgetOld() {
	files, _ := filepath.Glob(filepath.Join(a.cfg.Dir, "lists", "*.index"))
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && a.cfg.Now().Sub(info.ModTime()) > 30*24*time.Hour {
			os.Remove(f)
		}
	}
}
