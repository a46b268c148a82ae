package api

import (
	"context"
	"errors"
	"io"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
)

// maxCommand bounds what one command, with its variables, may be in bytes; the
// kernel has a bound of the same order (ARG_MAX, execve(2)).
const maxCommand = 1 << 20

// Exec implements the RPC. The process is killed when the client goes away.
func (s *environments) Exec(ctx context.Context, stream *connect.BidiStream[islev1.ExecInput, islev1.ExecOutput]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return isle.Errorf(isle.Invalid, "the first message of an exec is its start")
	}
	ref, err := isle.ParseRef(start.GetEnvironment())
	if err != nil {
		return err
	}
	e, err := execOf(start)
	if err != nil {
		return err
	}
	p, err := s.Environments.Exec(ctx, actorOf(ctx), ref, start.GetService(), e)
	if err != nil {
		return err
	}
	defer p.Close()
	stop := context.AfterFunc(ctx, func() { p.Close() }) // ends a Next that waits
	defer stop()
	go feed(stream, p) // ends when the call's request does, which is at the latest when this returns
	for {
		out, err := p.Next()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		if out.Exit != nil {
			return stream.Send(&islev1.ExecOutput{Output: &islev1.ExecOutput_Exit{Exit: &islev1.ExecExit{Code: int32(out.Exit.Code), Reason: out.Exit.Reason}}})
		}
		m := &islev1.ExecOutput{Output: &islev1.ExecOutput_Stdout{Stdout: out.Data}}
		if out.Stderr {
			m.Output = &islev1.ExecOutput_Stderr{Stderr: out.Data}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// execOf reads and bounds the start of an exec.
func execOf(start *islev1.ExecStart) (environment.Exec, error) {
	size := 0
	for _, a := range start.GetCommand() {
		size += len(a) + 1
	}
	for k, v := range start.GetEnv() {
		size += len(k) + len(v) + 2
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return environment.Exec{}, isle.Errorf(isle.Invalid, "variable %q: a name has no = in it and is not empty", k)
		}
	}
	switch {
	case len(start.GetCommand()) == 0 || start.GetCommand()[0] == "":
		return environment.Exec{}, isle.Errorf(isle.Invalid, "there is no command to run")
	case size > maxCommand:
		return environment.Exec{}, isle.Errorf(isle.Invalid, "the command and its variables have %d bytes, at most %d", size, maxCommand)
	}
	for _, a := range start.GetCommand() {
		if strings.Contains(a, "\x00") {
			return environment.Exec{}, isle.Errorf(isle.Invalid, "an argument holds a NUL byte")
		}
	}
	return environment.Exec{
		Command: start.GetCommand(), Env: start.GetEnv(), User: start.GetUser(), Workdir: start.GetWorkdir(), Terminal: start.GetTerminal(),
		Rows: clamp(start.GetSize().GetRows()), Columns: clamp(start.GetSize().GetColumns()), Session: isle.NewID(),
	}, nil
}

// clamp bounds a terminal's size to what the kernel holds.
func clamp(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// feed passes a client's input on until there is no more.
func feed(stream *connect.BidiStream[islev1.ExecInput, islev1.ExecOutput], p environment.Process) {
	in := p.Stdin()
	for {
		m, err := stream.Receive()
		if err != nil {
			in.Close() // a client that half-closes has said all of its input
			return
		}
		switch i := m.GetInput().(type) {
		case *islev1.ExecInput_Stdin:
			if _, err := in.Write(i.Stdin); err != nil {
				continue // the command reads no more; signals still count
			}
		case *islev1.ExecInput_StdinEnd:
			in.Close()
		case *islev1.ExecInput_Signal:
			p.Signal(i.Signal) // of a process that has ended: nothing to do
		case *islev1.ExecInput_Size:
			p.Resize(clamp(i.Size.GetRows()), clamp(i.Size.GetColumns()))
		}
	}
}

// PortForward implements the RPC.
func (s *environments) PortForward(ctx context.Context, stream *connect.BidiStream[islev1.PortInput, islev1.Chunk]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return isle.Errorf(isle.Invalid, "the first message of a port-forward is its start")
	}
	ref, err := isle.ParseRef(start.GetEnvironment())
	if err != nil {
		return err
	}
	if start.GetPort() < 1 || start.GetPort() > 65535 {
		return isle.Errorf(isle.Invalid, "port %d: want 1 to 65535", start.GetPort())
	}
	conn, err := s.Environments.Forward(ctx, actorOf(ctx), ref, start.GetService(), int(start.GetPort()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() { // ends when the call's request does, which is at the latest when the handler returns
		for {
			m, err := stream.Receive()
			if err != nil {
				if half, ok := conn.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) {
					half.CloseWrite()
				}
				return
			}
			if _, err := conn.Write(m.GetData()); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if serr := stream.Send(&islev1.Chunk{Data: buf[:n]}); serr != nil {
				return serr
			}
		}
		if err != nil {
			return ctx.Err() // how a TCP connection ended is not the call's failure
		}
	}
}

// CopyIn implements the RPC.
func (s *environments) CopyIn(ctx context.Context, stream *connect.ClientStream[islev1.CopyInRequest]) (*connect.Response[islev1.CopyInResponse], error) {
	if !stream.Receive() {
		return nil, streamEnd(stream.Err(), "copy")
	}
	start := stream.Msg().GetStart()
	if start == nil {
		return nil, isle.Errorf(isle.Invalid, "the first message of a copy is its start")
	}
	ref, err := isle.ParseRef(start.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(start.GetDir(), "/") || strings.Contains(start.GetDir(), "\x00") {
		return nil, isle.Errorf(isle.Invalid, "copy to %q: want an absolute path", start.GetDir())
	}
	service, dir, baseline := start.GetService(), start.GetDir(), start.GetBaseline()
	tar := &chunkReader{next: func() ([]byte, error) {
		if !stream.Receive() {
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}}
	if err := s.Environments.CopyIn(ctx, actorOf(ctx), ref, service, dir, baseline, tar); err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.CopyInResponse{}), nil
}

// streamEnd is the error for a stream that ended before its first message.
func streamEnd(err error, what string) error {
	if err != nil {
		return err
	}
	return isle.Errorf(isle.Invalid, "the %s ended before it began", what)
}

// A chunkReader makes an io.Reader of messages.
type chunkReader struct {
	next func() ([]byte, error)
	rest []byte
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		var err error
		if r.rest, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// received reads what a stream brings whose first message has come.
func received(stream *connect.ClientStream[islev1.Chunk]) io.Reader {
	return &chunkReader{rest: stream.Msg().GetData(), next: func() ([]byte, error) {
		if !stream.Receive() {
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}}
}

// CopyOut implements the RPC.
func (s *environments) CopyOut(ctx context.Context, req *connect.Request[islev1.CopyOutRequest], stream *connect.ServerStream[islev1.Chunk]) error {
	m := req.Msg
	ref, err := isle.ParseRef(m.GetEnvironment())
	if err != nil {
		return err
	}
	if !strings.HasPrefix(m.GetPath(), "/") || strings.Contains(m.GetPath(), "\x00") {
		return isle.Errorf(isle.Invalid, "copy of %q: want an absolute path", m.GetPath())
	}
	return s.Environments.CopyOut(ctx, actorOf(ctx), ref, m.GetService(), m.GetPath(), chunkWriter{stream})
}

// ListFiles implements the RPC.
func (s *environments) ListFiles(ctx context.Context, req *connect.Request[islev1.ListFilesRequest]) (*connect.Response[islev1.ListFilesResponse], error) {
	m := req.Msg
	ref, err := isle.ParseRef(m.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(m.GetPath(), "/") || strings.Contains(m.GetPath(), "\x00") {
		return nil, isle.Errorf(isle.Invalid, "list of %q: want an absolute path", m.GetPath())
	}
	files, err := s.Environments.Folder(ctx, actorOf(ctx), ref, m.GetService(), m.GetPath())
	if err != nil {
		return nil, err
	}
	res := &islev1.ListFilesResponse{}
	for _, f := range files {
		res.Files = append(res.Files, &islev1.File{Name: f.Name, Type: f.Type, Size: f.Size, Mode: f.Mode, Time: timestamppb.New(f.Time), Target: f.Target})
	}
	return connect.NewResponse(res), nil
}

// A chunkWriter makes messages of what is written.
type chunkWriter struct {
	stream *connect.ServerStream[islev1.Chunk]
}

// Write implements io.Writer.
func (w chunkWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), maxChunk)
		if err := w.stream.Send(&islev1.Chunk{Data: p[:k]}); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}
