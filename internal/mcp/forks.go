package mcp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// forksMost is how many copies one call makes at most.
const forksMost = 64

func (s *Server) addForks() {
	add(s, tool{
		name: "fork", title: "Copy a running environment", hint: adds, outside: true,
		description: "Make independent running copies of an environment as it is now, or of a snapshot of it, each with volumes of its own. All copies of one call are of the same instant, and the environment goes on. Use it to try what may destroy data: work in the copy, then call down with volumes, or compare several copies.",
	}, s.fork)
	add(s, tool{
		name: "restore", title: "Bring back an earlier state", hint: destroys, outside: true,
		description: "Put an environment back to a snapshot of it: the environment is replaced and keeps its name, and what its volumes hold now is lost. snapshots lists them. To look at an earlier state beside the present one call fork with at instead.",
	}, s.restore)
	add(s, tool{
		name: "tree", title: "Show what was made of what", hint: reads,
		description: "Show the lineage of environments and snapshots: which environment is a copy of which, and which snapshots there are, with their digests, tags and messages.",
	}, s.tree)
}

type forkIn struct {
	From    string  `json:"from" jsonschema:"NAME or NAME@STAGE of what is copied, or a snapshot: its digest or a tag"`
	At      string  `json:"at,omitempty" jsonschema:"copy this snapshot of the environment, by its digest or a tag, instead of what runs"`
	Name    string  `json:"name,omitempty" jsonschema:"of the copy; of several, NAME-1, NAME-2 and so on; left out, names that are free"`
	Count   int     `json:"count,omitempty" jsonschema:"how many copies, 64 at most; left out, it is 1"`
	Cold    bool    `json:"cold,omitempty" jsonschema:"start services anew on the volumes, where the copies could go on from memory"`
	Minutes float64 `json:"minutes,omitempty" jsonschema:"end the copies by themselves after so long; left out, it is what the file says"`
	Timeout float64 `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

type forkOut struct {
	Environments []environment `json:"environments" jsonschema:"the copies"`
}

func (v forkOut) text() string {
	var lines []string
	for _, e := range v.Environments {
		lines = append(lines, e.text())
	}
	return strings.Join(lines, "\n")
}

func (s *Server) fork(ctx context.Context, c *call, in forkIn) (forkOut, error) {
	if in.Count == 0 {
		in.Count = 1
	}
	switch {
	case in.Count < 1 || in.Count > forksMost:
		return forkOut{}, isle.Errorf(isle.Invalid, "%d copies: want 1 to %d", in.Count, forksMost)
	case in.Minutes < 0 || in.Minutes > yearMinutes:
		return forkOut{}, isle.Errorf(isle.Invalid, "for %g minutes: want more than 0, and a year at most", in.Minutes)
	case in.Name != "" && !isle.ValidName(in.Name):
		return forkOut{}, isle.Errorf(isle.Invalid, "name %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", clip(in.Name, 60)).WithHint("try %s", isle.Slug(in.Name))
	}
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return forkOut{}, err
	}
	defer cancel()
	req := &islev1.ForkRequest{From: in.From, At: in.At, Name: in.Name, Count: int32(in.Count), Cold: in.Cold}
	if in.Minutes > 0 {
		req.Ttl = durationpb.New(time.Duration(in.Minutes * float64(time.Minute)))
	}
	c.say("copying %s", clip(oneLine(in.From), 80))
	list, err := s.cfg.Forks.Fork(ctx, req, c.event)
	if err != nil {
		return forkOut{}, err
	}
	out := forkOut{Environments: []environment{}}
	for _, e := range list {
		out.Environments = append(out.Environments, environmentOf(e))
	}
	return out, nil
}

type restoreIn struct {
	Environment string  `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	At          string  `json:"at" jsonschema:"a snapshot: its digest or a tag"`
	Cold        bool    `json:"cold,omitempty" jsonschema:"start services anew on the volumes, where the snapshot has memory"`
	Timeout     float64 `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

func (s *Server) restore(ctx context.Context, c *call, in restoreIn) (environment, error) {
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return environment{}, err
	}
	defer cancel()
	e, err := s.cfg.Forks.Restore(ctx, &islev1.RestoreRequest{Environment: in.Environment, At: in.At, Cold: in.Cold}, c.event)
	if err != nil {
		return environment{}, err
	}
	return environmentOf(e), nil
}

type treeIn struct {
	Environment string `json:"environment,omitempty" jsonschema:"only its ancestors and descendants; left out, all"`
}

type node struct {
	ID      string   `json:"id" jsonschema:"of an environment its instance, of a snapshot its digest"`
	Parent  string   `json:"parent,omitempty" jsonschema:"the id of what it was made of"`
	Kind    string   `json:"kind" jsonschema:"environment or snapshot"`
	Name    string   `json:"name" jsonschema:"NAME or NAME@STAGE; of a snapshot that of what it was taken of"`
	Gone    bool     `json:"gone,omitempty"`
	Phase   string   `json:"phase,omitempty"`
	Created string   `json:"created,omitempty"`
	Tags    []string `json:"tags,omitempty"`
	Message string   `json:"message,omitempty"`
}

type treeOut struct {
	Nodes   []node `json:"nodes" jsonschema:"each after what it was made of"`
	LeftOut int    `json:"left_out,omitempty" jsonschema:"how many more there are"`
}

func (v treeOut) text() string {
	if len(v.Nodes) == 0 {
		return "there is nothing"
	}
	depth := map[string]int{}
	var b strings.Builder
	for _, n := range v.Nodes {
		d := 0
		if parent, ok := depth[n.Parent]; ok && n.Parent != "" {
			d = parent + 1
		}
		depth[n.ID] = d
		fmt.Fprintf(&b, "%s%s %s", strings.Repeat("  ", min(d, 32)), n.Kind, n.Name)
		switch {
		case n.Gone:
			b.WriteString(", gone")
		case n.Phase != "":
			fmt.Fprintf(&b, ", %s", n.Phase)
		}
		if n.Kind == "snapshot" {
			fmt.Fprintf(&b, ", %s", n.ID)
		}
		if len(n.Tags) > 0 {
			fmt.Fprintf(&b, ", tagged %s", oneLine(strings.Join(n.Tags, " ")))
		}
		if n.Message != "" {
			fmt.Fprintf(&b, ": %s", oneLine(n.Message))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *Server) tree(ctx context.Context, _ *call, in treeIn) (treeOut, error) {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	list, err := s.cfg.Forks.Tree(ctx, in.Environment)
	if err != nil {
		return treeOut{}, err
	}
	out := treeOut{Nodes: []node{}, LeftOut: max(0, len(list)-listMost)}
	for _, n := range list[:min(len(list), listMost)] {
		v := node{ID: n.GetId(), Parent: n.GetParent(), Kind: n.GetKind(), Name: n.GetName(), Gone: n.GetGone(), Phase: n.GetPhase(), Tags: n.GetTags(), Message: clip(n.GetMessage(), 200)}
		if t := n.GetCreated(); t != nil {
			v.Created = t.AsTime().Format(time.RFC3339)
		}
		out.Nodes = append(out.Nodes, v)
	}
	return out, nil
}
