// Package build turns a spec.File and its Lock into images.
//
// Lock resolves Debian packages with their dependencies from an archive whose
// release signature is checked against the machine's keyring. Build fetches by
// hash, unpacks without maintainer scripts, adds what those would have made
// (users, CA bundle, linker cache), copies files and runs steps in a Sandbox
// without network; each result is a layer in the image store. A step's key
// covers everything that can change its output; a step whose key is known is
// not run again, and a miss names the input that changed. Verify builds again
// without the cache and names the first path that differs.
//
// The room declares the Sandbox it runs steps in; a driver implements it.
package build

import (
	"context"
	"io"
)

// A Sandbox runs one build step: the same isolation as a service, an empty
// network namespace, and a root that can be written.
type Sandbox interface {
	// RunStep runs the step to its end. It returns an *isle.Error with code
	// Failed if the command exits with another code than 0.
	RunStep(ctx context.Context, s Step) error
}

// A Step is one command at build time.
type Step struct {
	Layers  []string // paths of the layers' files, lowest first
	Upper   string   // an empty folder that receives the changes as an overlay upper: owners as seen inside, whiteouts as 0:0 devices
	Work    string   // an empty folder beside it on the same file system
	Command []string
	Env     map[string]string
	Output  io.Writer // stdout and stderr
}

// Progress is called, one call at a time, as the work goes on.
type Progress func(Event)

// An Event is one line of progress.
type Event struct {
	Service string // "" for the whole
	Step    string // "resolve", "fetch", "packages", "system", "copy app/", "run python3 -m …"
	State   string // "start", "progress", "log", "cached", "done"
	Message string // for people; of "start" after a cache miss: the input that changed
	Done    int64  // bytes, of "progress"
	Total   int64
}
