package debian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/spec"
)

// UnpackOptions change how Unpack works.
type UnpackOptions struct {
	// Spool is the folder in which the Tree keeps the packages' files, some
	// three times the packages' size, until it is closed. "" is the system's
	// temporary folder. A crash leaves a folder "unpack-…" in it.
	Spool string
	// Progress is called, one call at a time, with bytes of packages read;
	// nil is none.
	Progress func(done, total int64)
}

// An unpacked is one package's content.
type unpacked struct {
	spec.LockedPackage
	control control
	files   []file
	spool   string // the file that has its files' contents
}

// Unpack reads the packages, which open gives by their digests, several at
// once, and merges them into a Tree that is the same whatever their order.
// No script is run. The caller closes the Tree.
//
// Documentation, manual pages, translations of messages and the like are left
// out; copyright files are kept. Device nodes, paths that leave the root, and
// archives beyond all reason are Invalid; a full disk is Exhausted.
func Unpack(ctx context.Context, pkgs []spec.LockedPackage, open func(isle.Digest) (*os.File, error), o UnpackOptions) (t *Tree, err error) {
	if o.Spool == "" {
		o.Spool = os.TempDir()
	}
	dir, err := os.MkdirTemp(o.Spool, "unpack-")
	if err != nil {
		return nil, diskError("unpack packages", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	m := &meter{report: o.Progress}
	all := make([]*unpacked, len(pkgs))
	for i, p := range pkgs {
		m.total += p.Size
		all[i] = &unpacked{LockedPackage: p, spool: filepath.Join(dir, strconv.Itoa(i))}
	}
	order := append([]*unpacked(nil), all...)
	sort.SliceStable(order, func(i, j int) bool { return order[i].Size > order[j].Size }) // the long ones first
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, min(runtime.GOMAXPROCS(0), 8)))
	left := newAllowance(maxTreeMemory, maxTreeData)
	for _, p := range order {
		g.Go(func() error {
			if err := protect(func() error { return p.read(gctx, open, m, left) }); err != nil {
				return p.explain(err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m.flush()
	return newTree(dir, all)
}

func (p *unpacked) explain(err error) error {
	var known *isle.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return diskError("unpack "+p.Name, err)
	}
	return isle.Errorf(isle.Invalid, "package %s %s cannot be unpacked: %w", p.Name, p.Version, err).
		WithHint("it is what the lock names, so another version is needed: `isle lock --update`")
}

// read decodes one package into its spool.
func (p *unpacked) read(ctx context.Context, open func(isle.Digest) (*os.File, error), m *meter, left *allowance) error {
	in, err := open(p.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(p.spool, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	w := bufio.NewWriterSize(out, 256<<10)
	offset := int64(0)
	counted := &metered{ctx: ctx, r: bufio.NewReaderSize(in, 256<<10), m: m}
	p.control, err = readDeb(counted, func(f file, content io.Reader) error {
		if leftOut(f.path) {
			return nil
		}
		// A sparse file has a size that no bytes stand behind, hence before.
		if err := left.take(len(f.path)+len(f.target)+len(f.link)+fileMemory, f.size); err != nil {
			return err
		}
		if f.mode.IsRegular() && f.link == "" {
			f.offset = offset
			n, err := io.Copy(w, content)
			if err != nil {
				return fmt.Errorf("%s: %w", f.path, err)
			}
			f.size, offset = n, offset+n
		}
		p.files = append(p.files, f)
		return nil
	})
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = left.take(p.control.size(), 0)
	}
	if err != nil {
		return err
	}
	fields := p.control.fields
	if fields.get("Package") != p.Name || fields.get("Version") != p.Version || fields.get("Architecture") != p.Architecture {
		return fmt.Errorf("it is %s %s %s", fields.get("Package"), fields.get("Version"), fields.get("Architecture"))
	}
	return nil
}

// Bounds of all packages of an image together, far above what Debian has: what
// a server has to hold in memory and on disk while it unpacks them.
const (
	maxTreeMemory = 1 << 30  // bytes of paths, of control files and of fileMemory for each file
	maxTreeData   = 64 << 30 // bytes of files
	fileMemory    = 400
)

// An allowance is what is left of the bounds. Packages that are read side by
// side share one.
type allowance struct{ memory, data atomic.Int64 }

func newAllowance(memory, data int64) *allowance {
	var a allowance
	a.memory.Store(memory)
	a.data.Store(data)
	return &a
}

func (a *allowance) take(memory int, data int64) error {
	if a.memory.Add(-int64(memory)) < 0 || data > maxTreeData || a.data.Add(-data) < 0 {
		return errors.New("the packages hold more than any image can")
	}
	return nil
}

// protect makes an error of a panic: what is read here was written by who knows
// whom, and a mistake in reading it must not end the server.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading it failed: %v", p)
		}
	}()
	return f()
}

// metered reports what is read through it and ends with its context.
type metered struct {
	ctx context.Context
	r   io.Reader
	m   *meter
}

func (c *metered) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	c.m.add(int64(n))
	return n, err
}

// leftOut reports whether a package's file is not taken: what container images
// of Debian commonly leave out too.
func leftOut(p string) bool {
	rest, ok := strings.CutPrefix(p, "usr/share/")
	if !ok {
		return false
	}
	top, below, deep := strings.Cut(rest, "/")
	switch top {
	case "man", "info", "groff", "lintian", "linda", "bug", "doc-base":
		return true
	case "locale":
		return deep && below != "locale.alias" && below != ""
	case "doc":
		_, name, inside := strings.Cut(below, "/")
		return inside && name != "copyright"
	}
	return false
}
