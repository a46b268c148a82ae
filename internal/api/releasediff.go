package api

import (
	"context"
	"slices"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/image"
	"isle/internal/release"
	"isle/internal/snapshot"
)

// meansRelease is what the name of a release or its stage may begin with where
// something else is called so too.
const meansRelease = "release:"

// A released is a release as it is launched with values.
type released struct {
	release.Release
	values release.Values
}

// releasedAs is the release of a digest, or that a stage points at, with the
// values of that stage.
func (cfg Config) releasedAs(name string) (*released, error) {
	rel, err := cfg.Releases.Look(name)
	if err != nil {
		return nil, err
	}
	out := &released{Release: rel}
	if ref, err := isle.ParseRef(name); err == nil {
		for _, s := range cfg.Releases.StagesOf(rel.Digest) {
			if s.Project == ref.Name && s.Name == ref.Stage {
				out.values = s.Values
			}
		}
	}
	return out, nil
}

// sidesOf finds out what two names mean. An environment is meant as the release
// that its stage points at where the other one is a release.
func (cfg Config) sidesOf(ctx context.Context, from, to string) (out [2]side, err error) {
	names := [2]string{from, to}
	for i, name := range names {
		if out[i], err = cfg.sideOf(ctx, name); err != nil {
			return out, err
		}
	}
	for i, name := range names {
		if other := out[1-i]; out[i].rel == nil && out[i].snap == nil && other.rel != nil {
			if rel, err := cfg.releasedAs(name); err == nil && rel.Manifest.Project == other.rel.Manifest.Project {
				out[i] = side{rel: rel}
			}
		}
	}
	return out, nil
}

// state is the release to be compared: what it has in volumes is not its own. What
// its images had that are not here any more is not known.
func (rel *released) state(ctx context.Context, blobs Blobs, service string) (out snapshot.State, err error) {
	if rel.Broken != nil {
		return out, rel.Broken
	}
	if out.Spec, err = rel.values.Apply(rel.Manifest.Spec); err != nil {
		return out, err
	}
	out.Packages = map[string]map[string]string{}
	for _, svc := range rel.Manifest.Services {
		if service != "" && svc.Name != service {
			continue
		}
		packages, err := blobs.Packages(ctx, svc.Image)
		if err != nil && isle.CodeOf(err) != isle.NotFound {
			return out, err
		}
		out.Packages[svc.Name] = packages
	}
	return out, nil
}

// imagesDiffer says what differs between the images of services.
func (cfg Config) imagesDiffer(ctx context.Context, was, is map[string]image.Image) (*islev1.ImageDifference, error) {
	out := &islev1.ImageDifference{}
	var services []string
	for _, images := range []map[string]image.Image{was, is} {
		for name := range images {
			services = append(services, name)
		}
	}
	slices.Sort(services)
	for _, name := range slices.Compact(services) {
		a, had := was[name]
		b, has := is[name]
		var c image.Comparison
		switch {
		case !had:
			c.New = b.Layers
		case !has:
			c.Gone = a.Layers
		default:
			var err error
			if c, err = cfg.Blobs.Compare(ctx, a, b); isle.CodeOf(err) == isle.NotFound && err != nil {
				out.Unread = append(out.Unread, name)
			} else if err != nil {
				return nil, err
			}
		}
		for i, layers := range [][]image.Layer{c.Gone, c.New} {
			for _, l := range layers {
				out.Layers = append(out.Layers, &islev1.LayerChange{Service: name, Digest: string(l.Digest), Size: l.Size, Kind: l.Kind, Added: i == 1})
			}
		}
		for _, f := range c.Files {
			out.Files = append(out.Files, &islev1.Change{Service: name, Path: f.Path, Kind: f.Kind, Size: f.Size})
		}
		out.More = out.More || c.More
	}
	return out, nil
}
