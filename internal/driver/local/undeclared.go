package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
)

// maxMountinfo bounds what is read of a launch's mounts, in bytes.
const maxMountinfo = 4 << 20

// A mountLine is one mount as the kernel tells it: a line of proc(5)'s mountinfo.
type mountLine struct {
	root, at     string // the folder of the file system that is mounted, and where
	readOnly     bool
	kind, source string
	options      []string // of the file system
}

// Undeclared says what a launch has mounted otherwise than it is launched with. What
// it could not do by itself somebody did on the machine. Of the class gvisor it is
// what its gofer has: what the sandbox mounts by itself is in its memory alone.
func (d *Driver) Undeclared(ctx context.Context, l environment.Launch) ([]string, error) {
	if !l.Instance.Valid() || !l.ID.Valid() {
		return nil, isle.Errorf(isle.Internal, "mounts of %q of %q: no ID", l.ID, l.Instance)
	}
	defer d.lock(l.ID)()
	pid := d.pid(l.Instance, l.ID)
	if pid == 0 {
		return nil, nil
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "the mounts of service %s: %w", l.Service, err)
	}
	defer f.Close()
	lines, err := readMounts(f)
	if d.pid(l.Instance, l.ID) != pid || errors.Is(err, unix.EINVAL) { // it ended meanwhile
		return nil, nil
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "the mounts of service %s: %w", l.Service, err)
	}
	devices := map[string]string{}
	for _, v := range l.Volumes {
		if devices[v.Path], err = d.deviceOf(v.Volume); err != nil {
			return nil, err
		}
	}
	return strange(containerOf(ctx, l), lines, devices)
}

// deviceOf is the loop device of a volume's file; "" where it has none.
func (d *Driver) deviceOf(id isle.ID) (string, error) {
	file, err := d.volumes.open(id, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer file.Close()
	loop, err := findLoop(file)
	if err != nil || loop == nil {
		return "", err
	}
	defer loop.Close()
	return loop.Name(), nil
}

// readMounts reads mountinfo.
func readMounts(r io.Reader) (out []mountLine, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxMountinfo))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 {
			return nil, fmt.Errorf("a line of mountinfo cannot be read: %q", lines.Text())
		}
		out = append(out, mountLine{
			root: unescape(head[3]), at: unescape(head[4]), readOnly: slices.Contains(strings.Split(head[5], ","), "ro"),
			kind: tail[0], source: unescape(tail[1]), options: strings.Split(tail[2], ","),
		})
	}
	return out, lines.Err()
}

// unescape undoes the octal escapes of a path (proc(5)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// strange compares the mounts of a launch with those that it is to have. devices
// are those of its volumes, by path.
func strange(c *container, lines []mountLine, devices map[string]string) (out []string, err error) {
	find := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	mounts, err := c.mounts("")
	if err != nil {
		return nil, err
	}
	sandboxed := c.class == classGvisor
	want := map[string]string{} // the kind, by path
	for _, m := range mounts {
		if !sandboxed || m.Type == "bind" { // the others are the sandbox's own
			want[m.Destination] = m.Type
		}
	}
	seen := map[string]bool{}
	for _, m := range lines {
		if seen[m.at] {
			find("something is mounted over %s: %s from %s", m.at, m.kind, m.source)
			continue
		}
		seen[m.at] = true
		kind, declared := want[m.at]
		switch _, volume := devices[m.at]; {
		case m.at == "/":
			for _, s := range c.strangeRoot(m) {
				find("%s", s)
			}
		case volume && (m.kind != "ext4" || m.source != devices[m.at] || m.root != "/"+volumeRoot):
			find("at %s is not the volume, but %s of %s from %s", m.at, m.root, m.kind, m.source)
		case m.at == initPath:
			if !m.readOnly {
				find("%s can be written to", m.at)
			}
		case declared && kind != "bind" && m.kind != kind:
			find("at %s is %s from %s, and not %s", m.at, m.kind, m.source, kind)
		case declared && m.at == "/sys" && !m.readOnly:
			find("/sys can be written to")
		case declared:
		case path.Dir(m.at) == "/dev" && m.kind == "devtmpfs" && m.root == m.at[len("/dev"):]: // a device that the runtime gives
		case path.Dir(m.at) == "/dev" && m.kind == "devpts" && m.at == "/dev/console":
		case strings.HasPrefix(m.at, "/proc/") && m.readOnly && (m.kind == "proc" || m.kind == "tmpfs" || m.root == "/null"): // hidden
		case strings.HasPrefix(m.at, "/proc/") && m.kind == "devtmpfs" && m.root == "/null":
		default:
			find("something is mounted at %s that was not declared: %s of %s from %s", m.at, m.root, m.kind, m.source)
		}
	}
	for at := range devices {
		if !seen[at] {
			find("the volume at %s is not mounted", at)
		}
	}
	if !seen["/"] {
		find("it has no root")
	}
	slices.Sort(out)
	return out, nil
}

// strangeRoot compares the root of a launch.
func (c *container) strangeRoot(m mountLine) (out []string) {
	if m.kind != "overlay" {
		return []string{"its root is no image, but " + m.kind + " from " + m.source}
	}
	writable := c.writable > 0 && c.class != classGvisor
	if !m.readOnly && !writable {
		out = append(out, "its root can be written to")
	}
	layers := 0
	for _, o := range m.options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "upperdir":
			if !writable {
				out = append(out, "its root has a layer that takes what is written")
			}
		case "lowerdir", "lowerdir+":
			for dir := range strings.SplitSeq(value, ":") {
				if rest, ok := strings.CutPrefix(path.Base(dir), "l"); ok {
					if _, err := strconv.Atoi(rest); err == nil {
						layers++
					}
				}
			}
		}
	}
	if layers != len(c.layers) {
		out = append(out, fmt.Sprintf("its root has %d layers, and its image %d", layers, len(c.layers)))
	}
	return out
}
