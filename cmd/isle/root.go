package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	"isle/internal/server"
)

// The exit codes. exec, shell and run pass the command's own code through.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitRefused  = 3 // by policy
	exitAwaiting = 4 // a human's approval
)

// An app is one run of the command line: where it reads and writes, and what
// the global flags say.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer

	state   string // --state
	address string // --server
	output  string // -o: "text" or "json"

	client *api.Client // made by connect
}

// An exitError ends the program with the code of a command that ran, without
// another word.
type exitError int

func (e exitError) Error() string { return "the command failed" }

// run is the program. It returns the exit code.
func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(subtractions(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	return a.finish(ctx, err)
}

func newRoot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "isle",
		Short: "Sealed, reproducible environments from one file",
		Long: `Isle builds, launches, enters and tears down sealed environments.

One file, isle.yaml, says what an environment is made of. Its only network is an
airlock: nothing is reachable, in or out, but what the file grants. A server runs
them; isle starts one by itself when none answers.`,
		Example: `  isle init                    write an isle.yaml for this folder
  isle up                      build what is needed, launch, wait for health
  isle exec shop -- env        run a command inside
  isle run --packages python3 -- python3 -c 'print(1)'
  isle down shop               tear down; volumes are kept`,
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usagef("-o %s: want text or json", a.output)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.state, "state", environ("ISLE_STATE", server.DefaultState), "state folder of the local server (ISLE_STATE)")
	flags.StringVar(&a.address, "server", os.Getenv("ISLE_SERVER"), "unix socket or https://HOST:PORT of the server to speak to (ISLE_SERVER)")
	flags.StringVarP(&a.output, "output", "o", "text", "output: text or json")
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v", err).WithHint("see `%s --help`", c.CommandPath())
	})
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Environments:", []*cobra.Command{
			newUp(a), newRun(a), newFork(a), newSnapshot(a), newRestore(a), newTree(a), newLs(a), newStatus(a), newLogs(a), newExec(a), newShell(a), newCp(a), newDiff(a), newPortForward(a),
			newDoors(a), newConnect(a), newTTL(a), newDown(a),
		}},
		{"What they are made of:", []*cobra.Command{newInit(a), newConvert(a), newSchema(a), newLock(a), newBuild(a), newCache(a), newImage(a), newRelease(a), newPromote(a), newRollback(a), newDrift(a), newHistory(a), newVerify(a)}},
		{"Who may do what:", []*cobra.Command{newApply(a), newPolicy(a), newRole(a), newIdentity(a), newToken(a), newSecret(a), newApprovals(a), newRequest(a), newBreakGlass(a), newSessions(a), newAudit(a)}},
		{"The server:", []*cobra.Command{newServer(a), newMCP(a), newLogin(a), newLogout(a), newWhoami(a), newDoctor(a), newGC(a), newVersion(a)}},
	} {
		cmd.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.title
			cmd.AddCommand(c)
		}
	}
	cmd.SetHelpCommandGroupID("The server:")
	return cmd
}

// environ returns an environment variable's value, or fallback if it is unset
// or empty.
func environ(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// reference reads NAME[@STAGE] as the user gave it.
func reference(s string) (isle.Ref, error) {
	ref, err := isle.ParseRef(s)
	if err != nil {
		return isle.Ref{}, asUsage(err)
	}
	return ref, nil
}
