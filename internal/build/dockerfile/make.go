package dockerfile

import (
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"isle"
)

// run is RUN as an Op.
func (w *Walk) run(place Place, c command, i *instructions.RunCommand) (Op, error) {
	if err := w.checkRun(c, i); err != nil {
		return nil, err
	}
	r := &Run{At: place, Env: w.env(), User: w.config.User, Dir: w.below("."), NoNetwork: instructions.GetNetwork(i) == instructions.NetworkNone}
	if !i.PrependShell {
		if len(i.Files) > 0 {
			return nil, w.fail(c, "RUN in exec form reads no file of the Dockerfile; write it in shell form")
		}
		if r.Command = slices.Clone(i.CmdLine); len(r.Command) == 0 || r.Command[0] == "" {
			return nil, w.fail(c, "RUN names no command")
		}
	} else {
		text, script, err := shellText(i)
		if err != nil {
			return nil, w.fail(c, "%v", err)
		}
		if r.Script = script; script != nil {
			r.Command = []string{ScriptPath}
		} else if strings.TrimSpace(text) == "" {
			return nil, w.fail(c, "RUN names no command")
		} else {
			r.Command = w.words(instructions.ShellDependantCmdLine{CmdLine: []string{text}, PrependShell: true})
		}
	}
	mounts := instructions.GetMounts(i)
	if len(mounts) > maxMounts {
		return nil, w.fail(c, "more than %d mounts", maxMounts)
	}
	for _, m := range mounts {
		mount, err := w.mount(c, m)
		if err != nil {
			return nil, err
		}
		r.Mounts = append(r.Mounts, mount)
	}
	return r, nil
}

// checkRun refuses what no step has.
func (w *Walk) checkRun(c command, i *instructions.RunCommand) error {
	switch {
	case instructions.GetNetwork(i) == instructions.NetworkHost:
		return w.fail(c, "--network=host: no step has a network of the machine's; --network=none says so")
	case !w.plan.network && slices.Contains(i.FlagsUsed, "network") && instructions.GetNetwork(i) == instructions.NetworkDefault:
		return w.plan.file.fail(c.line, "--network=default: the file says of no network that steps have").WithHint("add `network: record` to the service, and what it is answered is pinned in isle.lock")
	case slices.Contains(i.FlagsUsed, "device"):
		return w.fail(c, "--device: no step has a device of the machine")
	case instructions.GetSecurity(i) == instructions.SecurityInsecure:
		return w.fail(c, "--security=insecure: every step runs in the sandbox")
	}
	return nil
}

// mount is one --mount of a RUN.
func (w *Walk) mount(c command, m *instructions.Mount) (Mount, error) {
	out := Mount{Type: string(m.Type), ReadOnly: m.ReadOnly, Target: m.Target, ID: m.CacheID, Size: m.SizeLimit, Required: m.Required}
	var err error
	if out.UID, err = w.ownerOf(c, m.UID); err != nil {
		return out, err
	}
	if out.GID, err = w.ownerOf(c, m.GID); err != nil {
		return out, err
	}
	if m.Mode != nil && *m.Mode > 0o7777 {
		return out, w.fail(c, "--mount: mode %#o is no mode", *m.Mode)
	}
	switch m.Type {
	case instructions.MountTypeSSH:
		// What a step would do with an agent is speak SSH, which is encrypted to its
		// end: nothing of it could be recorded, and the next build be given the same.
		if m.Required {
			return out, w.plan.file.fail(c.line, "--mount=type=ssh,required: a build is given no agent of keys, since what a step reaches with one cannot be recorded").
				WithHint("take what it fetches into the build's folder, or fetch it over https with `network: record`")
		}
		return Mount{Type: "ssh"}, nil
	case instructions.MountTypeSecret:
		err = w.secret(c, m, &out)
	case instructions.MountTypeCache:
		out.Mode = fs.FileMode(0o755)
		if m.Mode != nil {
			out.Mode = modeOf(*m.Mode)
		}
		if m.From != "" || m.Source != "" {
			return out, w.fail(c, "--mount=type=cache: a cache begins empty here; from= and source= are not there")
		}
		if out.ID == "" {
			out.ID = path.Clean(m.Target)
		}
		if out.Sharing = string(m.CacheSharing); out.Sharing == "" {
			out.Sharing = string(instructions.MountSharingShared)
		}
	case instructions.MountTypeBind:
		out.Path = path.Join("/", m.Source)
		if out.From = (Source{Kind: Context}); m.From != "" {
			out.From, err = w.from(c, m.From)
		}
	case instructions.MountTypeTmpfs:
		if m.From != "" || m.Source != "" {
			return out, w.fail(c, "--mount=type=tmpfs: it is empty; from= and source= are not there")
		}
	}
	if err != nil || m.Type == instructions.MountTypeSecret && out.Target == "" {
		return out, err
	}
	if out.Target == "" {
		return out, w.fail(c, "--mount=type=%s has no target", out.Type)
	}
	if out.Target = w.below(out.Target); out.Target == "/" {
		return out, w.fail(c, "--mount=type=%s: the root itself cannot be mounted over", out.Type)
	}
	if !MayMount(out.Target) {
		return out, w.fail(c, "--mount=type=%s: %s is the sandbox's own", out.Type, clip(out.Target))
	}
	return out, nil
}

// MayMount reports whether a step can have something mounted at a path, once the
// links on it are followed.
func MayMount(target string) bool {
	for _, taken := range []string{"/proc", "/sys", "/dev"} {
		if target == taken || strings.HasPrefix(target, taken+"/") && taken != "/dev" {
			return false
		}
	}
	return target != "/"
}

// maxOwner is the highest uid and gid of an environment.
const maxOwner = 1<<16 - 1

func (w *Walk) ownerOf(c command, id *uint64) (uint32, error) {
	switch {
	case id == nil:
		return 0, nil
	case *id > maxOwner:
		return 0, w.fail(c, "--mount: uid and gid are at most %d", maxOwner)
	}
	return uint32(*id), nil
}

// modeOf is Go's mode of Unix's permission bits.
func modeOf(bits uint64) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	for bit, set := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			m |= set
		}
	}
	return m
}

// secret fills in a secret's file, its variable, or both.
func (w *Walk) secret(c command, m *instructions.Mount, out *Mount) error {
	if out.ID == "" {
		if out.ID = m.Source; out.ID == "" {
			out.ID = path.Base(m.Target)
		}
	}
	if out.ID == "" || out.ID == "." || out.ID == "/" {
		return w.fail(c, "--mount=type=secret names no secret: want id=NAME")
	}
	out.Mode = fs.FileMode(0o400)
	if m.Mode != nil {
		out.Mode = modeOf(*m.Mode)
	}
	if m.Env != nil {
		if out.Env = *m.Env; out.Env == "" {
			out.Env = out.ID
		}
	}
	if m.Target == "" && m.Env == nil {
		out.Target = "/run/secrets/" + path.Base(out.ID)
	}
	return nil
}

// from is what a name means that the plan has looked at.
func (w *Walk) from(c command, name string) (Source, error) {
	f := w.plan.file
	if n, ok := f.find(name, w.stage.number); ok {
		for i, s := range w.plan.Stages {
			if s.number == n {
				return Source{Kind: FromStage, Stage: i}, nil
			}
		}
		return Source{}, w.fail(c, "from=%s: the stage was not planned", clip(name))
	}
	if name == "scratch" {
		return Source{}, w.fail(c, "from=scratch: there is nothing in it")
	}
	if !slices.Contains(w.plan.Images, name) {
		return Source{}, w.fail(c, "from=%s: the image was not planned", clip(name))
	}
	return Source{Kind: FromImage, Image: name}, nil
}

// copy is COPY as an Op.
func (w *Walk) copy(place Place, c command, i *instructions.CopyCommand) (Op, error) {
	out := &Copy{At: place, From: Source{Kind: Context}, Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns, Parents: i.Parents, Link: i.Link}
	if i.From != "" {
		var err error
		if out.From, err = w.from(c, i.From); err != nil {
			return nil, err
		}
	}
	for _, s := range i.SourcePaths {
		if remote(s) {
			return nil, w.fail(c, "COPY %s: a build reaches no network; take the file into the build's folder", clip(s))
		}
	}
	return out, w.sources(c, out, i.SourcesAndDest)
}

// add is ADD as an Op.
func (w *Walk) add(place Place, c command, i *instructions.AddCommand) (Op, error) {
	out := &Copy{At: place, From: Source{Kind: Context}, Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns, Link: i.Link, Unpack: true}
	if i.Unpack != nil {
		out.Unpack = *i.Unpack
	}
	if i.KeepGitDir != nil {
		return nil, w.fail(c, "ADD --keep-git-dir: a build reaches no network; take the files into the build's folder")
	}
	if out.UnpackRemote = i.Unpack != nil && *i.Unpack; i.Checksum != "" {
		if out.Checksum = isle.Digest(i.Checksum); !out.Checksum.Valid() {
			return nil, w.fail(c, "ADD --checksum=%s: want sha256: and 64 hexadecimal characters", clip(i.Checksum))
		}
	}
	s := i.SourcesAndDest
	s.SourcePaths = nil
	for _, p := range i.SourcePaths {
		if !remote(p) {
			s.SourcePaths = append(s.SourcePaths, p)
			continue
		}
		r, err := w.remote(c, p, out.Checksum != "")
		if err != nil {
			return nil, err
		}
		out.Remote = append(out.Remote, r)
	}
	if out.Checksum != "" && (len(out.Remote) != 1 || len(s.SourcePaths)+len(s.SourceContents) > 0) {
		return nil, w.fail(c, "ADD --checksum is for one URL; the build's own files are pinned by isle.lock")
	}
	return out, w.sources(c, out, s)
}

// remote is a file of ADD that is elsewhere. Something has to pin it: the lock, or
// a checksum.
func (w *Walk) remote(c command, address string, pinned bool) (Remote, error) {
	if !w.plan.network && !pinned {
		return Remote{}, w.plan.file.fail(c.line, "ADD %s: a build reaches no network, and nothing pins what is elsewhere", clip(address)).
			WithHint("add --checksum=sha256:…, or `network: record` to the service, or take it into the build's folder")
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.HasSuffix(u.Path, ".git") {
		return Remote{}, w.fail(c, "ADD %s: a repository cannot be had; take the files into the build's folder, or RUN git clone with the recorded network", clip(address))
	}
	if u.User != nil {
		return Remote{}, w.fail(c, "ADD of a URL with a user and a password in it: whoever has the Dockerfile has them")
	}
	u.Fragment, u.RawFragment = "", ""
	name := path.Base(u.Path)
	if name == "." || name == "/" || name == ".." {
		name = ""
	}
	return Remote{URL: u.String(), Name: name}, nil
}

// remote reports whether a source of ADD is not a path.
func remote(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "ssh://", "git@"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// sources fills in what is copied where.
func (w *Walk) sources(c command, out *Copy, s instructions.SourcesAndDest) error {
	if s.DestPath == "" {
		return w.fail(c, "the destination is empty once its variables are in")
	}
	out.To = w.below(s.DestPath)
	folder := strings.HasSuffix(s.DestPath, "/") || s.DestPath == "." || strings.HasSuffix(s.DestPath, "/.")
	if folder && out.To != "/" {
		out.To += "/"
	}
	for _, p := range s.SourcePaths {
		if p == "" {
			return w.fail(c, "a source is empty once its variables are in")
		}
		out.Sources = append(out.Sources, p)
	}
	for _, f := range s.SourceContents {
		if strings.ContainsRune(f.Path, '/') {
			return w.fail(c, "<<%s: the name of a file cannot have a slash", clip(f.Path))
		}
		out.Inline = append(out.Inline, Inline{Name: f.Path, Data: f.Data})
	}
	for _, r := range out.Remote {
		if r.Name == "" && (folder || out.To == "/") {
			return w.fail(c, "%s does not say what its file is called; name it in the destination", clip(r.URL))
		}
	}
	if n := len(out.Sources) + len(out.Inline) + len(out.Remote); n == 0 {
		return w.fail(c, "there is nothing to copy")
	} else if n > maxNames || len(out.Exclude) > maxNames {
		return w.fail(c, "more than %d things are copied or left out", maxNames)
	} else if n > 1 && !folder && out.To != "/" {
		return w.fail(c, "several things are copied to %s, which is no folder; end it with a slash", clip(out.To))
	}
	return nil
}

// Args are the arguments in scope after what was done so far.
func (w *Walk) Args() map[string]string { return maps.Clone(w.args) }
