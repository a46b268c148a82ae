package build

import (
	"context"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"isle"
	"isle/internal/image"
	"isle/internal/image/oci"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// An ImageRequest asks for an image out of an archive.
type ImageRequest struct {
	Tree isle.Digest // of the archive: a file, or the folder of an OCI layout
	File string      // what it is called, for messages and where it has no name
	Pick string      // which of the archive's images; "" where there is one
	Name string      // what it is called here; "" as the archive says
}

// TreeNeeds returns the digests of a tree and of its files that the image store
// lacks. A tree that is missing hides its files: ask again when it is there.
func (b *Builder) TreeNeeds(tree isle.Digest) []isle.Digest {
	return b.Images.Missing(b.treeFiles(tree))
}

// treeFiles are the digests of a tree and, if it is there, of its files.
func (b *Builder) treeFiles(tree isle.Digest) []isle.Digest {
	want := []isle.Digest{tree}
	if t, err := b.tree(tree); err == nil {
		for _, e := range t.Entries {
			if e.Type == spec.TypeFile {
				want = append(want, e.Digest)
			}
		}
	}
	return want
}

// ImportImage makes an image of an archive that was sent before (TreeNeeds) and
// gives it a name of this server's own.
func (b *Builder) ImportImage(ctx context.Context, r ImageRequest, p Progress) (image.Name, error) {
	defer b.Images.Hold()()
	p = serial(p)
	a, err := b.openArchive(ctx, r.Tree)
	if err != nil {
		return image.Name{}, prefix(r.File, err)
	}
	defer a.Close()
	name, err := archiveName(r, a.Names())
	if err != nil {
		return image.Name{}, err
	}
	picture, err := a.Choose(ctx, r.Pick, oci.Here())
	if err != nil {
		return image.Name{}, prefix(r.File, err)
	}
	got, err := b.unpackImage(ctx, "", picture, p)
	if err != nil {
		return image.Name{}, prefix(r.File, err)
	}
	n := image.Name{Name: name.String(), Image: got.Image.Digest(), From: image.FromArchive, Source: picture.Digest, LeftOut: got.LeftOut, Time: b.Now().UTC()}
	return n, b.Images.SetName(n)
}

// archiveName is what an imported image is called: as was asked for, as its
// archive says, or as its file is called.
func archiveName(r ImageRequest, names []string) (registry.Reference, error) {
	if r.Name != "" {
		return registry.FromArchive(r.Name)
	}
	said := r.Pick
	if said == "" && len(names) > 0 {
		said = names[0]
	}
	if strings.ContainsAny(said, ":/") { // a layout may say a tag alone
		if ref, err := registry.FromArchive(said); err == nil {
			return ref, nil
		}
	}
	base, _, _ := strings.Cut(path.Base(path.Clean("/"+r.File)), ".")
	return registry.FromArchive(isle.Slug(base))
}

// openArchive opens an archive whose files are blobs.
func (b *Builder) openArchive(ctx context.Context, tree isle.Digest) (*oci.Archive, error) {
	t, err := b.tree(tree)
	if err != nil {
		return nil, err
	}
	if len(t.Entries) == 1 && t.Entries[0].Type == spec.TypeFile {
		f, err := b.Images.OpenBlob(t.Entries[0].Digest)
		if err != nil {
			return nil, err
		}
		return oci.OpenFile(ctx, f, b.scratchDir())
	}
	files, sizes := map[string]isle.Digest{}, map[string]int64{}
	for _, e := range t.Entries {
		if e.Type == spec.TypeFile {
			files[e.Path], sizes[e.Path] = e.Digest, e.Size
		}
	}
	return oci.OpenFolder(b.Images, files, sizes)
}

// unpackImage makes an image's layers, one line of progress for each.
func (b *Builder) unpackImage(ctx context.Context, service string, picture oci.Picture, p Progress) (oci.Imported, error) {
	step, begun := "", false
	end := func() {
		if begun {
			p(Event{Service: service, Step: step, State: "done"})
		}
	}
	got, err := b.importer().Import(ctx, picture, func(n int, l oci.PictureLayer, done int64, cached bool) {
		name := "unpack " + l.DiffID.Short()
		if name != step {
			end()
			step, begun = name, !cached
			if cached {
				p(Event{Service: service, Step: step, State: "cached"})
				return
			}
			p(Event{Service: service, Step: step, State: "start", Message: title(l.Title)})
		}
		if !cached {
			p(Event{Service: service, Step: step, State: "progress", Done: done, Total: l.Size})
		}
	})
	if err != nil {
		return got, err
	}
	end()
	return got, nil
}

func (b *Builder) importer() *oci.Importer {
	return &oci.Importer{Images: b.Images, Cache: filepath.Join(b.Cache, "oci")}
}

// ResolveImage finds an image of the store: by its name, or by at least six
// characters that begin its digest.
func (b *Builder) ResolveImage(s string) (image.Name, image.Image, error) {
	n, err := b.namedImage(s)
	if err != nil {
		return n, image.Image{}, err
	}
	m, err := b.Images.Image(n.Image)
	return n, m, err
}

func (b *Builder) namedImage(s string) (image.Name, error) {
	names, err := b.Images.Names()
	if err != nil {
		return image.Name{}, err
	}
	short := strings.TrimPrefix(s, "sha256:")
	if len(short) >= 6 && strings.Trim(short, "0123456789abcdef") == "" {
		all, err := b.Images.Images()
		if err != nil {
			return image.Name{}, err
		}
		var found []isle.Digest
		for _, m := range all {
			if d := m.Digest(); strings.HasPrefix(d.Hex(), short) {
				found = append(found, d)
			}
		}
		switch {
		case len(found) > 1:
			return image.Name{}, isle.Errorf(isle.Invalid, "%d images begin with %s", len(found), s).WithHint("give more of the digest")
		case len(found) == 1:
			for _, n := range names {
				if n.Image == found[0] {
					return n, nil
				}
			}
			return image.Name{Image: found[0], From: image.FromBuild}, nil
		}
	}
	// As it is written, then as an image of this server's own.
	for _, try := range []string{s, registry.Local + "/" + s} {
		ref, err := registry.Parse(try)
		if err != nil {
			continue
		}
		for _, n := range names {
			if n.Name == ref.String() {
				return n, nil
			}
		}
	}
	return image.Name{}, isle.Errorf(isle.NotFound, "there is no image %.100s here", s).WithHint("`isle image ls` shows those there are; `isle image import` and `isle image pull` bring others")
}

// ListImages are the images that have names, by name.
func (b *Builder) ListImages() ([]image.Name, []image.Image, error) {
	names, err := b.Images.Names()
	if err != nil {
		return nil, nil, err
	}
	var named []image.Name
	var images []image.Image
	for _, n := range names {
		if m, err := b.Images.Image(n.Image); err == nil {
			named, images = append(named, n), append(images, m)
		}
	}
	return named, images, nil
}

// RemoveImage takes an image's name away. What nothing else needs of it goes at
// the next collection.
func (b *Builder) RemoveImage(s string) (image.Name, error) {
	n, err := b.namedImage(s)
	if err != nil {
		return n, err
	}
	if n.Name == "" {
		return n, isle.Errorf(isle.Invalid, "image %s has no name to take away", n.Image.Short()).WithHint("`isle gc` frees images that nothing needs")
	}
	return n, b.Images.RemoveName(n.Name)
}

// ImportName is what an image is called that is imported under a name: one of
// this server's own. What is no name is itself.
func ImportName(s string) string {
	ref, err := registry.FromArchive(s)
	if err != nil {
		return s
	}
	return ref.String()
}

// ImageResource is what policy calls an image: its name without tag and digest.
// What is no name is itself.
func ImageResource(s string) string {
	ref, err := registry.Parse(s)
	if err != nil || s == "*" {
		return s
	}
	return ref.Name()
}

// nameImages gives what was built of each service its name,
// localhost/PROJECT/SERVICE, with how the file has it run: that is in no image,
// since a change of it builds nothing.
func (b *Builder) nameImages(f spec.File, images map[string]image.Image) error {
	for _, s := range f.Services {
		m := images[s.Name]
		n := image.Name{
			Name: registry.Local + "/" + f.Name + "/" + s.Name + ":latest", Image: m.Digest(), From: image.FromBuild,
			Config: runs(s, m.Config), Time: b.Now().UTC(),
		}
		if err := b.Images.SetName(n); err != nil {
			return err
		}
	}
	return nil
}

// runs is how a service is run, for others: what its file says, and else its
// image.
func runs(s spec.Service, says *image.Config) *image.Config {
	var c image.Config
	if says != nil {
		c = *says
	}
	if len(s.Args) > 0 {
		c.Cmd = slices.Clone(s.Args)
	}
	if len(s.Command) > 0 {
		c.Entrypoint, c.Cmd = slices.Clone(s.Command), nil
	}
	if s.User != "" {
		c.User = s.User
	}
	if s.Workdir != "" {
		c.Workdir = s.Workdir
	}
	env := says.Variables()
	maps.Copy(env, s.Env)
	c.Env = nil
	for _, k := range slices.Sorted(maps.Keys(env)) {
		c.Env = append(c.Env, k+"="+env[k])
	}
	if env["PATH"] == "" {
		c.Env = append(c.Env, "PATH="+runEnv()["PATH"])
	}
	for _, v := range s.Volumes {
		if !slices.Contains(c.Volumes, v.Path) {
			c.Volumes = append(slices.Clone(c.Volumes), v.Path)
		}
	}
	for _, p := range s.Ports {
		if port := strconv.Itoa(p.Number) + "/tcp"; !slices.Contains(c.Ports, port) {
			c.Ports = append(slices.Clone(c.Ports), port)
		}
	}
	slices.Sort(c.Volumes)
	slices.Sort(c.Ports)
	return &c
}
