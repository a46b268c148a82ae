package initproto

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/spec"
)

// responseTimeout bounds how long isle-init may take to say that it accepts a
// request. It dials a forwarded port before that, and does nothing else.
const responseTimeout = 15 * time.Second

// A line implements Line on the parked connections of a launch.
type line struct{ l *launch }

// request sends r on a parked connection and returns the connection once
// isle-init has accepted it. stop ends the watch that closes the connection
// when ctx ends, and reports whether ctx was in time to stay unended.
//
// A connection that ends without a Response was dead before it was used, and
// the next is tried: isle-init responds before it does anything.
func (n *line) request(ctx context.Context, r Request) (c *Conn, stop func() bool, err error) {
	if err := r.Check(); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, nil, isle.Errorf(isle.Invalid, "%s: %w", r.Kind, err)
	}
	if len(b) > MaxFrame {
		return nil, nil, isle.Errorf(isle.Invalid, "%s: command and environment take %d bytes, of which %d fit", r.Kind, len(b), MaxFrame).WithHint("put long arguments into a file")
	}
	for range MaxParked + 1 {
		c, err := n.l.take(ctx)
		if err != nil {
			return nil, nil, err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		failure, err := n.ask(c, b)
		if err == nil && failure == nil {
			return c, stop, nil
		}
		c.Close()
		switch {
		case !stop():
			return nil, nil, isle.Errorf(isle.Unavailable, "%s: ended before isle-init answered: %w", r.Kind, context.Cause(ctx))
		case failure != nil:
			return nil, nil, failure
		case errors.Is(err, errFrame):
			return nil, nil, n.broken(r.Kind, err)
		}
	}
	return nil, nil, isle.Errorf(isle.Unavailable, "%s: every connection to isle-init of launch %s is dead", r.Kind, n.l.id).WithHint("try again")
}

// ask writes a request and reads the Response.
func (n *line) ask(c *Conn, request []byte) (failure, err error) {
	if err := c.SetDeadline(time.Now().Add(responseTimeout)); err != nil {
		return nil, err
	}
	if err := c.WriteFrame(FrameRequest, request); err != nil {
		return nil, err
	}
	b, err := c.Expect(FrameResponse)
	if err != nil {
		return nil, err
	}
	if failure, err := ParseResponse(b); failure != nil || err != nil {
		return failure, err
	}
	// Once accepted, a request is not to be made again: if the connection is
	// broken already, whoever uses it will see.
	_ = c.SetDeadline(time.Time{})
	return nil, nil
}

// broken is the error for an isle-init that does not speak the protocol, or
// went away in the middle.
func (n *line) broken(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return isle.Errorf(isle.Unavailable, "%s: the service ended meanwhile", what).WithHint("isle status and isle logs tell why")
	}
	return isle.Errorf(isle.Unavailable, "%s: the connection to isle-init broke: %w", what, err)
}

// Exec implements Line. The process lives no longer than ctx.
func (n *line) Exec(ctx context.Context, e Exec) (Process, error) {
	c, stop, err := n.request(ctx, Request{Kind: RequestExec, Command: e.Command, Env: e.Env, User: e.User, Workdir: e.Workdir,
		Terminal: e.Terminal, Rows: e.Rows, Columns: e.Columns})
	if err != nil {
		return nil, err
	}
	return newProcess(n, c, stop), nil
}

// Forward implements Line. ctx ends the wait for the connection, not the
// connection.
func (n *line) Forward(ctx context.Context, port int) (io.ReadWriteCloser, error) {
	c, stop, err := n.request(ctx, Request{Kind: RequestForward, Port: port})
	if err != nil {
		return nil, err
	}
	if !stop() {
		return nil, isle.Errorf(isle.Unavailable, "forward: %w", context.Cause(ctx))
	}
	return &forwarded{c}, nil
}

// forwarded is the unframed rest of a connection. It has CloseWrite.
type forwarded struct{ *Conn }

// Read reads what came with the response first.
func (f *forwarded) Read(b []byte) (int, error) {
	if f.Reader.Buffered() > 0 {
		return f.Reader.Read(b)
	}
	return f.Conn.Conn.Read(b)
}

// CopyIn implements Line.
func (n *line) CopyIn(ctx context.Context, dir string, tar io.Reader, owner string) error {
	c, stop, err := n.request(ctx, Request{Kind: RequestCopyIn, Path: dir, User: owner})
	if err != nil {
		return err
	}
	defer stop()
	defer c.Close()
	result := make(chan error, 1) // isle-init may give up at any time
	go func() {
		b, err := c.Expect(FrameResult)
		if err != nil {
			result <- n.broken("copy", err)
			return
		}
		failure, err := ParseResponse(b)
		result <- errors.Join(failure, err)
	}()
	buf := make([]byte, 32<<10)
	for {
		k, rerr := tar.Read(buf)
		select {
		case err := <-result:
			return single(err)
		default:
		}
		if k > 0 {
			if err := c.WriteFrame(FrameData, buf[:k]); err != nil {
				return single(<-result) // it says why
			}
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return isle.Errorf(isle.Invalid, "copy: what is sent could not be read: %w", rerr)
		}
	}
	if err := c.WriteFrame(FrameEnd, nil); err != nil {
		return single(<-result)
	}
	return single(<-result)
}

// single unwraps what errors.Join made of one error, so that the *isle.Error
// is what the caller sees.
func single(err error) error {
	if j, ok := err.(interface{ Unwrap() []error }); ok && len(j.Unwrap()) == 1 {
		return j.Unwrap()[0]
	}
	return err
}

// CopyOut implements Line. Names in the stream begin with the last element of
// path. What a tar stream should not have (devices, sockets, pipes) is left
// out, and named in the "comment" of a closing PAX global header.
func (n *line) CopyOut(ctx context.Context, from string, tar io.Writer) error {
	c, stop, err := n.request(ctx, Request{Kind: RequestCopyOut, Path: from})
	if err != nil {
		return err
	}
	defer stop()
	defer c.Close()
	_, err = io.Copy(tar, &dataReader{n: n, c: c, what: "copy"})
	return err
}

// List implements Line.
func (n *line) List(ctx context.Context, p string) (spec.Tree, error) {
	c, stop, err := n.request(ctx, Request{Kind: RequestList, Path: p})
	if err != nil {
		return spec.Tree{}, err
	}
	defer stop()
	defer c.Close()
	data := &dataReader{n: n, c: c, what: "list", limit: spec.MaxTreeSize}
	tree, err := readTree(data)
	if err != nil && data.err != nil && data.err != io.EOF {
		return spec.Tree{}, data.err // why the data ended is the better reason
	}
	return tree, err
}

// readTree reads entries, in any order, and makes a Tree of them.
func readTree(r io.Reader) (spec.Tree, error) {
	var tree spec.Tree
	d := json.NewDecoder(r)
	for {
		var e spec.TreeEntry
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return spec.Tree{}, isle.Errorf(isle.Unavailable, "list: %w", err)
		}
		if tree.Entries = append(tree.Entries, e); len(tree.Entries) > spec.MaxTreeEntries {
			return spec.Tree{}, isle.Errorf(isle.Exhausted, "list: there are more than %d files and folders", spec.MaxTreeEntries)
		}
	}
	slices.SortFunc(tree.Entries, func(a, b spec.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return spec.DecodeTree(tree.Encode())
}

// maxFile is how long a File is at most on its way: a name and a target, escaped.
const maxFile = 64 << 10

// Folder implements Line.
func (n *line) Folder(ctx context.Context, p string) ([]File, error) {
	c, stop, err := n.request(ctx, Request{Kind: RequestFolder, Path: p})
	if err != nil {
		return nil, err
	}
	defer stop()
	defer c.Close()
	data := &dataReader{n: n, c: c, what: "list", limit: MaxFolder << 10}
	files, err := readFiles(data)
	if err != nil && data.err != nil && data.err != io.EOF {
		return nil, data.err // why the data ended is the better reason
	}
	return files, err
}

// readFiles reads the Files that isle-init sends, and sorts them.
func readFiles(r io.Reader) ([]File, error) {
	files := []File{}
	d := json.NewDecoder(r)
	for {
		var f File
		if err := d.Decode(&f); err == io.EOF {
			break
		} else if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "list: %w", err)
		}
		switch f.Type {
		case TypeFile, TypeDir, TypeLink, TypeOther:
		default:
			return nil, isle.Errorf(isle.Unavailable, "list: %q is no kind of file", bound(f.Type, 32))
		}
		if f.Name == "" || strings.ContainsAny(f.Name, "/\x00") || len(f.Name)+len(f.Target) > maxFile || f.Size < 0 || f.Mode > 0o7777 || f.Time.Year() > 9999 {
			return nil, isle.Errorf(isle.Unavailable, "list: that is no file's description")
		}
		if files = append(files, f); len(files) > MaxFolder {
			return nil, isle.Errorf(isle.Exhausted, "list: there are more than %d things in the folder", MaxFolder)
		}
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}

// Signal implements Line.
func (n *line) Signal(ctx context.Context, signal string) error {
	return n.brief(ctx, Request{Kind: RequestSignal, Signal: signal})
}

// Stop implements Line. It returns when isle-init has begun.
func (n *line) Stop(ctx context.Context, grace time.Duration) error {
	return n.brief(ctx, Request{Kind: RequestStop, Grace: grace})
}

// brief sends a request whose Response is all there is.
func (n *line) brief(ctx context.Context, r Request) error {
	c, stop, err := n.request(ctx, r)
	if err != nil {
		return err
	}
	stop()
	return c.Close()
}

// A dataReader reads Data frames up to the Result.
type dataReader struct {
	n     *line
	c     *Conn
	what  string
	limit int // bytes that may come; 0: any number
	seen  int
	rest  bytes.Reader
	err   error // why there is no more
}

// Read returns io.EOF only after a Result that says all is well.
func (d *dataReader) Read(b []byte) (int, error) {
	for d.rest.Len() == 0 {
		if d.err == nil {
			d.err = d.next()
		}
		if d.err != nil {
			return 0, d.err
		}
	}
	return d.rest.Read(b)
}

func (d *dataReader) next() error {
	t, payload, err := d.c.ReadFrame()
	if err != nil {
		return d.n.broken(d.what, err)
	}
	switch t {
	case FrameData:
		if d.limit > 0 {
			if d.seen += len(payload); d.seen > d.limit {
				return isle.Errorf(isle.Exhausted, "%s: there is more than %d bytes of it", d.what, d.limit)
			}
		}
		d.rest.Reset(payload)
		return nil
	case FrameResult:
		failure, err := ParseResponse(payload)
		switch {
		case failure != nil:
			return failure
		case err != nil:
			return d.n.broken(d.what, err)
		}
		return io.EOF
	}
	return d.n.broken(d.what, errFrame)
}
