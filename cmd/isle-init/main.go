// Command isle-init is PID 1 of every service.
//
// It reads its orders (initproto.Boot) from file descriptor 3, or the one named
// by its argument, hides the secret
// in them, runs setup and the command with no more privileges than the service
// named, reaps what is orphaned, dials home and does there what the server asks
// (package initproto). It also listens on the socket of the service's Workload
// API, and carries what comes to it home. When the command has ended and the server knows, it ends
// with the command's exit code.
//
// The server may be away for as long as it likes: the command goes on, its last
// output is kept (initproto.LogBuffer bytes), and events wait. While the server
// is there and slower than the output, the command waits in its writes.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	boot := 3
	if len(os.Args) > 1 {
		boot, _ = strconv.Atoi(os.Args[1])
	}
	code, err := run(os.NewFile(uintptr(boot), "boot"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "isle-init:", err)
		code = 125
	}
	os.Exit(code)
}
