package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/spec"
)

func newImage(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Bring images in, take them out, and see which there are",
		Long: `Images from elsewhere, and those that were built here. An image is named as in
localhost/shop:1, where localhost is this server's own store, or by at least six
characters that begin its digest. docs/images.md has more.`,
		Example: `  docker save shop:1 -o shop.tar
  isle image import shop.tar       now: image: localhost/shop:1 in isle.yaml
  isle image inspect shop:1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageLs(a), newImageInspect(a), newImageImport(a), newImagePull(a), newImageExport(a), newImagePush(a), newImageRm(a))
	return cmd
}

type namedImageJSON struct {
	Name         string           `json:"name"`
	Digest       string           `json:"digest"`
	From         string           `json:"from"`
	Source       string           `json:"source,omitempty"`
	Architecture string           `json:"architecture"`
	Size         int64            `json:"size"`
	Time         *time.Time       `json:"time"`
	Layers       []layerJSON      `json:"layers,omitempty"`
	Config       *imageConfigJSON `json:"config,omitempty"`
	LeftOut      []string         `json:"left_out,omitempty"`
}

type imageConfigJSON struct {
	User       string            `json:"user"`
	Env        []string          `json:"env"`
	Entrypoint []string          `json:"entrypoint"`
	Cmd        []string          `json:"cmd"`
	Workdir    string            `json:"workdir"`
	Volumes    []string          `json:"volumes"`
	Ports      []string          `json:"ports"`
	Labels     map[string]string `json:"labels"`
	StopSignal string            `json:"stop_signal"`
}

func namedImageView(m *islev1.Image) namedImageJSON {
	out := namedImageJSON{
		Name: m.GetName(), Digest: m.GetDigest(), From: m.GetFrom(), Source: m.GetSource(), Architecture: m.GetArchitecture(),
		Size: m.GetSize(), Time: at(m.GetTime()), LeftOut: m.GetLeftOut(),
	}
	for _, l := range m.GetLayers() {
		out.Layers = append(out.Layers, layerJSON{l.GetDigest(), l.GetSize(), l.GetKind(), l.GetTitle()})
	}
	if c := m.GetConfig(); c != nil {
		out.Config = &imageConfigJSON{
			User: c.GetUser(), Env: some(c.GetEnv()), Entrypoint: some(c.GetEntrypoint()), Cmd: some(c.GetCmd()), Workdir: c.GetWorkdir(),
			Volumes: some(c.GetVolumes()), Ports: some(c.GetPorts()), Labels: c.GetLabels(), StopSignal: c.GetStopSignal(),
		}
		if out.Config.Labels == nil {
			out.Config.Labels = map[string]string{}
		}
	}
	return out
}

// some is a list that JSON does not show as null.
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func newImageLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the images that have names",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Named.ListImages(cmd.Context(), connect.NewRequest(&islev1.ListImagesRequest{}))
			if err != nil {
				return err
			}
			return showList(a, res.Msg.GetImages(), namedImageView, "image\tdigest\tsize\tfrom\tsince", func(m *islev1.Image) []string {
				return []string{m.GetName(), shortDigest(m.GetDigest()), bytesText(m.GetSize()), m.GetFrom(), ago(at(m.GetTime()))}
			})
		},
	}
}

func newImageInspect(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image's layers and how it is run",
		Args:  args(1, 1, "one image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Named.GetImage(cmd.Context(), connect.NewRequest(&islev1.GetImageRequest{Image: given[0]}))
			if err != nil {
				return err
			}
			v := namedImageView(res.Msg.GetImage())
			if a.output == "json" {
				return a.json(v)
			}
			return a.showImage(v)
		},
	}
}

func (a *app) showImage(v namedImageJSON) error {
	name := v.Name
	if name == "" {
		name = "(no name)"
	}
	fmt.Fprintf(a.stdout, "%s\n  digest %s, %s, %s, from %s %s\n", cleanLine(name), v.Digest, v.Architecture, bytesText(v.Size), cleanLine(v.From), ago(v.Time))
	if v.Source != "" {
		fmt.Fprintf(a.stdout, "  made of %s\n", v.Source)
	}
	if c := v.Config; c != nil {
		for _, f := range []struct {
			name   string
			values []string
		}{
			{"entrypoint", c.Entrypoint}, {"cmd", c.Cmd}, {"user", one(c.User)}, {"workdir", one(c.Workdir)}, {"env", c.Env},
			{"volumes", c.Volumes}, {"ports", c.Ports},
		} {
			if len(f.values) > 0 {
				fmt.Fprintf(a.stdout, "  %s: %s\n", f.name, cleanLine(strings.Join(f.values, " ")))
			}
		}
	}
	var rows [][]string
	for i, l := range v.Layers {
		rows = append(rows, []string{strconv.Itoa(i + 1), shortDigest(l.Digest), bytesText(l.Size), l.Kind, l.Title})
	}
	if err := table(a.stdout, "layer\tdigest\tsize\tkind\twhat", rows); err != nil {
		return err
	}
	for _, l := range v.LeftOut {
		fmt.Fprintf(a.stdout, "left out: %s\n", cleanLine(l))
	}
	return nil
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func newImageImport(a *app) *cobra.Command {
	req := &islev1.ImportImageRequest{}
	cmd := &cobra.Command{
		Use:   "import FILE|FOLDER",
		Short: "Make an image of an OCI layout or of what docker save wrote",
		Long: `Make an image of an OCI image layout, a folder or a tar file, or of what docker save,
podman save or skopeo wrote, compressed or not. Every layer is checked by its digests and
written anew as a layer of Isle's own. The image is called localhost/NAME:TAG, as the
archive says or --name. Devices and pipes are left out.`,
		Args: args(1, 1, "one file or folder to read"),
		RunE: func(cmd *cobra.Command, given []string) error {
			h, err := hashArchive(cmd.Context(), given[0])
			if err != nil {
				return err
			}
			req.Tree, req.File = h.source.GetTrees()[0].GetDigest(), filepath.Base(given[0])
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			m, err := importImage(cmd.Context(), c, h, req, show)
			show.close()
			if err != nil {
				return err
			}
			return a.imageMade(m)
		},
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "what to call it here: NAME[:TAG]")
	cmd.Flags().StringVar(&req.Image, "image", "", "which image of the archive, where it has several")
	return cmd
}

func (a *app) imageMade(m *islev1.Image) error {
	if a.output == "json" {
		return a.json(namedImageView(m))
	}
	fmt.Fprintf(a.stdout, "%s is image %s: %d layers, %s\n", cleanLine(m.GetName()), shortDigest(m.GetDigest()), len(m.GetLayers()), bytesText(m.GetSize()))
	for _, l := range m.GetLeftOut() {
		fmt.Fprintf(a.stderr, "left out: %s\n", cleanLine(l))
	}
	return nil
}

// importImage sends what the server lacks of an archive and has it read.
func importImage(ctx context.Context, c *api.Client, h *hashed, req *islev1.ImportImageRequest, show *progress) (*islev1.Image, error) {
	for range 4 {
		stream, err := c.Named.ImportImage(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		m, _, err := imageOf(stream, show)
		if err != nil || m != nil {
			return m, err
		}
		if err := h.send(ctx, c, show); err != nil {
			return nil, err
		}
	}
	return nil, isle.Errorf(isle.Conflict, "%s goes on changing while it is sent", req.GetFile()).WithHint("run the command again when it is at rest")
}

// imageOf follows a stream to its image, or to what the server needs first.
func imageOf(stream *connect.ServerStreamForClient[islev1.ImageEvent], show *progress) (*islev1.Image, *islev1.Need, error) {
	defer stream.Close()
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *islev1.ImageEvent_Progress:
			show.event(e.Progress)
		case *islev1.ImageEvent_Need:
			return nil, e.Need, nil
		case *islev1.ImageEvent_Image:
			return e.Image, nil, nil
		}
	}
	return nil, nil, ended(stream.Err())
}

func newImagePull(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch an image from a registry",
		Long: `Fetch an image for this machine's architecture from a registry: [REGISTRY/]NAME[:TAG][@DIGEST].
What broke off goes on where it was. A registry that wants a login gets the one that Docker's
configuration has for it, from a helper too; it goes to the server with this call and is not
kept. Files name the image as it is named here, and need no pull before: isle up does it.`,
		Args: args(1, 1, "one image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			defer show.close()
			req := &islev1.PullImageRequest{Image: given[0]}
			for {
				stream, err := c.Named.PullImage(cmd.Context(), connect.NewRequest(req))
				if err != nil {
					return err
				}
				m, need, err := imageOf(stream, show)
				if err != nil {
					return err
				}
				if m != nil {
					show.close()
					return a.imageMade(m)
				}
				if req.Credentials, err = registryLogins(cmd.Context(), req.Credentials, need.GetRegistries()); err != nil {
					return err
				}
			}
		},
	}
}

// hashArchive reads a file or folder, whatever is in it, as a copied tree.
func hashArchive(ctx context.Context, name string) (*hashed, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s: %w", name, err)
	}
	cache := fileCache()
	tree, files, err := spec.HashFiles(ctx, filepath.Dir(abs), filepath.Base(abs), cache)
	if err != nil {
		return nil, err
	}
	if cache != nil {
		_ = cache.Save() // without it the next run reads the files again
	}
	h := &hashed{source: &islev1.Source{}, content: map[isle.Digest]content{}}
	h.add("", name, "", tree, files)
	return h, nil
}

func newImagePush(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "push IMAGE REGISTRY/NAME:TAG",
		Short: "Give an image to a registry",
		Long: `Give an image to a registry, where podman, Docker, containerd and Kubernetes get it. What the
registry has already is not sent again. The login is that of Docker's configuration.`,
		Args: args(2, 2, "an image, and what to call it in a registry"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			defer show.close()
			req := &islev1.PushImageRequest{Image: given[0], To: given[1]}
			for {
				stream, err := c.Named.PushImage(cmd.Context(), connect.NewRequest(req))
				if err != nil {
					return err
				}
				m, need, err := imageOf(stream, show)
				if err != nil {
					return err
				}
				if m != nil {
					show.close()
					if a.output == "json" {
						return a.json(map[string]any{"image": m.GetDigest(), "to": given[1], "digest": m.GetSource()})
					}
					_, err := fmt.Fprintf(a.stdout, "%s is there as %s\n", clean(given[1]), m.GetSource())
					return err
				}
				if req.Credentials, err = registryLogins(cmd.Context(), req.Credentials, need.GetRegistries()); err != nil {
					return err
				}
			}
		},
	}
}

func newImageExport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export IMAGE FILE",
		Short: "Write an image as one file, for podman, Docker and others",
		Long: `Write an image as one tar file that is both an OCI layout and what docker load reads. The
same image gives the same bytes.`,
		Example: `  isle image export shop:1 shop.tar
  podman load -i shop.tar`,
		Args: args(2, 2, "an image and a file to write"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Named.ExportImage(cmd.Context(), connect.NewRequest(&islev1.ExportImageRequest{Image: given[0]}))
			if err != nil {
				return err
			}
			return a.saveFile(stream, given[1], "use it elsewhere with: podman load -i")
		},
	}
}

func newImageRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE…",
		Short: "Take away the names of images; isle gc frees what nothing needs then",
		Args:  args(1, -1, "at least one image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			out := []namedImageJSON{}
			for _, name := range given {
				res, err := c.Named.RemoveImage(cmd.Context(), connect.NewRequest(&islev1.RemoveImageRequest{Image: name}))
				if err != nil {
					return err
				}
				out = append(out, namedImageView(res.Msg.GetImage()))
				if a.output != "json" {
					fmt.Fprintf(a.stdout, "%s has no name any more\n", cleanLine(name))
				}
			}
			if a.output == "json" {
				return a.json(out)
			}
			return nil
		},
	}
}
