package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// receiveFile writes what a stream brings as a file of this user's alone, whole or
// not at all, and returns its size in bytes.
func receiveFile(stream *connect.ServerStreamForClient[islev1.Chunk], path string) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return 0, isle.Errorf(isle.Unavailable, "cannot write %s: %w", path, cause(err))
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	for stream.Receive() {
		n, err := f.Write(stream.Msg().GetData())
		if size += int64(n); err != nil {
			return size, isle.Errorf(isle.Exhausted, "cannot write %s: %w", path, cause(err))
		}
	}
	if err := stream.Err(); err != nil {
		return size, err
	}
	if err := errors.Join(f.Sync(), os.Rename(f.Name(), path)); err != nil {
		return size, isle.Errorf(isle.Exhausted, "cannot write %s: %w", path, err)
	}
	return size, nil
}

// saveFile writes what a stream brings as a file, and says so. next is the command
// that takes the file, without its name.
func (a *app) saveFile(stream *connect.ServerStreamForClient[islev1.Chunk], path, next string) error {
	defer stream.Close()
	size, err := receiveFile(stream, path)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(map[string]any{"file": path, "size": size})
	}
	_, err = fmt.Fprintf(a.stdout, "%s has %s; %s %s\n", path, bytesText(size), next, path)
	return err
}
