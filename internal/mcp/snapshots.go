package mcp

import (
	"context"
	"fmt"
	"strings"
	"time"

	islev1 "isle/internal/api/isle/v1"
)

func (s *Server) addSnapshots() {
	add(s, tool{
		name: "snapshot", title: "Capture an environment's state", hint: adds,
		description: "Capture what an environment is now, while it goes on: its file, its images and what its volumes hold. Call it before a change that may go wrong; restore puts the environment back to it, and fork with at makes running copies of it. A snapshot never changes, and stays until a human removes it.",
	}, s.snapshot)
	add(s, tool{
		name: "snapshots", title: "List snapshots", hint: reads,
		description: "List the snapshots of one environment, or of all, the first one first, with the digests and tags that restore and fork know them by.",
	}, s.snapshots)
}

type snapshotIn struct {
	Environment string  `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Message     string  `json:"message,omitempty" jsonschema:"what to remember of it"`
	Tag         string  `json:"tag,omitempty" jsonschema:"a name for it, which no other snapshot has"`
	NoMemory    bool    `json:"no_memory,omitempty" jsonschema:"volumes only, also where processes could be captured: nothing that only a process holds is kept"`
	Timeout     float64 `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

// A captured is how a snapshot is shown.
type captured struct {
	Snapshot    string   `json:"snapshot" jsonschema:"its digest"`
	Tags        []string `json:"tags,omitempty"`
	Environment string   `json:"environment" jsonschema:"what was captured: NAME or NAME@STAGE"`
	Author      string   `json:"author"`
	Created     string   `json:"created,omitempty"`
	Message     string   `json:"message,omitempty"`
	Parent      string   `json:"parent,omitempty" jsonschema:"the digest of the snapshot before it"`
	Volumes     []string `json:"volumes,omitempty" jsonschema:"SERVICE:PATH each"`
	Memory      bool     `json:"memory,omitempty" jsonschema:"its processes are in it too"`
	Used        int64    `json:"used" jsonschema:"bytes on disk"`
	Untrusted   bool     `json:"untrusted,omitempty" jsonschema:"it came in a file that nobody whom this server trusts has signed"`
	Broken      string   `json:"broken,omitempty" jsonschema:"why it cannot be used"`
}

func capturedOf(s *islev1.Snapshot) captured {
	v := captured{
		Snapshot: s.GetDigest(), Tags: s.GetTags(), Environment: s.GetEnvironment(), Author: s.GetAuthor(), Message: clip(s.GetMessage(), 200), Parent: s.GetParent(),
		Memory: s.GetMemory() && !s.GetNoMemory(), Used: s.GetUsed(), Untrusted: !s.GetTrusted(), Broken: clip(s.GetBroken(), 500),
	}
	if t := s.GetCreated(); t != nil {
		v.Created = t.AsTime().Format(time.RFC3339)
	}
	for _, o := range s.GetVolumes() {
		v.Volumes = append(v.Volumes, o.GetService()+":"+o.GetPath())
	}
	return v
}

func (v captured) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "snapshot %s of %s", v.Snapshot, v.Environment)
	if len(v.Tags) > 0 {
		fmt.Fprintf(&b, ", tagged %s", oneLine(strings.Join(v.Tags, " ")))
	}
	if v.Created != "" {
		fmt.Fprintf(&b, ", made %s by %s", v.Created, oneLine(v.Author))
	}
	switch {
	case v.Broken != "":
		fmt.Fprintf(&b, ", cannot be used: %s", oneLine(v.Broken))
	case v.Untrusted:
		b.WriteString(", signed by nobody whom this server trusts")
	}
	if v.Message != "" {
		fmt.Fprintf(&b, ": %s", oneLine(v.Message))
	}
	return b.String()
}

func (s *Server) snapshot(ctx context.Context, c *call, in snapshotIn) (captured, error) {
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return captured{}, err
	}
	defer cancel()
	c.say("capturing %s", clip(oneLine(in.Environment), 80))
	v, err := s.cfg.Forks.Snapshot(ctx, &islev1.CreateSnapshotRequest{Environment: in.Environment, Message: in.Message, Tag: in.Tag, NoMemory: in.NoMemory})
	if err != nil {
		return captured{}, err
	}
	return capturedOf(v), nil
}

type snapshotsIn struct {
	Environment string `json:"environment,omitempty" jsonschema:"NAME or NAME@STAGE; left out, all"`
}

type snapshotsOut struct {
	Snapshots []captured `json:"snapshots"`
	LeftOut   int        `json:"left_out,omitempty" jsonschema:"how many earlier ones there are"`
}

func (v snapshotsOut) text() string {
	if len(v.Snapshots) == 0 {
		return "there are no snapshots"
	}
	var b strings.Builder
	if v.LeftOut > 0 {
		fmt.Fprintf(&b, "%d earlier ones are left out\n", v.LeftOut)
	}
	for _, s := range v.Snapshots {
		b.WriteString(s.text() + "\n")
	}
	return b.String()
}

func (s *Server) snapshots(ctx context.Context, _ *call, in snapshotsIn) (snapshotsOut, error) {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	list, err := s.cfg.Forks.Snapshots(ctx, in.Environment)
	if err != nil {
		return snapshotsOut{}, err
	}
	out := snapshotsOut{Snapshots: []captured{}, LeftOut: max(0, len(list)-listMost)}
	for _, v := range list[out.LeftOut:] { // the last are those that are looked for
		out.Snapshots = append(out.Snapshots, capturedOf(v))
	}
	return out, nil
}
