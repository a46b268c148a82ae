package build

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/image"
)

// runStep makes a layer of what RUN changes.
func (x *stages) runStep(ctx context.Context, n int, op *dockerfile.Run) (step, error) {
	stage := x.plan.Stages[n].Name
	in := x.common
	in.Kind, in.Command, in.User, in.Dir, in.Script = "run", op.Command, op.User, op.Dir, string(op.Script)
	in.Env = map[string]string{}
	for _, name := range []string{"SOURCE_DATE_EPOCH", "PYTHONHASHSEED"} { // what makes steps reproducible, unless the Dockerfile says otherwise
		in.Env[name] = runEnv()[name]
	}
	maps.Copy(in.Env, op.Env)
	mounts := make([]mounting, len(op.Mounts))
	for i, m := range op.Mounts {
		var err error
		if mounts[i], err = x.mounting(ctx, m); err != nil {
			return step{}, err
		}
		in.Mounts = append(in.Mounts, mounts[i].input)
	}
	var net *wire
	if x.network && !op.NoNetwork {
		net = newWire(x.sl, stage, op.At.Text, x.o, x.results[n].seen)
		in.Network = answersOf(net.locked)
	}
	return step{inputs: in, wire: net, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		return x.runMake(ctx, w, op, in, mounts, net)
	}}, nil
}

// runMake runs a RUN.
func (x *stages) runMake(ctx context.Context, w work, op *dockerfile.Run, in inputs, mounts []mounting, net *wire) ([]image.Layer, error) {
	b := x.b
	dir, done, err := b.scratch("run")
	if err != nil {
		return nil, err
	}
	defer done()
	stack, err := image.OpenStack(w.parents)
	if err != nil {
		return nil, err
	}
	defer stack.Close()
	st, err := newStep(w, op, in, stack, dir)
	if err != nil {
		return nil, err
	}
	mounts, err = inLockOrder(mounts)
	if err != nil {
		return nil, err
	}
	caches := ""
	if net != nil { // what a cache held would be asked for by the next build, and is in no lock
		caches = filepath.Join(dir, "caches")
	}
	secrets, err := x.giveSecrets(ctx, mounts, stack, &st, w.say)
	defer secrets.forget()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		mount, ok, leave, err := m.open(ctx, w, stack, caches)
		if err != nil {
			return nil, err
		}
		defer leave()
		if ok {
			st.Mounts = append(st.Mounts, mount)
		}
	}
	stubs := map[string]bool{}
	for _, m := range st.Mounts {
		for at := m.Target; at != "/"; at = path.Dir(at) {
			stubs[at] = true
		}
	}
	finish, err := net.open(b, &st, secrets.forms, w.say)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(st.Mounts, func(a, b Mount) int { return strings.Count(a.Target, "/") - strings.Count(b.Target, "/") })
	out := &lines{say: w.say, hide: secrets.forms}
	st.Output = out
	err = finish(b.Sandbox.RunStep(ctx, st))
	out.flush()
	if err != nil {
		return nil, err
	}
	scrub := func(inside string, mode fs.FileMode) bool {
		return scrubbedPlain(inside) || stubs[inside] && isStub(stack, st.Upper, inside)
	}
	l, err := w.into.WriteLayer(ctx, "run", title(op.At.Text), func(l *image.Writer) error { return addUpper(l, st.Upper, stack, scrub) })
	return []image.Layer{l}, err
}

// newStep is what a RUN asks the sandbox for, before its mounts and its network: it
// writes below dir.
func newStep(w work, op *dockerfile.Run, in inputs, stack *image.Stack, dir string) (Step, error) {
	st := Step{
		Layers: w.parents, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Command: op.Command, Env: maps.Clone(in.Env),
		Plain: true, Dir: op.Dir,
	}
	if err := emptyUpper(st.Upper, stack); err != nil {
		return st, err
	}
	if err := os.Mkdir(st.Work, 0o755); err != nil {
		return st, diskError("make a scratch folder", err)
	}
	who := op.User
	if who == "" {
		who = "0"
	}
	o, err := lookOwner(stack, who, true)
	if err != nil {
		return st, err
	}
	st.UID, st.GID, st.Groups = o.uid, o.gid, o.groups
	if _, ok := st.Env["HOME"]; !ok {
		st.Env["HOME"] = o.home
	}
	if op.Script != nil {
		st.Mounts = append(st.Mounts, Mount{Target: dockerfile.ScriptPath, ReadOnly: true, Content: op.Script, Mode: 0o755})
	}
	return st, nil
}

// emptyUpper makes the folder that takes a step's changes; it is the root
// directory inside, as the layers have it.
func emptyUpper(upper string, stack *image.Stack) error {
	root, err := stack.Lookup("/")
	if errors.Is(err, fs.ErrNotExist) {
		root, err = image.Entry{Mode: fs.ModeDir | 0o755}, nil
	}
	if err != nil {
		return err
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		return diskError("make a scratch folder", err)
	}
	if err := os.Chown(upper, int(root.UID), int(root.GID)); err != nil {
		return diskError("make a scratch folder", err)
	}
	return diskError("make a scratch folder", os.Chmod(upper, root.Mode&^fs.ModeType))
}

// scrubbedPlain reports whether what a RUN left at the path has no place in its
// image: it is the sandbox's own, or tells when and where the step ran.
func scrubbedPlain(inside string) bool {
	for _, dir := range []string{"/dev/", "/proc/", "/sys/", "/isle/"} {
		if strings.HasPrefix(inside, dir) {
			return true
		}
	}
	switch inside {
	case "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/var/cache/ldconfig/aux-cache":
		return true
	}
	return false
}

// isStub reports whether what is in the upper folder is there for a mount alone:
// it is empty, and the layers do not have it.
func isStub(stack *image.Stack, upper, inside string) bool {
	if _, err := stack.Lookup(inside); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	at := filepath.Join(upper, inside)
	info, err := os.Lstat(at)
	if err != nil {
		return false
	}
	if !info.IsDir() {
		return info.Mode().IsRegular() && info.Size() == 0
	}
	list, err := os.ReadDir(at)
	if err != nil {
		return false
	}
	for _, e := range list {
		if !isStub(stack, upper, path.Join(inside, e.Name())) {
			return false
		}
	}
	return true
}

// folderStep makes a working folder where there is none.
func (x *stages) folderStep(op *dockerfile.Folder) step {
	in := x.common
	in.Kind, in.Paths, in.User = "folder", []string{op.Path}, op.User
	return step{inputs: in, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		stack, err := image.OpenStack(w.parents)
		if err != nil {
			return nil, err
		}
		defer stack.Close()
		at, err := stack.Resolve(op.Path)
		if err != nil {
			return nil, err
		}
		switch e, err := stack.Lookup(at); {
		case err == nil && e.Mode.IsDir():
			return nil, nil
		case err == nil:
			return nil, isle.Errorf(isle.Invalid, "%s is a %s", op.Path, kind(e.Mode))
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		c := &copying{x: x, op: &dockerfile.Copy{}}
		if op.User != "" {
			o, err := lookOwner(stack, op.User, true)
			if err != nil {
				return nil, err
			}
			c.own = &o
		}
		l, err := w.into.WriteLayer(ctx, "system", title(op.At.Text), func(l *image.Writer) error {
			over := newOverlay(l, stack)
			_, err := c.folder(over, at, image.Entry{Mode: fs.ModeDir | 0o755})
			return err
		})
		return []image.Layer{l}, err
	}}
}

// A mounting is a mount of a RUN before it runs.
type mounting struct {
	x     *stages
	op    dockerfile.Mount
	input mountInput
	from  image.Image // of bind, another stage's or image's
	items []item      // of bind, the context's
}

func (x *stages) mounting(ctx context.Context, op dockerfile.Mount) (mounting, error) {
	m := mounting{x: x, op: op, input: mountInput{
		Type: op.Type, Target: op.Target, ReadOnly: op.ReadOnly, Path: op.Path, ID: op.ID, Env: op.Env, Size: op.Size, Mode: uint32(op.Mode), UID: op.UID, GID: op.GID,
	}}
	if op.Type == "cache" || op.Type == "secret" {
		m.input.Project = folderName(x.project)
	}
	if op.Type != "bind" {
		return m, nil
	}
	if op.From.Kind != dockerfile.Context {
		var err error
		if m.from, err = x.source(ctx, op.From); err != nil {
			return m, err
		}
		for _, l := range m.from.Layers {
			m.input.Materials = append(m.input.Materials, l.Digest)
		}
		return m, nil
	}
	it, err := one(x.context, op.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, isle.Errorf(isle.NotFound, "--mount=type=bind: there is no %.200s in the context", strings.TrimPrefix(op.Path, "/"))
	} else if err != nil {
		return m, err
	}
	if it.files, err = (&choosing{ctx: ctx, from: x.context, left: maxCopied}).pickAll(it, &patterns{}); err != nil {
		return m, err
	}
	m.items = []item{it}
	m.input.Tree = digestOf(m.items, x.context)
	return m, nil
}

// open makes what is mounted. leave is called when the step has ended; not ok is
// nothing to mount. caches is where caches begin empty; "": they are the
// project's.
func (m mounting) open(ctx context.Context, w work, stack *image.Stack, caches string) (out Mount, ok bool, leave func(), err error) {
	leave = func() {}
	out = Mount{ReadOnly: m.op.ReadOnly, Size: m.op.Size}
	switch m.op.Type {
	case "secret": // which giveSecrets has seen to
		return out, false, leave, nil
	case "ssh":
		w.say(Event{State: "log", Message: "no agent of keys is given, and it is not required"})
		return out, false, leave, nil
	}
	if out.Target, err = m.target(stack); err != nil {
		return out, false, leave, err
	}
	switch m.op.Type {
	case "tmpfs":
	case "bind":
		err = m.openBind(ctx, w, &out)
	case "cache":
		if caches != "" {
			dir := filepath.Join(caches, isle.DigestOf([]byte(m.op.ID)).Hex())
			out.Folder, err = filepath.Join(dir, "data"), makeCache(dir, "data", m.op)
			break
		}
		out.Folder, leave, err = m.x.b.openCache(ctx, m.x.project, m.op)
	default:
		return out, false, leave, isle.Errorf(isle.Invalid, "--mount=type=%s is no mount", m.op.Type)
	}
	return out, err == nil, leave, err
}

// target is where it is mounted, the image's links followed.
func (m mounting) target(stack *image.Stack) (string, error) {
	at, err := stack.Resolve(m.op.Target)
	if err == nil && !dockerfile.MayMount(at) {
		err = isle.Errorf(isle.Invalid, "--mount=type=%s: %.200s leads to %.200s through a symbolic link of the image, which is the sandbox's own", m.op.Type, m.op.Target, at)
	}
	return at, err
}

// openBind makes a bind: of the context one layer with what is mounted.
func (m mounting) openBind(ctx context.Context, w work, out *Mount) error {
	b := m.x.b
	if m.op.From.Kind != dockerfile.Context {
		paths, err := b.Images.Verify(ctx, m.from)
		if err != nil {
			return err
		}
		stack, err := image.OpenStack(paths)
		if err != nil {
			return err
		}
		defer stack.Close()
		it, err := one(stack, m.op.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return isle.Errorf(isle.NotFound, "--mount=type=bind: there is no %.200s in what it is mounted from", m.op.Path)
		} else if err != nil {
			return err
		}
		out.Layers, out.Source, out.File = paths, it.path, !it.dir
		return nil
	}
	it := m.items[0]
	out.Source, out.File = "/context", !it.dir
	l, err := b.Images.WriteLayer(ctx, "copy", "bind "+title(m.op.Path), func(l *image.Writer) error {
		for _, p := range it.files {
			e := p.entry
			e.Path = path.Join("/context", p.rel)
			var content contentFunc
			if e.Mode.IsRegular() {
				content = m.x.context.opener(p.entry.Path)
			}
			if err := l.Add(e, content); err != nil {
				return err
			}
		}
		return nil
	})
	out.Layers = []string{b.Images.LayerPath(l.Digest)}
	return err
}

// inLockOrder puts locked caches first, by their ids: two steps that wait for one
// another's would wait for ever.
func inLockOrder(mounts []mounting) ([]mounting, error) {
	locked := func(m mounting) bool { return m.op.Type == "cache" && m.op.Sharing == "locked" }
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b mounting) int {
		switch {
		case locked(a) && locked(b):
			return strings.Compare(a.op.ID, b.op.ID)
		case locked(a):
			return -1
		case locked(b):
			return 1
		}
		return 0
	})
	for i, m := range mounts {
		if i > 0 && locked(m) && m.op.ID == mounts[i-1].op.ID {
			return nil, isle.Errorf(isle.Invalid, "--mount=type=cache,id=%s is locked twice by one step", m.op.ID).WithHint("mount it once")
		}
	}
	return mounts, nil
}
