package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// Capture clones volumes of an instance as they are at one instant, while its
// services run. Its processes are stopped for that moment, each file system is
// frozen, so that all that was written is in its file and its journal is empty,
// and then the files are cloned.
func (d *Driver) Capture(ctx context.Context, c environment.Capture) (environment.Captured, error) {
	if !c.Instance.Valid() {
		return environment.Captured{}, isle.Errorf(isle.Internal, "capture: %q is no ID", c.Instance)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxPause, isle.Errorf(isle.Unavailable, "capture: the volumes were not cloned within %v", maxPause).
		WithHint("isle doctor says how volumes clone, and how they would at once"))
	defer cancel()
	if c.Memory != "" {
		return d.captureMemory(ctx, c)
	}
	h, err := d.hold(ctx, c.Instance, c.Volumes)
	if err != nil {
		return environment.Captured{}, err
	}
	// gVisor's sandbox now and then ends when its control group is stopped. That
	// its file systems are all frozen before one is cloned makes them of one
	// instant too: what is written after another write waits with it.
	h.still = c.Isolation == classGvisor
	defer h.close()
	p, err := h.prepare(ctx, c.Volumes)
	if err != nil {
		return environment.Captured{}, err
	}
	defer p.drop()
	if err := p.clone(ctx); err != nil {
		return environment.Captured{}, err
	}
	out := environment.Captured{Paused: p.pause}
	if out.How, err = p.keep(ctx); err != nil {
		return environment.Captured{}, err
	}
	return out, nil
}

// A hold is what a capture needs to have in hand before it stops anything.
type hold struct {
	d        *Driver
	instance isle.ID
	still    bool                 // the control group is left alone: nothing runs by then, or it may not be stopped
	mounted  map[isle.ID]*mounted // those that are in use
	files    map[isle.ID]*os.File // all; those not in use are locked, so that nobody mounts them
}

// hold finds the volumes' file systems.
func (d *Driver) hold(ctx context.Context, instance isle.ID, volumes []environment.Clone) (h *hold, err error) {
	h = &hold{d: d, instance: instance, mounted: make(map[isle.ID]*mounted), files: make(map[isle.ID]*os.File)}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	for _, v := range volumes {
		if h.files[v.From] != nil {
			return nil, isle.Errorf(isle.Internal, "capture: volume %s twice", v.From)
		}
		if err := h.add(ctx, v.From); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// add takes a volume up: as one that is in use, or else with its lock.
func (h *hold) add(ctx context.Context, id isle.ID) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		m, err := h.d.volumes.mounted(id)
		if err != nil {
			return err
		}
		if m != nil {
			h.mounted[id], h.files[id] = m, m.file
			return nil
		}
		f, err := h.d.volumes.open(id, os.O_RDONLY)
		if err != nil {
			return err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			h.files[id] = f
			return nil
		}
		f.Close()
		// A launch is about to mount it, or has just ended.
		select {
		case <-ctx.Done():
			return isle.Errorf(isle.Unavailable, "capture: volume %s is neither mounted nor free: %w", id, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

func (h *hold) close() {
	for _, m := range h.mounted {
		m.close()
	}
	for _, f := range h.files {
		f.Close() // a second time for those that are mounted, which does nothing
	}
}

// A preparation is a capture of which all is done that can be while everything
// runs.
type preparation struct {
	*hold
	volumes []environment.Clone
	drafts  []*draft      // one for each of them
	guard   *guard        // nil if nobody writes to a volume, or its duty is done
	pause   time.Duration // how long everything stood still
}

// prepare begins a capture of the volumes. Whoever has it drops it.
func (h *hold) prepare(ctx context.Context, volumes []environment.Clone) (p *preparation, err error) {
	p = &preparation{hold: h, volumes: volumes}
	defer func() {
		if err != nil {
			p.drop()
		}
	}()
	if len(h.mounted) == 0 {
		p.drafts, err = h.draft(ctx, volumes) // nobody writes, and nobody will
		return p, err
	}
	for _, v := range volumes {
		d, err := h.d.volumes.emptyDraft(ctx, v.To)
		if err != nil {
			return p, err
		}
		p.drafts = append(p.drafts, d)
		if err := d.prefill(ctx, h.files[v.From]); err != nil {
			return p, err
		}
	}
	var roots []*os.File
	for _, m := range h.mounted {
		// What is written out now need not be while everybody waits.
		if err := unix.Syncfs(int(m.root.Fd())); err != nil {
			return p, isle.Errorf(isle.Unavailable, "capture: write a volume out: %w", err)
		}
		roots = append(roots, m.root)
	}
	if p.guard, err = h.d.newGuard(ctx, h.instance, roots); err != nil {
		return p, err
	}
	h.d.given.Fault("capture.guarded")
	return p, nil
}

// clone clones all volumes while everything stands still.
func (p *preparation) clone(ctx context.Context) (err error) {
	if p.guard == nil {
		return nil
	}
	start := time.Now()
	if err = p.freeze(ctx); err == nil {
		for i, v := range p.volumes {
			if err = p.drafts[i].fill(ctx, p.files[v.From]); err != nil {
				break
			}
		}
		p.d.given.Fault("capture.cloned")
	}
	still, goErr := p.goOn()
	p.pause = time.Since(start)
	if goErr != nil {
		p.guard.act() // it may have more luck
		err = errors.Join(err, goErr)
	} else {
		p.guard.dismiss()
	}
	p.guard = nil
	p.d.given.Fault("capture.thawed")
	if err == nil && !still {
		err = isle.Errorf(isle.Unavailable, "capture: the volumes went on before they were cloned: this process stood still for more than %v", maxPause)
	}
	return err
}

// keep makes the clones durable, which takes its time, and says how they were
// made: by copy if one was. After an error none is left.
func (p *preparation) keep(ctx context.Context) (how string, err error) {
	for len(p.drafts) > 0 && err == nil {
		d := p.drafts[0]
		p.drafts = p.drafts[1:]
		if err = d.keep(); how != environment.ByCopy {
			how = d.how
		}
	}
	if err == nil {
		return how, nil
	}
	for _, v := range p.volumes { // whatever became of the caller
		err = errors.Join(err, p.d.volumes.Delete(context.WithoutCancel(ctx), v.To))
	}
	return "", err
}

// drop lets go of what was not kept.
func (p *preparation) drop() {
	if p.guard != nil {
		p.guard.dismiss()
	}
	for _, d := range p.drafts {
		d.drop()
	}
}

// draft clones all volumes, which nobody writes to, or none.
func (h *hold) draft(ctx context.Context, volumes []environment.Clone) ([]*draft, error) {
	var drafts []*draft
	for _, v := range volumes {
		d, err := h.d.volumes.draft(ctx, h.files[v.From], v.To)
		if err != nil {
			for _, d := range drafts {
				d.drop()
			}
			return nil, err
		}
		drafts = append(drafts, d)
	}
	return drafts, nil
}

// freeze stops the processes first: one that stood in the middle of a write to a
// frozen file system could not be stopped any more.
func (h *hold) freeze(ctx context.Context) error {
	if !h.still {
		stopping, cancel := context.WithTimeout(ctx, freezeLimit)
		defer cancel()
		if err := h.d.groups.stop(stopping, string(h.instance)); err != nil {
			return isle.Errorf(isle.Unavailable, "capture environment %s: %w", h.instance, err)
		}
	}
	h.d.given.Fault("capture.stopped")
	// Each waits for its disk: together they take as long as one.
	results := make(chan error, len(h.mounted))
	for id, m := range h.mounted {
		go func() {
			err := freezeFS(m.root)
			if err != nil {
				err = isle.Errorf(isle.Unavailable, "capture: freeze volume %s: %w", id, err)
			}
			results <- err
		}()
	}
	var first error
	for range h.mounted {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	h.d.given.Fault("capture.frozen")
	return first
}

// goOn undoes freeze, all of it, whatever fails. It reports whether all file
// systems were frozen until now, and no guard that had waited too long came
// before.
func (h *hold) goOn() (still bool, err error) {
	still = true
	for id, m := range h.mounted {
		frozen, thawErr := thawFS(m.root)
		if thawErr != nil {
			err = errors.Join(err, fmt.Errorf("thaw volume %s: %w", id, thawErr))
		}
		still = still && frozen
	}
	if h.still {
		return still, err
	}
	if goErr := h.d.groups.goOn(string(h.instance)); goErr != nil {
		err = errors.Join(err, fmt.Errorf("let the processes go on: %w", goErr))
	}
	return still, err
}
