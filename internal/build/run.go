package build

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/conceal"
	"isle/internal/image"
	"isle/internal/spec"
)

// maxStepSize bounds what one run step may leave, in bytes. Sparse files count
// with their full size, which is what a layer would take.
const maxStepSize = 16 << 30

// maxStepFiles bounds how many files and folders one run step may leave: memory
// grows with them.
const maxStepFiles = 1 << 20

// runEnv is the environment of every run step. The service's own variables are
// not in it: they are values of a launch, and a change of one must not build
// anything again. The last two make compilers and archivers reproducible.
func runEnv() map[string]string {
	return map[string]string{
		"PATH":              "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":              "/root",
		"LANG":              "C.UTF-8",
		"TZ":                "UTC",
		"PYTHONHASHSEED":    "0",
		"SOURCE_DATE_EPOCH": strconv.FormatInt(image.Time.Unix(), 10),
	}
}

// runStep makes a layer of what a command changes. The command runs as root of
// the sandbox, in the service's workdir, as /bin/sh -e: the first part of it
// that fails is the end.
func (b *Builder) runStep(s spec.Service, command string, env map[string]string, base inputs, seen map[string]int, sl spec.ServiceLock, o Options) step {
	script := command
	if s.Workdir != "" {
		script = "cd " + quote(s.Workdir) + "\n" + command
	}
	in := base
	in.Kind = "run"
	in.Command = []string{"/bin/sh", "-ec", script}
	in.Env = env
	var net *wire
	if s.Network == spec.NetworkRecord {
		net = newWire(sl, "", "run "+command, o, seen)
		in.Network = answersOf(net.locked)
	}
	return step{wire: net, service: s.Name, name: "run " + title(command), inputs: in, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		dir, done, err := b.scratch("run")
		if err != nil {
			return nil, err
		}
		defer done()
		st := Step{Layers: w.parents, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Command: in.Command, Env: maps.Clone(in.Env)}
		for _, d := range []string{st.Upper, st.Work} {
			// 0755: the upper's own mode is the root directory's, inside.
			if err := os.Mkdir(d, 0o755); err != nil {
				return nil, diskError("make a scratch folder", err)
			}
			if err := os.Chmod(d, 0o755); err != nil {
				return nil, diskError("make a scratch folder", err)
			}
		}
		out := &lines{say: w.say}
		st.Output = out
		finish, err := net.open(b, &st, nil, w.say)
		if err != nil {
			return nil, err
		}
		err = finish(b.Sandbox.RunStep(ctx, st))
		out.flush()
		if err != nil {
			return nil, err
		}
		stack, err := image.OpenStack(w.parents)
		if err != nil {
			return nil, err
		}
		defer stack.Close()
		l, err := w.into.WriteLayer(ctx, "run", title(command), func(l *image.Writer) error { return addUpper(l, st.Upper, stack, scrubbed) })
		return []image.Layer{l}, err
	}}
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// lines turns a step's output into events, one a line, without what is to be
// hidden. No form of that has a line break.
type lines struct {
	say  func(Event)
	hide *conceal.Forms // nil: nothing
	mu   sync.Mutex
	buf  bytes.Buffer
}

// maxLine bounds a line of output in bytes; a longer one is cut into several.
const maxLine = 8 << 10

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		switch {
		case c == '\n':
			l.emit(0)
		case l.buf.Len() >= maxLine+l.hide.Most():
			l.emit(l.hide.Most())
		}
		if c != '\n' {
			l.buf.WriteByte(c)
		}
	}
	return len(p), nil
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 0 {
		l.emit(0)
	}
}

// emit tells of what is there but for its last bytes, in which something that is to
// be hidden may begin.
func (l *lines) emit(rest int) {
	l.hide.Hide(l.buf.Bytes())
	l.say(Event{State: "log", Message: strings.ToValidUTF8(string(l.buf.Next(l.buf.Len()-rest)), "\uFFFD")})
	if rest == 0 {
		l.buf.Reset()
	}
}

// addUpper adds an overlay's upper folder to a layer. A step may have left
// anything there but no process that could still change it. Sockets, pipes and
// what differs from run to run (scrubbed) are left out, and so are whiteouts and
// opaque marks that hide nothing: kernels differ in when they leave those.
func addUpper(l *image.Writer, upper string, below *image.Stack, scrubbed func(inside string, mode fs.FileMode) bool) error {
	var size int64
	files := 0
	return filepath.WalkDir(upper, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return diskError("read what the step changed", err)
		}
		if files++; files > maxStepFiles {
			return isle.Errorf(isle.Exhausted, "the step left more than %d files", maxStepFiles).WithHint("remove what the image does not need at the end of the step, and leave data to volumes")
		}
		rel, err := filepath.Rel(upper, name)
		if err != nil {
			return err
		}
		inside := filepath.Join("/", rel)
		info, err := d.Info()
		if err != nil {
			return diskError("read what the step changed", err)
		}
		if scrubbed(inside, info.Mode()) {
			if info.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		e, ok, err := upperEntry(name, inside, info)
		if err != nil || !ok {
			return err
		}
		if e.Mode.Type() == image.Whiteout || e.Xattrs != nil {
			have, err := below.Lookup(inside)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err != nil && e.Mode.Type() == image.Whiteout {
				return nil
			}
			if err != nil || !have.Mode.IsDir() {
				e.Xattrs = nil
			}
		}
		if e.Mode.IsRegular() {
			if size += info.Size(); size > maxStepSize {
				return isle.Errorf(isle.Exhausted, "the step left more than %d GiB of files", maxStepSize>>30).WithHint("remove what the image does not need at the end of the step, and leave data to volumes")
			}
		}
		return l.Add(e, func() (io.ReadCloser, error) {
			return os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		})
	})
}

// upperEntry is the layer's entry for one thing in an overlay's upper folder,
// or not ok for what no layer has.
func upperEntry(name, inside string, info fs.FileInfo) (e image.Entry, ok bool, err error) {
	st, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return e, false, isle.Errorf(isle.Internal, "%s: no stat", name)
	}
	e = image.Entry{Path: inside, Mode: info.Mode(), UID: st.Uid, GID: st.Gid}
	switch {
	case info.IsDir():
		opaque, err := overlayAttr(name, "opaque")
		if err != nil {
			return e, false, err
		}
		if opaque == "y" {
			e.Xattrs = map[string][]byte{image.OpaqueXattr: []byte("y")}
		}
		if to, err := overlayAttr(name, "redirect"); err != nil || to != "" {
			return e, false, errors.Join(err, isle.Errorf(isle.Internal, "%s was renamed by reference: the sandbox's overlay must be mounted with redirect_dir=off", inside))
		}
	case info.Mode()&fs.ModeSymlink != 0:
		if e.Target, err = os.Readlink(name); err != nil {
			return e, false, diskError("read what the step changed", err)
		}
	case info.Mode().IsRegular():
		if meta, err := overlayAttr(name, "metacopy"); err != nil || meta != "" {
			return e, false, errors.Join(err, isle.Errorf(isle.Internal, "%s has no content: the sandbox's overlay must be mounted with metacopy=off", inside))
		}
	case info.Mode().Type() == image.Whiteout && st.Rdev == 0:
		e.Mode, e.UID, e.GID = image.Whiteout, 0, 0 // its bits mean nothing
	case info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe) != 0:
		return e, false, nil
	default:
		return e, false, isle.Errorf(isle.Failed, "the step made a device at %s, which no image can have", inside)
	}
	return e, true, nil
}

// overlayAttr reads one of overlayfs's own attributes, of either namespace; ""
// is none. An empty metacopy or redirect attribute means yes.
func overlayAttr(name, attr string) (string, error) {
	for _, space := range []string{"trusted.overlay.", "user.overlay."} {
		var buf [4096]byte
		n, err := unix.Lgetxattr(name, space+attr, buf[:])
		switch {
		case err == nil && n == 0:
			return "y", nil
		case err == nil:
			return string(buf[:n]), nil
		case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM):
		default:
			return "", diskError("read an attribute of "+name, err)
		}
	}
	return "", nil
}

// scrubbed reports whether what a step left at the path has no place in an
// image: it is mounted over when a service runs, or tells when and where the
// step ran.
func scrubbed(inside string, mode fs.FileMode) bool {
	for _, dir := range []string{"/tmp/", "/run/", "/dev/", "/proc/", "/sys/", "/isle/"} {
		if strings.HasPrefix(inside, dir) {
			return true
		}
	}
	switch inside {
	case "/var/cache/ldconfig/aux-cache", "/etc/machine-id", "/var/lib/dbus/machine-id", "/root/.wget-hsts", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/.pwd.lock":
		return true
	}
	return strings.HasPrefix(inside, "/var/log/") && mode.IsRegular()
}
