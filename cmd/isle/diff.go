package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

type changeJSON struct {
	Service string `json:"service"`
	Volume  string `json:"volume"`
	Path    string `json:"path"`
	Kind    string `json:"kind"`
	Size    int64  `json:"size"`
}

func newDiff(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "diff ENV [-s SERVICE] | diff A B [-s SERVICE]",
		Short: "List what changed in volumes, or what differs between two states",
		Long: `With one environment, list what changed in its volumes since they were filled: against what
'isle run --copy' put there, or against an empty volume. Nothing else can change:
roots are read-only. Bring changes back out with 'isle cp'.

With two, each an environment that runs, a snapshot or a release, list what differs in the
second: files of volumes, packages, and settings of isle.yaml. A snapshot that is called as
an environment is said as snapshot:NAME.

Of releases, which are named by their digest or by a stage that points at them, layers and
files of images are compared, packages, and what isle.yaml and the stage's values say: doors,
limits and schema too. NAME@STAGE is the release beside another release, and else the
environment, where it runs; release:NAME@STAGE is always the release.`,
		Example: `  isle diff shop
  isle diff before shop
  isle diff shop-f1 shop-f2 -s db
  isle diff 3fa9c1 shop@production
  isle diff release:shop@staging release:shop@production`,
		Args: args(1, 2, "one environment, or two of environments, snapshots and releases"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if len(given) == 2 {
				return a.compare(cmd.Context(), &islev1.CompareRequest{From: given[0], To: given[1], Service: service})
			}
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.Diff(cmd.Context(), connect.NewRequest(&islev1.DiffRequest{Environment: ref.String(), Service: service}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(changesView(res.Msg.GetChanges()))
			}
			a.showChanges(res.Msg.GetChanges())
			return nil
		},
	}
	cmd.Flags().StringVarP(&service, "service", "s", "", "only this service")
	return cmd
}

func changesView(list []*islev1.Change) []changeJSON {
	out := []changeJSON{}
	for _, ch := range list {
		out = append(out, changeJSON{ch.GetService(), ch.GetVolume(), ch.GetPath(), ch.GetKind(), ch.GetSize()})
	}
	return out
}

// showChanges writes a line for each file.
func (a *app) showChanges(list []*islev1.Change) {
	marks := map[string]string{"added": "A", "modified": "M", "deleted": "D"}
	for _, ch := range list {
		mark := marks[ch.GetKind()]
		if mark == "" {
			mark = "?"
		}
		where := ch.GetVolume() + "/" // of an image the path is whole
		if ch.GetVolume() == "" {
			where = ""
		}
		fmt.Fprintf(a.stdout, "%s %s:%s%s\n", mark, clean(ch.GetService()), where, cleanLine(ch.GetPath()))
	}
}

type differenceJSON struct {
	Files         []changeJSON        `json:"files"`
	Packages      []packageChangeJSON `json:"packages"`
	Configuration []settingChangeJSON `json:"configuration"`
	Images        *imagesJSON         `json:"images,omitempty"` // of releases
}

type packageChangeJSON struct {
	Service string `json:"service"`
	Name    string `json:"name"`
	From    string `json:"from"`
	To      string `json:"to"`
}

type settingChangeJSON struct {
	Key  string `json:"key"`
	From string `json:"from"`
	To   string `json:"to"`
}

// compare lists what differs between two states.
func (a *app) compare(ctx context.Context, req *islev1.CompareRequest) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := c.Snapshots.Compare(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	if !stream.Receive() {
		return ended(stream.Err())
	}
	d := stream.Msg()
	if a.output == "json" {
		out := differenceJSON{changesView(d.GetFiles()), []packageChangeJSON{}, []settingChangeJSON{}, imagesView(d.GetImages())}
		for _, p := range d.GetPackages() {
			out.Packages = append(out.Packages, packageChangeJSON{p.GetService(), p.GetName(), p.GetFrom(), p.GetTo()})
		}
		for _, s := range d.GetConfiguration() {
			out.Configuration = append(out.Configuration, settingChangeJSON{s.GetKey(), s.GetFrom(), s.GetTo()})
		}
		return a.json(out)
	}
	a.showChanges(d.GetFiles())
	a.showImages(d.GetImages(), "")
	for _, p := range d.GetPackages() {
		a.showValues("package "+p.GetService()+":"+p.GetName(), p.GetFrom(), p.GetTo())
	}
	for _, s := range d.GetConfiguration() {
		a.showValues(s.GetKey(), s.GetFrom(), s.GetTo())
	}
	return nil
}

// showValues writes a line for something that has, had or gets a value.
func (a *app) showValues(what, from, to string) {
	what, from, to = cleanLine(what), cleanLine(from), cleanLine(to)
	switch {
	case from == "":
		fmt.Fprintf(a.stdout, "A %s %s\n", what, to)
	case to == "":
		fmt.Fprintf(a.stdout, "D %s %s\n", what, from)
	default:
		fmt.Fprintf(a.stdout, "M %s %s -> %s\n", what, from, to)
	}
}
