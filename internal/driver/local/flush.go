package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
)

// A sandbox that is captured has every file that it has open for writing written
// out (fsync), one after the other, although nothing is left to write. Each is a
// flush of the volume's device, and with that of the disk, which is most of what
// a database stands still for: PostgreSQL has a hundred files open. While nothing
// in the sandbox runs nobody is told that something is durable, so for that long
// the device passes flushes over.
//
// Where the capture fails the sandbox may go on a moment before it is flushed
// again, as it may where this process dies: its guard has to notice that first.
// What was said to be durable in that moment is so with the next flush.

// What a device's attribute queue/write_cache says: whether it is flushed.
const (
	flushed   = "write back"
	unflushed = "write through"
)

// flushes is the attribute of the volume's device, and what it says.
func (m *mounted) flushes() (path, says string, err error) {
	path = filepath.Join("/sys/block", filepath.Base(m.loop.Name()), "queue", "write_cache")
	b, err := os.ReadFile(path)
	return path, strings.TrimSpace(string(b)), err
}

// flush has the volume's device flushed again, if it is not.
func (m *mounted) flush() (was bool, err error) {
	path, says, err := m.flushes()
	if err != nil || says != unflushed {
		return false, err
	}
	return true, os.WriteFile(path, []byte(flushed), 0)
}

// calm has flushes of the volumes passed over until rouse, once all is written
// out. Nothing in the sandbox runs. Where a device can't be told so it only takes
// longer.
func (p *preparation) calm() error {
	if p.guard == nil {
		return nil
	}
	results := make(chan error, len(p.mounted))
	for id, m := range p.mounted {
		go func() {
			if err := unix.Syncfs(int(m.root.Fd())); err != nil {
				results <- isle.Errorf(isle.Unavailable, "capture: write volume %s out: %w", id, err)
				return
			}
			if path, says, err := m.flushes(); err == nil && says == flushed {
				_ = os.WriteFile(path, []byte(unflushed), 0)
			}
			results <- nil
		}()
	}
	var err error
	for range p.mounted {
		err = errors.Join(err, <-results)
	}
	p.d.given.Fault("capture.calm")
	return err
}

// rouse undoes calm.
func (p *preparation) rouse() error {
	if p.guard == nil {
		return nil
	}
	results := make(chan error, len(p.mounted))
	for id, m := range p.mounted {
		go func() {
			_, err := m.flush()
			if err != nil {
				err = fmt.Errorf("have volume %s flushed again: %w", id, err)
			}
			results <- err
		}()
	}
	var err error
	for range p.mounted {
		err = errors.Join(err, <-results)
	}
	return err
}
