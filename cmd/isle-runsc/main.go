// Command isle-runsc is gVisor's OCI runtime: the kernel in user space that
// environments of the class "gvisor" run under.
//
// It is gVisor's own runsc, from its Go module at the version that go.mod pins,
// so that the class needs nothing installed and so that the build which a memory
// snapshot needs is known by its digest. It must be linked statically: as
// sandbox and gofer it starts itself again in namespaces that have no library.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() {
	giveForkIDs()
	maincli.Main()
}
