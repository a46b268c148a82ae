package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"isle"
	"isle/internal/driver/local/checkpoint"
)

const (
	// freezeLimit is how long processes may take to stand still.
	freezeLimit = 10 * time.Second
	// stillMark is a file in the folder of a sandbox that was paused: what it says
	// of itself is not asked.
	stillMark = "paused"
)

// Freeze implements environment.Freezer. What is in control groups is frozen by
// them, and a sandbox by its own kernel.
func (d *Driver) Freeze(ctx context.Context, instance isle.ID) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	var err error
	mark, sandbox := d.stillMark(instance)
	switch _, lerr := os.Lstat(mark); {
	case !sandbox:
		if err = d.groups.stop(ctx, string(instance)); err != nil {
			err = errors.Join(err, d.groups.goOn(string(instance)))
		}
	case lerr == nil:
		return nil
	default:
		// First the mark: without it a pause would never be undone.
		if err = os.WriteFile(mark, nil, 0o600); err == nil {
			// A call that is cut off may have been heard: whoever leaves does not end it,
			// and what is not known counts as paused.
			err = checkpoint.Pause(context.WithoutCancel(ctx), d.runsc().Socket(string(instance)))
		}
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "instance %s cannot be frozen: %w", instance, err)
	}
	return nil
}

// Thaw implements environment.Freezer.
func (d *Driver) Thaw(ctx context.Context, instance isle.ID) error {
	mark, sandbox := d.stillMark(instance)
	if !sandbox {
		if err := d.groups.goOn(string(instance)); err != nil {
			return isle.Errorf(isle.Unavailable, "instance %s cannot go on: %w", instance, err)
		}
		return nil
	}
	if err := os.Remove(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return isle.Errorf(isle.Unavailable, "instance %s cannot go on: %w", instance, err)
	}
	if err := checkpoint.Resume(ctx, d.runsc().Socket(string(instance))); err != nil {
		return isle.Errorf(isle.Unavailable, "instance %s cannot go on: %w", instance, err)
	}
	return nil
}

// stillMark is where the mark of an instance's sandbox is; false if it has none.
func (d *Driver) stillMark(instance isle.ID) (path string, sandbox bool) {
	dir := d.dir(instance, sandboxName)
	_, err := os.Lstat(dir)
	return filepath.Join(dir, stillMark), err == nil
}
