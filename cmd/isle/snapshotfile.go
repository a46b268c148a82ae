package main

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newSnapshotVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify SNAPSHOT",
		Short: "Hash all of a snapshot again, and check its signature and parents",
		Args:  args(1, 1, "one snapshot"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Snapshots.VerifySnapshot(cmd.Context(), connect.NewRequest(&islev1.VerifySnapshotRequest{Snapshot: given[0]}))
			if err != nil {
				return err
			}
			defer stream.Close()
			if !stream.Receive() {
				return ended(stream.Err())
			}
			v := stream.Msg()
			if a.output == "json" {
				parents := v.GetParents()
				if parents == nil {
					parents = []string{}
				}
				return a.json(map[string]any{"snapshot": snapshotView(v.GetSnapshot()), "bytes": v.GetBytes(), "parents": parents, "gone": v.GetGone()})
			}
			s := v.GetSnapshot()
			fmt.Fprintf(a.stdout, "snapshot %s is what was sealed: %s hashed, signed by %s", shortDigest(s.GetDigest()), bytesText(v.GetBytes()), clean(s.GetSigner()))
			if n := len(v.GetParents()); n > 0 {
				fmt.Fprintf(a.stdout, ", and so are the manifests of its %d parents", n)
			}
			fmt.Fprintln(a.stdout)
			if v.GetGone() != "" {
				fmt.Fprintf(a.stdout, "  its parent %s is not here any more\n", shortDigest(v.GetGone()))
			}
			return nil
		},
	}
}

func newSnapshotExport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export SNAPSHOT FILE",
		Short: "Write a snapshot as one file",
		Long: `Write a snapshot as one file: all that was signed, volumes and memory. Whoever has the file
has the data, and with the memory every secret that a process held; keep it as such.`,
		Args: args(2, 2, "a snapshot and a file to write"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Snapshots.ExportSnapshot(cmd.Context(), connect.NewRequest(&islev1.ExportSnapshotRequest{Snapshot: given[0]}))
			if err != nil {
				return err
			}
			return a.saveFile(stream, given[1], "read it elsewhere with: isle snapshot import")
		},
	}
}

func newSnapshotImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Read what isle snapshot export wrote",
		Long: `Read a snapshot from a file. Nothing in the file is trusted: volumes are written anew from
the files in them, and memory is left out unless a key that this server trusts signed it
(isle snapshot trust). The snapshot keeps its digest and its stage.`,
		Args: args(1, 1, "one file to read"),
		RunE: func(cmd *cobra.Command, given []string) error {
			res, err := sendGiven(cmd.Context(), a, given[0], func(c *api.Client) *connect.ClientStreamForClient[islev1.Chunk, islev1.ImportSnapshotResponse] {
				return c.Snapshots.ImportSnapshot(cmd.Context())
			})
			if err != nil {
				return err
			}
			s := res.GetSnapshot()
			if err := a.showSnapshot(s, "imported"); err != nil || a.output == "json" {
				return err
			}
			if s.GetNoMemory() {
				fmt.Fprintf(a.stdout, "  its memory is left out: it is signed by %s, which this server does not trust\n", clean(s.GetSigner()))
			}
			if missing := missingImages(s); len(missing) > 0 {
				fmt.Fprintf(a.stdout, "  not here yet: the images of %s, which forks and restores need. In the folder of project %s, with the lock of then:\n", clean(strings.Join(missing, ", ")), clean(s.GetProject()))
				fmt.Fprintf(a.stdout, "    isle build; with no way to Debian's mirror, first isle lock export FILE where there is one, and here isle lock import FILE\n")
			}
			return nil
		},
	}
}

// missingImages are the services whose images the server does not have.
func missingImages(s *islev1.Snapshot) (services []string) {
	for _, i := range s.GetImages() {
		if i.GetMissing() {
			services = append(services, i.GetService())
		}
	}
	return services
}

func newSnapshotTrust(a *app) *cobra.Command {
	return newTrust(a, "List whose snapshots are trusted with memory, or add a server",
		"memory that it captured is restored\nhere, and whoever has that key decides what runs in it.",
		func(ctx context.Context, c *api.Client) ([]*islev1.SnapshotKey, error) {
			res, err := c.Snapshots.ListKeys(ctx, connect.NewRequest(&islev1.ListKeysRequest{}))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetKeys(), nil
		},
		func(ctx context.Context, c *api.Client, key string, remove bool) (*islev1.SnapshotKey, error) {
			res, err := c.Snapshots.TrustKey(ctx, connect.NewRequest(&islev1.TrustKeyRequest{Key: key, Remove: remove}))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetKey(), nil
		})
}
