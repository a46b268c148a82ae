package debian

import (
	"context"
	"os"

	"isle"
	"isle/internal/spec"
)

// UnpackOptions change how Unpack works.
type UnpackOptions struct {
	// Spool is the folder in which the Tree keeps the packages' files, some
	// three times the packages' size, until it is closed. "" is the system's
	// temporary folder. A crash leaves a folder "unpack-…" in it.
	Spool string
	// Progress is called, one call at a time, with bytes of packages read.
	Progress func(done, total int64)
}

var _ = func(context.Context, []spec.LockedPackage, func(isle.Digest) (*os.File, error), UnpackOptions) {}
