package main

import (
	"context"
	"errors"
	"io"
	"os"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// chunk is how many bytes of a file one message carries.
const chunk = 256 << 10

// send gives the server all the content that it lacks. It asks for that itself:
// what the server has named may be a tree that hides its files.
func (h *hashed) send(ctx context.Context, c *api.Client, p *progress) error {
	ask := &islev1.MissingRequest{}
	for d := range h.content {
		ask.Digests = append(ask.Digests, string(d))
	}
	answer, err := c.Images.Missing(ctx, connect.NewRequest(ask))
	if err != nil {
		return err
	}
	need := answer.Msg.GetDigests()
	if len(need) == 0 {
		return isle.Errorf(isle.Internal, "the server needs files that no copy: names")
	}
	var total, done int64
	for _, d := range need {
		total += h.size(isle.Digest(d))
	}
	tell := func(state string) {
		p.event(&islev1.ProgressEvent{Step: "send files", State: state, Done: done, Total: total})
	}
	tell("start")
	stream := c.Images.Put(ctx)
	for _, d := range need {
		item, ok := h.content[isle.Digest(d)]
		if !ok {
			return isle.Errorf(isle.Internal, "the server asks for %s, which no copy: names", isle.Digest(d).Short())
		}
		first := true
		err := item.chunks(func(b []byte) error {
			m := &islev1.PutRequest{Data: b}
			if first {
				m.Digest, first = d, false
			}
			done += int64(len(b))
			tell("progress")
			return stream.Send(m)
		})
		if errors.Is(err, io.EOF) { // the server has ended the call: its answer says why
			break
		}
		if err != nil {
			stream.CloseAndReceive()
			return err
		}
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		if isle.CodeOf(err) == isle.Invalid {
			return isle.Errorf(isle.Conflict, "files changed while they were sent: %w", err).WithHint("run the command again")
		}
		return err
	}
	tell("done")
	return nil
}

func (h *hashed) size(d isle.Digest) int64 {
	item := h.content[d]
	if item.path == "" {
		return int64(len(item.bytes))
	}
	st, err := os.Stat(item.path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// chunks calls send with the content piece by piece, at least once.
func (item content) chunks(send func([]byte) error) error {
	if item.path == "" {
		b := item.bytes
		for {
			n := min(len(b), chunk)
			if err := send(b[:n]); err != nil {
				return err
			}
			if b = b[n:]; len(b) == 0 {
				return nil
			}
		}
	}
	f, err := os.Open(item.path)
	if err != nil {
		return isle.Errorf(isle.NotFound, "cannot read %s: %w", item.path, cause(err)).WithHint("run the command again")
	}
	defer f.Close()
	buf := make([]byte, chunk)
	for sent := false; ; sent = true {
		n, err := io.ReadFull(f, buf)
		if n > 0 || !sent {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return isle.Errorf(isle.Unavailable, "cannot read %s: %w", item.path, cause(err))
		}
	}
}

// sendFile sends a file in chunks. Where the server takes no more it ends without
// an error: the answer says why.
func sendFile(stream interface{ Send(*islev1.Chunk) error }, f *os.File) error {
	buf := make([]byte, chunk)
	for {
		n, err := f.Read(buf)
		if n > 0 && stream.Send(&islev1.Chunk{Data: buf[:n]}) != nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return isle.Errorf(isle.Unavailable, "cannot read %s: %w", f.Name(), cause(err))
		}
	}
}

// sendGiven sends the file of a name to what begin opens, and returns the answer.
func sendGiven[T any](ctx context.Context, a *app, path string, begin func(*api.Client) *connect.ClientStreamForClient[islev1.Chunk, T]) (*T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", path, cause(err))
	}
	defer f.Close()
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	stream := begin(c)
	if err := sendFile(stream, f); err != nil {
		return nil, err
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}
