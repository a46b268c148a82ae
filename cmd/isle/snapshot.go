package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newSnapshot(a *app) *cobra.Command {
	req := &islev1.CreateSnapshotRequest{}
	cmd := &cobra.Command{
		Use:   "snapshot ENV",
		Short: "Capture what an environment is now, to fork or restore it later",
		Long: `Capture an environment as it is at one instant, while it goes on: its volumes, and of the
class gvisor its memory, processes and open files too. A snapshot is named by the digest of
all that it holds, at least six characters that begin it, or by a tag; it never changes, and
is signed. docs/snapshots.md has more.

An environment that is called as a command below is said with its stage: isle snapshot ls@testing.`,
		Example: `  isle snapshot shop -m 'before the migration' --tag before
  isle fork shop --at before
  isle diff before shop
  isle snapshot rm before`,
		Args: func(cmd *cobra.Command, given []string) error {
			if len(given) == 0 {
				return usagef("isle snapshot takes an environment, or a command").WithHint("isle snapshot ENV makes one, isle snapshot ls lists them; see `isle snapshot --help`")
			}
			return args(1, 1, "one environment")(cmd, given)
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			req.Environment = ref.String()
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := snapshot(cmd.Context(), c, req)
			if err != nil {
				return err
			}
			return a.showSnapshot(s, "made")
		},
	}
	cmd.Flags().StringVarP(&req.Message, "message", "m", "", "what to remember of it")
	cmd.Flags().StringVar(&req.Tag, "tag", "", "a name for it")
	cmd.Flags().BoolVar(&req.NoMemory, "no-memory", false, "volumes only, also of the class gvisor: no process, and no secret that only a process held")
	cmd.AddCommand(newSnapshotLs(a), newSnapshotShow(a), newSnapshotTag(a), newSnapshotUntag(a), newSnapshotRm(a), newSnapshotVerify(a),
		newSnapshotExport(a), newSnapshotImport(a), newSnapshotTrust(a))
	return cmd
}

// snapshot makes the call.
func snapshot(ctx context.Context, c *api.Client, req *islev1.CreateSnapshotRequest) (*islev1.Snapshot, error) {
	stream, err := c.Snapshots.CreateSnapshot(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if !stream.Receive() {
		return nil, ended(stream.Err())
	}
	return stream.Msg().GetSnapshot(), nil
}

type snapshotJSON struct {
	Digest      string               `json:"digest"`
	Tags        []string             `json:"tags"`
	Environment string               `json:"environment"`
	Stage       string               `json:"stage"`
	Project     string               `json:"project"`
	Instance    string               `json:"instance"`
	Isolation   string               `json:"isolation"`
	Author      string               `json:"author"`
	Created     *time.Time           `json:"created"`
	Message     string               `json:"message"`
	Parent      string               `json:"parent,omitempty"`
	Release     string               `json:"release,omitempty"`
	Generation  int64                `json:"generation"`
	Memory      *snapshotMemoryJSON  `json:"memory,omitempty"`
	Volumes     []snapshotVolumeJSON `json:"volumes"`
	Images      []snapshotImageJSON  `json:"images"`
	Used        int64                `json:"used"`
	Signer      string               `json:"signer"`
	Trusted     bool                 `json:"trusted"`
	Imported    bool                 `json:"imported"`
	Broken      string               `json:"broken,omitempty"`
	Warm        *snapshotWarmJSON    `json:"warm,omitempty"`
}

// A snapshotWarmJSON says of a ready state whose environments begin with it.
type snapshotWarmJSON struct {
	Key   string     `json:"key"`
	Owner string     `json:"owner"`
	Used  *time.Time `json:"used"`
}

type snapshotMemoryJSON struct {
	Runtime string `json:"runtime"`
	Size    int64  `json:"size"`
	LeftOut bool   `json:"left_out"`
}

type snapshotVolumeJSON struct {
	Service string `json:"service"`
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	Bytes   int64  `json:"bytes"`
	Digest  string `json:"digest"`
}

type snapshotImageJSON struct {
	Service string `json:"service"`
	Digest  string `json:"digest"`
	Missing bool   `json:"missing,omitempty"`
}

func (m *snapshotMemoryJSON) size() int64 {
	if m == nil { // of what is broken little is known
		return 0
	}
	return m.Size
}

func snapshotView(s *islev1.Snapshot) snapshotJSON {
	out := snapshotJSON{
		Digest: s.GetDigest(), Tags: s.GetTags(), Environment: s.GetEnvironment(), Stage: s.GetStage(), Project: s.GetProject(), Instance: s.GetInstance(),
		Isolation: s.GetIsolation(), Author: s.GetAuthor(), Created: at(s.GetCreated()), Message: s.GetMessage(), Parent: s.GetParent(), Release: s.GetRelease(),
		Generation: s.GetGeneration(), Volumes: []snapshotVolumeJSON{}, Images: []snapshotImageJSON{}, Used: s.GetUsed(), Signer: s.GetSigner(),
		Trusted: s.GetTrusted(), Imported: s.GetImported(), Broken: s.GetBroken(),
	}
	if out.Tags == nil {
		out.Tags = []string{}
	}
	if w := s.GetWarm(); w != nil {
		out.Warm = &snapshotWarmJSON{w.GetKey(), w.GetOwner(), at(w.GetUsed())}
	}
	if s.GetMemory() {
		out.Memory = &snapshotMemoryJSON{s.GetRuntime(), s.GetMemoryBytes(), s.GetNoMemory()}
	}
	for _, v := range s.GetVolumes() {
		out.Volumes = append(out.Volumes, snapshotVolumeJSON{v.GetService(), v.GetPath(), v.GetSize(), v.GetBytes(), v.GetDigest()})
	}
	for _, i := range s.GetImages() {
		out.Images = append(out.Images, snapshotImageJSON{i.GetService(), i.GetDigest(), i.GetMissing()})
	}
	return out
}

// showSnapshot says what was done with a snapshot.
func (a *app) showSnapshot(s *islev1.Snapshot, done string) error {
	if a.output == "json" {
		return a.json(snapshotView(s))
	}
	what := fmt.Sprintf("snapshot %s of %s is %s: %s on disk", shortDigest(s.GetDigest()), s.GetEnvironment(), done, bytesText(s.GetUsed()))
	if len(s.GetTags()) > 0 {
		what += ", tagged " + strings.Join(s.GetTags(), ", ")
	}
	_, err := fmt.Fprintln(a.stdout, what)
	return err
}

func newSnapshotLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [ENV]",
		Short: "List snapshots, the first one first",
		Args:  args(0, 1, "at most one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req := &islev1.ListSnapshotsRequest{}
			if len(given) > 0 {
				ref, err := reference(given[0])
				if err != nil {
					return err
				}
				req.Environment = ref.String()
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Snapshots.ListSnapshots(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			list := []snapshotJSON{}
			for _, s := range res.Msg.GetSnapshots() {
				list = append(list, snapshotView(s))
			}
			if a.output == "json" {
				return a.json(list)
			}
			var rows [][]string
			for _, s := range list {
				rows = append(rows, []string{shortDigest(s.Digest), strings.Join(s.Tags, ", "), s.Environment, ago(s.Created), bytesText(s.Used), s.holds(), s.trust(), s.Author, s.Message})
			}
			return table(a.stdout, "snapshot\ttags\tof\tmade\tsize\tholds\tsigned\tby\tmessage", rows)
		},
	}
}

// holds says what kind of state it is.
func (s snapshotJSON) holds() string {
	switch {
	case s.Warm != nil:
		return "warm, memory (" + bytesText(s.Memory.size()) + "), volumes"
	case s.Memory != nil && !s.Memory.LeftOut:
		return "memory (" + bytesText(s.Memory.Size) + "), volumes"
	case s.Memory != nil:
		return "volumes (memory left out)"
	}
	return "volumes"
}

// trust says in a word what is to be thought of it.
func (s snapshotJSON) trust() string {
	switch {
	case s.Broken != "":
		return "BROKEN"
	case s.Trusted:
		return "trusted"
	}
	return "unknown"
}

func newSnapshotShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show SNAPSHOT",
		Short: "Tell all of one snapshot",
		Args:  args(1, 1, "one snapshot"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Snapshots.GetSnapshot(cmd.Context(), connect.NewRequest(&islev1.GetSnapshotRequest{Snapshot: given[0]}))
			if err != nil {
				return err
			}
			s := snapshotView(res.Msg.GetSnapshot())
			if a.output == "json" {
				return a.json(s)
			}
			return a.describe(s)
		},
	}
}

// describe writes a snapshot for people.
func (a *app) describe(s snapshotJSON) error {
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(a.stdout, "%-12s%s\n", key, cleanLine(value))
		}
	}
	line("snapshot", s.Digest)
	line("tags", strings.Join(s.Tags, ", "))
	line("of", fmt.Sprintf("%s, project %s, isolation %s", s.Environment, s.Project, s.Isolation))
	if s.Created != nil {
		line("made", fmt.Sprintf("%s by %s", s.Created.Local().Format("2006-01-02 15:04:05"), s.Author))
	}
	line("message", s.Message)
	line("parent", s.Parent)
	if w := s.Warm; w != nil {
		line("warm", fmt.Sprintf("environments of %s begin with it; last used %s", w.Owner, ago(w.Used)))
	}
	line("release", s.Release)
	if s.Generation > 0 {
		line("generation", strconv.FormatInt(s.Generation, 10))
	}
	signed := "by " + s.Signer + ", which this server does not trust"
	if s.Trusted {
		signed = "by " + s.Signer
	}
	if s.Signer != "" {
		line("signed", signed)
	}
	line("size", bytesText(s.Used)+" on disk")
	if m := s.Memory; m != nil {
		text := bytesText(m.Size) + ", restored by the runtime " + m.Runtime
		if m.LeftOut {
			text = "left out: nobody who is trusted signed it"
		}
		line("memory", text)
	}
	for _, v := range s.Volumes {
		line("volume", fmt.Sprintf("%s:%s, %s of %s, %s", v.Service, v.Path, bytesText(v.Bytes), bytesText(v.Size), v.Digest))
	}
	for _, i := range s.Images {
		text := i.Service + ", " + i.Digest
		if i.Missing {
			text += ", not here: isle build makes it, in the project's folder as of then"
		}
		line("image", text)
	}
	if s.Imported {
		line("imported", "its volumes were written anew from the files in them; the digests are those of what was signed")
	}
	line("BROKEN", s.Broken)
	return nil
}

func newSnapshotTag(a *app) *cobra.Command {
	var move bool
	cmd := &cobra.Command{
		Use:   "tag SNAPSHOT TAG",
		Short: "Give a snapshot a name",
		Args:  args(2, 2, "a snapshot and a tag"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Snapshots.TagSnapshot(cmd.Context(), connect.NewRequest(&islev1.TagSnapshotRequest{Snapshot: given[0], Tag: given[1], Move: move}))
			if err != nil {
				return err
			}
			return a.showSnapshot(res.Msg.GetSnapshot(), "called "+given[1])
		},
	}
	cmd.Flags().BoolVar(&move, "move", false, "take the tag from the snapshot that has it")
	return cmd
}

func newSnapshotUntag(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "untag TAG",
		Short: "Take a name away from the snapshot that has it",
		Args:  args(1, 1, "one tag"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := c.Snapshots.UntagSnapshot(cmd.Context(), connect.NewRequest(&islev1.UntagSnapshotRequest{Tag: given[0]})); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"tag": given[0], "removed": true})
			}
			_, err = fmt.Fprintf(a.stdout, "nothing is called %s any more\n", clean(given[0]))
			return err
		},
	}
}

func newSnapshotRm(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm SNAPSHOT...",
		Short: "Remove snapshots with their data",
		Long: `Remove snapshots with their data and tags. One that an environment came from is
kept unless it is forced: the environment has all that it needs, and says from then on that
where it came from is gone. A later snapshot does not keep its parent.`,
		Args: args(1, -1, "one snapshot or more"),
		RunE: func(cmd *cobra.Command, given []string) error {
			removed, err := a.removeSnapshots(cmd.Context(), given, force)
			if a.output == "json" {
				if jerr := a.json(removed); err == nil {
					err = jerr
				}
				return err
			}
			for _, d := range removed {
				fmt.Fprintf(a.stdout, "snapshot %s is removed\n", shortDigest(d))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "although environments came from them")
	return cmd
}

// removeSnapshots removes those named, also after one that is not, and returns the
// first error.
func (a *app) removeSnapshots(ctx context.Context, names []string, force bool) (removed []string, err error) {
	removed = []string{}
	c, err := a.connect(ctx)
	if err != nil {
		return removed, err
	}
	for _, name := range names {
		res, rerr := c.Snapshots.RemoveSnapshot(ctx, connect.NewRequest(&islev1.RemoveSnapshotRequest{Snapshot: name, Force: force}))
		if rerr == nil {
			removed = append(removed, res.Msg.GetDigest())
		} else if err == nil {
			err = rerr
		}
	}
	return removed, err
}
