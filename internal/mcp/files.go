package mcp

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/jsonschema-go/jsonschema"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/initproto"
)

// What is read and written of a file at once, in bytes.
const (
	readUsual = 64 << 10
	readMost  = 1 << 20
	writeMost = 2 << 20
)

// linksMost is how many symbolic links lead to a file at most; Linux follows as
// many (path_resolution(7)).
const linksMost = 40

// fileCall is how long reading or writing a file may take.
const fileCall = 10 * time.Minute

func (s *Server) addFiles() {
	add(s, tool{
		name: "read_file", title: "Read a file inside", hint: reads,
		description: "Read a file in a service of an environment, or a piece of it. Text comes as it is, anything else in base64. For files of the project on the user's machine use your own tools.",
		tune: func(in map[string]*jsonschema.Schema) {
			in["encoding"].Enum = []any{encodingText, encodingBase64}
		},
	}, s.readFile)
	add(s, tool{
		name: "list_files", title: "List a folder inside", hint: reads,
		description: "List what stands in a folder of a service of an environment, and not what is below that: names, kinds, sizes, permissions and times, sorted by name.",
	}, s.listFiles)
	add(s, tool{
		name: "write_file", title: "Write a file inside", hint: destroys, repeatable: true,
		description: "Write a file in a service of an environment: a new one, or in place of the one that is there. Folders are made. Only volumes and tmpfs (/tmp, /run and what the file declares) can be written; what is in the image is changed by editing the project's files and calling up.",
		tune: func(in map[string]*jsonschema.Schema) {
			in["encoding"].Enum = []any{encodingText, encodingBase64}
			in["mode"].Pattern = "^0?[0-7]{3}$"
		},
	}, s.writeFile)
}

type readFileIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Service     string `json:"service,omitempty" jsonschema:"left out, it is the first that the file declares"`
	Path        string `json:"path" jsonschema:"absolute path inside"`
	Offset      int64  `json:"offset,omitempty" jsonschema:"byte to begin at"`
	Limit       int    `json:"limit,omitempty" jsonschema:"bytes to read at most, 1048576 at most; left out, it is 65536"`
	Encoding    string `json:"encoding,omitempty" jsonschema:"left out, it is utf-8 for what is text, and base64 for anything else"`
}

type readFileOut struct {
	Path     string `json:"path" jsonschema:"where symbolic links lead"`
	Content  string `json:"content"`
	Encoding string `json:"encoding" jsonschema:"utf-8 or base64"`
	Size     int64  `json:"size" jsonschema:"bytes of the whole file"`
	Mode     string `json:"mode"`
	Offset   int64  `json:"offset"`
	Next     int64  `json:"next,omitempty" jsonschema:"offset to read on at; none: this was the end"`
}

func (v readFileOut) text() string {
	if v.Next == 0 && v.Encoding == encodingText {
		return v.Content
	}
	note := fmt.Sprintf("[%s: %d bytes from byte %d of %d, %s", v.Path, max(v.Next, v.Size)-v.Offset, v.Offset, v.Size, v.Encoding)
	if v.Next > 0 {
		note = fmt.Sprintf("[%s: bytes %d to %d of %d, %s; read on with offset %d", v.Path, v.Offset, v.Next, v.Size, v.Encoding, v.Next)
	}
	return v.Content + "\n" + note + "]"
}

func (s *Server) readFile(ctx context.Context, _ *call, in readFileIn) (readFileOut, error) {
	if in.Limit == 0 {
		in.Limit = readUsual
	}
	if in.Offset < 0 || in.Limit < 1 || in.Limit > readMost {
		return readFileOut{}, isle.Errorf(isle.Invalid, "%d bytes from byte %d on: want 1 to %d bytes, from 0 on", in.Limit, in.Offset, readMost)
	}
	ctx, cancel := context.WithTimeout(ctx, fileCall)
	defer cancel()
	at := in.Path
	for range linksMost {
		h, b, err := s.fetch(ctx, &islev1.CopyOutRequest{Environment: in.Environment, Service: in.Service, Path: at}, in.Offset, in.Limit)
		switch {
		case err != nil:
			return readFileOut{}, err
		case h.Typeflag == tar.TypeSymlink && path.IsAbs(h.Linkname):
			at = path.Clean(h.Linkname)
		case h.Typeflag == tar.TypeSymlink:
			at = path.Join(path.Dir(path.Clean(at)), h.Linkname)
		case h.Typeflag == tar.TypeReg:
			return piece(in, at, h, b), nil
		case h.Typeflag == tar.TypeDir:
			return readFileOut{}, isle.Errorf(isle.Invalid, "%s is a folder", at).WithHint("list_files lists it")
		default:
			return readFileOut{}, isle.Errorf(isle.Invalid, "%s is no file", at)
		}
	}
	return readFileOut{}, isle.Errorf(isle.Invalid, "%s leads through more than %d symbolic links", in.Path, linksMost)
}

// piece is what was read of a file. Text ends with a whole character where the
// file goes on.
func piece(in readFileIn, at string, h *tar.Header, b []byte) readFileOut {
	out := readFileOut{Path: at, Encoding: in.Encoding, Size: h.Size, Mode: fmt.Sprintf("%04o", h.Mode&0o7777), Offset: in.Offset}
	more := in.Offset+int64(len(b)) < h.Size
	whole := b
	if k := runeEnd(b); more && k > 0 {
		whole = b[:k]
	}
	if out.Encoding == "" {
		out.Encoding = encodingBase64
		if utf8.Valid(whole) && bytes.IndexByte(whole, 0) < 0 {
			out.Encoding = encodingText
		}
	}
	if out.Encoding == encodingText {
		b = whole
		out.Content, _ = asText(b)
	} else {
		out.Content = base64.StdEncoding.EncodeToString(b)
	}
	if end := in.Offset + int64(len(b)); end < h.Size {
		out.Next = end
	}
	return out
}

// errEnough ends a transfer of which no more is wanted.
var errEnough = errors.New("no more is wanted")

// fetch returns what is at a path, and a piece of it if it is a file.
func (s *Server) fetch(ctx context.Context, req *islev1.CopyOutRequest, offset int64, n int) (*tar.Header, []byte, error) {
	if !path.IsAbs(req.GetPath()) {
		return nil, nil, isle.Errorf(isle.Invalid, "%q is no path inside: want an absolute one", clip(req.GetPath(), 200))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends with the stream, or when r is closed
		err := s.cfg.Services.CopyOut(ctx, req, w)
		w.CloseWithError(err)
		done <- err
	}()
	h, b, err := firstOf(r, offset, n)
	r.CloseWithError(errEnough)
	cancel()
	if serr := <-done; err != nil && serr != nil && !errors.Is(serr, errEnough) && !errors.Is(serr, context.Canceled) {
		err = serr // why the stream ended is the better reason
	}
	return h, b, err
}

// firstOf reads the first entry of a tar stream, which comes from inside.
func firstOf(r io.Reader, offset int64, n int) (*tar.Header, []byte, error) {
	t := tar.NewReader(r)
	h, err := t.Next()
	if errors.Is(err, io.EOF) {
		return nil, nil, isle.Errorf(isle.NotFound, "there is nothing that can be read")
	}
	if err != nil {
		return nil, nil, isle.Errorf(isle.Unavailable, "what came from inside cannot be read: %w", err)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil, isle.Errorf(isle.Invalid, "it is neither file, folder nor link, or cannot be opened").WithHint("see what `ls -l` of exec says of it")
	}
	if h.Typeflag != tar.TypeReg {
		return h, nil, nil
	}
	if _, err := io.CopyN(io.Discard, t, min(offset, h.Size)); err != nil {
		return nil, nil, isle.Errorf(isle.Unavailable, "what came from inside cannot be read: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(t, int64(n)))
	if err != nil {
		return nil, nil, isle.Errorf(isle.Unavailable, "what came from inside cannot be read: %w", err)
	}
	return h, b, nil
}

type listFilesIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Service     string `json:"service,omitempty" jsonschema:"left out, it is the first that the file declares"`
	Path        string `json:"path" jsonschema:"absolute path inside; of what is no folder it lists that"`
	After       string `json:"after,omitempty" jsonschema:"only names after this one: what next of the last result was"`
	Limit       int    `json:"limit,omitempty" jsonschema:"names to list at most, 2000 at most; left out, it is 500"`
}

type file struct {
	Name     string `json:"name"`
	Type     string `json:"type" jsonschema:"file, dir, link or other"`
	Size     int64  `json:"size,omitempty" jsonschema:"bytes of a file"`
	Mode     string `json:"mode"`
	Modified string `json:"modified"`
	Target   string `json:"target,omitempty" jsonschema:"where a link leads"`
}

type listFilesOut struct {
	Path  string `json:"path"`
	Files []file `json:"files"`
	Total int    `json:"total" jsonschema:"names in the folder"`
	Next  string `json:"next,omitempty" jsonschema:"there are more: list them with after"`
}

func (v listFilesOut) text() string {
	var b strings.Builder
	for _, f := range v.Files {
		name := oneLine(f.Name)
		switch f.Type {
		case initproto.TypeDir:
			name += "/"
		case initproto.TypeLink:
			name += " -> " + oneLine(f.Target)
		}
		fmt.Fprintf(&b, "%s %10d %s %s\n", f.Mode, f.Size, f.Modified, name)
	}
	if v.Next != "" {
		fmt.Fprintf(&b, "[%d of %d; go on with after %q]", len(v.Files), v.Total, v.Next)
	} else if len(v.Files) == 0 {
		b.WriteString("there is nothing")
	}
	return b.String()
}

// What is listed of a folder at once.
const (
	filesUsual = 500
	filesMost  = 2000
)

func (s *Server) listFiles(ctx context.Context, _ *call, in listFilesIn) (listFilesOut, error) {
	if in.Limit == 0 {
		in.Limit = filesUsual
	}
	if in.Limit < 1 || in.Limit > filesMost {
		return listFilesOut{}, isle.Errorf(isle.Invalid, "%d names: want 1 to %d", in.Limit, filesMost)
	}
	if !path.IsAbs(in.Path) {
		return listFilesOut{}, isle.Errorf(isle.Invalid, "%q is no path inside: want an absolute one", clip(in.Path, 200))
	}
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	list, err := s.cfg.Services.ListFiles(ctx, &islev1.ListFilesRequest{Environment: in.Environment, Service: in.Service, Path: in.Path})
	if err != nil {
		return listFilesOut{}, err
	}
	out := listFilesOut{Path: path.Clean(in.Path), Files: []file{}, Total: len(list)}
	for _, f := range list {
		if in.After != "" && f.GetName() <= in.After {
			continue
		}
		if len(out.Files) == in.Limit {
			out.Next = out.Files[in.Limit-1].Name
			break
		}
		out.Files = append(out.Files, file{f.GetName(), f.GetType(), f.GetSize(), fmt.Sprintf("%04o", f.GetMode()), f.GetTime().AsTime().Format(time.RFC3339), f.GetTarget()})
	}
	return out, nil
}

type writeFileIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Service     string `json:"service,omitempty" jsonschema:"left out, it is the first that the file declares"`
	Path        string `json:"path" jsonschema:"absolute path inside"`
	Content     string `json:"content" jsonschema:"all of the file, at most 2097152 bytes"`
	Encoding    string `json:"encoding,omitempty" jsonschema:"of content; left out, it is utf-8"`
	Mode        string `json:"mode,omitempty" jsonschema:"permissions in octal, for example 0755; left out, it is 0644"`
}

type writeFileOut struct {
	Path string `json:"path"`
	Size int64  `json:"size" jsonschema:"bytes"`
	Mode string `json:"mode"`
}

func (v writeFileOut) text() string { return fmt.Sprintf("wrote %d bytes to %s", v.Size, v.Path) }

func (s *Server) writeFile(ctx context.Context, _ *call, in writeFileIn) (writeFileOut, error) {
	content := []byte(in.Content)
	if in.Encoding == encodingBase64 {
		var err error
		if content, err = base64.StdEncoding.DecodeString(in.Content); err != nil {
			return writeFileOut{}, isle.Errorf(isle.Invalid, "the content is not in base64: %w", err)
		}
	}
	if len(content) > writeMost {
		return writeFileOut{}, isle.Errorf(isle.Invalid, "the content has %d bytes, at most %d", len(content), writeMost).WithHint("write it in parts and join them with exec, or give the file to run as one of its copies")
	}
	at := path.Clean(in.Path)
	if !path.IsAbs(in.Path) || at == "/" || strings.HasSuffix(in.Path, "/") || strings.ContainsRune(in.Path, 0) {
		return writeFileOut{}, isle.Errorf(isle.Invalid, "%q is no path of a file inside: want an absolute one", clip(in.Path, 200))
	}
	mode := uint64(0o644)
	if in.Mode != "" {
		var err error
		if mode, err = strconv.ParseUint(in.Mode, 8, 32); err != nil || mode > 0o777 {
			return writeFileOut{}, isle.Errorf(isle.Invalid, "mode %q: want permissions in octal, for example 0755", clip(in.Mode, 20))
		}
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Base(at), Size: int64(len(content)), Mode: int64(mode), ModTime: s.clock().Truncate(time.Second)})
	if err == nil {
		_, err = t.Write(content)
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return writeFileOut{}, isle.Errorf(isle.Invalid, "%q cannot be sent: %w", clip(in.Path, 200), err)
	}
	ctx, cancel := context.WithTimeout(ctx, fileCall)
	defer cancel()
	if err := s.cfg.Services.CopyIn(ctx, &islev1.CopyInStart{Environment: in.Environment, Service: in.Service, Dir: path.Dir(at)}, &b); err != nil {
		return writeFileOut{}, err
	}
	return writeFileOut{at, int64(len(content)), fmt.Sprintf("%04o", mode)}, nil
}
