package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
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
				shortDigest(r.Digest), v.GetLayers(), bytesText(v.GetBytes()), len(r.Attestations), clean(r.Signer))
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

type releaseKeyJSON struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	Own  bool   `json:"own"`
	PEM  string `json:"pem"`
}

func newReleaseTrust(a *app) *cobra.Command {
	var remove, pem bool
	cmd := &cobra.Command{
		Use:   "trust [KEY]",
		Short: "List whose releases are launched, or add a server",
		Long: `Without a key, list the keys whose signatures count, this server's own first. With the key
of another server, as that lists its own, trust it: what it released is launched here.
--remove ends that. --pem writes keys as other tools read them (SubjectPublicKeyInfo).`,
		Args: args(0, 1, "at most one key"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if remove && len(given) == 0 {
				return usagef("--remove needs a key, or its name")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if len(given) > 0 {
				res, err := c.Releases.TrustReleaseKey(cmd.Context(), connect.NewRequest(&islev1.TrustReleaseKeyRequest{Key: given[0], Remove: remove}))
				if err != nil {
					return err
				}
				k := res.Msg.GetKey()
				if a.output == "json" {
					return a.json(map[string]any{"name": k.GetName(), "key": k.GetKey(), "own": k.GetOwn(), "trusted": !remove})
				}
				word := "is trusted"
				if remove {
					word = "is trusted no more"
				}
				_, err = fmt.Fprintf(a.stdout, "%s %s\n", clean(k.GetName()), word)
				return err
			}
			res, err := c.Releases.ListReleaseKeys(cmd.Context(), connect.NewRequest(&islev1.ListReleaseKeysRequest{}))
			if err != nil {
				return err
			}
			if pem && a.output != "json" {
				for _, k := range res.Msg.GetKeys() {
					fmt.Fprint(a.stdout, pemOf(k.GetKey()))
				}
				return nil
			}
			return showList(a, res.Msg.GetKeys(), func(k *islev1.ReleaseKey) releaseKeyJSON {
				return releaseKeyJSON{k.GetName(), k.GetKey(), k.GetOwn(), pemOf(k.GetKey())}
			}, "\tkey", func(k *islev1.ReleaseKey) []string {
				if k.GetOwn() {
					return []string{"this server's", k.GetKey()}
				}
				return []string{"trusted", k.GetKey()}
			})
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "trust the key no more")
	cmd.Flags().BoolVar(&pem, "pem", false, "write the keys as PEM")
	return cmd
}
