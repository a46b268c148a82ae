package main

import (
	"context"
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

type imageJSON struct {
	Service string      `json:"service"`
	Digest  string      `json:"digest"`
	Size    int64       `json:"size"`
	Layers  []layerJSON `json:"layers"`
}

type layerJSON struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Kind   string `json:"kind"`
	Title  string `json:"title"`
}

func newBuild(a *app) *cobra.Command {
	req := &islev1.BuildRequest{}
	var explain bool
	var profiles, secrets []string
	cmd := &cobra.Command{
		Use:   "build [DIR|FILE]",
		Short: "Build the images of a file without launching them",
		Long: `Build the images of a file. The same lock gives the same digests, on any machine:
--verify builds again without the cache and names the first path that differs.
--explain tells of each step whether it was found or made, and which input changed.`,
		Args: args(0, 1, "at most one folder or file"),
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := readProject(first(given), profiles...)
			if err != nil {
				return err
			}
			if p.secrets, err = parseSecrets(secrets); err != nil {
				return err
			}
			a.tell(p)
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			x := &explanation{}
			show.also = x.take
			res, err := buildProject(cmd.Context(), c, p, req, show)
			show.close()
			if err != nil {
				return err
			}
			if explain {
				return a.showExplanation(x)
			}
			return a.showBuild(res, req.Verify)
		},
	}
	f := cmd.Flags()
	addProfiles(cmd, &profiles)
	addSecrets(cmd, &secrets)
	f.BoolVar(&req.Verify, "verify", false, "build again without the cache and compare")
	f.BoolVar(&explain, "explain", false, "tell of each step whether it was found in the cache, and why not")
	f.BoolVar(&req.NoCache, "no-cache", false, "build every step again")
	f.BoolVar(&req.Locked, "locked", false, "fail if the lock would change, and answer no step what it does not have; --frozen is the same")
	f.SetNormalizeFunc(frozen)
	f.StringVar(&req.Mirror, "mirror", "", "base URL of the Debian mirror (default: the server's)")
	return cmd
}

// frozen makes --frozen another name of --locked.
func frozen(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "frozen" {
		name = "locked"
	}
	return pflag.NormalizedName(name)
}

// buildProject builds what is on disk and writes its lock.
func buildProject(ctx context.Context, c *api.Client, p *project, req *islev1.BuildRequest, show *progress) (*islev1.BuildResult, error) {
	show.lock = p.writeLock
	for range 4 {
		h, err := p.hash(ctx)
		if err != nil {
			return nil, err
		}
		req.Source = h.source
		if req.Source.Secrets, err = p.secretValues(); err != nil {
			return nil, err
		}
		res, need, err := buildOnce(ctx, c, req, show)
		if err != nil {
			return nil, err
		}
		if res != nil {
			return res, p.writeLock(res.GetLock())
		}
		if err := p.meet(ctx, c, h, need, show); err != nil {
			return nil, err
		}
	}
	return nil, isle.Errorf(isle.Conflict, "the files go on changing while they are sent").WithHint("run `isle build` again when they are at rest")
}

// buildOnce makes one call: it returns a result, or what the server needs
// first.
func buildOnce(ctx context.Context, c *api.Client, req *islev1.BuildRequest, show *progress) (*islev1.BuildResult, *islev1.Need, error) {
	stream, err := c.Images.Build(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, nil, err
	}
	m, err := conclusion(stream, false, show)
	return m.GetResult(), m.GetNeed(), err
}

func (a *app) showBuild(res *islev1.BuildResult, verified bool) error {
	if a.output == "json" {
		out := []imageJSON{}
		for _, m := range res.GetImages() {
			v := imageJSON{m.GetService(), m.GetDigest(), m.GetSize(), []layerJSON{}}
			for _, l := range m.GetLayers() {
				v.Layers = append(v.Layers, layerJSON{l.GetDigest(), l.GetSize(), l.GetKind(), l.GetTitle()})
			}
			out = append(out, v)
		}
		return a.json(out)
	}
	var rows [][]string
	for _, m := range res.GetImages() {
		rows = append(rows, []string{m.GetService(), m.GetDigest(), bytesText(m.GetSize()), strconv.Itoa(len(m.GetLayers()))})
	}
	if err := table(a.stdout, "service\timage\tsize\tlayers", rows); err != nil {
		return err
	}
	if verified {
		fmt.Fprintln(a.stdout, "verified: built again without the cache, every layer is the same bit for bit")
	}
	return nil
}
