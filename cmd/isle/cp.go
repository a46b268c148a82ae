package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newCp(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cp ENV[/SERVICE]:PATH LOCAL | LOCAL ENV[/SERVICE]:PATH",
		Short: "Copy files into or out of a service",
		Long: `Copy a file or folder between this machine and a service. A destination that ends
in a slash, or is a local folder that exists, is copied into; any other is the new
name. Only volumes and tmpfs can be written inside. LOCAL - is a tar stream.`,
		Example: `  isle cp shop/db:/data/dump.sql .
  isle cp fixtures/ shop/web:/data/
  isle cp run-1:/workspace - | tar -t`,
		Args: args(2, 2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, given []string) error {
			from, fromInside, err := parsePlace(given[0])
			if err != nil {
				return err
			}
			to, toInside, err := parsePlace(given[1])
			if err != nil {
				return err
			}
			if fromInside == toInside {
				return usagef("one of the two must be ENV:PATH, the other a local path").WithHint("for example: isle cp shop:/data/file .")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			defer show.close()
			switch {
			case fromInside && given[1] == "-":
				return copyOut(cmd.Context(), c, from, a.stdout)
			case fromInside:
				return copyOutTo(cmd.Context(), c, show, from, given[1])
			case given[0] == "-":
				return sendTar(cmd.Context(), c, place{to.ref, to.service, path.Clean(to.path)}, false, func(w io.Writer) error {
					_, err := io.Copy(w, a.stdin)
					return err
				})
			default:
				return copyIn(cmd.Context(), c, show, to, given[0], false)
			}
		},
	}
}

// A place is a path in a service.
type place struct{ ref, service, path string }

// parsePlace reads ENV[/SERVICE]:PATH; inside is false for a local path. A
// local path with a colon is written with a slash in front of it: ./a:b.
func parsePlace(s string) (p place, inside bool, err error) {
	env, in, ok := strings.Cut(s, ":")
	if !ok || env == "" || strings.HasPrefix(env, ".") || strings.HasPrefix(env, "/") {
		return place{}, false, nil
	}
	name, service, _ := strings.Cut(env, "/")
	ref, err := reference(name)
	if err != nil {
		return place{}, false, err
	}
	if !path.IsAbs(in) {
		return place{}, false, usagef("%q: the path inside must be absolute", s).WithHint("for a local file with a colon in its name write ./%s", s)
	}
	return place{ref.String(), service, in}, true, nil
}

// copyOut writes what is at a place as a tar stream.
func copyOut(ctx context.Context, c *api.Client, from place, w io.Writer) error {
	stream, err := c.Environments.CopyOut(ctx, connect.NewRequest(&islev1.CopyOutRequest{Environment: from.ref, Service: from.service, Path: path.Clean(from.path)}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return isle.Errorf(isle.Exhausted, "cannot write: %w", cause(err))
		}
	}
	return stream.Err()
}

// copyOutTo extracts what is at a place to a local path.
func copyOutTo(ctx context.Context, c *api.Client, show *progress, from place, to string) error {
	dir, name := filepath.Dir(to), filepath.Base(to)
	if st, err := os.Stat(to); strings.HasSuffix(to, "/") || err == nil && st.IsDir() {
		dir, name = to, path.Base(path.Clean(from.path))
		if name == "/" {
			name = "root"
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot make %s: %w", dir, cause(err))
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends with the stream, or when r is closed
		err := copyOut(ctx, c, from, w)
		w.CloseWithError(err)
		done <- err
	}()
	n, err := extract(dir, name, r, show)
	r.CloseWithError(errors.New("the files cannot be written"))
	if serr := <-done; serr != nil && (err == nil || errors.Is(err, serr)) {
		return serr
	}
	if err == nil && n == 0 {
		err = isle.Errorf(isle.NotFound, "%s:%s holds nothing that can be copied", from.ref, from.path)
	}
	return err
}

// extract writes a tar stream below dir, its topmost entry under name. The
// stream comes from inside an environment and is hostile: what is below name is
// reached through an os.Root at name, so that no link, be it of this stream or
// left there by an earlier one, leads to anything else in dir. Neither set-ID
// bits, devices nor owners are taken over, nor links to anything but what is
// copied: whoever writes to such a path later, with another copy or any other
// program, would write where the environment chose.
func extract(dir, name string, r io.Reader, show *progress) (entries int, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, isle.Errorf(isle.Unavailable, "cannot open %s: %w", dir, cause(err))
	}
	defer root.Close()
	x := &extraction{dir: dir, name: name, root: root, show: show, seen: map[string]bool{}, links: map[string]bool{}}
	defer x.close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return x.entries, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader { // the service's own remark
			show.note("%s", clean(h.PAXRecords["comment"]))
			continue
		}
		if err := x.entry(h, tr); err != nil {
			return x.entries, err
		}
	}
	return x.entries, x.finish()
}

// An extraction is a tar stream on its way to disk.
type extraction struct {
	dir, name string
	root      *os.Root // dir
	top       *os.Root // dir/name, once the stream has shown to be a folder's
	show      *progress
	relative  bool // the stream's names are relative to what is copied
	entries   int
	done      int64           // bytes
	seen      map[string]bool // paths below top
	links     map[string]bool // those that are links
	folders   []folder
}

type folder struct {
	path string
	mode fs.FileMode
}

func (x *extraction) close() {
	if x.top != nil {
		x.top.Close()
	}
}

// entry writes one entry of the stream.
func (x *extraction) entry(h *tar.Header, content io.Reader) error {
	if len(x.seen) == 0 {
		x.relative = path.Clean(h.Name) == "."
	}
	inside, ok := below(h.Name, x.relative)
	if !ok {
		return isle.Errorf(isle.Invalid, "the environment sent a file called %q, which leads out of the destination", clean(h.Name))
	}
	if x.seen[inside] {
		return isle.Errorf(isle.Invalid, "the environment sent %q twice", clean(h.Name))
	}
	x.seen[inside] = true
	for dir := path.Dir(inside); dir != "."; dir = path.Dir(dir) {
		if x.links[dir] {
			return isle.Errorf(isle.Invalid, "the environment sent %q below a link", clean(h.Name))
		}
	}
	if sparse(h) {
		return isle.Errorf(isle.Invalid, "the environment sent %q as a sparse file, which no copy has", clean(h.Name))
	}
	root, at := x.top, inside
	switch {
	case inside == "" && h.Typeflag == tar.TypeDir, inside != "" && x.top == nil && len(x.seen) == 1:
		if err := x.open(); err != nil {
			return x.fail(inside, err)
		}
		root = x.top
	case inside == "":
		root, at = x.root, x.name
	case x.top == nil:
		return isle.Errorf(isle.Invalid, "the environment sent %q below a file", clean(h.Name))
	}
	mode := fs.FileMode(h.Mode).Perm()
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if at == "" {
			at = "."
		} else {
			err = makeFolder(root, at)
		}
		x.folders = append(x.folders, folder{at, mode})
	case tar.TypeReg:
		err = writeFile(root, at, mode, content)
		x.done += h.Size
		x.show.event(&islev1.ProgressEvent{Step: "copy", State: "progress", Message: path.Join(x.name, inside), Done: x.done})
	case tar.TypeSymlink:
		x.links[inside] = true
		if inside == "" || !staysInside(inside, h.Linkname) {
			x.show.note("left out %s: a link to %s, which is not part of what is copied", clean(h.Name), clean(h.Linkname))
			return nil
		}
		if err = makeParent(root, at); err == nil {
			root.Remove(at)
			err = root.Symlink(h.Linkname, at)
		}
	case tar.TypeLink:
		target, ok := below(h.Linkname, x.relative)
		if !ok || target == "" || !x.seen[target] || x.links[target] {
			return isle.Errorf(isle.Invalid, "the environment sent a link to %q, which it did not send", clean(h.Linkname))
		}
		if err = makeParent(root, at); err == nil {
			root.Remove(at)
			err = root.Link(target, at)
		}
	default:
		x.show.note("left out %s: neither file, folder nor link", clean(h.Name))
		return nil
	}
	if err != nil {
		return x.fail(inside, err)
	}
	x.entries++
	return nil
}

// open makes dir/name a folder, and the root of everything that follows.
func (x *extraction) open() error {
	if err := makeFolder(x.root, x.name); err != nil {
		return err
	}
	var err error
	x.top, err = x.root.OpenRoot(x.name)
	return err
}

// finish sets the folders' modes: last, so that a read-only one can be filled.
func (x *extraction) finish() error {
	for i := len(x.folders) - 1; i >= 0; i-- {
		if err := x.top.Chmod(x.folders[i].path, x.folders[i].mode|0o700); err != nil {
			return isle.Errorf(isle.Unavailable, "cannot set the mode of %s: %w", filepath.Join(x.dir, x.name, clean(x.folders[i].path)), cause(err))
		}
	}
	return nil
}

func (x *extraction) fail(inside string, err error) error {
	return isle.Errorf(isle.Unavailable, "cannot write %s: %w", filepath.Join(x.dir, x.name, clean(inside)), cause(err))
}

// below is where an entry is below what is copied, "" for that itself. The
// stream of a file or folder has the name of that as the first element of every
// path; that of the root, whose first entry is ".", is relative to it.
func below(entry string, relative bool) (string, bool) {
	p := path.Clean(strings.TrimSuffix(entry, "/"))
	if path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") {
		return "", false
	}
	if !relative {
		_, p, _ = strings.Cut(p, "/")
	}
	if p == "." {
		p = ""
	}
	return p, true
}

// staysInside reports whether a link at a path below what is copied leads to
// something below it too, whatever other such links lie on the way: it goes up
// only at its start, and not above the top.
func staysInside(at, link string) bool {
	if path.IsAbs(link) {
		return false
	}
	depth, down := strings.Count(at, "/"), false
	for part := range strings.SplitSeq(link, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; down || depth < 0 {
				return false
			}
		default:
			down = true
		}
	}
	return true
}

// sparse reports whether an entry's size is not backed by bytes of the stream:
// a few bytes could fill any disk.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// makeFolder makes a folder unless it is there. A link, or a file, that is in
// its place gives way.
func makeFolder(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	switch {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	if err := makeParent(root, name); err != nil {
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// makeParent makes the folders above name, as makeFolder does.
func makeParent(root *os.Root, name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if err := makeParent(root, dir); err != nil {
		return err
	}
	return makeFolder(root, dir)
}

// writeFile replaces a file: what was there, a link included, is not written
// through.
func writeFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	if err := makeParent(root, name); err != nil {
		return err
	}
	if st, err := root.Lstat(name); err == nil && !st.IsDir() {
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// copyIn copies a local file or folder to a place. With baseline it fills a
// volume, and PATH becomes what the folder is.
func copyIn(ctx context.Context, c *api.Client, show *progress, to place, from string, baseline bool) error {
	st, err := os.Stat(from)
	if err != nil {
		return isle.Errorf(isle.NotFound, "cannot read %s: %w", from, cause(err))
	}
	abs, err := filepath.Abs(from)
	if err != nil {
		return isle.Errorf(isle.Invalid, "%s: %w", from, err)
	}
	dir, name := path.Dir(path.Clean(to.path)), path.Base(to.path)
	switch {
	case baseline && st.IsDir():
		dir, name = to.path, "."
	case baseline, strings.HasSuffix(to.path, "/"):
		dir, name = path.Clean(to.path), filepath.Base(abs)
	}
	to.path = dir
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return isle.Errorf(isle.NotFound, "cannot read %s: %w", from, cause(err))
	}
	return sendTar(ctx, c, to, baseline, func(w io.Writer) error { return archive(w, abs, name, show) })
}

// sendTar extracts what write writes at a folder inside.
func sendTar(ctx context.Context, c *api.Client, to place, baseline bool, write func(io.Writer) error) error {
	stream := c.Environments.CopyIn(ctx)
	start := &islev1.CopyInStart{Environment: to.ref, Service: to.service, Dir: to.path, Baseline: baseline}
	err := stream.Send(&islev1.CopyInRequest{Input: &islev1.CopyInRequest_Start{Start: start}})
	if err == nil {
		err = write(writerFunc(func(b []byte) error {
			return stream.Send(&islev1.CopyInRequest{Input: &islev1.CopyInRequest_Data{Data: b}})
		}))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		stream.CloseAndReceive()
		return err
	}
	_, err = stream.CloseAndReceive() // where the server ended the call, this says why
	return err
}

// writerFunc is an io.Writer that gives away what it is given, a chunk at a
// time.
type writerFunc func([]byte) error

func (f writerFunc) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), chunk)
		if err := f(p[:k]); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}

// archive writes a local file or folder as a tar stream under name. Links are
// written as links; sockets, devices and pipes are left out.
func archive(w io.Writer, root, name string, show *progress) error {
	tw := tar.NewWriter(w)
	var done int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return isle.Errorf(isle.Unavailable, "cannot read %s: %w", p, cause(err))
		}
		info, err := d.Info()
		if err != nil {
			return isle.Errorf(isle.Unavailable, "cannot read %s: %w", p, cause(err))
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		inside := path.Join(name, filepath.ToSlash(rel))
		link := ""
		switch {
		case info.IsDir(), info.Mode().IsRegular():
		case info.Mode().Type() == fs.ModeSymlink:
			if link, err = os.Readlink(p); err != nil {
				return isle.Errorf(isle.Unavailable, "cannot read %s: %w", p, cause(err))
			}
		default:
			show.note("left out %s: neither file, folder nor link", p)
			return nil
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s: %w", p, err)
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = inside, 0, 0, "", ""
		h.Mode &= 0o777
		if info.IsDir() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return isle.Errorf(isle.Unavailable, "cannot read %s: %w", p, cause(err))
		}
		defer f.Close()
		n, err := io.Copy(tw, io.LimitReader(f, h.Size))
		if err == nil && n < h.Size {
			return isle.Errorf(isle.Conflict, "%s became shorter while it was read", p).WithHint("run the command again")
		}
		done += n
		show.event(&islev1.ProgressEvent{Step: "copy", State: "progress", Message: filepath.ToSlash(rel), Done: done})
		return err
	})
	if err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("tar: %w", err)
	}
	return nil
}
