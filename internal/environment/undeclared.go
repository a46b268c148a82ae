package environment

import (
	"context"

	"isle"
)

// A Witness is a Driver that can say what a launch has mounted, as the machine
// sees it.
type Witness interface {
	// Undeclared says, for people, what a launch has mounted otherwise than it is
	// launched with; nothing where it does not run. Layers are counted.
	Undeclared(ctx context.Context, l Launch) ([]string, error)
}

// Undeclared says by service what of a running environment is mounted otherwise
// than it was declared: where something could be written that no volume and no
// tmpfs is.
func (m *Manager) Undeclared(ctx context.Context, ref isle.Ref) (map[string][]string, error) {
	w, ok := m.cfg.Driver.(Witness)
	if !ok {
		return nil, nil
	}
	l, err := m.get(ref)
	if err != nil {
		return nil, err
	}
	rec := l.snapshot()
	volumes := m.volumesOf(ref)
	out := map[string][]string{}
	for _, s := range rec.Services {
		if s.Phase != Running && s.Phase != Unhealthy {
			continue // it is on the way, and has not all of it
		}
		svc, _ := rec.specOf(s.Name)
		x := Launch{
			Instance: rec.Instance, ID: s.Launch, Isolation: rec.Spec.Isolation, Service: s.Name, Image: s.Image, Layers: make([]string, len(s.Image.Layers)),
			UIDBase: rec.UIDBase, Tmpfs: svc.Tmpfs, Writable: svc.Writable, Limits: rec.Spec.Limits, Init: m.cfg.Init,
		}
		for _, v := range volumes {
			if v.Service == s.Name {
				x.Volumes = append(x.Volumes, Mount{Volume: v.ID, Path: v.Path})
			}
		}
		found, err := w.Undeclared(ctx, x)
		if err != nil {
			return nil, err
		}
		after := l.snapshot()
		if now, ok := after.service(s.Name); !ok || now.Launch != s.Launch {
			continue // it was replaced meanwhile
		}
		if len(found) > 0 {
			out[s.Name] = found
		}
	}
	return out, nil
}
