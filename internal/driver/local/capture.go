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
	if c.Memory != "" {
		return environment.Captured{}, isle.Errorf(isle.Invalid, "the memory of an environment of class %q can't be captured", c.Isolation).
			WithHint("isolation: gvisor in isle.yaml")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxPause, isle.Errorf(isle.Unavailable, "capture: the volumes were not cloned within %v", maxPause).
		WithHint("isle doctor says how volumes clone, and how they would at once"))
	defer cancel()
	h, err := d.hold(ctx, c.Instance, c.Volumes)
	if err != nil {
		return environment.Captured{}, err
	}
	defer h.close()
	out, err := h.capture(ctx, c.Volumes)
	if err == nil {
		return out, nil
	}
	// Nothing of the clones may be left, whatever became of the caller.
	for _, v := range c.Volumes {
		err = errors.Join(err, d.volumes.Delete(context.WithoutCancel(ctx), v.To))
	}
	return environment.Captured{}, err
}

// A hold is what a capture needs to have in hand before it stops anything.
type hold struct {
	d        *Driver
	instance isle.ID
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

// capture stops everything, clones and lets everything go on. What makes the
// clones durable comes after that.
func (h *hold) capture(ctx context.Context, volumes []environment.Clone) (out environment.Captured, err error) {
	var drafts []*draft
	if len(h.mounted) == 0 {
		drafts, err = h.draft(ctx, volumes) // nobody writes, and nobody will
	} else {
		drafts, out.Paused, err = h.paused(ctx, volumes)
	}
	if err != nil {
		return out, err
	}
	for i, d := range drafts {
		if err := d.keep(); err != nil {
			for _, rest := range drafts[i+1:] {
				rest.drop()
			}
			return out, err
		}
		if out.How != environment.ByCopy {
			out.How = d.how
		}
	}
	return out, nil
}

// paused clones all volumes while everything stands still, and says for how long
// that was. What can be done before is.
func (h *hold) paused(ctx context.Context, volumes []environment.Clone) (drafts []*draft, pause time.Duration, err error) {
	defer func() {
		if err != nil {
			for _, d := range drafts {
				d.drop()
			}
		}
	}()
	for _, v := range volumes {
		d, err := h.d.volumes.emptyDraft(ctx, v.To)
		if err != nil {
			return drafts, 0, err
		}
		drafts = append(drafts, d)
		if err := d.prefill(ctx, h.files[v.From]); err != nil {
			return drafts, 0, err
		}
	}
	var roots []*os.File
	for _, m := range h.mounted {
		// What is written out now need not be while everybody waits.
		if err := unix.Syncfs(int(m.root.Fd())); err != nil {
			return drafts, 0, isle.Errorf(isle.Unavailable, "capture: write a volume out: %w", err)
		}
		roots = append(roots, m.root)
	}
	guard, err := h.d.newGuard(h.instance, roots)
	if err != nil {
		return drafts, 0, err
	}
	h.d.given.Fault("capture.guarded")
	start := time.Now()
	if err = h.freeze(ctx); err == nil {
		for i, v := range volumes {
			if err = drafts[i].fill(ctx, h.files[v.From]); err != nil {
				break
			}
		}
		h.d.given.Fault("capture.cloned")
	}
	still, goErr := h.goOn()
	pause = time.Since(start)
	if goErr != nil {
		guard.act() // it may have more luck
		err = errors.Join(err, goErr)
	} else {
		guard.dismiss()
	}
	h.d.given.Fault("capture.thawed")
	if err == nil && !still {
		err = isle.Errorf(isle.Unavailable, "capture: the volumes went on before they were cloned: this process stood still for more than %v", maxPause)
	}
	return drafts, pause, err
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
	stopping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := h.d.groups.stop(stopping, string(h.instance)); err != nil {
		return isle.Errorf(isle.Unavailable, "capture environment %s: %w", h.instance, err)
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
	if goErr := h.d.groups.goOn(string(h.instance)); goErr != nil {
		err = errors.Join(err, fmt.Errorf("let the processes go on: %w", goErr))
	}
	return still, err
}
