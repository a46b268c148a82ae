package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/release"
)

func newReleaseVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify RELEASE",
		Short: "Check all that a launch of a release would check, and its attestations",
		Args:  args(1, 1, "one release"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Releases.VerifyRelease(cmd.Context(), connect.NewRequest(&islev1.VerifyReleaseRequest{Release: given[0]}))
			if err != nil {
				return err
			}
			defer stream.Close()
			if !stream.Receive() {
				return ended(stream.Err())
			}
			v := stream.Msg()
			r := releaseView(v.GetRelease())
			if a.output == "json" {
				return a.json(map[string]any{"release": r, "layers": v.GetLayers(), "bytes": v.GetBytes()})
			}
			_, err = fmt.Fprintf(a.stdout, "release %s is what was sealed: %d layers of %s, %d attestations, signed by %s\n",
				shortDigest(r.Digest), v.GetLayers(), bytesText(v.GetBytes()), len(r.Attestations), cleanLine(r.Signer))
			return err
		},
	}
}

func newReleaseAttestation(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "attestation RELEASE provenance|sbom|DIGEST",
		Short: "Write a signed statement about a release: how it was built, or what is in it",
		Long: `Write a signed statement about a release as it is kept: an envelope of DSSE with a statement
of in-toto's. The one of kind provenance has SLSA provenance v1, the one of kind sbom an SPDX
2.3 document. The key to verify them with is shown by isle release trust --pem.`,
		Args: args(2, 2, "a release, and provenance, sbom or a digest"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Releases.GetAttestation(cmd.Context(), connect.NewRequest(&islev1.GetAttestationRequest{Release: given[0], Attestation: given[1]}))
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				if _, err := a.stdout.Write(stream.Msg().GetData()); err != nil {
					return err
				}
			}
			return stream.Err()
		},
	}
}

func newReleaseExport(a *app) *cobra.Command {
	req := &islev1.ExportReleaseRequest{}
	cmd := &cobra.Command{
		Use:   "export RELEASE FILE",
		Short: "Write a release as one file",
		Long: `Write a release as one file, with its signature, its lock and its attestations. isle verify
reads it without a server. Elsewhere isle release import takes it in, and the images are
built there from the same files, bit for bit, or come along with --layers.`,
		Args: args(2, 2, "a release and a file to write"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			req.Release = given[0]
			stream, err := c.Releases.ExportRelease(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.saveFile(stream, given[1], "read it elsewhere with: isle release import")
		},
	}
	cmd.Flags().BoolVar(&req.Layers, "layers", false, "with the layers of the images")
	return cmd
}

func newReleaseImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Read what isle release export wrote",
		Long: `Read a release from a file. Nothing of it is taken in unless a key that this server trusts
has signed it (isle release trust).`,
		Args: args(1, 1, "one file to read"),
		RunE: func(cmd *cobra.Command, given []string) error {
			res, err := sendGiven(cmd.Context(), a, given[0], func(c *api.Client) *connect.ClientStreamForClient[islev1.Chunk, islev1.ImportReleaseResponse] {
				return c.Releases.ImportRelease(cmd.Context())
			})
			if err != nil {
				return err
			}
			r := releaseView(res.GetRelease())
			if a.output == "json" {
				return a.json(r)
			}
			_, err = fmt.Fprintf(a.stdout, "release %s of %s is imported, signed by %s\n", shortDigest(r.Digest), cleanLine(r.Project), cleanLine(r.Signer))
			return err
		},
	}
}

// newVerify is a command of its own because it needs no server.
func newVerify(a *app) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "verify FILE --key KEY",
		Short: "Check the file of a release or of a history, without a server",
		Long: `Check all of a file that isle release export wrote: that the release has its digest, that a
key given has signed it and each attestation, that these are of it, and that the layers in
the file, if any, are its. Of one that isle history --prove wrote: that each entry is in the
log whose key is given, and the releases in it. No server is asked. isle release trust shows a
server's key for releases, isle audit key that of its log.`,
		Example: `  isle verify shop.release --key isle-releases/isle-x.internal+0a1b2c3d+Ab…
  isle verify shop.history --key isle-log/06j8…+0a1b2c3d+Ab… --key isle-releases/…`,
		Args: args(1, 1, "one file"),
		RunE: func(_ *cobra.Command, given []string) error {
			if len(keys) == 0 {
				return usagef("isle verify needs the key that must have signed: --key NAME+HASH+BASE64").WithHint("`isle release trust` on the server that made the release shows its key")
			}
			f, err := os.Open(given[0])
			if err != nil {
				return isle.Errorf(isle.NotFound, "cannot read %s: %w", given[0], cause(err))
			}
			defer f.Close()
			r := bufio.NewReaderSize(f, 1<<20)
			if begin, _ := r.Peek(512); release.IsBundle(begin) {
				v, err := release.VerifyBundle(r, keys)
				if err != nil {
					return err
				}
				return a.showProved(v)
			}
			v, err := release.VerifyFile(r, keys)
			if err != nil {
				return err
			}
			return a.showVerified(v)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "a key that is trusted; may be said again")
	return cmd
}

// showProved tells what stands in the file of a history.
func (a *app) showProved(p release.Proved) error {
	if a.output == "json" {
		entries, releases := p.Entries, []string{}
		if entries == nil {
			entries = []audit.Entry{}
		}
		for _, f := range p.Releases {
			releases = append(releases, string(f.Digest))
		}
		return a.json(map[string]any{
			"of": p.Of, "origin": p.Checkpoint.Origin, "size": p.Checkpoint.Size, "root": p.Checkpoint.Root.String(), "entries": entries, "releases": releases, "vouched": p.Vouched,
		})
	}
	fmt.Fprintf(a.stdout, "history of %s: %d entries are in the log %s of %d entries\n", cleanLine(p.Of), len(p.Entries), cleanLine(p.Checkpoint.Origin), p.Checkpoint.Size)
	for _, f := range p.Releases {
		fmt.Fprintf(a.stdout, "  release %s of %s is whole, signed by %s, with %d attestations\n", f.Digest.Short(), cleanLine(f.Manifest.Project), cleanLine(f.Signer), len(f.Attestations))
	}
	_, err := fmt.Fprintf(a.stdout, "  %d attestations are those that entries name\n  what it is called, and that nothing was left out, is the word of who wrote it\n", p.Vouched)
	return err
}

// showVerified tells what stands in the file of a release.
func (a *app) showVerified(f release.File) error {
	if a.output == "json" {
		type statementJSON struct {
			Kind   string `json:"kind"`
			Digest string `json:"digest"`
			Commit string `json:"commit,omitempty"`
			Clean  bool   `json:"clean"`
		}
		statements := []statementJSON{}
		for _, t := range f.Attestations {
			statements = append(statements, statementJSON{t.Kind, string(t.Digest), t.Source.Commit, t.Source.Commit != "" && !t.Source.Dirty})
		}
		return a.json(map[string]any{
			"digest": f.Digest, "project": f.Manifest.Project, "signer": f.Signer, "attestations": statements, "layers": f.Layers, "bytes": f.Bytes,
		})
	}
	fmt.Fprintf(a.stdout, "release %s of %s is whole, signed by %s\n", f.Digest, cleanLine(f.Manifest.Project), cleanLine(f.Signer))
	for _, t := range f.Attestations {
		switch t.Kind {
		case release.Provenance:
			fmt.Fprintf(a.stdout, "  provenance: of %s\n", cleanLine(t.Source.String()))
		default:
			fmt.Fprintf(a.stdout, "  bill of materials: %s\n", t.Digest)
		}
	}
	if f.Layers > 0 {
		fmt.Fprintf(a.stdout, "  %d layers of %s are what it names\n", f.Layers, bytesText(f.Bytes))
	}
	return nil
}

func newReleaseTrust(a *app) *cobra.Command {
	return newTrust(a, "List whose releases are launched, or add a server",
		"what it released is launched here, and\nwhat its build steps made is built on (isle cache import).",
		func(ctx context.Context, c *api.Client) ([]*islev1.ReleaseKey, error) {
			res, err := c.Releases.ListReleaseKeys(ctx, connect.NewRequest(&islev1.ListReleaseKeysRequest{}))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetKeys(), nil
		},
		func(ctx context.Context, c *api.Client, key string, remove bool) (*islev1.ReleaseKey, error) {
			res, err := c.Releases.TrustReleaseKey(ctx, connect.NewRequest(&islev1.TrustReleaseKeyRequest{Key: key, Remove: remove}))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetKey(), nil
		})
}
