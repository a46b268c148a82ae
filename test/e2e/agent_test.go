package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/rogpeppe/go-internal/testscript"
)

// agent is a coding agent that uses one tool of isle mcp, which it starts with
// the command line before the dashes: agent [ARG…] -- TOOL [JSON|@FILE]. What the
// tool says is the command's output, and with ! it fails.
func agent(ts *testscript.TestScript, neg bool, args []string) {
	at := 0
	for at < len(args) && args[at] != "--" {
		at++
	}
	if rest := len(args) - at; rest < 2 || rest > 3 {
		ts.Fatalf("usage: agent [ARG…] -- TOOL [JSON|@FILE]")
	}
	line, tool := append(args[:at:at], "mcp"), &mcp.CallToolParams{Name: args[at+1]}
	if at == 0 || strings.HasPrefix(args[0], "-") {
		line = append([]string{"isle"}, line...)
	}
	if len(args) == at+3 {
		text := args[at+2]
		if file, ok := strings.CutPrefix(text, "@"); ok {
			text = ts.ReadFile(file)
		}
		tool.Arguments = json.RawMessage(text)
	}
	program, err := exec.LookPath(line[0])
	if line[0] == "isle" {
		program, err = bin+"/isle", nil
	}
	ts.Check(err)
	cmd := exec.Command(program, line[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "ISLE_STATE", "ISLE_CHECKPOINTS", "ISLE_KEYS", "ISLE_SERVER", "ISLE_TOKEN_FILE", "XDG_STATE_HOME"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Stderr = ts.Stderr()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, nil).Connect(ctx, &mcp.CommandTransport{Command: cmd}, nil)
	ts.Check(err)
	defer session.Close()
	res, err := session.CallTool(ctx, tool)
	ts.Check(err)
	for _, c := range res.Content {
		if text, ok := c.(*mcp.TextContent); ok {
			ts.Stdout().Write([]byte(text.Text + "\n"))
		}
	}
	if res.IsError != neg {
		ts.Fatalf("%s: failed: %v", tool.Name, res.IsError)
	}
}
