package build

import (
	"context"
	"io"
	"maps"
	"path/filepath"
	"slices"

	"isle"
	"isle/internal/image"
	"isle/internal/image/oci"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// Credentials are what registries know a caller by, by registry. They are not
// kept.
type Credentials = map[string]registry.Credential

// A base is the image that a service begins with.
type base struct {
	inputs inputs
	image  image.Image
}

// lockImage pins what a service's image means now.
func (b *Builder) lockImage(ctx context.Context, s spec.Service, copies []Copied, o LockOptions, p Progress) (*spec.LockedImage, error) {
	l := &spec.LockedImage{Request: s.Image}
	if path, ok := s.ImagePath(); ok {
		for _, c := range copies {
			if c.Service == s.Name && c.From == path && c.To == "" && c.Tree.Valid() {
				l.Tree = c.Tree
				return l, nil
			}
		}
		return nil, isle.Errorf(isle.Invalid, "%s: nothing was sent for image %s", s.Name, s.Image)
	}
	return b.lockReference(ctx, s.Name, s.Image, o, p)
}

// lockReference pins what a reference means now, for a service.
func (b *Builder) lockReference(ctx context.Context, service, request string, o LockOptions, p Progress) (*spec.LockedImage, error) {
	l := &spec.LockedImage{Request: request}
	ref, err := registry.Parse(request)
	if err != nil {
		return nil, prefix(service, err)
	}
	asked := ref
	asked.Digest = ""
	l.Reference = asked.String()
	if ref.Local() {
		if o.Pull != nil {
			if err := o.Pull(asked); err != nil {
				return nil, prefix(service, err)
			}
		}
		n, err := b.Images.Named(asked.String())
		switch {
		case err != nil && ref.Digest != "":
			l.Digest = ref.Digest
		case err != nil:
			return nil, prefix(service, err)
		case ref.Digest != "" && ref.Digest != n.Image:
			l.Digest = ref.Digest
		default:
			l.Digest = n.Image
		}
		return l, nil
	}
	step := Event{Service: service, Step: "resolve"}
	step.State, step.Message = "start", ref.String()
	p(step)
	picture, err := b.resolve(ctx, ref, service, o.Credentials, o.Pull, p)
	if err != nil {
		return nil, prefix(service+": image "+ref.String(), err)
	}
	l.Digest = picture.Digest
	step.State, step.Message = "done", picture.Digest.Short()
	p(step)
	return l, nil
}

// resolve asks a registry what a reference means on this machine. Layers are
// pulled when they are opened, each a step of its own.
func (b *Builder) resolve(ctx context.Context, ref registry.Reference, service string, c Credentials, may func(registry.Reference) error, p Progress) (oci.Picture, error) {
	if b.Registry == nil {
		return oci.Picture{}, isle.Errorf(isle.Unavailable, "this server pulls no images")
	}
	if may != nil {
		if err := may(ref); err != nil {
			return oci.Picture{}, err
		}
	}
	return b.Registry.Resolve(ctx, ref, registry.Options{
		Credential: c[ref.Registry], Platform: oci.Here(),
		Progress: func(d oci.Descriptor, state string, done int64) {
			p(Event{Service: service, Step: "pull " + d.Digest.Short(), State: state, Done: done, Total: d.Size})
		},
	})
}

// pinnedImage is the image that old has for the same request.
func pinnedImage(old *spec.Lock, service, request string) *spec.LockedImage {
	if old == nil {
		return nil
	}
	if _, ok := (spec.Service{Image: request}).ImagePath(); ok {
		return nil // hashed each time
	}
	if l := old.Services[service].Image; l != nil && l.Request == request {
		return l
	}
	for _, name := range slices.Sorted(maps.Keys(old.Services)) {
		s := old.Services[name]
		if s.Image != nil && s.Image.Request == request {
			return s.Image
		}
		if s.Build == nil {
			continue
		}
		for _, i := range s.Build.Images {
			if i.Request == request {
				return &i
			}
		}
	}
	return nil
}

// baseInputs name the base of a service.
func baseInputs(l *spec.LockedImage, in inputs) inputs {
	in.Kind, in.From, in.Tree = "image", l.Request, l.Digest
	if l.Tree != "" {
		in.Tree = l.Tree
	}
	ref, err := registry.Parse(l.Reference)
	in.Local = l.Tree == "" && err == nil && ref.Local()
	return in
}

// mayBegin says whether a lock's image is one that the file asks for and whoever
// builds may have. A lock is somebody else's file.
func (b *Builder) mayBegin(ctx context.Context, service string, l *spec.LockedImage, o Options, p Progress) error {
	if l.Tree != "" {
		return nil
	}
	asked, err := registry.Parse(l.Request)
	if err != nil {
		return err
	}
	if asked.Local() {
		if err := b.mayReadLocal(asked, l.Digest, o.Pull); err != nil {
			return err
		}
	}
	if asked.Digest == "" || asked.Digest == l.Digest {
		return nil
	}
	other := isle.Errorf(isle.Untrusted, "isle.lock has %s in place of what the file asks for", l.Digest).
		WithHint("`isle lock --update` pins what the file says; find out who changed isle.lock")
	if asked.Local() {
		return other
	}
	// What the file asks for is an index, of which the lock has one image.
	record := filepath.Join(b.Cache, "pins", isle.DigestOf([]byte(string(asked.Digest)+" "+string(l.Digest))).Hex()+".json")
	var known isle.Digest
	if readJSON(record, &known) && known == l.Digest {
		return nil
	}
	picture, err := b.resolve(ctx, asked, service, o.Credentials, o.Pull, p)
	if err != nil {
		return err
	}
	if picture.Digest != l.Digest {
		return other
	}
	return writeJSON(record, l.Digest)
}

// mayReadLocal asks whether an image of the store may be read: under the name that
// it is asked for by, and where it has others and not that one, under each.
func (b *Builder) mayReadLocal(asked registry.Reference, d isle.Digest, may func(registry.Reference) error) error {
	if may == nil {
		return nil
	}
	asked.Digest = ""
	if err := may(asked); err != nil {
		return err
	}
	names, err := b.Images.Names()
	if err != nil {
		return err
	}
	var others []registry.Reference
	for _, n := range names {
		if n.Image != d {
			continue
		}
		ref, err := registry.Parse(n.Name)
		if err != nil {
			return err
		}
		if ref.Name() == asked.Name() {
			return nil
		}
		others = append(others, ref)
	}
	for _, ref := range others {
		if err := may(ref); err != nil {
			return err
		}
	}
	return nil
}

// basePath is the record of which image a base became. It is a hint, as the
// records of steps are.
func (b *Builder) basePath(in inputs) string {
	in.From = "" // the same content under another name
	return filepath.Join(b.Cache, "bases", in.key().Hex()+".json")
}

// knownBase is a base that was made before, if all of it is still there.
func (b *Builder) knownBase(in inputs) (image.Image, bool) {
	var d isle.Digest
	if !readJSON(b.basePath(in), &d) {
		return image.Image{}, false
	}
	m, err := b.Images.Image(d)
	if err != nil {
		return m, false
	}
	for _, l := range m.Layers {
		if !b.Images.HasLayer(l.Digest) {
			return m, false
		}
	}
	return m, true
}

// base makes the image that a service begins with: out of the cache, the store,
// an archive or a registry.
func (b *Builder) base(ctx context.Context, service string, l *spec.LockedImage, common inputs, o Options, p Progress) (base, error) {
	in := baseInputs(l, common)
	if err := b.mayBegin(ctx, service, l, o, p); err != nil {
		if ctx.Err() != nil {
			return base{}, ctx.Err()
		}
		return base{}, prefix(service+": image "+l.Request, err)
	}
	p, leave, err := b.flights.enterPast(ctx, in.key(), b.patience, p)
	if err != nil {
		return base{}, err
	}
	defer leave()
	if m, ok := b.knownBase(in); ok {
		p(Event{Service: service, Step: "image " + l.Request, State: "cached"})
		return base{in, m}, nil
	}
	m, err := b.makeBase(ctx, service, l, o, p)
	if err != nil {
		if ctx.Err() != nil {
			return base{}, ctx.Err()
		}
		return base{}, prefix(service+": image "+l.Request, err)
	}
	if m.Architecture != common.Architecture {
		return base{}, isle.Errorf(isle.Invalid, "%s: image %s is for %s, and this machine is %s", service, l.Request, m.Architecture, common.Architecture)
	}
	return base{in, m}, writeJSON(b.basePath(in), m.Digest())
}

func (b *Builder) makeBase(ctx context.Context, service string, l *spec.LockedImage, o Options, p Progress) (image.Image, error) {
	if l.Tree != "" {
		a, err := b.openArchive(ctx, l.Tree)
		if err != nil {
			return image.Image{}, err
		}
		defer a.Close()
		picture, err := a.Choose(ctx, "", oci.Here())
		if err != nil {
			return image.Image{}, err
		}
		got, err := b.unpackImage(ctx, service, picture, p)
		return got.Image, err
	}
	ref, err := registry.Parse(l.Reference)
	if err != nil {
		return image.Image{}, err
	}
	if ref.Local() {
		m, err := b.Images.Image(l.Digest)
		if isle.CodeOf(err) == isle.NotFound {
			return m, isle.Errorf(isle.NotFound, "the server has no image %s", l.Digest).
				WithHint("`isle image import` it under the name %s, or `isle lock --update` to take what has the name now", ref)
		}
		return m, err
	}
	picture, err := b.resolve(ctx, ref.Pinned(l.Digest), service, o.Credentials, o.Pull, p)
	if err != nil {
		return image.Image{}, err
	}
	got, err := b.unpackImage(ctx, service, picture, p)
	return got.Image, err
}

// asImageSays fills in of a service what its image says and building needs.
func asImageSays(s spec.Service, c *image.Config) spec.Service {
	if c != nil && s.Workdir == "" {
		s.Workdir = c.Workdir
	}
	return s
}

// stepEnv is the environment of run steps on top of an image: its own, but for
// what makes steps reproducible.
func stepEnv(c *image.Config) map[string]string {
	env := c.Variables()
	path, ok := env["PATH"]
	maps.Copy(env, runEnv())
	if ok {
		env["PATH"] = path
	}
	return env
}

// PullImage makes an image of what a registry has, and gives it the reference as
// its name.
func (b *Builder) PullImage(ctx context.Context, ref registry.Reference, o Options, p Progress) (image.Name, error) {
	defer b.Images.Hold()()
	p = serial(p)
	picture, err := b.resolve(ctx, ref, "", o.Credentials, o.Pull, p)
	if err != nil {
		return image.Name{}, err
	}
	got, err := b.unpackImage(ctx, "", picture, p)
	if err != nil {
		return image.Name{}, prefix(ref.String(), err)
	}
	n := image.Name{Name: ref.String(), Image: got.Image.Digest(), From: image.FromRegistry, Source: picture.Digest, LeftOut: got.LeftOut, Time: b.Now().UTC()}
	return n, b.Images.SetName(n)
}

// PackImage makes an image of the store into what others read.
func (b *Builder) PackImage(ctx context.Context, name string, p Progress) (image.Name, oci.Package, error) {
	n, m, err := b.ResolveImage(name)
	if err != nil {
		return n, oci.Package{}, err
	}
	p = serial(p)
	pack, err := b.importer().Pack(ctx, m, n.Runs(m), func(l image.Layer, cached bool) {
		state := "start"
		if cached {
			state = "cached"
		}
		p(Event{Step: "pack " + l.Digest.Short(), State: state, Message: title(l.Title)})
	})
	return n, pack, err
}

// ExportImage writes an image as one file that is an OCI layout and what docker
// load reads.
func (b *Builder) ExportImage(ctx context.Context, name string, w io.Writer) error {
	defer b.Images.Hold()()
	n, pack, err := b.PackImage(ctx, name, nil)
	if err != nil {
		return err
	}
	return oci.WriteArchive(ctx, b.Images, pack, n.Name, w)
}

// PushImage gives an image of the store to a registry, under a reference.
func (b *Builder) PushImage(ctx context.Context, name string, to registry.Reference, o Options, p Progress) (image.Name, error) {
	if b.Registry == nil {
		return image.Name{}, isle.Errorf(isle.Unavailable, "this server pushes no images")
	}
	defer b.Images.Hold()()
	p = serial(p)
	n, pack, err := b.PackImage(ctx, name, p)
	if err != nil {
		return n, err
	}
	err = b.Registry.Push(ctx, to, pack, registry.Options{Credential: o.Credentials[to.Registry], Progress: func(d oci.Descriptor, state string, done int64) {
		p(Event{Step: "push " + d.Digest.Short(), State: state, Done: done, Total: d.Size})
	}})
	n.Source = pack.Manifest.Digest
	return n, err
}
