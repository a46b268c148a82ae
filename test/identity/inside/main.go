// Command inside runs in a service and speaks to its Workload API: as programs
// do, with go-spiffe's client, and as what wants what is not its own. What it
// sees it says, one line each: what was tried, a tab, and what came of it. It
// never judges; the tests in the folder above do.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/status"
)

func main() {
	commands := map[string]func(args []string){
		"documents": documents, "watch": watch, "foreign": foreign, "garbage": garbage, "crowd": crowd, "slow": slow,
		"replace": replace, "serve": serve, "dial": dial, "last": last, "first": first, "idle": idle,
		"fetch": fetch,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: inside COMMAND, one of", len(commands))
		os.Exit(2)
	}
	commands[os.Args[1]](os.Args[2:])
}

// say says what came of something.
func say(what string, format string, args ...any) {
	fmt.Println(what + "\t" + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// code is the gRPC code of an error, by name.
func code(err error) string { return status.Code(err).String() }

func background() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}
