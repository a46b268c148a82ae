package main

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

func newTree(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tree [ENV]",
		Short: "Draw what was made of what: environments, forks, snapshots",
		Long: `Draw environments and snapshots below what they were made of. What is gone and has
descendants is shown as gone. With ENV: only what it came of, and what came of it.`,
		Args: args(0, 1, "at most one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := first(given)
			if name != "" {
				if _, err := reference(name); err != nil {
					return err
				}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Forks.Tree(cmd.Context(), connect.NewRequest(&islev1.TreeRequest{Environment: name}))
			if err != nil {
				return err
			}
			nodes := res.Msg.GetNodes()
			if a.output == "json" {
				out := []nodeJSON{}
				for _, n := range nodes {
					out = append(out, nodeView(n))
				}
				return a.json(out)
			}
			fmt.Fprint(a.stdout, drawTree(nodes))
			return nil
		},
	}
}

type nodeJSON struct {
	ID      string     `json:"id"`
	Parent  string     `json:"parent,omitempty"`
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Project string     `json:"project"`
	Gone    bool       `json:"gone"`
	Phase   string     `json:"phase,omitempty"`
	Created *time.Time `json:"created,omitempty"`
	Tags    []string   `json:"tags,omitempty"`
	Message string     `json:"message,omitempty"`
}

func nodeView(n *islev1.TreeNode) nodeJSON {
	return nodeJSON{
		n.GetId(), n.GetParent(), n.GetKind(), n.GetName(), n.GetProject(), n.GetGone(), n.GetPhase(), at(n.GetCreated()), n.GetTags(), n.GetMessage(),
	}
}

// drawTree draws nodes, each of which comes after what it was made of.
func drawTree(nodes []*islev1.TreeNode) string {
	children := map[string][]*islev1.TreeNode{}
	for _, n := range nodes {
		children[n.GetParent()] = append(children[n.GetParent()], n)
	}
	var b strings.Builder
	var draw func(id, indent string)
	draw = func(id, indent string) {
		for i, n := range children[id] {
			branch, next := "├─ ", "│  "
			if i == len(children[id])-1 {
				branch, next = "└─ ", "   "
			}
			if id == "" {
				branch, next = "", ""
			}
			fmt.Fprintln(&b, indent+branch+nodeText(n))
			draw(n.GetId(), indent+next)
		}
	}
	draw("", "")
	return b.String()
}

// nodeText is the line of one node.
func nodeText(n *islev1.TreeNode) string {
	text := n.GetName()
	if n.GetKind() == "snapshot" {
		text = strings.Join(append([]string{"snapshot " + shortDigest(n.GetId())}, n.GetTags()...), " ")
	}
	if n.GetPhase() != "" {
		text += "  " + n.GetPhase()
	}
	if n.GetGone() {
		text += "  gone"
	}
	if n.GetCreated() != nil {
		text += "  " + span(time.Since(n.GetCreated().AsTime())) + " ago"
	}
	if n.GetMessage() != "" {
		text += "  " + n.GetMessage()
	}
	return cleanCell(text)
}
