// Package checkpoint captures a gVisor sandbox while it runs.
//
// A sandbox is one user-space kernel with the containers of an environment in
// it. To capture it is to save its memory, and that of all its processes, to
// files in a folder, at one instant, after which it goes on. What runsc's
// restore makes of the files goes on from that instant, beside the first one or
// long after it.
//
// A capture asks the sandbox itself, over its control socket. The sandbox
// writes its kernel's state to a pipe, of which this process has the only other
// end, and at the same time its pages straight to a file. What it writes after
// the state's header it writes while every task in it is stopped and what it
// had for files outside is in their file systems; and it does not go on before
// all of it has been read. So what holds the sandbox is that nobody reads on,
// and when this process dies, even by kill -9, the write fails: to the sandbox
// that is a checkpoint which did not succeed, and it goes on.
package checkpoint

// The files of a captured sandbox, as runsc names them and its restore finds
// them.
const (
	stateFile = "checkpoint.img"
	metaFile  = "pages_meta.img"
	pagesFile = "pages.img"
)
