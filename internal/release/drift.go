package release

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// The kinds of drift.
const (
	DriftRelease = "release"       // the release is not whole, or not trusted
	DriftStage   = "stage"         // the stage points at another release
	DriftImage   = "image"         // a service runs an image that is not the release's
	DriftSetting = "configuration" // it was launched as the release and the stage's values do not say
	DriftBytes   = "bytes"         // a layer has other bytes than its digest says
	DriftRoles   = "roles"         // policy lets it do more or less through a door than when it was promoted
	DriftDoors   = "doors"         // a door leads elsewhere, or has other rules, than when it was promoted
	DriftMounts  = "mounts"        // something is mounted that the release does not say, or could be written to
)

// A Running is what runs of a release.
type Running struct {
	Ref      isle.Ref
	Instance isle.ID
	Project  string
	Release  isle.Digest
	Spec     spec.File
	Images   map[string]image.Image // by service
	// Undeclared is what is mounted otherwise than declared, by service, for people.
	Undeclared map[string][]string
}

// A Finding is one thing that is not as it was released.
type Finding struct {
	Kind    string
	Service string // "": of the whole
	Message string
	Detail  string // of a door: what it was and is, for those who may read the policy
}

// Drift compares what runs with its release, what the stage points at and its
// values. With full every byte of its layers is read; without, of those that
// anybody has touched since they were last read.
func (r *Releases) Drift(ctx context.Context, run Running, full bool) (out []Finding, err error) {
	find := func(kind, service, message string) {
		out = append(out, Finding{Kind: kind, Service: service, Message: message})
	}
	rel, err := r.Use(string(run.Release))
	if err != nil {
		find(DriftRelease, "", message(err))
		return out, nil
	}
	var values Values
	s, ok := r.Stage(rel.Manifest.Project, run.Ref.Stage)
	switch {
	case ok && s.Release != rel.Digest:
		find(DriftStage, "", "stage "+run.Ref.Stage+" points at release "+s.Release.Short()+", and release "+rel.Digest.Short()+" runs")
	case ok:
		values = s.Values
	}
	if want, err := values.Apply(rel.Manifest.Spec); err != nil {
		find(DriftSetting, "", message(err))
	} else {
		out = append(out, settings(run.Spec, want)...)
		if ok && s.Release == rel.Digest && run.Ref.Name == s.Project {
			out = append(out, reachFindings(r.ReachSince(s, want))...)
		}
	}
	for _, svc := range rel.Manifest.Services {
		img, ok := run.Images[svc.Name]
		switch {
		case !ok:
			find(DriftImage, svc.Name, "it does not run")
			continue
		case img.Digest() != svc.Digest:
			find(DriftImage, svc.Name, "it runs image "+img.Digest().Short()+", and the release has "+svc.Digest.Short())
		}
		for _, what := range run.Undeclared[svc.Name] {
			find(DriftMounts, svc.Name, what)
		}
		if _, err = r.cfg.Images.Verify(ctx, img); err == nil && full {
			err = r.cfg.Images.Reread(ctx, img)
		}
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		if err != nil {
			find(DriftBytes, svc.Name, message(err))
		}
	}
	return out, nil
}

func message(err error) string {
	if e, ok := err.(*isle.Error); ok {
		return e.WithHint("").Error()
	}
	return err.Error()
}

// settings are the parts of a file that differ from what they are to be.
func settings(is, want spec.File) (out []Finding) {
	find := func(service, what string) {
		out = append(out, Finding{Kind: DriftSetting, Service: service, Message: what + " is not as released"})
	}
	for _, w := range want.Services {
		i := slices.IndexFunc(is.Services, func(s spec.Service) bool { return s.Name == w.Name })
		switch {
		case i < 0:
			find(w.Name, "the service")
		case !equal(is.Services[i], w):
			why := spec.Explain(w, is.Services[i])
			if why == "" {
				why = "how it is launched"
			}
			find(w.Name, why)
		}
	}
	for _, s := range is.Services {
		if !slices.ContainsFunc(want.Services, func(w spec.Service) bool { return w.Name == s.Name }) {
			find(s.Name, "the service")
		}
	}
	for _, x := range []struct {
		what     string
		is, want any
	}{
		{"uses", is.Uses, want.Uses}, {"uses", is.UsesAs, want.UsesAs}, {"egress", is.Egress, want.Egress}, {"limits", is.Limits, want.Limits}, {"isolation", is.Isolation, want.Isolation}, {"schema", is.Schema, want.Schema},
	} {
		if !equal(x.is, x.want) {
			find("", x.what)
		}
	}
	return out
}

// equal compares as JSON, where what is empty is as what is not there.
func equal(a, b any) bool {
	x, err1 := plain(a)
	y, err2 := plain(b)
	return err1 == nil && err2 == nil && reflect.DeepEqual(x, y)
}

// plain is a value as JSON has it, without what is empty.
func plain(v any) (out any, err error) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return pruned(out), err
}

func pruned(v any) any {
	switch v := v.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(k string, x any) bool { v[k] = pruned(x); return v[k] == nil })
		if len(v) > 0 {
			return v
		}
		return nil
	case []any:
		for i := range v {
			v[i] = pruned(v[i])
		}
		if len(v) > 0 {
			return v
		}
		return nil
	}
	return v
}
