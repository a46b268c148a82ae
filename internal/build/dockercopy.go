package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/image"
	"isle/internal/image/oci"
	"isle/internal/spec"
)

// copyInput is what of a COPY can change its layer, what is copied aside.
type copyInput struct {
	Sources []string            `json:"sources,omitempty"`
	Inline  []dockerfile.Inline `json:"inline,omitempty"`
	Chown   string              `json:"chown,omitempty"`
	Chmod   string              `json:"chmod,omitempty"`
	Exclude []string            `json:"exclude,omitempty"`
	Parents bool                `json:"parents,omitempty"`
	Link    bool                `json:"link,omitempty"`
	Unpack  bool                `json:"unpack,omitempty"`

	Remote       []dockerfile.Remote `json:"remote,omitempty"`
	UnpackRemote bool                `json:"unpack_remote,omitempty"`
	Checksum     isle.Digest         `json:"checksum,omitempty"`
}

// copyStep makes a layer of what COPY or ADD copies.
func (x *stages) copyStep(ctx context.Context, n int, op *dockerfile.Copy) (step, error) {
	in := x.common
	in.Kind, in.To = "copy", op.To
	in.From = strings.Join(op.Sources, " ")
	in.Copy = &copyInput{
		Sources: op.Sources, Inline: op.Inline, Chown: op.Chown, Chmod: op.Chmod,
		Exclude: op.Exclude, Parents: op.Parents, Link: op.Link, Unpack: op.Unpack,
		Remote: op.Remote, UnpackRemote: op.UnpackRemote, Checksum: op.Checksum,
	}
	var net *wire
	if len(op.Remote) > 0 && x.network {
		net = newWire(x.sl, x.plan.Stages[n].Name, op.At.Text, x.o, x.results[n].seen)
		in.Network = answersOf(net.locked)
	}
	c := &copying{x: x, op: op}
	var err error
	if c.chmod, err = parseMode(op.Chmod); err != nil {
		return step{}, err
	}
	var layers image.Image
	if op.From.Kind == dockerfile.Context {
		if c.items, err = choose(ctx, x.context, op); err != nil {
			return step{}, err
		}
		in.Tree, in.Context = digestOf(c.items, x.context), x.lock.Tree
	} else {
		in.From = "--from=" + x.sourceName(op.From) + " " + in.From
		if layers, err = x.source(ctx, op.From); err != nil {
			return step{}, err
		}
		for _, l := range layers.Layers {
			in.Materials = append(in.Materials, l.Digest)
		}
	}
	return step{inputs: in, wire: net, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		if len(op.Remote) > 0 {
			var err error
			if c.remote, err = net.fetch(ctx, x.b, x.o, op, w.say); err != nil {
				return nil, err
			}
		}
		from := source(x.context)
		if op.From.Kind != dockerfile.Context {
			paths, err := x.b.Images.Verify(ctx, layers)
			if err != nil {
				return nil, err
			}
			stack, err := image.OpenStack(paths)
			if err != nil {
				return nil, err
			}
			defer stack.Close()
			from = stack
			if c.items, err = choose(ctx, from, op); err != nil {
				return nil, err
			}
		}
		below, err := image.OpenStack(w.parents)
		if err != nil {
			return nil, err
		}
		defer below.Close()
		l, err := w.into.WriteLayer(ctx, "copy", title(op.At.Text), func(l *image.Writer) error {
			return c.write(ctx, w, from, newOverlay(l, below))
		})
		return []image.Layer{l}, err
	}}, nil
}

// choose finds what a COPY takes of its source.
func choose(ctx context.Context, from source, op *dockerfile.Copy) ([]item, error) {
	return (&choosing{ctx: ctx, from: from, left: maxCopied}).choose(op)
}

// choosing finds what a COPY takes. It ends with its context, and where it comes
// to more files than are left: a few words can name each file many times, and
// links that lead to the folder that they are in make folders without end.
type choosing struct {
	ctx  context.Context
	from source
	left int // how many more files it takes
}

func (c *choosing) choose(op *dockerfile.Copy) ([]item, error) {
	exclude, err := newPatterns(op.Exclude)
	if err != nil {
		return nil, err
	}
	var out []item
	for _, pattern := range op.Sources {
		var found []item
		if op.Parents {
			found, err = c.keepParents(pattern)
		} else {
			found, err = find(c.ctx, c.from, pattern)
		}
		if err != nil {
			return nil, err
		}
		for _, it := range found {
			if it.files == nil {
				it.files, err = c.pickAll(it, exclude)
			} else {
				it.files = slices.DeleteFunc(it.files, func(p pick) bool { return p.rel != "" && exclude.match(p.rel) })
			}
			if err != nil {
				return nil, err
			}
			if it.dir || len(it.files) > 0 {
				out = append(out, it)
			}
		}
	}
	if len(out) == 0 && len(op.Sources) > 0 && len(op.Inline) == 0 {
		return nil, isle.Errorf(isle.NotFound, "nothing matches %s", title(strings.Join(op.Sources, " "))).WithHint("names are relative to the context, and what .dockerignore names is not there")
	}
	return out, nil
}

// take counts a file.
func (c *choosing) take() error {
	if c.left--; c.left < 0 {
		return isle.Errorf(isle.Exhausted, "it takes more than %d files", maxCopied).WithHint("copy less, or leave some out with .dockerignore")
	}
	return c.ctx.Err()
}

// pickAll takes a file, or a folder with all that is below it.
func (c *choosing) pickAll(it item, exclude *patterns) ([]pick, error) {
	e, err := c.from.Lookup(it.path)
	if err != nil {
		return nil, err
	}
	if err := c.take(); err != nil {
		return nil, err
	}
	if !it.dir {
		if exclude.match(it.base) || exclude.match(strings.Trim(it.path, "/")) {
			return nil, nil
		}
		return []pick{{"", e}}, nil
	}
	out := []pick{{"", e}}
	err = walk(c.from, it.path, "", 0, func(rel string, e image.Entry) (bool, error) {
		left := exclude.match(rel)
		if !left {
			out = append(out, pick{rel, e})
			if err := c.take(); err != nil {
				return false, err
			}
		}
		return !left || exclude.takesBack(), c.ctx.Err()
	})
	return withParents(c.from, it.path, out), err
}

// withParents adds the folders of what was taken back out of those left out.
func withParents(from source, root string, picks []pick) []pick {
	have := map[string]bool{"": true, ".": true}
	var out []pick
	for _, p := range picks {
		var missing []pick
		for dir := path.Dir(p.rel); !have[dir] && p.rel != ""; dir = path.Dir(dir) {
			if e, err := from.Lookup(path.Join(root, dir)); err == nil {
				missing = append(missing, pick{dir, e})
			}
			have[dir] = true
		}
		slices.Reverse(missing)
		out = append(out, missing...)
		out = append(out, p)
		have[p.rel] = true
	}
	return out
}

// keepParents takes what matches a pattern of --parents, with its folders below
// the pivot: a/./b/c keeps b/. Here ** is any number of folders.
func (c *choosing) keepParents(pattern string) ([]item, error) {
	from := c.from
	root, rest, pivot := strings.Cut(pattern, "/./")
	if !pivot {
		root, rest = "/", pattern
	}
	rest = strings.Trim(path.Clean("/"+rest), "/")
	if rest == "" {
		rest = "**"
	}
	base, err := one(from, path.Clean("/"+root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, isle.Errorf(isle.NotFound, "there is no %.200s", root)
	} else if err != nil {
		return nil, err
	}
	within, err := newPatterns([]string{rest})
	if err != nil {
		return nil, err
	}
	base.parents, base.files = true, []pick{}
	if base.dir {
		err = walk(from, base.path, "", 0, func(rel string, e image.Entry) (bool, error) {
			if within.match(rel) {
				base.files = append(base.files, pick{rel, e})
				if err := c.take(); err != nil {
					return false, err
				}
			}
			return true, c.ctx.Err()
		})
	}
	if err != nil {
		return nil, err
	}
	if len(base.files) == 0 {
		if !strings.ContainsAny(pattern, `*?[\`) {
			return nil, isle.Errorf(isle.NotFound, "there is no %.200s", pattern)
		}
		return nil, nil
	}
	base.files = withParents(from, base.path, base.files)
	return []item{base}, nil
}

// patterns are those of --exclude and --parents, as .dockerignore has them.
type patterns struct {
	m *patternmatcher.PatternMatcher
}

func newPatterns(list []string) (*patterns, error) {
	if len(list) == 0 {
		return &patterns{}, nil
	}
	if err := spec.CheckPatterns(list); err != nil {
		return nil, isle.Errorf(isle.Invalid, "%w", err)
	}
	m, err := patternmatcher.New(list)
	if err == nil {
		_, err = m.MatchesOrParentMatches("x")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s is no pattern: %w", title(strings.Join(list, " ")), err)
	}
	return &patterns{m}, nil
}

func (p *patterns) match(name string) bool {
	if p.m == nil {
		return false
	}
	ok, err := p.m.MatchesOrParentMatches(name)
	return ok && err == nil
}

func (p *patterns) takesBack() bool { return p.m != nil && p.m.Exclusions() }

// digestOf is the digest of what is taken of the context: names, modes and
// contents. They are many, so they are not gathered first.
func digestOf(items []item, from *treeSource) isle.Digest {
	type thing struct {
		Base    string `json:"base"`
		Dir     bool   `json:"dir"`
		Parents bool   `json:"parents"`
		Files   int    `json:"files"` // so many follow
	}
	type file struct {
		Rel    string      `json:"rel"`
		Mode   fs.FileMode `json:"mode"`
		Digest isle.Digest `json:"digest,omitempty"`
		Target string      `json:"target,omitempty"`
	}
	hash := sha256.New()
	out := json.NewEncoder(hash)
	write := func(v any) {
		if err := out.Encode(v); err != nil {
			panic(err) // strings and numbers only, and a hash takes all
		}
	}
	for _, it := range items {
		write(thing{it.base, it.dir, it.parents, len(it.files)})
		for _, p := range it.files {
			f := file{Rel: p.rel, Mode: p.entry.Mode, Target: p.entry.Target}
			if p.entry.Mode.IsRegular() {
				f.Digest = from.entries[p.entry.Path].Digest
			}
			write(f)
		}
	}
	return isle.DigestFromSum(hash.Sum(nil))
}

// copying writes the layer of one COPY.
type copying struct {
	x      *stages
	op     *dockerfile.Copy
	items  []item
	remote []isle.Digest                 // of op.Remote
	chmod  func(fs.FileMode) fs.FileMode // nil: as they are
	own    *owner                        // nil: as they are
}

// write writes everything that is copied.
func (c *copying) write(ctx context.Context, w work, from source, over *overlay) error {
	if c.op.Chown != "" {
		o, err := lookOwner(over.stack, c.op.Chown, false)
		if err != nil {
			return err
		}
		c.own = &o
	}
	if c.op.Link {
		real, err := over.stack.Resolve(c.op.To)
		if err != nil {
			return err
		}
		if real != path.Clean(c.op.To) {
			return isle.Errorf(isle.Invalid, "--link to %s, which is %s through a symbolic link: --link follows none", c.op.To, real).WithHint("leave out --link, or write %s", real)
		}
	}
	for _, it := range c.items {
		if err := c.item(ctx, w, from, it, over); err != nil {
			return err
		}
	}
	for _, f := range c.op.Inline {
		e := image.Entry{Mode: 0o644}
		it := item{base: f.Name, files: []pick{{"", e}}}
		if err := c.file(over, it, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.Data)), nil }); err != nil {
			return err
		}
	}
	for i, f := range c.op.Remote {
		content := func() (io.ReadCloser, error) { return c.x.b.Images.OpenBlob(c.remote[i]) }
		if c.op.UnpackRemote {
			if done, err := c.unpack(ctx, w, content, over); done || err != nil {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := c.file(over, item{base: f.Name, files: []pick{{"", image.Entry{Mode: 0o600}}}}, content); err != nil {
			return err
		}
	}
	return nil
}

// item writes one thing that is copied.
func (c *copying) item(ctx context.Context, w work, from source, it item, over *overlay) error {
	open := func(p pick) contentFunc {
		if !p.entry.Mode.IsRegular() {
			return nil
		}
		return func() (io.ReadCloser, error) { return from.Open(p.entry.Path) }
	}
	if !it.dir {
		if c.op.Unpack {
			done, err := c.unpack(ctx, w, open(it.files[0]), over)
			if done || err != nil {
				return err
			}
		}
		return c.file(over, it, open(it.files[0]))
	}
	// at maps each folder of the source to where it really is.
	to, err := c.top(over)
	if err != nil {
		return err
	}
	at := map[string]string{"": to, ".": to}
	for _, p := range it.files {
		if p.rel == "" {
			continue
		}
		where := path.Join(at[path.Dir(p.rel)], path.Base(p.rel))
		if p.entry.Mode.IsDir() {
			if at[p.rel], err = c.folder(over, where, p.entry); err != nil {
				return err
			}
			continue
		}
		if err := c.put(over, where, p.entry, open(p)); err != nil {
			return err
		}
	}
	return nil
}

// unpack adds what is in an archive, and reports false where there is none.
func (c *copying) unpack(ctx context.Context, w work, content contentFunc, over *overlay) (bool, error) {
	if content == nil {
		return false, nil
	}
	to, err := over.resolve(c.op.To)
	if err != nil {
		return false, err
	}
	archive, left, err := oci.Add(ctx, over.w, over.stack, to, content, c.change)
	if len(left) > 0 {
		w.say(Event{State: "log", Message: "left out, for no image can have it: " + strings.Join(left, ", ")})
	}
	return archive, err
}

// change gives an entry of an archive the owner and mode that are asked for.
func (c *copying) change(h *tar.Header) {
	if c.own != nil {
		h.Uid, h.Gid = int(c.own.uid), int(c.own.gid)
	}
	if c.chmod != nil && h.Typeflag != tar.TypeSymlink {
		mode := fileMode(uint32(h.Mode & 0o7777))
		if h.Typeflag == tar.TypeDir {
			mode |= fs.ModeDir
		}
		h.Mode = int64(unixMode(c.chmod(mode)))
	}
}

// top makes the folder that another's content goes into, root's or the owner's
// that is asked for, unless it is there.
func (c *copying) top(over *overlay) (string, error) {
	to, err := over.resolve(c.op.To)
	if err != nil {
		return "", err
	}
	if e, err := over.look(to); err == nil && !e.Mode.IsDir() {
		return "", isle.Errorf(isle.Invalid, "a folder is copied to %s, where there is a %s", c.op.To, kind(e.Mode))
	}
	return to, c.parents(over, path.Join(to, "x"))
}

// file writes a file to the destination, or into it where that is a folder.
func (c *copying) file(over *overlay, it item, content contentFunc) error {
	to, err := over.resolve(c.op.To)
	if err != nil {
		return err
	}
	e, err := over.look(to)
	if strings.HasSuffix(c.op.To, "/") || err == nil && e.Mode.IsDir() {
		to = path.Join(to, it.base)
	}
	return c.put(over, to, it.files[0].entry, content)
}

// folder makes a folder as the source has it, or makes the one that is there so.
func (c *copying) folder(over *overlay, at string, e image.Entry) (string, error) {
	at, err := over.resolve(at)
	if err != nil {
		return "", err
	}
	if have, err := over.look(at); err == nil && !have.Mode.IsDir() {
		return "", isle.Errorf(isle.Invalid, "a folder is copied to %s, where there is a %s", at, kind(have.Mode))
	}
	if err := c.parents(over, at); err != nil {
		return "", err
	}
	return at, over.add(c.as(at, e), nil)
}

// put writes what is no folder.
func (c *copying) put(over *overlay, at string, e image.Entry, content contentFunc) error {
	if have, err := over.look(at); err == nil && have.Mode.IsDir() {
		return isle.Errorf(isle.Invalid, "%s cannot be copied over the folder that is there", at)
	}
	if err := c.parents(over, at); err != nil {
		return err
	}
	return over.add(c.as(at, e), content)
}

// parents makes the folders above a path that are not there.
func (c *copying) parents(over *overlay, at string) error {
	dir := path.Dir(at)
	switch e, err := over.look(dir); {
	case err == nil && e.Mode.IsDir():
		return nil
	case err == nil:
		return isle.Errorf(isle.Invalid, "%s cannot be made: %s is a %s", at, dir, kind(e.Mode))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case dir == "/": // a root with nothing in it
		return nil
	}
	if err := c.parents(over, dir); err != nil {
		return err
	}
	e := image.Entry{Path: dir, Mode: fs.ModeDir | 0o755}
	if c.own != nil {
		e.UID, e.GID = c.own.uid, c.own.gid
	}
	return over.add(e, nil)
}

// as is an entry at its new place, with the owner and mode that are asked for.
func (c *copying) as(at string, e image.Entry) image.Entry {
	e.Path, e.Xattrs, e.Device = at, nil, 0
	if c.own != nil {
		e.UID, e.GID = c.own.uid, c.own.gid
	}
	if c.chmod != nil && e.Mode&fs.ModeSymlink == 0 {
		e.Mode = c.chmod(e.Mode)
	}
	return e
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "file"
}

// look is what is at a path of this layer on top of the lower ones; no link is
// followed.
func (o *overlay) look(name string) (image.Entry, error) {
	if e, ok := o.w.Entry(name); ok {
		return e, nil
	}
	return o.stack.Lookup(name)
}

// resolve follows every link on a path, of this layer too.
func (o *overlay) resolve(name string) (string, error) { return image.Resolve(name, o.look) }
