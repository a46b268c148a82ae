package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"isle/internal/mcp"
)

func newMCP(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "mcp",
		Short: "Let a coding agent use Isle (Model Context Protocol, on stdio)",
		Long: `Serve the Model Context Protocol on standard input and output, for a coding agent that
starts this command. The agent gets tools to launch environments, to run commands in
them, to read and write files inside, and to ask for access. It acts as you: under the
same policy, and in the same log. ISLE_SERVER, ISLE_PIN and ISLE_TOKEN_FILE let it be
a machine of its own, which the log tells from you and policy may let do less.

What the agent is to run:  {"mcpServers": {"isle": {"command": "isle", "args": ["mcp"]}}}`,
		Example: `  claude mcp add isle -- isle mcp
  codex mcp add isle -- isle mcp
  gemini mcp add isle isle mcp`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			agent := newAgent(a)
			defer agent.close()
			server := mcp.New(mcp.Config{
				Projects: agent, Environments: agent, Services: agent, Forks: agent, Access: agent, Version: version(),
				Log: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
			})
			return server.Serve(cmd.Context(), a.stdin, a.stdout)
		},
	}
}
