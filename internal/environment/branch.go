package environment

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"isle"
	"isle/internal/image"
)

// Parent finds what the environment of a new branch can begin as a copy of: of
// the branches, in their order, the first that has one running, from the same
// repository and in the same stage. Of several the one that is called after the
// branch counts, then the oldest. ok is false where there is none.
func (m *Manager) Parent(req UpRequest, branches []string) (e Environment, ok bool) {
	all, _ := m.List(context.Background()) // it fails never
	for _, branch := range branches {
		for _, e := range all {
			if e.Branch == branch && e.parentOf(req) && (e.Ref.Name == e.Project || e.Ref.Name == isle.Slug(e.Project+"-"+branch)) {
				return e, true
			}
		}
		for _, e := range all {
			if e.Branch == branch && e.parentOf(req) {
				return e, true
			}
		}
	}
	return Environment{}, false
}

// parentOf reports whether what a request asks for could begin as a copy of e,
// as far as where both are from goes.
func (e *Environment) parentOf(req UpRequest) bool {
	return e.Branch != "" && e.Repository != "" && e.Repository == req.Repository && e.Project == req.Project && e.Ref.Stage == req.Ref.Stage &&
		e.Ref != req.Ref && !e.OneShot && e.Desired == WantRunning && e.Phase == Running && e.Opening == Open
}

// Unlike says, for people, why an environment that is asked for can't begin as
// a copy of parent: something differs beside what copied files hold. It is ""
// if it can.
func (m *Manager) Unlike(parent Environment, req UpRequest) string {
	if m.find(req.Ref) != nil {
		return fmt.Sprintf("%s is there already", req.Ref)
	}
	if len(m.volumesOf(req.Ref)) > 0 {
		return fmt.Sprintf("volumes are kept under the name %s", req.Ref)
	}
	if !bytes.Equal(encodeSpec(parent.Spec), encodeSpec(req.Spec)) {
		return "its environment file is another"
	}
	for _, s := range parent.Services { // the file names the same ones
		if kind := differs(s.Image, req.Images[s.Name]); kind != "" {
			return fmt.Sprintf("the %s of %s differ", kind, s.Name)
		}
	}
	return ""
}

// differs says in what two images differ beside copied files, and what run
// steps made of those; "" if in nothing.
func differs(from, to image.Image) string {
	const packages = "packages"
	if from.Architecture != to.Architecture || from.Format != to.Format {
		return packages
	}
	if !slices.EqualFunc(from.Layers, to.Layers, func(a, b image.Layer) bool { return a.Kind == b.Kind }) {
		return "steps"
	}
	copied := false
	for i, a := range from.Layers {
		switch {
		case a.Digest == to.Layers[i].Digest:
		case a.Kind == "copy":
			copied = true
		case copied: // the same step, on other files
		case a.Kind == packages || a.Kind == "system":
			return packages
		default:
			return "steps"
		}
	}
	return ""
}
