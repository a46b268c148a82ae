package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"isle"
	"isle/internal/image"
)

// recipe is the version of how steps are done, apart from the image format:
// raise it when the same inputs give other layers.
const recipe = 1

// inputs are everything that can change what a step makes. The digest of their
// JSON is the step's key.
type inputs struct {
	Recipe       int               `json:"recipe"`
	Format       int               `json:"format"` // of images
	Kind         string            `json:"kind"`   // "packages", "image", "paths", "copy", "run"
	Architecture string            `json:"architecture"`
	Parents      []isle.Digest     `json:"parents,omitempty"` // layers below, lowest first
	Packages     []packageInput    `json:"packages,omitempty"`
	Paths        []string          `json:"paths,omitempty"`
	From         string            `json:"from,omitempty"`
	Local        bool              `json:"local,omitempty"` // Tree is of an image of the store, and no registry's
	To           string            `json:"to,omitempty"`
	Tree         isle.Digest       `json:"tree,omitempty"`
	Command      []string          `json:"command,omitempty"`
	Env          map[string]string `json:"env,omitempty"`

	// Of a Dockerfile.
	User      string        `json:"user,omitempty"`
	Dir       string        `json:"dir,omitempty"`
	Script    string        `json:"script,omitempty"`
	Mounts    []mountInput  `json:"mounts,omitempty"`
	Network   *networkInput `json:"network,omitempty"` // of the recorded network; nil: none
	Copy      *copyInput    `json:"copy,omitempty"`
	Materials []isle.Digest `json:"materials,omitempty"` // layers of another stage or image that is copied from

	// What the step is found again by in another build, and no part of its key.
	Stage   string      `json:"stage,omitempty"`
	Context isle.Digest `json:"context,omitempty"` // the whole tree that Tree is of
}

// mountInput is what of a mount can change a step's layer. What a secret or a cache
// holds is no part of it and should change nothing; but nobody can know, so what a
// step made with one is found again in its project alone.
type mountInput struct {
	Type      string        `json:"type"`
	Project   string        `json:"project,omitempty"` // of cache and secret: whose it is
	Target    string        `json:"target,omitempty"`
	ReadOnly  bool          `json:"read_only,omitempty"`
	Path      string        `json:"path,omitempty"`
	ID        string        `json:"id,omitempty"`
	Env       string        `json:"env,omitempty"`
	Size      int64         `json:"size,omitempty"`
	Mode      uint32        `json:"mode,omitempty"`
	UID       uint32        `json:"uid,omitempty"`
	GID       uint32        `json:"gid,omitempty"`
	Tree      isle.Digest   `json:"tree,omitempty"` // of the context
	Materials []isle.Digest `json:"materials,omitempty"`
}

type packageInput struct {
	Name    string      `json:"name"`
	Version string      `json:"version"`
	Digest  isle.Digest `json:"digest"`
}

func (in inputs) key() isle.Digest {
	in.Stage, in.Context = "", ""
	if in.Copy != nil { // it has all of From but a stage's name, which changes nothing
		in.From = ""
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err) // strings and integers only
	}
	return isle.DigestOf(b)
}

// A record says what was made of what.
type record struct {
	Inputs inputs        `json:"inputs"`
	Layers []image.Layer `json:"layers"`
	Empty  bool          `json:"empty,omitempty"` // nothing was to be done, and there is no layer
}

// lookup returns the layers that were made with the key, if all of them are
// still in the store. A layer that is there with other bytes is an error and no
// miss: someone wrote to the state folder, and that must not pass unseen.
func (b *Builder) lookup(key isle.Digest) ([]image.Layer, bool, error) {
	var r record
	if !readJSON(b.recordPath(key), &r) || r.Inputs.key() != key || (len(r.Layers) == 0) != r.Empty {
		return nil, false, nil
	}
	for _, l := range r.Layers {
		switch _, err := b.Images.VerifyLayer(l); {
		case err != nil && isle.CodeOf(err) == isle.NotFound:
			return nil, false, nil
		case err != nil:
			return nil, false, err
		}
	}
	return r.Layers, true, nil
}

// note records a step after its layers are in the store.
func (b *Builder) note(in inputs, layers []image.Layer) error {
	return writeJSON(b.recordPath(in.key()), record{in, layers, len(layers) == 0})
}

func (b *Builder) recordPath(key isle.Digest) string {
	return filepath.Join(b.Cache, "steps", key.Hex()+".json")
}

// readJSON reports whether the file is there and could be read; what cannot is
// as good as missing, for everything in the cache can be made again.
func readJSON(name string, v any) bool {
	b, err := os.ReadFile(name)
	return err == nil && json.Unmarshal(b, v) == nil
}

// writeJSON writes a file whole or not at all. It is not synced: a record that
// a power cut takes is a step that is done again.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// To write what is there already would cost a build that has nothing to do
	// most of its time.
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return diskError("write the build's cache", err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".draft-")
	if err != nil {
		return diskError("write the build's cache", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return diskError("write the build's cache", err)
}

// diskError gives an error of the file system its code.
func diskError(what string, err error) error {
	var known *isle.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return isle.Errorf(isle.Exhausted, "no space left to %s: %w", what, err).WithHint("`isle gc` frees what nothing uses")
	case errors.Is(err, fs.ErrPermission):
		return isle.Errorf(isle.Internal, "%s: %w", what, err).WithHint("the server must run as root")
	}
	return isle.Errorf(isle.Internal, "%s: %w", what, err)
}
